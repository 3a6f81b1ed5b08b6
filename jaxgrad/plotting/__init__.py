"""Figures of results, one file a question. Matplotlib is imported when a function is called."""

from jaxgrad.plotting.activations import activations
from jaxgrad.plotting.bias_variance import bias_variance
from jaxgrad.plotting.data_splits import data_splits
from jaxgrad.plotting.depth_variance import depth_variance
from jaxgrad.plotting.diagnosis import diagnosis
from jaxgrad.plotting.gradient_check import (
    gradient_check_dropout,
    gradient_check_kinks,
    gradient_check_regulariser,
    gradient_check_steps,
    gradient_check_training,
)
from jaxgrad.plotting.hyperparameters import hyperparameters
from jaxgrad.plotting.input_normalization import input_normalization
from jaxgrad.plotting.norm_layers import norm_layers
from jaxgrad.plotting.phase_diagram import phase_diagram
from jaxgrad.plotting.regularization import regularization
from jaxgrad.plotting.trainability import trainability

__all__ = [
    "activations",
    "bias_variance",
    "data_splits",
    "depth_variance",
    "diagnosis",
    "gradient_check_dropout",
    "gradient_check_kinks",
    "gradient_check_regulariser",
    "gradient_check_steps",
    "gradient_check_training",
    "hyperparameters",
    "input_normalization",
    "norm_layers",
    "phase_diagram",
    "regularization",
    "trainability",
]
