"""Figures of results, one file a question. Matplotlib is imported when a function is called."""

from jaxgrad.plotting._depth_map import depth_map
from jaxgrad.plotting._phase_diagram import phase_diagram

__all__ = ["depth_map", "phase_diagram"]
