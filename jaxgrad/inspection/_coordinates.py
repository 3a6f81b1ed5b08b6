"""`coordinate_check`: do signals, and their changes in training, depend on width and depth?"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import betainc

from jaxgrad import _jaxprs, _validate
from jaxgrad._numerics import log_mean_square
from jaxgrad.inspection._dataflow import split_numbers
from jaxgrad.inspection._problem import Problem, prepare
from jaxgrad.inspection._sites import Location, Plan, measured_output, plan_sites

# Exponents of theory are multiples of a half, so that below a quarter zero is the nearest one.
BORDER = 0.25
CONFIDENCE = 0.05  # largest probability that any of the verdicts is wrong


class Exponent(NamedTuple):
    """How one size depends on width or depth: as `axis ** slope`.

    Attributes:
      operation, parameter, line: of the sites, as in `Site`; `#` stands for the number of a block.
      quantity: "size" of the signal at initialization, or its "change" after all steps.
      axis: "width" or "depth".
      slope, error: of the log of the root mean square, with its standard error over seeds.
      p: probability of so clear a slope if it were just 0.25, corrected for all of them (Holm).
      verdict: "level", "grows", "vanishes", "unresolved", or "zero" where the size is.
    """

    operation: str
    parameter: str
    line: str
    quantity: str
    axis: str
    slope: float
    error: float
    p: float
    verdict: str

    def __str__(self) -> str:
        power = f"{self.axis}^{self.slope:.2f} +- {self.error:.2f}"
        text = f"{self.verdict} as {power}" if self.verdict in ("grows", "vanishes") else ""
        return text or (self.verdict if self.verdict == "zero" else f"{self.verdict} ({power})")


@dataclass(frozen=True)
class CoordinateCheck:
    """What `coordinate_check` has measured.

    Attributes:
      widths, depths: of the models.
      exponents: one for each group of sites, quantity and axis, in the order of computation.
      sizes, changes: by group of sites `(operation, parameter, line)`, the log of the root mean
        square after each step, `[seeds, widths, depths, steps + 1]`.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    exponents: tuple[Exponent, ...]
    sizes: dict[tuple[str, str, str], np.ndarray]
    changes: dict[tuple[str, str, str], np.ndarray]

    def __str__(self) -> str:
        """A table with a line for each exponent, those first that are not level."""
        order = ("grows", "vanishes", "unresolved", "zero", "level")
        rows = [
            (e.operation, e.parameter, e.quantity, str(e), e.line.rpartition("/")[2])
            for e in sorted(self.exponents, key=lambda e: order.index(e.verdict))
        ]
        titles = ("operation", "parameter", "quantity", "verdict", "line")
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in (titles, *rows)
        )


