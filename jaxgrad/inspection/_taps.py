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
from jaxgrad._numerics import log_mean_square
from jaxgrad.inspection._sites import Location, Plan, measured_output


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
    measured = jax.tree.map(lambda s, m: m.astype(s.dtype), slot, measure(cotangent))
    return cotangent, measured


tap.defvjp(_forward, _backward)


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

    Returns its outputs, and the statistics of the signals at the taps, structured as `slots`.
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
            measured.append(measure(jax.lax.stop_gradient(results[i])))
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
