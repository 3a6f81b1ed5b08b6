"""Figures of results, one file a question. Matplotlib is imported when a function is called."""

from jaxgrad.plotting._depth_map import depth_map
from jaxgrad.plotting._phase_diagram import phase_diagram
from jaxgrad.plotting.activations import activations
from jaxgrad.plotting.data_splits import data_splits
from jaxgrad.plotting.diagnosis import diagnosis
from jaxgrad.plotting.input_normalization import input_normalization
from jaxgrad.plotting.norm_layers import norm_layers
from jaxgrad.plotting.regularization import regularization
from jaxgrad.plotting.trainability import trainability

__all__ = [
    "activations",
    "data_splits",
    "depth_map",
    "diagnosis",
    "input_normalization",
    "norm_layers",
    "phase_diagram",
    "regularization",
    "trainability",
]
