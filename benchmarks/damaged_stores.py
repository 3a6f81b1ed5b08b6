"""Damage the files of a sweep's store in random ways, and count what is read in silence.

Run `python -m benchmarks.damaged_stores`. Each time one file of a finished store is damaged: a bit
is flipped, the file is removed, shortened, emptied, exchanged for another or overwritten by it, or
a value in the metadata is edited. Then all results are read.
"""

import argparse
import collections
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import xarray

from jaxgrad import sweeps
from jaxgrad.sweeps import Variable

OUTCOMES = ("error", "not computed", "unchanged", "SILENT")


def cell(key: Any, point: Any) -> dict[str, Any]:
    """Return values of several kinds; some chunks are all zero or all NaN."""
    walk = jnp.cumsum(jax.random.normal(key, (3,), jnp.float32))
    late = point["seed"] > 2
    return {
        "walk": jnp.where(late & (point["scale"] > 1), jnp.nan, walk),
        "count": jnp.int32(late) * point["seed"],
        "flag": walk[0] > 0,
    }


def create(path: Path) -> xarray.Dataset:
    """Create the store that is damaged, and return what it holds."""
    axes = {"kind": ["a", "b"], "scale": [0.5, 2.5, 3.0], "seed": range(5)}
    variables = {
        "walk": Variable(("step",), "m", "a walk"),
        "count": Variable(),
        "flag": Variable(),
    }
    options = {"coords": {"step": ["x", "y", "z"]}, "units": {"scale": "m"}, "config": {"a": 1}}
    key = jax.random.key(0)
    # Chunks at the end of an axis are smaller.
    sweeps.run(cell, axes, variables, key=key, store=path, chunk_cells=3, static="kind", **options)
    return sweeps.open_store(path).load()


def _flip_bit(draw: random.Random, file: Path, other: Path) -> None:
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def _remove(draw: random.Random, file: Path, other: Path) -> None:
    file.unlink()


def _shorten(draw: random.Random, file: Path, other: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: draw.randrange(len(data))])


def _empty(draw: random.Random, file: Path, other: Path) -> None:
    file.write_bytes(b"")


def _zero(draw: random.Random, file: Path, other: Path) -> None:
    # As after a crash of a file system that had written the size only.
    file.write_bytes(bytes(file.stat().st_size))


def _exchange(draw: random.Random, file: Path, other: Path) -> None:
    data = file.read_bytes(), other.read_bytes()
    file.write_bytes(data[1])
    other.write_bytes(data[0])


def _overwrite(draw: random.Random, file: Path, other: Path) -> None:
    file.write_bytes(other.read_bytes())


def _edit(draw: random.Random, file: Path, other: Path) -> None:
    value = json.loads(file.read_bytes())
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for name, inner in list(items):
            places.append((node, name))
            if isinstance(inner, (dict, list)):
                collect(inner)

    collect(value)
    node, name = draw.choice(places)
    old = node[name]
    changes: list[Any] = [None, 0, 1, "x", [], {}, True, "float64", "uint8", [1]]
    if isinstance(old, str) and len(old) > 1:
        index = draw.randrange(len(old))
        changes += 5 * [old[:index] + draw.choice("0123456789abc") + old[index + 1 :]]
    if isinstance(old, list):
        changes += 5 * [old[::-1]]
    node[name] = draw.choice(changes)
    if draw.random() < 0.2:
        del node[name]
    file.write_text(json.dumps(value, indent=2))


DAMAGES: dict[str, Callable[[random.Random, Path, Path], None]] = {
    "flipped bit": _flip_bit,
    "missing file": _remove,
    "shortened file": _shorten,
    "empty file": _empty,
    "zeros": _zero,
    "exchanged files": _exchange,
    "overwritten file": _overwrite,
    "edited metadata": _edit,
}


def damage(kind: str, draw: random.Random, files: list[Path]) -> list[Path]:
    """Damage one of the files of a store, and return those that have changed."""
    metadata = [path for path in files if path.name == "zarr.json"]
    file = draw.choice(metadata if kind == "edited metadata" else files)
    # A file of the same array, or any other one.
    near = [path for path in files if path.parent.parent == file.parent.parent]
    other = draw.choice(near if draw.random() < 0.5 else files)
    DAMAGES[kind](draw, file, other)
    return [file, other]


def outcome(store: Path, whole: xarray.Dataset) -> str:
    """Read all results and compare them with those that were computed."""
    try:
        table = sweeps.open_store(store).load()
    except ValueError:
        return "error"
    if table.identical(whole):
        return "unchanged"
    masked = whole.where(table["computed"])
    names = [name for name in whole.data_vars if name != "computed"]
    same = all(table[name].where(table["computed"]).identical(masked[name]) for name in names)
    same &= table.attrs == whole.attrs and table.coords.identical(whole.coords)
    return "not computed" if same and not table["computed"].all() else "SILENT"


def count(times: int, seed: int = 0) -> dict[str, collections.Counter[str]]:
    """Return how often each kind of damage had each outcome."""
    draw, counts = random.Random(seed), {kind: collections.Counter() for kind in DAMAGES}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "sweep"
        whole = create(store)
        files = {path: path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}
        for time in range(times):
            kind = list(DAMAGES)[time % len(DAMAGES)]
            changed = damage(kind, draw, list(files))
            result = outcome(store, whole)
            counts[kind][result] += 1
            if result == "SILENT":
                print(f"SILENT: {kind} of {changed[0].relative_to(store)}")
            for path in changed:
                path.write_bytes(files[path])
    return counts


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=2000, help="number of damaged stores")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts = count(options.times, options.seed)
    print(f"{'':<18}" + "".join(f"{name:>14}" for name in OUTCOMES))
    for kind, outcomes in counts.items():
        print(f"{kind:<18}" + "".join(f"{outcomes[name]:>14}" for name in OUTCOMES))
    total = sum((counts[kind] for kind in DAMAGES), collections.Counter())
    print(f"{'all':<18}" + "".join(f"{total[name]:>14}" for name in OUTCOMES))


if __name__ == "__main__":
    main()
