"""Activations that are transformed for the depth of a network, and constants of their variance.

A layer with weights of variance `1 / fan_in` and an activation that keeps a variance of 1 has maps
of the correlation `c` and of the variance `q`. Composed over a deep network they make all inputs
alike, or all unlike, unless their slopes or curvatures at 1 are chosen for the depth. Sources:
Martens, Ballard, Desjardins, Swirszcz, Dalibard, Sohl-Dickstein, Schoenholz (2021), Rapid training
of deep neural networks without skip connections or normalization layers using Deep Kernel Shaping;
Zhang, Botev, Martens (2022), Deep learning without shortcuts: shaping the kernel with tailored
rectifiers.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxgrad import _validate, activations
from jaxgrad._numerics import FloatArray, bisect, in_float64
from jaxgrad.activations import Activation
from jaxgrad.theory._maps import ActivationLike, prediction
from jaxgrad.theory._moments import statistics
from jaxgrad.theory._quadrature import mesh, nodes

Layer = Callable[[float], float]
Network = int | Callable[[Layer, float], float]
# The search starts at a nearly linear activation, from these shifts of its argument.
_START, _SHIFTS = 0.03, np.linspace(-4.0, 4.0, 161)
_BATCH = 8
_RESIDUAL = 1e-10


class UnitScales(NamedTuple):
    """Factors after which an activation keeps the variance of a signal or of a gradient."""

    forward: FloatArray
    backward: FloatArray


@prediction(_validate.numbers)
def unit_scales(activation: ActivationLike, q: ArrayLike = 1.0) -> UnitScales:
    """Compute the factors by which a unit-scaled network multiplies outputs and cotangents.

    They are `1 / sqrt(Var phi(x))` and `1 / sqrt(E phi'(x)^2)` for `x ~ N(0, q)`, with `q` above 0
    and of any shape. The mean of the activation does not count as signal. Source: Blake, Orr,
    Luschi (2023), Unit scaling: out-of-the-box low-precision training.

    >>> [round(float(scale), 4) for scale in unit_scales("gelu")]
    [1.7009, 1.4811]
    """
    averages = statistics(activations.get(activation), jnp.log(q))
    variance = jnp.exp(averages.log_square) * (1 - averages.mean**2)
    return UnitScales(1 / jnp.sqrt(variance), jnp.exp(-averages.log_slope / 2))


@dataclass(frozen=True)
class _Transformed:
    """The function `output_scale (phi(input_scale x + input_shift) + output_shift)`."""

    phi: Activation

    def __call__(
        self, x: Any, input_scale, input_shift, output_shift, output_scale, **parameters: Any
    ) -> jax.Array:
        return output_scale * (self.phi(input_scale * x + input_shift, **parameters) + output_shift)


def shaped(
    activation: ActivationLike,
    depth: Network,
    *,
    slope: float | None = None,
    curvature: float | None = None,
) -> Activation:
    """Transform an activation so that a network of this depth is well-behaved without norms.

    The result is `output_scale * (phi(input_scale * x + input_shift) + output_shift)`; the four
    numbers are its `constants`. It keeps a variance of 1, and to first order one near 1. Inputs
    need a mean square of 1, and weights the variance `1 / fan_in` without biases, as of
    `jaxgrad.initializers.lecun`. If several transformations do so, the one with the smallest shift
    is returned.

    With a `slope` (Deep Kernel Shaping, 1.5 by default) uncorrelated inputs remain so, and the
    angle between similar ones grows, in the square, by this factor over the whole network. A
    squared gradient grows by it, too. With a `curvature` (tailored activation transformation, for
    smooth functions; its authors use 0.3), angles and gradients keep their size to first order, and
    it is the second derivative of the correlation of two outputs by that of two similar inputs.

    Args:
      activation: see `jaxgrad.activations.get`; it must not be randomized.
      depth: number of layers of a plain network, or a function `(layer, x) -> x` that composes one
        for other networks. It takes and returns numbers, and `layer` stands for weights and
        activation: `lambda layer, x: 0.5 * x + 0.5 * layer(layer(x))` is a residual block whose two
        paths have these shares of the variance.
      slope: target above 1.
      curvature: target above 0; an alternative to `slope`.

    Raises a `ValueError` if nothing is known to reach the target, as for a kinked activation with a
    curvature, or for ReLU, whose slope `tailored_relu` chooses instead.

    >>> dict(shaped("tanh", 100).constants)["input_scale"].__round__(6)
    0.090438
    """
    phi = activations.get(activation)
    if phi.randomized:
        got = f"got {phi.name!r}; take its mean, an activation without a key"
        raise ValueError(f"activation must not be randomized, {got}")
    network = _network(depth)
    if slope is not None and curvature is not None:
        got = f"got {slope!r} and {curvature!r}; leave one out"
        raise ValueError(f"slope and curvature must not both be given, {got}")
    if curvature is None:
        slope = 1.5 if slope is None else slope
        _validate.scalar("slope", slope, minimum=1.0, above=True)
        target = _layer_slope(network, float(slope)) - 1
    else:
        _validate.scalar("curvature", curvature, minimum=0.0, above=True)
        if mesh(phi).kinks:
            got = f"{phi.name!r} bends at {mesh(phi).kinks[0]:g}; pass a slope instead"
            raise ValueError(f"activation must be smooth for a curvature, but {got}")
        # Where all slopes are 1, curvatures add up.
        target = float(curvature) / network(lambda x: x + 1.0, 0.0)
    with jax.ensure_compile_time_eval():
        solution = _search(phi, target, curvature is not None)
    if solution is None:
        kind = f"slope {1 + target:.6g}" if curvature is None else f"curvature {target:.6g}"
        got = f"but none was found for {phi.name!r}"
        remedy = "pass a target nearer to that of a linear network, or take tailored_relu"
        raise ValueError(
            f"activation must have a transformation of {kind} a layer, {got}; {remedy}"
        )
    return solution


def _network(depth: Network) -> Callable[[Layer, float], float]:
    """A network as a function that composes a map of one layer."""
    if not callable(depth):
        count = _validate.integer("depth", depth, 1)
        return lambda layer, x: functools.reduce(lambda x, _: layer(x), range(count), x)
    try:
        count = float(depth(lambda x: x + 1.0, 0.0))
    except Exception as error:
        raised = f"it raised {type(error).__name__}: {error}"
        remedy = "pass a number, or for example lambda layer, x: layer(layer(x))"
        raise TypeError(f"depth must compose a map of a layer, but {raised}; {remedy}") from error
    if not 0 < count < math.inf:
        got = f"got a function with {count:g} of them; call layer in it"
        raise ValueError(f"depth must have layers, {got}")
    return depth


def _layer_slope(network: Callable[[Layer, float], float], target: float) -> float:
    """The slope of one layer's map at which the network's slope is the target, by bisection."""

    def of_network(log_slope):
        return network(lambda x: x * math.exp(log_slope), 1.0)

    low, high = 0.0, math.log(target)
    while of_network(high) < target:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if of_network(middle) < target else (low, middle)
    return math.exp(high)


@in_float64
@functools.partial(jax.jit, static_argnums=(0, 2))
def _equations(phi: Activation, points, curved: bool):
    """Evaluate `_equations_of_point` at points `[points, 2]`, log input scales and shifts."""
    return jax.vmap(lambda point: _equations_of_point(phi, point[0], point[1], curved))(points)


def _equations_of_point(phi: Activation, log_scale, shift, curved: bool):
    """The excess slope or curvature of a layer, an equation for the shift, and the constants.

    Of four unknowns, output scale and shift follow from the other two: the variance is 1 and the
    mean 0 with a slope; the slopes of both maps are 1 with a curvature. The equation that remains
    is that of the slope of the variance, or of the variance. It is divided by the excess, and 0.
    """
    x, weights = nodes(np.asarray(mesh(phi).edges) - shift, 2 * log_scale)

    def derivative(x):
        return jax.jvp(phi, (x,), (jnp.ones_like(x),))

    (value, slope), (_, bend) = jax.jvp(derivative, (x + shift,), (jnp.ones_like(x),))
    mean, square = jnp.sum(weights * value), jnp.exp(2 * log_scale)
    variance = jnp.sum(weights * (value - mean) ** 2)
    growth = jnp.sum(weights * (value - mean) * slope * x)  # d Var phi / 2 d log(input scale)
    squared_slope = square * jnp.sum(weights * slope**2)
    if not curved:
        excess = squared_slope / variance - 1
        return excess, (growth / variance - 1) / excess, -mean, 1 / jnp.sqrt(variance)
    excess = square**2 * jnp.sum(weights * bend**2) / squared_slope
    # growth + (mean + output shift) d mean / d log(input scale) = 1 / output scale^2.
    offset = (squared_slope - growth) / jnp.sum(weights * slope * x)
    residual = ((variance + offset**2) / squared_slope - 1) / excess
    return excess, residual, offset - mean, 1 / jnp.sqrt(squared_slope)


def _search(phi: Activation, target: float, curved: bool) -> Activation | None:
    """Search the activation whose excess is the target, and check it by the theory of layers."""

    def equations(points):
        # Batches of one size, so that one program serves all steps.
        padded = np.pad(points, ((0, -len(points) % _BATCH), (0, 0)), mode="edge")
        batches = [_equations(phi, a, curved) for a in padded.reshape(-1, _BATCH, 2)]
        columns = zip(*batches, strict=True)
        return [np.concatenate([*map(np.asarray, parts)])[: len(points)] for parts in columns]

    goal = math.log(target)
    for point in _starts(equations):
        log_excess = _log(equations(point[None])[0])[0]
        # From the nearly linear activation to the target, by factors of at most e.
        steps = 2 + int(abs(goal - log_excess)) if np.isfinite(log_excess) else 0
        for aim in np.linspace(log_excess, goal, steps)[1:]:
            point = _newton(equations, point, aim)
        output = (float(part[0]) for part in equations(point[None])[2:])
        constants = (math.exp(point[0]), float(point[1]), *output)
        if steps and np.isfinite(constants).all():
            result = _transformed(phi, constants)
            if _is_right(result, target, curved):
                return result
    return None


def _log(values: np.ndarray) -> np.ndarray:
    """Natural logs, NaN for what is not positive."""
    return np.log(np.where(values > 0, values, np.nan))


def _starts(equations: Callable) -> list[np.ndarray]:
    """Points that solve the equation of a nearly linear activation, the smallest shift first."""

    def residual(shifts):
        return equations(np.stack(np.broadcast_arrays(math.log(_START), shifts), axis=1))[1]

    values = residual(_SHIFTS)
    index = np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)
    low, high = _SHIFTS[index], _SHIFTS[index + 1]
    for _ in range(30 if len(index) else 0):
        middle = (low + high) / 2
        before = np.sign(residual(middle)) == np.sign(values[index])
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    # Opposite shifts serve an odd function equally well; the positive one comes first.
    order = sorted(high.tolist(), key=lambda shift: (round(abs(shift), 5), -shift))
    return [np.array([math.log(_START), shift]) for shift in order]


def _newton(equations: Callable, point: np.ndarray, goal: float) -> np.ndarray:
    """Solve both equations by Newton's method with numeric derivatives; NaN if it diverges."""
    step = 1e-5
    offsets = step * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    for _ in range(30):
        excess, residual, *_ = equations(point + offsets)
        values = np.stack([_log(excess) - goal, residual])
        jacobian = (values[:, 1::2] - values[:, 2::2]) / (2 * step)
        if not np.isfinite(values).all() or abs(np.linalg.det(jacobian)) < 1e-12:
            return np.full(2, np.nan)
        change = np.linalg.solve(jacobian, values[:, 0])
        # A long step would leave the solution that is followed.
        point = point - change / max(1.0, 2 * np.abs(change).max())
        if np.abs(change).max() < 1e-13:
            break
    return point


