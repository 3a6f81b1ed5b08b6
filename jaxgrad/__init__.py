"""jaxgrad: is a gradient right, does it survive depth, and what to change so that it does.

Everything is a pure function of arrays, keys and pytrees, to be imported into your own jitted,
vmapped or sharded code. Importing the library changes no JAX setting and starts no backend.

Modules:
  activations: a table of activation functions with their kinks and sources.
  theory: what mean-field theory says: fixed points, slopes, critical points, finite width.
  initializers: weight initializers with the signature of `jax.nn.initializers`.
  layers: dense, convolution, norms, dropout, residual: one protocol, open to layers of your own.
  propagation: what a signal and a gradient do with depth, measured and predicted, in logarithms.
  regimes: measured numbers to vanishing, stable or exploding, with a confidence.
  sweeps: a pure function over a labelled grid, compiled once, in chunks, resumable.
  training: whole runs as functions; data sets, regularization, monitoring, diagnosis, search.
  checking: is a gradient right? `check_grads` is here at the top level, too.
  inspection: any program opened up: `xray` measures signals and gradients, `audit` checks
    derivative rules; both are here at the top level, too.
  testing: `assert_grads`, `assert_expectation` and a drop-in `check_grads` for test suites.
  plotting: figures of results, with matplotlib.
"""

from jaxgrad import (
    activations,
    checking,
    initializers,
    inspection,
    layers,
    plotting,
    propagation,
    regimes,
    sweeps,
    testing,
    theory,
    training,
)
from jaxgrad.checking import check_grads
from jaxgrad.inspection import audit, prescribe, xray

__version__ = "0.2.0"

__all__ = ["activations", "checking", "initializers", "inspection", "layers", "plotting"]
__all__ += ["propagation", "regimes", "sweeps", "testing", "theory", "training"]
__all__ += ["audit", "check_grads", "prescribe", "xray"]
