"""Statistics of signals and cotangents at many operations, without storing either.

A tap is the identity. Its derivative rule returns the cotangent unchanged, and as the "gradient"
with respect to a slot of zeros the statistics of that cotangent. One backward pass then returns the
statistics at all taps. Within a scan the slots are scanned inputs, so each iteration has its own.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad import _jaxprs
from jaxgrad._numerics import float_eps, log_mean_square
from jaxgrad.inspection._sites import Location, Plan, measured_output

# The bounds of a function's values.
BOUNDS = {"tanh": (-1, 1), "erf": (-1, 1), "logistic": (0, 1)}


class Statistics(NamedTuple):
    """Statistics of one array; each field has one axis for each enclosing scan.

    Attributes:
      log_mean_square: natural log of the mean square of the finite elements; -inf if all are zero.
      log_largest: natural log of the largest finite absolute value.
      zeros: share of elements that are zero.
      non_finite: share of elements that are infinite or NaN.
    """

    log_mean_square: Any
    log_largest: Any
    zeros: Any
    non_finite: Any


class Details(NamedTuple):
    """What else is measured at an operation; NaN where it means nothing.

    Attributes:
      log_weight: natural log of the mean square of the parameter that is applied.
      input_zeros: share of zeros among the elements of the signal that it is applied to.
      dead: share of units of a non-linear function that are zero for all examples. A unit is an
        index of the last axis.
      saturated: share of elements of a bounded function that are within 1 % of its range from a
        bound.
    """

    log_weight: Any
    input_zeros: Any
    dead: Any
    saturated: Any


def details(location: Location, inputs: Sequence[Any], result: jax.Array) -> Details:
    """Return what is measured beside the statistics of a result, in float32."""
    nothing = jnp.float32(jnp.nan)
    weight, zeros, dead, saturated = nothing, nothing, nothing, nothing
    name, i = location.operation, location.weight
    if i >= 0 and len(inputs) == 2 and float_eps(inputs[i].dtype):
        weight = measure(inputs[i]).log_mean_square.astype(jnp.float32)
        zeros = jnp.mean(inputs[1 - i] == 0, dtype=jnp.float32)
    if result.ndim > 1 and ("relu" in name or name == "max"):
        dead = jnp.mean(jnp.all(result == 0, axis=tuple(range(result.ndim - 1))), dtype=jnp.float32)
    if name in BOUNDS:
        low, high = BOUNDS[name]
        # 1 % of the range from a bound.
        far = jnp.abs(result - (low + high) / 2) > 0.49 * (high - low)
        saturated = jnp.mean(far, dtype=jnp.float32)
    return jax.lax.stop_gradient(Details(weight, zeros, dead, saturated))


# Traced once for each shape and type.
@jax.jit
def measure(x: jax.Array) -> Statistics:
    """Return the statistics of an array of any floating or complex type, in float32 at least."""
    flat = jnp.abs(x).ravel() if jnp.iscomplexobj(x) else x.ravel()
    flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    zeros = jnp.mean(flat == 0, dtype=flat.dtype)
    square = jnp.vdot(flat, flat, precision="highest") / max(flat.size, 1)
    # If the sum is finite, so are all elements. It is exact where no square is tiny beside 1.
    safe = (square > jnp.finfo(flat.dtype).tiny / jnp.finfo(flat.dtype).eps) & (square < jnp.inf)

    def directly():
        return Statistics(
            jnp.log(square),
            jnp.log(jnp.max(jnp.abs(flat), initial=0)),
            zeros,
            jnp.zeros_like(zeros),
        )

    return jax.lax.cond(safe, directly, lambda: _measure_any(flat, zeros))


def _measure_any(flat: jax.Array, zeros: jax.Array) -> Statistics:
    """Return the statistics of huge numbers, tiny ones, and those that are not all finite."""
    finite = jnp.isfinite(flat)
    values = jnp.where(finite, flat, 0)
    # The mean of the square counts finite elements alone.
    share = jnp.mean(finite, dtype=flat.dtype)
    return Statistics(
        log_mean_square(values, 0) - jnp.log(share),
        jnp.log(jnp.max(jnp.abs(values), initial=0)),
        zeros,
        1 - share,
    )


@jax.custom_vjp
def tap(x: jax.Array, slot: Statistics) -> jax.Array:
    """Return `x`; the gradient with respect to `slot` is the statistics of the cotangent."""
    return x


def _forward(x, slot):
    return x, slot


def _backward(slot, cotangent):
    statistics = measure(cotangent)
    # A slot that no cotangent reaches stays zero, see `reached`.
    statistics = statistics._replace(zeros=1 + statistics.zeros)
    return cotangent, jax.tree.map(lambda s, m: m.astype(s.dtype), slot, statistics)


tap.defvjp(_forward, _backward)


def reached(slot: Statistics) -> Statistics:
    """Return the statistics of a cotangent from the gradient of its slot.

    Where no cotangent is computed it is zero.
    """
    there = slot.zeros > 0
    return Statistics(
        jnp.where(there, slot.log_mean_square, -jnp.inf),
        jnp.where(there, slot.log_largest, -jnp.inf),
        jnp.where(there, slot.zeros - 1, 1),
        slot.non_finite,
    )


def statistics_of(tree: Any) -> list[Statistics]:
    """Return all statistics in what `run` returns, or in slots, without the `Details` beside."""
    parts = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Statistics | Details))
    return [part for part in parts if isinstance(part, Statistics)]


def details_of(tree: Any) -> list[Details]:
    """Return all `Details` in what `run` returns."""
    parts = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Details))
    return [part for part in parts if isinstance(part, Details)]


def slots(plan: Plan, dtype: Any = jnp.float32) -> list[Any]:
    """Return slots of zeros for all taps of a program, in the order of its plan."""
    results: list[Any] = []
    for entry in plan.entries:
        if isinstance(entry, Location):
            zeros = jnp.zeros(entry.lengths, dtype)
            results.append(Statistics(zeros, zeros, zeros, zeros))
        elif isinstance(entry, Plan):
            results.append(slots(entry, dtype))
        elif entry is not None:
            results.append([slots(branch, dtype) for branch in entry])
    return results


def run(program: Any, plan: Plan, slot_values: list[Any], args: Sequence[Any]):
    """Evaluate a program with taps.

    Returns its outputs, and at each tap a pair, the statistics of the signal and its `Details`, in
    lists that are structured as `slots`.
    """
    entries, remaining, measured = iter(plan.entries), iter(slot_values), []

    def apply(equation, inputs):
        entry = next(entries)
        if entry is None:
            return _jaxprs.bind(equation, inputs)
        slot = next(remaining)
        if isinstance(entry, Location):
            results, i = list(_jaxprs.bind(equation, inputs)), measured_output(equation)
            assert i is not None
            more = details(entry, inputs, results[i])
            measured.append((measure(jax.lax.stop_gradient(results[i])), more))
            results[i] = tap(results[i], slot)
            return results
        results, inner = _apply_inner(equation, entry, slot, inputs)
        measured.append(inner)
        return results

    return _jaxprs.evaluate(program, args, apply), measured


def _apply_inner(equation: Any, entry: Any, slot: Any, inputs: list[Any]):
    """Carry out an operation with inner programs, with taps in them."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(params, entry, slot, inputs)
    if name == "cond":
        return _cond(params, entry, slot, inputs)
    # `jit` is left to the program around; only `checkpoint` changes what is computed and when.
    inner = functools.partial(run, _jaxprs.called_program(equation), entry)
    if name in ("checkpoint", "remat", "remat2"):
        options = {key: params[key] for key in ("policy", "prevent_cse") if key in params}
        inner = jax.checkpoint(inner, **options)
    return inner(slot, inputs)