def _transformed(phi: Activation, constants: tuple[float, ...]) -> Activation:
    names = ("input_scale", "input_shift", "output_shift", "output_scale")
    scale, shift, *_ = constants
    return Activation(
        f"shaped {phi.name}",
        _Transformed(phi),
        kinks=tuple(sorted((kink - shift) / scale for kink in phi.kinks)),
        constants=tuple(zip(names, constants, strict=True)),
        parameters=phi.parameters,
        reference="Martens et al. (2021); Zhang, Botev, Martens (2022)",
    )


def _is_right(result: Activation, target: float, curved: bool) -> bool:
    """Whether the maps of a layer have the slopes, and the curvature or mean, to 1e-10."""

    @in_float64
    @jax.jit
    def averages():
        x, weights = nodes(np.asarray(mesh(result).edges), 0.0)
        second = jax.vmap(jax.grad(jax.grad(result)))(x)
        return statistics(result, 0.0), jnp.sum(weights * second**2)

    known, square = averages()
    slope = 0.0 if curved else math.log1p(target)
    errors = [known.log_square, known.elasticity - 1, known.log_slope - slope]
    errors.append((square / target - 1) * min(target, 1.0) if curved else known.mean)
    return bool(np.max(np.abs(errors)) < _RESIDUAL)


