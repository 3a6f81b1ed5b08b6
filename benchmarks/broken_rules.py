"""Which broken rules of JAX two gradient checkers notice, with the arguments of JAX's own tests.

Run `python -m benchmarks.broken_rules [--factors 1.01 1.001] [--rules sin lu ...] [--json FILE]`.

Every rule is multiplied by a factor for as long as a check takes: a rule of forward mode (`jvp`), a
rule of reverse mode alone (`transpose`), or that of a function with `jax.custom_jvp` (`custom`).
`jaxgrad.testing.check_grads` and `jax.test_util.check_grads` then see the same function at the same
point, with the order, modes, tolerances and step of JAX's test of that rule in float32. The factor
1 shows whether a checker complains of the rule as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, test_util
from jax.interpreters import ad

from jaxgrad import testing

CHECKERS = {"jaxgrad": testing.check_grads, "jax": test_util.check_grads}


class Rule(NamedTuple):
    """A rule of JAX, and how JAX tests it.

    Attributes:
      name: of the primitive, or for "custom" the module and name of the function.
      kind: "jvp", "transpose" or "custom".
      f, args: the function and where its derivative is checked.
      options: of `jax.test_util.check_grads`.
      bilinear: whether each argument is checked with the other one fixed.
    """

    name: str
    kind: str
    f: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]
    bilinear: bool = False

    @property
    def label(self) -> str:
        """The name and kind of the rule."""
        return f"{self.name.rpartition('.')[2]} {self.kind}"


# As in JAX's tests: normal numbers of a scale, or uniform ones, of float32.


def _normal(*shape: int, scale: float = 3.0, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return np.asarray(scale * draw, np.float32)


def _uniform(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng([seed, *shape]).uniform(low, high, shape)
    return np.asarray(draw, np.float32)


_small = functools.partial(_normal, scale=1e-3)
_positive = functools.partial(_uniform, low=1.0, high=3.0)


def _unique(*shape: int) -> np.ndarray:
    order = np.random.default_rng(0).permutation(int(np.prod(shape)))
    return order.reshape(shape).astype(np.float32)


def _eigh(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors of a defined sign, as in JAX's test."""
    values, vectors = jnp.linalg.eigh(a, symmetrize_input=True)
    # An eigenvector may be multiplied by -1.
    return values, vectors * jnp.sign(vectors[:1])


def _svd(a: jax.Array) -> tuple[jax.Array, ...]:
    """Singular values and vectors of a defined sign, as in JAX's test."""
    u, s, vh = jnp.linalg.svd(a, full_matrices=False)
    sign = jnp.sign(u[:1])
    return u * sign, s, vh * sign.T


def _qr(a: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.linalg.qr(a))


def _while(x: jax.Array) -> jax.Array:
    """A loop with a counter, as in JAX's test of its forward mode."""
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1]


def _scan(c: jax.Array, xs: jax.Array) -> Any:
    """The loop of JAX's tests of `scan`."""

    def body(c, a):
        b = jnp.cos(jnp.sum(jnp.sin(a)) + jnp.sum(jnp.cos(c)))
        return jnp.sin(c * b), b

    return lax.scan(body, c, xs)


def _cond(x: jax.Array) -> jax.Array:
    """The branches of JAX's test, of which the second is taken."""
    return lax.cond(x[0] > 10.0, lambda x: 2.0 * x, lambda x: jnp.sin(x), x)


def _gather(x: jax.Array) -> jax.Array:
    return jnp.asarray(x)[jnp.array([0, 2, 1, 2]), jnp.array([1, 1, 0, 2])]


def _scatter(method: str) -> Callable[..., jax.Array]:
    # JAX has a rule for products at different places only.
    places = jnp.array([0, 2, 4])
    return lambda x, y: getattr(jnp.asarray(x).at[places], method)(y, unique_indices=True)


