"""What must be equal for a store to be resumed, and how two such descriptions differ."""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

from jaxgrad.sweeps import _grid

FORMAT = 2
"""Of stores; those of 0.1 have no number, no checksums, and labels hashed by CRC-32."""
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_threefry_partitionable")


def describe(grid, variables, outputs, labels, units, config, shared) -> dict[str, Any]:
    """Return all on which the results of a sweep depend, as JSON values."""
    key, args = shared
    leaves, structure = jax.tree_util.tree_flatten_with_path(args)
    # Texts and booleans are never traced; stores without static numbers have no entry.
    untraced = {name: axis.labels[0] for name, axis in grid.items() if axis.traced is None}
    static = sorted(name for name, label in untraced.items() if type(label) in (int, float))
    return {
        "format": FORMAT,
        "cell_ids": _grid.CELL_IDS,
        "axes": {name: axis.labels for name, axis in grid.items()},
        "axis_order": list(grid),
        **({"static": static} if static else {}),
        "variables": {
            name: variables[name]._asdict() | {"shape": out.shape, "dtype": str(out.dtype)}
            for name, out in outputs.items()
        },
        "coords": labels,
        "units": units,
        "config": config,
        "key": jax.random.key_data(key).tolist(),
        # Arrays may be large; their hashes tell them apart.
        "args": {jax.tree_util.keystr(path): _hash(leaf) for path, leaf in leaves},
        # Addresses of functions differ from process to process.
        "structure": re.sub(r" at 0x[0-9a-f]+", "", str(structure)),
        "settings": {name: _setting(name) for name in _SETTINGS},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute a cell."""
    # The package itself cannot be imported by its parts.
    modules = {"jaxgrad": sys.modules["jaxgrad"], "jax": jax, "jaxlib": jaxlib.version, "numpy": np}
    return {name: vars(module)["__version__"] for name, module in modules.items()}


def _setting(name: str) -> Any:
    value = getattr(jax.config, name)
    return value if value is None or isinstance(value, bool) else str(value)


def _hash(leaf: jax.Array) -> str:
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    values = np.asarray(jax.random.key_data(leaf) if typed else leaf)
    return f"{leaf.dtype}{list(leaf.shape)} {hashlib.sha256(values.tobytes()).hexdigest()[:16]}"


def _of_0_1(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the description as version 0.1 wrote it."""
    added = ("format", "cell_ids", "structure", "settings", "versions", "static")
    old = {name: value for name, value in identity.items() if name not in added}
    return old | {"args": list(identity["args"].values())}


def check(store: str, old: dict[str, Any], new: dict[str, Any], other_versions: bool) -> None:
    """Raise ValueError if a store's description is not the one of this sweep."""
    text = json.dumps(new if "format" in old else _of_0_1(new))
    # The text tells 1 from 1.0, and is compared faster than a million labels one by one.
    if text == json.dumps(old):
        return
    before, now = dict(old), json.loads(text)
    pairs = before.pop("versions", {}), now.pop("versions", {})
    for place, *values in _differences(before, now, ""):
        difference = "{} in the store, {} now".format(*map(_shown, values))
        remedy = "pass another path, or delete it"
        axis = place.removeprefix("axes.").partition("[")[0]
        if place.startswith("axes.") and set(before["axes"].get(axis, [])) < set(now["axes"][axis]):
            remedy = "sweep the new values alone to another path, and join both by xarray.concat"
        raise ValueError(f"store {store!r} holds another sweep ({place}: {difference}); {remedy}")
    if not other_versions and pairs[0] != pairs[1]:
        text = ", ".join(
            f"{place}: {_shown(a)} in the store, {_shown(b)} now"
            for place, a, b in _differences(*pairs, "versions")
        )
        remedy = "pass other_versions=True to continue it all the same, or another path"
        raise ValueError(f"store {store!r} was begun by other versions ({text}); {remedy}")


_NOTHING = object()


def _shown(value: Any) -> str:
    return "nothing" if value is _NOTHING else json.dumps(value)


def _differences(old: Any, new: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield places in nested JSON values, such as `axes.x[2]`, and the two values there."""
    # Name the first element of a list that only one of them has.
    old, new = (
        type(other)() if value is _NOTHING and isinstance(other, (dict, list)) else value
        for value, other in ((old, new), (new, old))
    )
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            inner = f"{place}.{name}" if place and name[:1] != "[" else f"{place}{name}"
            yield from _differences(old.get(name, _NOTHING), new.get(name, _NOTHING), inner)
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            a, b = (part[index] if index < len(part) else _NOTHING for part in (old, new))
            yield from _differences(a, b, f"{place}[{index}]")
    # In Python 1 equals 1.0 and True.
    elif (type(old), old) != (type(new), new):
        yield place, old, new


def binding(identity: dict[str, Any]) -> bytes:
    """Return what binds the digest of a chunk to its sweep, whatever the versions."""
    bound = {name: value for name, value in identity.items() if name != "versions"}
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).digest()
