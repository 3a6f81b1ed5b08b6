"""Figures of results, one file a question. Matplotlib is imported when a function is called."""

from jaxgrad.plotting._depth_map import depth_map
from jaxgrad.plotting._phase_diagram import phase_diagram
from jaxgrad.plotting._xray import xray

__all__ = ["depth_map", "phase_diagram", "xray"]