def coordinate_check(
    make: Callable[[int, int, jax.Array], tuple[Any, Callable[..., Any], Any]],
    *,
    widths: Sequence[int],
    depths: Sequence[int] = (2,),
    optimizer: optax.GradientTransformation | Callable[[int, int], optax.GradientTransformation],
    key: jax.Array,
    steps: int = 3,
    seeds: int = 5,
    progress: Callable[[int, int], Any] | None = None,
) -> CoordinateCheck:
    """Measure how signals, and their changes in training, grow with width and depth.

    A learning rate that is right for one width is right for all if neither the signal at any site
    nor its change after a few steps of training grows or vanishes with width (Yang et al. 2021,
    "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer"). Only
    the output may be smaller at initialization. Every site that `xray` measures is compared before
    and after each step on the same batch. Sites that differ by the number of a block, and
    iterations of scans, are averaged. An exponent is called level, growing or vanishing only if it
    is clearly below or above 0.25 in absolute value, since exponents of theory are multiples of a
    half.

    Args:
      make: from a width, a depth and a key, the parameters, a loss and a batch. `loss(params,
        batch)` and the batch must not depend on the key.
      widths, depths: at least two of one of them.
      optimizer: of optax, or a function from width and depth to one, for rates that depend on them.
      key: draws the keys of `make`.
      steps: of training.
      seeds: keys for each width and depth, at least 3.
      progress: called as `progress(done, total)` with numbers of models, at the start and after
        each width and depth.

    Raises:
      ValueError: if a width, a depth or a number is out of range.
      TypeError: if `make` is no function or does not return three values, or `loss` is no function
        that returns a number.

    >>> import jax, jax.numpy as jnp, optax
    >>> def make(width, depth, key):
    ...     x = jax.random.normal(jax.random.key(1), (8, width))
    ...     w = jax.random.normal(key, (width, width)) / width**0.5
    ...     return w, lambda w, x: jnp.mean((x @ w - 1) ** 2), x
    >>> check = coordinate_check(
    ...     make, widths=(16, 64, 256), optimizer=optax.adam(0.001), key=jax.random.key(0)
    ... )
    >>> [(e.quantity, e.verdict) for e in check.exponents]
    [('size', 'level'), ('change', 'grows')]
    """
    widths, depths = (_sizes(n, v) for n, v in (("widths", widths), ("depths", depths)))
    if max(len(widths), len(depths)) < 2:
        raise ValueError(f"widths must have two values or more, got {widths}; or pass depths")
    if not callable(make):
        raise TypeError(f"make must be a function, got {type(make).__name__}")
    if not callable(optimizer):
        _validate.attributes("optimizer", optimizer, ("init", "update"), "a function of optax")
    _validate.key("key", key)
    steps, seeds = _validate.integer("steps", steps, 1), _validate.integer("seeds", seeds, 3)
    keys = jax.random.split(key, seeds)
    progress = _validate.progress(progress)
    records, total = {}, len(widths) * len(depths)
    progress(0, total)
    for i, width in enumerate(widths):
        for k, depth in enumerate(depths):
            transform = optimizer
            if not isinstance(transform, optax.GradientTransformation):
                transform = transform(width, depth)
                required = ("init", "update")
                _validate.attributes("optimizer", transform, required, "a function of optax")
            records[i, k] = _one_model(make, width, depth, keys, transform, steps)
            progress(len(records), total)
    # Only a site that all models have can be compared.
    names = [name for name in records[0, 0] if all(name in record for record in records.values())]
    shape = (2, seeds, len(widths), len(depths), steps + 1)
    logs = {name: np.empty(shape) for name in names}
    for name in names:
        for (i, k), record in records.items():
            logs[name][:, :, i, k] = record[name]
    claims = [
        ((*name, quantity, axis), *_slope(logs[name][q, ..., t], values, axis))
        for name in names
        for q, (quantity, t) in enumerate((("size", 0), ("change", steps)))
        for axis, values in (("width", widths), ("depth", depths))
        if len(values) > 1
    ]
    exponents = tuple(_verdicts(claims, seeds - 1))
    sizes, changes = ({name: logs[name][q] for name in names} for q in (0, 1))
    return CoordinateCheck(widths, depths, exponents, sizes, changes)


def _sizes(name: str, values: Sequence[int]) -> tuple[int, ...]:
    sizes = _validate.integers(name, values, 1)
    _validate.distinct(name, sizes)
    return sizes


def _one_model(make, width, depth, keys, optimizer, steps) -> dict[tuple[str, str, str], Any]:
    """Return logs `[2, seeds, steps + 1]` of sizes and changes for each group of sites."""
    problems = [_problem(make, width, depth, key) for key in keys]
    first = problems[0]
    plan = plan_sites(first.program, first.call.labels)
    moved = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p.moved for p in problems))
    logs = np.asarray(_train(first, plan, optimizer, steps, moved), np.float64)
    groups: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for location, values in zip(plan.locations(), logs, strict=True):
        name = (location.operation, split_numbers(location.parameter)[0], location.line)
        groups.setdefault(name, []).append(values)
    return {name: np.mean(values, axis=0).transpose(2, 0, 1) for name, values in groups.items()}


def _problem(make, width: int, depth: int, key: jax.Array) -> Problem:
    # The rest is checked as the arguments of `xray`.
    made = make(width, depth, key)
    if not isinstance(made, tuple) or len(made) != 3:
        raise TypeError(
            f"make must return params, loss and batch, got {type(made).__name__}; return a tuple"
        )
    params, loss, batch = made
    return prepare(loss, (params, batch), 0, False)


