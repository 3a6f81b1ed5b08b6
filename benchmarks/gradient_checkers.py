"""Gradient checkers over a corpus of right and wrong gradients.

Run `python -m benchmarks.gradient_checkers [--seeds N] [--checker NAME] [--case TEXT] [--verbose]`.

Each checker sees every case of `benchmarks.gradient_corpus`. An alarm at a right gradient is a
false alarm, a wrong gradient passed is a miss. A crash counts as an alarm and is said.

- `jaxgrad`: `jaxgrad.check_grads` with its defaults.
- `jax`: `jax.test_util.check_grads` with its default tolerances, reverse mode.
- `chex`: `chex.assert_numerical_grads` with its default tolerance, reverse mode, since forward mode
  refuses any `custom_vjp`. Left out where chex is not installed.
- `gradcheck`: the rule of `torch.autograd.gradcheck`: in float64, step 1e-6, every element of the
  Jacobian within 1e-5 plus 1e-3 of its size; deterministic; a zero cotangent gives zeros. At most
  200 elements of each leaf, drawn at random.
- `relative error`: the rule of the course notes, in float64: step 1e-4, wrong if the relative error
  of the whole gradient exceeds 1e-5.

All but the first get the function with every leaf and argument that has no gradient closed over,
the last two with complex numbers as their real and imaginary parts, and `relative error` with its
outputs summed. For the second order, the last two check the gradient along a fixed cotangent.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import test_util

import jaxgrad
from benchmarks.gradient_corpus import CASES, Case
from jaxgrad.checking.finite_differences import central_difference, relative_error

GRADCHECK_ELEMENTS = 200


class Verdict(NamedTuple):
    """What a checker says of a case: alarm or not, the worst leaf if it names one, the crash."""

    alarm: bool
    leaf: str | None = None
    crash: str | None = None


class Problem(NamedTuple):
    """A case as a function of the leaves that have a gradient.

    Attributes:
      f: maps a list of arrays to a pytree of numbers, without auxiliary data.
      leaves: where.
      paths: `jax.tree_util.keystr` of each leaf in what `jax.grad` returns.
    """

    f: Callable[[list[Any]], Any]
    leaves: list[Any]
    paths: list[str]


def problem(case: Case, f: Callable[..., Any], args: tuple[Any, ...]) -> Problem:
    """Closes over every argument and leaf that has no gradient, and drops auxiliary data."""
    argnums = case.argnums if isinstance(case.argnums, tuple) else (case.argnums,)
    tree = args[argnums[0]] if isinstance(case.argnums, int) else tuple(args[i] for i in argnums)
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    where = [i for i, (_, leaf) in enumerate(flat) if jnp.issubdtype(_dtype(leaf), jnp.inexact)]

    def closed(leaves):
        values = [leaf for _, leaf in flat]
        for i, leaf in zip(where, leaves, strict=True):
            values[i] = leaf
        filled = jax.tree.unflatten(structure, values)
        full = list(args)
        for i, arg in zip(
            argnums, filled if isinstance(case.argnums, tuple) else (filled,), strict=True
        ):
            full[i] = arg
        out = f(*full)
        return out[0] if case.has_aux else out

    leaves = [jnp.asarray(flat[i][1]) for i in where]
    return Problem(closed, leaves, [jax.tree_util.keystr(flat[i][0]) for i in where])


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def by_jaxgrad(case: Case, f: Callable[..., Any], args: tuple[Any, ...]) -> Verdict:
    """`jaxgrad.check_grads`."""
    report = jaxgrad.check_grads(
        f,
        *args,
        argnums=case.argnums,
        has_aux=case.has_aux,
        holomorphic=case.holomorphic,
        order=case.order,
    )
    return Verdict(not report.ok, report.leaves[0].path if report.leaves else None)


def by_jax(case: Case, f: Callable[..., Any], args: tuple[Any, ...]) -> Verdict:
    """`jax.test_util.check_grads`."""
    posed = problem(case, f, args)
    try:
        test_util.check_grads(posed.f, (posed.leaves,), order=case.order, modes=("rev",))
    except AssertionError:
        return Verdict(True)
    return Verdict(False)


def by_chex(case: Case, f: Callable[..., Any], args: tuple[Any, ...]) -> Verdict:
    """`chex.assert_numerical_grads`."""
    import chex  # pyright: ignore[reportMissingImports]

    posed = problem(case, f, args)
    try:
        chex.assert_numerical_grads(
            lambda *leaves: posed.f(list(leaves)), posed.leaves, order=case.order, modes=("rev",)
        )
    except AssertionError:
        return Verdict(True)
    return Verdict(False)


def _real_float64(posed: Problem, order: int) -> Problem:
    """The problem in float64, complex leaves and outputs as their parts, outputs raveled.

    For the second order, the function is the gradient along a fixed random cotangent.
    """
    is_complex = [jnp.iscomplexobj(leaf) for leaf in posed.leaves]

    def split(x):
        x = jnp.ravel(x)
        return jnp.concatenate([x.real, x.imag]) if jnp.iscomplexobj(x) else x

    def f(leaves):
        pairs = zip(leaves, is_complex, strict=True)
        joined = [jax.lax.complex(x[0], x[1]) if pair else x for x, pair in pairs]
        return jnp.concatenate([split(y) for y in jax.tree.leaves(posed.f(joined))])

    leaves = [
        jnp.stack([x.real, x.imag]).astype(jnp.float64) if pair else x.astype(jnp.float64)
        for x, pair in zip(posed.leaves, is_complex, strict=True)
    ]
    if order == 1:
        return Problem(f, leaves, posed.paths)

    def gradient(x):
        out, pullback = jax.vjp(f, x)
        return jnp.concatenate([g.ravel() for g in pullback(_cotangent(out))[0]])

    return Problem(gradient, leaves, posed.paths)


def _cotangent(out: jax.Array) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(out.shape), out.dtype)


def by_gradcheck(case: Case, f: Callable[..., Any], args: tuple[Any, ...]) -> Verdict:
    """The rule of `torch.autograd.gradcheck`, in JAX."""
    with jax.enable_x64(True):
        posed = _real_float64(problem(case, f, args), case.order)
        out, pullback = jax.vjp(posed.f, posed.leaves)
        rows = jax.vmap(pullback)(jnp.eye(out.size, dtype=out.dtype))[0]
        again = jax.vmap(pullback)(jnp.eye(out.size, dtype=out.dtype))[0]
        silent = pullback(jnp.zeros_like(out))[0]
        generator = np.random.default_rng(0)
        worst, excess = None, 0.0
        for i, (path, leaf) in enumerate(zip(posed.paths, posed.leaves, strict=True)):
            chosen = jnp.asarray(generator.permutation(leaf.size)[:GRADCHECK_ELEMENTS], jnp.int64)

            def column(element, i=i, leaf=leaf):
                step = jnp.zeros(leaf.size, leaf.dtype).at[element].set(1e-6).reshape(leaf.shape)
                ahead, behind = (
                    posed.f([*posed.leaves[:i], moved, *posed.leaves[i + 1 :]])
                    for moved in (leaf + step, leaf - step)
                )
                return (ahead - behind) / 2e-6

            if not leaf.size:
                continue
            numeric = jax.lax.map(column, chosen, batch_size=32)
            analytic = rows[i].reshape(out.size, leaf.size)[:, chosen].T
            beyond = jnp.abs(numeric - analytic) / (1e-5 + 1e-3 * jnp.abs(numeric))
            beyond = float(jnp.max(jnp.where(jnp.isnan(beyond), jnp.inf, beyond)))
            if not (jnp.array_equal(rows[i], again[i]) and jnp.all(silent[i] == 0)):
                beyond = np.inf
            if beyond > excess:
                worst, excess = path, beyond
        return Verdict(excess > 1, worst)


def by_relative_error(case: Case, f: Callable[..., Any], args: tuple[Any, ...]) -> Verdict:
    """The rule of the course notes, of the sum of the outputs."""
    with jax.enable_x64(True):
        posed = _real_float64(problem(case, f, args), case.order)
        total = lambda leaves: jnp.sum(posed.f(leaves))  # noqa: E731
        numeric = central_difference(total, posed.leaves)
        error = relative_error(numeric, jax.grad(total)(posed.leaves))
        return Verdict(not bool(error <= 1e-5))


def checkers() -> dict[str, Callable[[Case, Callable[..., Any], tuple[Any, ...]], Verdict]]:
    """Every checker that is installed, by name."""
    found = {
        "jaxgrad": by_jaxgrad,
        "jax": by_jax,
        "chex": by_chex,
        "gradcheck": by_gradcheck,
        "relative error": by_relative_error,
    }
    if importlib.util.find_spec("chex") is None:
        del found["chex"]
    return found


class Outcome(NamedTuple):
    """One checker's verdict on one case with one seed."""

    case: Case
    seed: int
    verdict: Verdict
    seconds: float


