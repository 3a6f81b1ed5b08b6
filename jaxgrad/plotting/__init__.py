"""Figures of results, one file a question. Matplotlib is imported when a function is called."""

from jaxgrad.plotting._depth_map import depth_map
from jaxgrad.plotting._phase_diagram import phase_diagram
from jaxgrad.plotting.activations import activations
from jaxgrad.plotting.diagnosis import diagnosis
from jaxgrad.plotting.input_normalization import input_normalization
from jaxgrad.plotting.norm_layers import norm_layers
from jaxgrad.plotting.trainability import trainability

__all__ = [
    "activations",
    "depth_map",
    "diagnosis",
    "input_normalization",
    "norm_layers",
    "phase_diagram",
    "trainability",
]
