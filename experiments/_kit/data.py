"""Data sets of scikit-learn, Gaussian noise and files, their splits, and standardization."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.training import normalization, splits

NAMES = ("digits", "wine", "breast_cancer", "gaussian")
INPUT_HELP = (
    "digits, wine, breast_cancer, gaussian, or a .npy or .csv file of shape [examples, features]."
)


class DataSet(NamedTuple):
    """A classification problem as it is shipped, not standardized.

    The inputs `[examples, features]` are float64, the labels int32; classes and features are names.
    """

    x: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    features: tuple[str, ...]
    name: str


class Examples(NamedTuple):
    """Inputs `[examples, ...]` and labels `[examples]` of a part of a data set, a pytree."""

    x: Any
    labels: Any


@functools.cache
def load(name: str) -> DataSet:
    """A data set of `NAMES`; `gaussian` has 1500 examples of 30 independent features."""
    if name == "gaussian":
        generator = np.random.default_rng(0)
        x = generator.standard_normal((1500, 30))
        # The class is the largest of three random linear functions.
        labels = np.argmax(x @ generator.standard_normal((30, 3)), axis=1).astype(np.int32)
        features = tuple(f"feature {i}" for i in range(30))
        return DataSet(x, labels, ("0", "1", "2"), features, name)
    from sklearn import datasets

    bunch: Any = getattr(datasets, f"load_{name}")()
    return DataSet(
        bunch.data.astype(np.float64),
        bunch.target.astype(np.int32),
        tuple(map(str, bunch.target_names)),
        tuple(map(str, bunch.feature_names)),
        name,
    )


def inputs(name: str, examples: int, seed: int) -> np.ndarray:
    """Standardized inputs `[examples, features]`, float32, drawn without repetition.

    The name is one of `NAMES`, where `gaussian` has 64 independent features, or the path of a file.
    """
    check_inputs(name, examples)
    generator = np.random.default_rng(seed)
    # As many features as digits have, to be exchanged for them.
    if name == "gaussian":
        return generator.standard_normal((examples, 64), np.float32)
    table = load(name).x if name in NAMES else read_table(name)
    # In float64, so that a feature whose mean is large keeps the digits of its deviations.
    with jax.enable_x64(True):
        rows = np.asarray(normalization.apply(normalization.fit(table), table), np.float32)
    return rows[generator.choice(len(rows), examples, replace=False)]


def check_inputs(name: str, examples: int) -> None:
    """Raise ValueError unless `inputs` can draw so many examples; nothing is computed."""
    if isinstance(examples, bool) or examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    if name == "gaussian":
        return
    table = load(name).x if name in NAMES else read_table(name)
    if examples > len(table):
        limit = f"at most the {len(table)} rows of {name!r}"
        raise ValueError(f"examples must be {limit}, got {examples}")
    if not np.any(np.ptp(table, axis=0) > 0):
        problem = f"{name!r} has only constant features"
        raise ValueError(f"data must vary from example to example, {problem}; pass another file")


def read_table(name: str) -> np.ndarray:
    """A table of finite numbers from a `.npy` or `.csv` file, float64."""
    path = Path(name)
    loaders = {
        # Pickled arrays could run code.
        ".npy": functools.partial(np.load, allow_pickle=False),
        ".csv": functools.partial(np.loadtxt, delimiter=",", ndmin=2),
    }
    if path.suffix not in loaders:
        names = ", ".join(NAMES)
        raise ValueError(f"data must be one of {names}, or a .npy or .csv file, got {name!r}")
    try:
        table = loaders[path.suffix](path)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"data must be a file that exists, got {name!r}") from None
    except ValueError as error:
        problem = f"{name!r} cannot be read: {error}"
        raise ValueError(f"data must be a table of numbers, {problem}") from None
    if table.ndim != 2 or not np.issubdtype(table.dtype, np.number):
        raise ValueError(
            f"data must have shape [examples, features] and hold numbers, {name!r} has shape "
            f"{table.shape} of {table.dtype}"
        )
    if not np.isfinite(table).all():
        raise ValueError(
            f"data must be finite, {name!r} has {(~np.isfinite(table)).sum()} NaN or infinite "
            "values; remove or impute them"
        )
    return table.astype(np.float64)


def standardized(parts: Sequence[Examples], *, per_feature: bool = True) -> list[Examples]:
    """Standardize all parts with the statistics of the first one, the training set.

    Without `per_feature` all features share one mean and deviation, which is better where some
    hardly vary in a small training set, such as pixels at the border.
    """
    # One column means one mean and deviation of all values.
    columns = parts[0].x.shape[-1] if per_feature else 1
    fitted = normalization.fit(jnp.reshape(parts[0].x, (-1, columns)))

    def apply(x):
        return normalization.apply(fitted, x.reshape(-1, columns)).reshape(x.shape)

    return [Examples(apply(part.x), part.labels) for part in parts]


def split(
    x: Any, labels: Any, fractions: Sequence[float], *, key: jax.Array, per_feature: bool = True
) -> list[Examples]:
    """Parts of these fractions, drawn class by class and `standardized` like the first one.

    The fractions add up to 1, and the key may be traced.
    """
    x, examples = jnp.asarray(x, jnp.float32), jnp.asarray(labels)
    rows = splits.split(labels, fractions, key=key)
    parts = [Examples(x[part], examples[part]) for part in rows]
    return standardized(parts, per_feature=per_feature)
