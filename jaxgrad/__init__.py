"""jaxgrad: is a gradient right, does it survive depth, and what to change so that it does.

Everything is a pure function of arrays, keys and pytrees, to be imported into your own jitted,
vmapped or sharded code. Importing the library changes no JAX setting and starts no backend.

Modules:
  activations: a table of activation functions with their kinks and sources.
  initializers: weight initializers with the signature of `jax.nn.initializers`.
  networks: `init` and `apply` of fully connected networks over a parameter pytree.
  propagation: what a signal and a gradient do, layer by layer, in logarithms.
  regimes: measured numbers to vanishing, stable or exploding, with a confidence.
  sweeps: a pure function over a labelled grid, compiled once, in chunks, resumable.
  normalization: standardize inputs by the training set.
  checking: is a gradient right? `check_grads` is here at the top level, too.
  testing: `assert_grads` and a drop-in `check_grads` for test suites.
  plotting: figures of results, with matplotlib.
"""

from jaxgrad import (
    activations,
    checking,
    initializers,
    networks,
    normalization,
    plotting,
    propagation,
    regimes,
    sweeps,
    testing,
)
from jaxgrad.checking import check_grads

__version__ = "0.1.0"

__all__ = [
    "activations",
    "check_grads",
    "checking",
    "initializers",
    "networks",
    "normalization",
    "plotting",
    "propagation",
    "regimes",
    "sweeps",
    "testing",
]