def _scan(params: Any, plan: Plan, slot: Any, inputs: list[Any]):
    consts, carry, xs = _jaxprs.split_scan_inputs(params, inputs)

    def body(state, x):
        values, inner_slots = x
        out, measured = run(params["jaxpr"], plan, inner_slots, [*consts, *state, *values])
        return out[: len(carry)], (out[len(carry) :], measured)

    # Slots of an inner scan have the axis of the outer one first, which this scan removes.
    options = {key: params[key] for key in ("length", "reverse", "unroll")}
    last, (ys, measured) = jax.lax.scan(body, carry, (xs, slot), **options)
    return [*last, *ys], measured


def _cond(params: Any, plans: list[Plan], slot: Any, inputs: list[Any]):
    index, *rest = inputs
    branches = params["branches"]
    shapes = [
        jax.eval_shape(functools.partial(run, branch, plan), inner, rest)[1]
        for branch, plan, inner in zip(branches, plans, slot, strict=True)
    ]
    # A branch that is not taken has no statistics.
    nothing = [jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), s) for s in shapes]

    def taken(i):
        def branch(slots_of_all, args):
            out, measured = run(branches[i], plans[i], slots_of_all[i], args)
            return out, [measured if i == k else other for k, other in enumerate(nothing)]

        return branch

    return jax.lax.switch(index, [taken(i) for i in range(len(branches))], slot, rest)
