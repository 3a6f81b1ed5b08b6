"""The inputs of one operation, and the gradient with respect to its result.

They are read by a probe, the identity, whose derivative rule returns them as the "gradient" with
respect to a slot. In a scan the slot gets the sum over all iterations, of which all but one are 0.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _jaxprs
from jaxgrad.inspection._causes import Element
from jaxgrad.inspection._graph import Plan
from jaxgrad.inspection._operations import run
from jaxgrad.inspection._origins import evaluated
from jaxgrad.inspection._problem import Problem
from jaxgrad.inspection._rewrites import Rewrite
from jaxgrad.inspection._sites import CLOSED


@jax.custom_vjp
def _probe(results, inputs, match, slot):
    """Return `results`; the gradient for `slot` is what is passed, and the cotangents."""
    return results


def _probe_forward(results, inputs, match, slot):
    return results, (results, inputs, match)


def _probe_backward(saved, cotangents):
    results, inputs, match = saved
    values = {"inputs": inputs, "results": results, "cotangents": cotangents, "seen": match}
    # Zero for other iterations, so that the sum over them is the value at this one.
    picked = jax.tree.map(lambda x: jnp.where(match > 0, x, jnp.zeros_like(x)), values)
    return cotangents, jax.tree.map(jnp.zeros_like, inputs), jnp.zeros_like(match), picked


_probe.defvjp(_probe_forward, _probe_backward)


def capture(problem: Problem, numbers: Plan, index: int, iteration, change: Rewrite):
    """Return inputs, results and cotangents of an operation, or `None` if nothing depends on it."""

    def value(moved, fixed, slot, shapes=None):
        change_of = change.apply_with({})

        def apply(i, equation, inputs, indices):
            results = list(change_of(i, equation, inputs, indices))
            if i != index:
                return results
            places = [k for k, y in enumerate(results) if is_inexact(y)]
            match = jnp.float32(1)
            for actual, wanted in zip(indices, iteration, strict=False):
                match = match * (actual == wanted)
            copies = [_as_float(x) for x in inputs]
            chosen = [results[k] for k in places]
            # The first pass only asks for the shapes of the slot.
            if shapes is not None:
                shapes.update(jax.eval_shape(lambda: _values(chosen, copies, match)))
                return results
            for k, y in zip(places, _probe(chosen, copies, match, slot), strict=True):
                results[k] = y
            return results

        args = [*moved, *fixed]
        return run(problem.program, numbers, args, apply, change.literal, change.cast)[0]

    moved, fixed = jax.tree.map(change.argument, (problem.moved, problem.fixed))
    shapes: dict[str, Any] = {}
    jax.eval_shape(functools.partial(value, shapes=shapes), moved, fixed, None)
    slot = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    # A gradient for the parameters too, since the operation need not depend on the slot alone.
    _, values = evaluated(jax.grad(value, argnums=(0, 2)), moved, fixed, slot)
    return jax.device_get(values) if values["seen"] > 0 else None


def _values(results, inputs, match):
    return {"inputs": inputs, "results": results, "cotangents": results, "seen": match}


def is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(_dtype(x), jnp.inexact))


def is_bad(x: Any) -> Any:
    return ~np.isfinite(x)


def _dtype(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def _as_float(x: Any) -> Any:
    """Return an input without its gradient; integers as floating-point numbers, keys as zero."""
    if jnp.issubdtype(_dtype(x), jax.dtypes.extended):
        return jnp.float32(0)
    return jax.lax.stop_gradient(jnp.asarray(x) if is_inexact(x) else jnp.float32(x))


def first_element(equation: Any, values: Any, computed: bool) -> Element | None:
    """Return the first element of the result, or of the gradient, that is not finite."""
    inputs, results, cotangents = (values[k] for k in ("inputs", "results", "cotangents"))
    arrays = results if computed else _input_cotangents(equation, inputs, cotangents)
    # NaN is told rather than infinity, which may be intended.
    for test in (np.isnan, is_bad):
        for array in arrays:
            bad = np.argwhere(test(np.asarray(array)))
            if len(bad):
                return _read(tuple(map(int, bad[0])), np.shape(array), values)
    return _read((), None, values)


def slope(equation: Any, values: Any, element: Element, computed: bool) -> float:
    """Return what a zero gradient is multiplied by: the result at an element, or a derivative."""
    if computed:
        return element.result
    inputs, cotangents = values["inputs"], values["cotangents"]
    arrays = _input_cotangents(equation, inputs, jax.tree.map(np.ones_like, cotangents))
    index = element.position
    slopes = [x[index] if np.shape(x) == np.shape(arrays[0]) else x for x in arrays]
    return np.inf if any(np.any(np.isinf(x)) for x in slopes) else np.nan


def _read(index: Any, shape: Any, values: Any) -> Element:
    # Inputs of other shapes, as of a matrix product, have no element there.
    def read(arrays):
        return [
            float(np.real(x[index] if np.shape(x) == shape else x))
            for x in map(np.asarray, arrays)
            if np.shape(x) in (shape, ())
        ]

    results, cotangents = read(values["results"]), read(values["cotangents"])
    first = (results or [np.nan])[0], (cotangents or [np.nan])[0]
    return Element(index, tuple(read(values["inputs"])), *first)


def _input_cotangents(equation: Any, inputs: Any, cotangents: Any) -> list[Any]:
    """Carry out the derivative rule of one operation."""
    keys = (jnp.issubdtype(v.aval.dtype, jax.dtypes.extended) for v in equation.invars)
    if equation.primitive.name in CLOSED or any(keys):
        return []
    moves = [i for i, v in enumerate(equation.invars) if is_inexact(v.aval)]
    arrays = [jnp.asarray(x, v.aval.dtype) for x, v in zip(inputs, equation.invars, strict=True)]

    def results(moved):
        args = list(arrays)
        for i, x in zip(moves, moved, strict=True):
            args[i] = x
        return [y for y in _jaxprs.bind(equation, args) if is_inexact(y)]

    _, pullback = jax.vjp(results, [arrays[i] for i in moves])
    return [np.asarray(x) for x in pullback([jnp.asarray(c) for c in cotangents])[0]]