def tailored_relu(depth: Network, target: float = 0.9) -> Activation:
    """Choose the leaky ReLU that takes uncorrelated examples to a correlation of `target`.

    A deep ReLU network makes all examples alike; a linear one keeps their angles but computes only
    linear functions. The slope in between is chosen for the depth; it is in the `constants` of the
    result. Draw the weights with `jaxgrad.initializers.he(negative_slope=...)` of this slope,
    without biases. Source: Zhang, Botev, Martens (2022), Deep learning without shortcuts, sec. 4.

    Args:
      depth: number of layers, each a matrix product and the activation, or a function that
        composes them, as of `shaped`.
      target: correlation, between 0 and 1, after the last layer, of two examples that have none. A
        `ValueError` reports that even ReLU stays below it at this depth, so no slope is needed.
    """
    network = _network(depth)
    _validate.scalar("target", target, minimum=0.0, above=True)
    if target >= 1:
        raise ValueError(f"target must be less than 1, got {target:g}; pass a smaller number")
    if callable(depth):
        factor, relu_gap = _factor(network, float(target))
    else:
        with jax.ensure_compile_time_eval():
            factor, relu_gap = map(float, _factor_of_depth(depth, float(target)))
    if relu_gap > 1 - target:
        bound = f"{1 - relu_gap:.6g}, the correlation that plain ReLU reaches in {depth} layers"
        remedy = f"depth {depth} needs no tailoring, use 'relu'"
        raise ValueError(f"target must be at most {bound}, got {target:g}; {remedy}")
    # The root of factor = (1 - a)^2 / (1 + a^2) with a <= 1, without cancellation.
    return activations.leaky_relu((1 - factor) / (1 + math.sqrt(factor * (2 - factor))))


