"""Sums over signals and cotangents at many operations, without storing either.

A tap is the identity. Its derivative rule returns the cotangent unchanged, and as the "gradient"
with respect to a slot of zeros the sums over that cotangent. One backward pass then returns the
sums at all taps. Within a scan the slots are scanned inputs, so each iteration has its own.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad import _jaxprs
from jaxgrad.inspection._graph import CHECKPOINTS
from jaxgrad.inspection._sites import Location, Plan, measured_output
from jaxgrad.inspection._statistics import SiteSums, Sums, measure, measure_site


@jax.custom_vjp
def tap(x: jax.Array, slot: Sums) -> jax.Array:
    """Return `x`; the gradient with respect to `slot` is the sums over the cotangent.

    A slot that no cotangent reaches has a gradient of zero, as a cotangent of zeros has.
    """
    return x


def _forward(x, slot):
    # The slot says only whether the sums are exact.
    return x, slot


def _backward(slot, cotangent):
    return cotangent, measure(cotangent, slot.finite is not None)


tap.defvjp(_forward, _backward)


def sums_of(tree: Any) -> list[Any]:
    """Return all `SiteSums` in what `run` returns, or all `Sums` in slots."""
    return jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, SiteSums | Sums))


def slots(plan: Plan, exact: bool) -> list[Any]:
    """Return slots of zeros for all taps of a program, in the order of its plan."""
    results: list[Any] = []
    for entry in plan.entries:
        if isinstance(entry, Location):
            shape = jax.ShapeDtypeStruct(entry.shape, entry.dtype)
            sums = jax.eval_shape(functools.partial(measure, exact=exact), shape)
            lengths = entry.lengths
            results.append(jax.tree.map(lambda s, n=lengths: jnp.zeros(n, s.dtype), sums))
        elif isinstance(entry, Plan):
            results.append(slots(entry, exact))
        elif entry is not None:
            results.append([slots(branch, exact) for branch in entry])
    return results


def run(program: Any, plan: Plan, slot_values: list[Any], args: Sequence[Any]):
    """Evaluate a program with taps.

    Returns its outputs, and the `SiteSums` at each tap, in lists that are structured as `slots`.
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
            measured.append(measure_site(entry, inputs, results[i], slot.finite is not None))
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
    if name in CHECKPOINTS:
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
    # A branch that is not taken has no sums.
    nothing = [jax.tree.map(lambda s: jnp.full(s.shape, -1, s.dtype), s) for s in shapes]

    def taken(i):
        def branch(slots_of_all, args):
            out, measured = run(branches[i], plans[i], slots_of_all[i], args)
            return out, [measured if i == k else other for k, other in enumerate(nothing)]

        return branch

    return jax.lax.switch(index, [taken(i) for i in range(len(branches))], slot, rest)