def _train(problem: Problem, plan: Plan, optimizer, steps: int, moved: list[jax.Array]):
    """Return logs of root mean squares, `[sites, seeds, steps + 1, 2]`: sizes and changes."""
    call, fixed = problem.call, problem.fixed
    loops = [len(location.lengths) for location in plan.locations()]

    def values(leaves) -> list[jax.Array]:
        return _values(problem.program, plan, [*leaves, *fixed])[1]

    def compared(leaves, start):
        return jnp.stack(
            [
                jnp.stack([_log_rms(new, axes), _log_rms(new - old, axes)])
                for new, old, axes in zip(values(leaves), start, loops, strict=True)
            ]
        )

    def one_seed(leaves):
        start = values(leaves)

        def step(state, _):
            leaves, moments = state
            # An optimizer may treat the parameters by their names.
            gradient = problem.argument(jax.grad(call)(leaves, fixed))
            updates, moments = optimizer.update(gradient, moments, problem.argument(leaves))
            updates = jax.tree.leaves(updates)
            leaves = [leaf + change for leaf, change in zip(leaves, updates, strict=True)]
            return (leaves, moments), compared(leaves, start)

        state = (leaves, optimizer.init(problem.argument(leaves)))
        _, after = jax.lax.scan(step, state, None, length=steps)
        return jnp.concatenate([compared(leaves, start)[None], after])

    # One seed after the other, since all values of a model are stored.
    logs = jax.jit(functools.partial(jax.lax.map, one_seed))(moved)
    return jnp.moveaxis(logs, 2, 0)


def _log_rms(x: jax.Array, loops: int) -> jax.Array:
    """Return the mean over all iterations of the log of the root mean square."""
    flat = jnp.abs(x).reshape(math.prod(x.shape[:loops]), -1)
    wide = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    return jnp.mean(log_mean_square(wide, 1)) / 2


def _values(program: Any, plan: Plan, args: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Evaluate a program. Returns its outputs, and the results at the planned sites.

    Those in a scan have an axis of iterations; in branches of which one is taken there are none.
    """
    entries, measured = iter(plan.entries), []

    def apply(equation, inputs):
        entry = next(entries)
        if isinstance(entry, Plan):
            scan = equation.primitive.name == "scan"
            inner = functools.partial(_values, _jaxprs.called_program(equation), entry)
            results, values = _scan(equation.params, entry, inputs) if scan else inner(inputs)
            measured.extend(values)
            return results
        results = list(_jaxprs.bind(equation, inputs))
        if isinstance(entry, Location):
            measured.append(results[measured_output(equation) or 0])
        elif entry is not None:
            # A site whose size is NaN has no exponent.
            count = sum(len(branch.locations()) for branch in entry)
            measured.extend(count * [jnp.full((), jnp.nan)])
        return results

    return _jaxprs.evaluate(program, args, apply), measured


def _scan(params: Any, plan: Plan, inputs: list[Any]):
    consts, carry, xs = _jaxprs.split_scan_inputs(params, inputs)

    def body(state, x):
        out, measured = _values(params["jaxpr"], plan, [*consts, *state, *x])
        return out[: len(carry)], (out[len(carry) :], measured)

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    # As in the program itself.
    last, (ys, measured) = jax.lax.scan(body, carry, xs, **options)
    return [*last, *ys], measured


def _slope(logs: np.ndarray, values: tuple[int, ...], axis: str) -> tuple[float, float]:
    """Return the slope of logs `[seeds, widths, depths]` along an axis, and its standard error."""
    # A change that is zero, as without a gradient, has no exponent.
    x = np.log(values) - np.mean(np.log(values))
    if np.isneginf(logs).all():
        return -math.inf, 0.0
    if not np.isfinite(logs).all():
        return math.nan, math.nan
    slopes = np.mean(logs, axis=2 if axis == "width" else 1) @ x / (x @ x)
    return float(slopes.mean()), float(slopes.std(ddof=1) / math.sqrt(len(slopes)))


def _verdicts(claims: list[tuple[tuple[str, str, str, str, str], float, float]], freedom: int):
    """Decide all claims together, by Holm's rule, from the most to the least certain one."""
    chances = []
    for _, slope, error in claims:
        distance = abs(abs(slope) - BORDER)
        t = distance / error if error > 0 else math.inf
        # Student's distribution: the probability of a larger t.
        chance = betainc(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2
        chances.append(float(chance) if math.isfinite(slope) else 1.0)
    # Each p is multiplied by the number of claims that are not more certain.
    order, bound, corrected = np.argsort(chances), 0.0, {}
    tested = sum(math.isfinite(slope) for _, slope, _ in claims)
    for rank, i in enumerate(order):
        bound = max(bound, min(1.0, max(tested - rank, 1) * chances[i]))
        corrected[int(i)] = bound
    for i, (place, slope, error) in enumerate(claims):
        if slope == -math.inf:
            verdict = "zero"
        elif not corrected[i] <= CONFIDENCE:
            verdict = "unresolved"
        elif abs(slope) < BORDER:
            verdict = "level"
        else:
            verdict = "grows" if slope > 0 else "vanishes"
        yield Exponent(*place, slope, error, corrected[i], verdict)