@in_float64
@jax.jit
def _factor_of_depth(depth, target):
    """The factor of `_next_gap` that leads to the target, and the gap that ReLU leads to."""

    def final_gap(factor):
        return jax.lax.fori_loop(0, depth, lambda _, gap: _next_gap(gap, factor), 1.0)

    factor = bisect(lambda f: final_gap(f) - (1 - target), 0.0, 1.0, steps=60, sign=1.0)
    return factor, final_gap(1.0)


def _factor(network: Callable[[Layer, float], float], target: float) -> tuple[float, float]:
    """The same for a network that is composed of Python numbers."""

    def final_gap(factor):
        return 1 - network(lambda c: 1 - float(_next_gap(1 - c, factor, np)), 0.0)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if final_gap(middle) > 1 - target else (low, middle)
    return (low + high) / 2, final_gap(1.0)


def _next_gap(gap, factor, xp: Any = jnp):
    """`1 - c` after a layer, `c' = c + factor (sin t - t cos t) / pi` with `t = arccos c`.

    The factor is 0 for a linear network, 1 for ReLU, `(1 - a)^2 / (1 + a^2)` for a slope of `a`.
    """
    angle = 2 * xp.arcsin(xp.sqrt(gap / 2))
    # A series for small angles, where the difference cancels: t^3 / 3 - t^5 / 30 + t^7 / 840.
    square = angle * angle
    series = angle * square * (1 / 3 - square / 30 * (1 - square / 28))
    change = xp.where(angle > 0.05, xp.sin(angle) - angle * xp.cos(angle), series)
    return gap - factor * change / np.pi
