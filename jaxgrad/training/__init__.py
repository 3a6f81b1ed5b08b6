"""Train well: splits of the data, a whole run as one function, what its errors say.

- `fit`: a training run as a pure function, for `jit` and `vmap`; returns `Fit`, and shows a
  monitor each `Step`.
- `splits`: train, dev and test sets by size, stratified; are two sets of one distribution?
- `bias_variance`: from train and dev error to what to do next.
- `monitoring`: norms of each layer and what its units do, for `monitor` and `evaluate`.
- `diagnosis`: from the record of a run to what ails it, in words; `faults`: its thresholds.
- `search`: hyper-parameters at random on the right scale, coarse to fine.
- `schedules`: what optax lacks of the ways to let a rate fall.
"""

from jaxgrad.training import (
    bias_variance,
    diagnosis,
    faults,
    monitoring,
    schedules,
    search,
    splits,
)
from jaxgrad.training.fitting import Fit, Step, fit

__all__ = [
    "Fit",
    "Step",
    "bias_variance",
    "diagnosis",
    "faults",
    "fit",
    "monitoring",
    "schedules",
    "search",
    "splits",
]