def judge(
    check: Callable[[Case, Callable[..., Any], tuple[Any, ...]], Verdict],
    cases: list[Case],
    seeds: int,
) -> Iterator[Outcome]:
    """Puts every case to a checker, with fresh functions and arguments for every seed."""
    for seed in range(seeds):
        for index, case in enumerate(cases):
            f, args = case.make(jax.random.fold_in(jax.random.key(seed), index))
            start = time.perf_counter()
            try:
                verdict = check(case, f, args)
            except Exception as error:
                lines = str(error).splitlines()
                verdict = Verdict(True, crash=f"{type(error).__name__}: {(lines or [''])[0]}"[:100])
            yield Outcome(case, seed, verdict, time.perf_counter() - start)
        jax.clear_caches()


def row(name: str, outcomes: list[Outcome]) -> list[str]:
    """A checker's line of the table."""
    right = [o for o in outcomes if o.case.right]
    wrong = [o for o in outcomes if not o.case.right]
    false = [o for o in right if o.verdict.alarm]
    crashed = sum(o.verdict.crash is not None for o in false)
    caught = [o for o in wrong if o.verdict.alarm]
    named = [o for o in caught if o.case.leaf is not None]
    hits = sum(o.verdict.leaf == o.case.leaf for o in named)
    names = any(o.verdict.leaf is not None for o in outcomes)
    seconds = [o.seconds for o in outcomes]
    return [
        name,
        f"{len(false)} of {len(right)}" + (f" ({crashed} crashed)" if crashed else ""),
        f"{len(wrong) - len(caught)} of {len(wrong)}",
        f"{hits} of {len(named)}" if names else "-",
        f"{statistics.median(seconds):.2f}" if seconds else "-",
        f"{sum(seconds):.0f}",
    ]


