"""Numbers of version 0.1 and how a new result is held against them. See README.md."""

import dataclasses
import enum
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FILE = Path(__file__).parent / "v0_1.npz"
# Programs were compiled in 32 parts, which decides a few last digits; see `FLAGS` in conftest.
PARTS = {"xla_cpu_parallel_codegen_split_count": 32} if jax.__version__.startswith("0.10.") else {}
FLOAT32, FLOAT64 = 1e-5, 1e-12
"""Differences that are rounding: relative to the array's largest number, or to each float64."""

# What differs from 0.1 on purpose, and why: the beginning of a name. Each is in the changelog, too.
DELIBERATE: dict[str, str] = {
    "checking.check_grads.edge/": "an infinite gradient is NONFINITE at an edge of the domain, too",
}


@functools.cache
def recorded() -> dict[str, dict[str, np.ndarray]]:
    """The arrays of 0.1, by group and by name within the group."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    with np.load(FILE, allow_pickle=False) as file:
        values = file["values"].tobytes()
        for group, rows in json.loads(file["index"].tobytes()).items():
            groups[group] = {}
            for name, (dtype, shape, start) in rows.items():
                flat = np.frombuffer(values, dtype, int(np.prod(shape)), start)
                groups[group][name] = flat.reshape(shape)
    return groups


def flatten(value: Any, name: str = "") -> dict[str, np.ndarray]:
    """Arrays of a nested result by keys, fields and positions, joined by slashes."""
    if value is None:
        return {}
    if isinstance(value, dict):
        items = value.items()
    elif hasattr(value, "_fields"):
        items = value._asdict().items()
    elif dataclasses.is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, (tuple, list)) and not all(map(_is_number, value)):
        items = enumerate(value)
    else:
        return {name: _array(value)}
    arrays = {}
    for key, item in items:
        arrays |= flatten(item, f"{name}/{key}" if name else str(key))
    return arrays


def table(dataset: Any) -> dict[str, np.ndarray]:
    """The variables and coordinates of a dataset as arrays."""
    return {name: dataset[name].values for name in [*dataset.data_vars, *dataset.coords]}


def _is_number(value):
    return isinstance(value, (int, float, complex, str)) and not isinstance(value, enum.Enum)


def _array(value):
    if isinstance(value, enum.StrEnum):
        return np.asarray(str(value))
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def difference(
    new: np.ndarray, old: np.ndarray, *, log: bool = False, single: bool = False
) -> float:
    """How many tolerances two arrays differ by; infinite for other shapes, kinds or NaN.

    Of a logarithm, a difference is the relative one of the number: near 0, too, it is rounding.
    """
    exact = old.dtype.kind not in "fc" or new.dtype.kind not in "fc"
    if new.shape != old.shape:
        return np.inf
    if exact:
        return 0.0 if np.array_equal(new, old) else np.inf
    finite = np.isfinite(old)
    if not np.array_equal(new[~finite], old[~finite], equal_nan=True):
        return np.inf
    size = np.abs(old[finite])
    if old.dtype.itemsize >= 8 and old.dtype != np.complex64 and not single:
        slack = FLOAT64 * np.maximum(size, 1.0 if log else 1e-3)
    else:
        slack = FLOAT32 * np.max(size, initial=1.0 if log else 1e-30)
    return float(np.max(np.abs(new[finite] - old[finite]) / slack, initial=0.0))


def hold(
    group: str,
    value: Any,
    *,
    tolerance: float = 1.0,
    left_out: tuple[str, ...] = (),
    single: bool = False,
) -> None:
    """Raise unless every recorded array of a group is in the result and equal to rounding.

    Args:
      group: of the record.
      value: the result of the rebuilt code, named as the record's arrays are.
      tolerance: how many times the usual rounding is let pass.
      left_out: beginnings of names that are not compared here.
      single: whether the numbers were computed in float32, in whatever type they are stored.
    """
    new, wrong = flatten(value), []
    for name, old in recorded()[group].items():
        if name.startswith(left_out) if left_out else False:
            continue
        if any(f"{group}/{name}".startswith(start) for start in DELIBERATE):
            continue
        if name not in new and old.size:
            wrong.append(f"{name}: missing among {sorted(new)}")
        if name not in new:
            continue
        log = name.split("/")[-1].startswith("log")
        size = difference(new[name], old, log=log, single=single)
        if not size <= tolerance:
            wrong.append(f"{name}: {size:.3g} tolerances\n  new {new[name]}\n  old {old}")
    assert not wrong, "\n".join([group, *wrong])
