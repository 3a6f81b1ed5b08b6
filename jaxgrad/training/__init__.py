"""Train well: splits of the data, a whole run as one function, what its errors say.

- `fit`: a training run as a pure function, for `jit` and `vmap`; returns `Fit`, and shows a
  monitor each `Step`.
- `splits`: train, dev and test sets by size, stratified; are two sets of one distribution?
- `bias_variance`: from train and dev error to what to do next.
- `search`: hyper-parameters at random on the right scale, coarse to fine.
- `schedules`: what optax lacks of the ways to let a rate fall.
"""

from jaxgrad.training import bias_variance, schedules, search, splits
from jaxgrad.training.fitting import Fit, Step, fit

__all__ = ["Fit", "Step", "bias_variance", "fit", "schedules", "search", "splits"]
