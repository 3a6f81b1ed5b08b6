"""Training: a whole run as one function, data sets, regularization, monitoring and diagnosis.

- `fit`: a training run as a pure function that returns a `Fit`; a monitor gets each `Step`.
- `largest_curvature`, `largest_learning_rate`: the largest eigenvalue of the Hessian, and the rate
  of gradient descent that curvature allows.
- `normalization`: standardize inputs with the statistics of the training set.
- `splits`: stratified train, dev and test sets; tests whether two sets have one distribution.
- `augmentation`: random changes of images.
- `regularization`: penalties on weights, dropout, early stopping.
- `schedules`: learning-rate schedules that optax does not have.
- `search`: random hyper-parameter search, from coarse to fine.
- `monitoring`: norms of each layer and statistics of its units, for `monitor` and `evaluate`.
- `diagnosis`: faults of a run, from its records.
- `bias_variance`: high bias or high variance, from train and dev error.

Bad arguments raise ValueError or TypeError, which name them, before anything is compiled.
"""

from jaxgrad.training import (
    augmentation,
    bias_variance,
    diagnosis,
    monitoring,
    normalization,
    regularization,
    schedules,
    search,
    splits,
)
from jaxgrad.training._curvature import Curvature, largest_curvature, largest_learning_rate
from jaxgrad.training._fit import Fit, Step, fit

__all__ = [
    "Curvature",
    "Fit",
    "Step",
    "augmentation",
    "bias_variance",
    "diagnosis",
    "fit",
    "largest_curvature",
    "largest_learning_rate",
    "monitoring",
    "normalization",
    "regularization",
    "schedules",
    "search",
    "splits",
]