def _conv(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.conv(x, w, (1, 1), "SAME", precision=lax.Precision.HIGHEST)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return lax.dot(x, y, precision=lax.Precision.HIGHEST)


# Options of JAX's tests in float32.
SECOND = {"order": 2, "modes": ("fwd", "rev")}
FIRST = {"order": 1, "modes": ("fwd", "rev")}
LINEAR = SECOND | {"eps": 1.0}
INDEXED = LINEAR | {"atol": 1e-2, "rtol": 1e-2}
REDUCED = SECOND | {"atol": 1e-1, "rtol": 1e-1, "eps": 1e-2}
SPECIAL = FIRST | {"atol": 1e-3, "rtol": 0.1, "eps": 1e-3}


def _loose(rtol: float, options: dict[str, Any] = SECOND) -> dict[str, Any]:
    return options | {"atol": {np.float32: rtol}, "rtol": {np.float32: rtol}}


def elementwise() -> Iterator[Rule]:
    """Yield rules of functions of single numbers."""
    lax_test = _loose(0.15)
    for names, draw, options in (
        (("sin",), _normal, _loose(0.5)),
        (("cos", "tanh", "logistic"), _normal, lax_test),
        (("exp", "erf", "erf_inv"), _small, lax_test),
        (("log", "log1p", "sqrt", "rsqrt"), _positive, lax_test),
        (("tan",), functools.partial(_uniform, low=-1.3, high=1.3), lax_test),
        (("asin",), functools.partial(_uniform, low=-0.9, high=0.9), lax_test),
        (("lgamma", "digamma"), _positive, SPECIAL),
    ):
        for name in names:
            yield Rule(name, "jvp", getattr(lax, name), (draw(2, 3),), options)
    normal, positive = ((draw(2, 3), draw(2, 3, seed=1)) for draw in (_normal, _positive))
    quotient = (normal[0], positive[0])
    yield Rule("igamma", "jvp", lax.igamma, positive, SPECIAL)
    yield Rule("atan2", "jvp", lax.atan2, normal, lax_test)
    yield Rule("mul", "transpose", lax.mul, normal, lax_test)
    yield Rule("div", "jvp", lax.div, quotient, _loose(0.15, FIRST))
    yield Rule("div", "transpose", lax.div, quotient, _loose(0.15, FIRST))
    yield Rule("pow", "jvp", lax.pow, positive, _loose(0.3))
    yield Rule("integer_pow", "jvp", lambda x: x**3, normal[:1], lax_test)
    chosen = functools.partial(jnp.where, _unique(2, 3) > 2)
    yield Rule("select_n", "transpose", chosen, normal, LINEAR)
    yield Rule("clamp", "jvp", lambda x: lax.clamp(-9.0, x, 9.0), normal[:1], LINEAR)
    # Functions with a rule by `jax.custom_jvp`.
    special, softplus = jax.scipy.special, "jax._src.lax.other.logaddexp"
    yield Rule("jax.nn.relu", "custom", jax.nn.relu, normal[:1], SECOND | {"order": 3})
    yield Rule(softplus, "custom", jnp.logaddexp, normal, _loose(3e-2, FIRST))
    yield Rule(softplus, "custom", jax.nn.softplus, normal[:1], SECOND)
    yield Rule("jax.scipy.special.xlogy", "custom", special.xlogy, positive, SECOND)


def arrays() -> Iterator[Rule]:
    """Yield rules of products, sums, orders, indices, loops and transforms."""
    for kind in ("jvp", "transpose"):
        options = _loose(1e-4, LINEAR)
        yield Rule("dot_general", kind, _dot, (_normal(3, 2), _normal(2, 4)), options, True)
        yield Rule("scan", kind, _scan, (_normal(4), _normal(5, 3)), SECOND | {"rtol": 2e-1})
    image, filters = _small(2, 3, 5, 4), _small(4, 3, 1, 2)
    yield Rule("conv_general_dilated", "transpose", _conv, (image, filters), INDEXED, True)
    rows, cube = (_normal(2, 3),), (_small(3, 4, 5),)
    yield Rule("reduce_sum", "transpose", lambda x: jnp.sum(x, 1), rows, REDUCED)
    yield Rule("reduce_prod", "jvp", lambda x: jnp.prod(x, 1), (_normal(2, 3, scale=1),), REDUCED)
    yield Rule("reduce_max", "jvp", lambda x: jnp.max(x, 1), rows, REDUCED)
    yield Rule("cumsum", "transpose", lax.cumsum, cube, SECOND)
    for name in ("cumprod", "cummax", "cumlogsumexp"):
        yield Rule(name, "jvp", getattr(lax, name), cube, SECOND)
    yield Rule("sort", "jvp", lax.sort, (_unique(5, 7),), SECOND | {"eps": 1e-2})
    yield Rule("gather", "transpose", _gather, (_normal(3, 4),), INDEXED)
    pair = (_normal(5), _normal(3, seed=1))
    yield Rule("scatter-add", "transpose", _scatter("add"), pair, INDEXED)
    yield Rule("scatter-mul", "jvp", _scatter("multiply"), pair, INDEXED)
    yield Rule("while", "jvp", _while, (_normal(3),), {"order": 2, "modes": ("fwd",)})
    yield Rule("cond", "jvp", _cond, (_normal(3),), SECOND)
    yield Rule("fft", "transpose", jnp.fft.rfft, (_normal(8),), _loose(0.16))


def matrices() -> Iterator[Rule]:
    """Yield rules of linear algebra."""
    triangular = np.tril(_normal(4, 4)) + 5 * np.eye(4, dtype=np.float32)
    solve, factor = lax.linalg.triangular_solve, _normal(4, 8)
    options = FIRST | {"rtol": 4e-2, "eps": 1e-3}
    yield Rule("triangular_solve", "jvp", solve, (triangular, _normal(3, 4)), options)
    yield Rule("cholesky", "jvp", jnp.linalg.cholesky, (factor @ factor.T,), SECOND)
    options = SECOND | {"atol": 5e-2, "rtol": 3e-1}
    yield Rule("lu", "jvp", jax.scipy.linalg.lu, (_normal(4, 4),), options)
    # JAX tests this rule in forward mode alone, and with a function of its own.
    yield Rule("qr", "jvp", _qr, (_normal(5, 3),), FIRST | {"atol": 3e-3})
    a = _normal(4, 4)
    size = float(np.linalg.norm(a + a.T) / 2)
    options = SECOND | {"atol": 5e-3 * size, "rtol": 0.025, "eps": 2e-5 * size}
    yield Rule("eigh", "jvp", _eigh, ((a + a.T) / 2,), options)
    yield Rule("svd", "jvp", _svd, (_normal(5, 2),), SECOND | {"rtol": 0.035, "eps": 1 / 512})


def rules() -> list[Rule]:
    """Return all rules."""
    return [*elementwise(), *arrays(), *matrices()]


@contextlib.contextmanager
def broken(rule: Rule, factor: float) -> Iterator[None]:
    """Multiply the results of a rule by `factor`; JAX's own rule is restored."""
    with contextlib.ExitStack() as stack:
        # JAX stores programs together with their derivatives.
        jax.clear_caches()
        stack.callback(jax.clear_caches)
        if rule.kind == "custom":
            module, _, name = rule.name.rpartition(".")
            function = getattr(importlib.import_module(module), name)
            stack.callback(setattr, function, "jvp", function.jvp)
            function.jvp = _scaled_result(function.jvp, factor)
            yield
            return
        if rule.kind == "jvp":
            tables, change = [ad.primitive_jvps], _scaled_result
        else:
            tables, change = (
                [ad.primitive_transposes, *_internal("fancy_transposes")],
                _scaled_first,
            )
        # The tables are indexed by objects, of which the names are known.
        primitive = next(p for p in {**tables[0], **tables[-1]} if p.name == rule.name)
        for table in (table for table in tables if primitive in table):
            stack.callback(table.__setitem__, primitive, table[primitive])
            table[primitive] = change(table[primitive], factor)
        # A rule of `jax.linearize` is the same derivative once more; without it the first is used.
        for table in _internal("primitive_linearizations") if rule.kind == "jvp" else ():
            if primitive in table:
                stack.callback(table.__setitem__, primitive, table.pop(primitive))
        yield


def _internal(name: str) -> list[dict[Any, Any]]:
    """Return a table of rules that not every version of JAX has, or none."""
    table = getattr(importlib.import_module("jax._src.interpreters.ad"), name, None)
    return [] if table is None else [table]


def _scaled_result(jvp: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """Multiply the tangents that a rule returns."""

    def rule(*args, **params):
        values, tangents = jvp(*args, **params)
        return values, _scaled(tangents, factor)

    return rule


def _scaled_first(transpose: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """Multiply the cotangents that a rule gets, in which it is linear."""
    return lambda ct, *args, **params: transpose(_scaled(ct, factor), *args, **params)


def _scaled(tree: Any, factor: float) -> Any:
    def scale(leaf):
        if isinstance(leaf, ad.Zero) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return leaf * jnp.asarray(factor, leaf.dtype)

    return jax.tree.map(scale, tree, is_leaf=lambda leaf: isinstance(leaf, ad.Zero))


def complains(checker: Callable[..., None], rule: Rule) -> tuple[bool, str]:
    """Return whether a checker raises, and the first line of its message."""
    # A step of size 1 is exact for a function that is linear in its argument.
    calls = [(rule.f, rule.args)]
    if rule.bilinear:
        x, y = rule.args
        calls = [(lambda x: rule.f(x, y), (x,)), (lambda y: rule.f(x, y), (y,))]
    try:
        for f, args in calls:
            checker(f, args, **rule.options)
    except AssertionError as error:
        return True, next((line for line in str(error).splitlines() if line.strip()), "")
    return False, ""


def main() -> None:
    """Break each rule by each factor and print which checker complains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--factors", type=float, nargs="+", default=[1.01, 1.001])
    parser.add_argument("--rules", nargs="+", help="names of rules; by default all")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    options = parser.parse_args()
    selected = [r for r in rules() if not options.rules or r.label.split()[0] in options.rules]
    factors, start = [1.0, *options.factors], time.process_time()
    columns = [(name, factor) for factor in factors for name in CHECKERS]
    print(f"{'rule':32s}" + "".join(f"{name} x{factor:g}".rjust(16) for name, factor in columns))
    table = []
    for rule in selected:
        row = {}
        for factor in factors:
            # Both checkers see the same rule at the same arguments.
            with broken(rule, factor) if factor != 1 else contextlib.nullcontext():
                for name, checker in CHECKERS.items():
                    row[name, factor] = complains(checker, rule)
        words = [_word(row[column][0], column[1]) for column in columns]
        print(f"{rule.label:32s}" + "".join(word.rjust(16) for word in words), flush=True)
        for (name, factor), (complaint, line) in row.items():
            if name == "jaxgrad" and factor == 1 and complaint:
                print(f"    {line}")
        table.append((rule.label, {f"{n} x{f:g}": value for (n, f), value in row.items()}))
    for name, factor in columns:
        count = sum(row[f"{name} x{factor:g}"][0] for _, row in table)
        words = "complains of" if factor == 1 else "notices"
        print(f"{name}, factor {factor:g}: {words} {count} of {len(table)}")
    print(f"{time.process_time() - start:.0f} s of CPU time")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


def _word(complaint: bool, factor: float) -> str:
    if factor == 1:
        return "FALSE ALARM" if complaint else "-"
    return "noticed" if complaint else "MISSED"


if __name__ == "__main__":
    main()
