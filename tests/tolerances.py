"""How closely two computations of one number must agree, by dtype."""

import jax.numpy as jnp
import numpy as np


def rtol(dtype) -> float:
    """A hundred roundings."""
    return 100 * float(jnp.finfo(dtype).eps)


def within_errors(sample, expected, k=3.0):
    """Assert that the mean over the first axis lies within `k` standard errors of `expected`."""
    sample = np.asarray(sample, np.float64)
    error = sample.std(axis=0, ddof=1) / np.sqrt(len(sample))
    z = (sample.mean(axis=0) - expected) / error
    assert np.all(np.abs(z) < k), f"mean {sample.mean(axis=0)}, expected {expected}, z {z}"