def table(rows: list[list[str]]) -> str:
    """The rows under their headings, in columns."""
    heads = ["checker", "false alarms", "misses", "right leaf", "median s", "total s"]
    lines = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _mistakes(name: str, outcomes: list[Outcome]) -> str:
    lines = []
    for o in outcomes:
        kind = None
        if o.case.right == o.verdict.alarm:
            kind = "false alarm" if o.case.right else "missed"
        elif o.case.leaf is not None and o.verdict.leaf not in (None, o.case.leaf):
            kind = f"leaf {o.verdict.leaf!r}, not {o.case.leaf!r}"
        if kind:
            crash = f" ({o.verdict.crash})" if o.verdict.crash else ""
            lines.append(f"  {o.case.name}, seed {o.seed}: {kind}{crash}")
    return "\n".join([f"{name}:", *lines])


def main() -> None:
    """Prints the table."""
    found = checkers()
    parser = argparse.ArgumentParser(description="Gradient checkers over a corpus of gradients.")
    parser.add_argument("--seeds", type=int, default=1, help="how often each case is drawn")
    parser.add_argument("--checker", choices=list(found), help="this one only")
    parser.add_argument("--case", default="", help="cases whose name contains this only")
    parser.add_argument("--verbose", action="store_true", help="name the cases got wrong")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = [case for case in CASES if options.case in case.name]
    rows = []
    for name in [options.checker] if options.checker else list(found):
        outcomes = list(judge(found[name], cases, options.seeds))
        rows.append(row(name, outcomes))
        if options.verbose:
            print(_mistakes(name, outcomes), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
