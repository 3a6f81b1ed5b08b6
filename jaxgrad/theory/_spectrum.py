"""The density of the singular values of a deep Jacobian, by free probability.

The Jacobian is a product of `depth` layers `D W`, of a diagonal matrix of slopes and a matrix of
weights, which are free of each other at infinite width. For the law of `d = phi'^2`, divided by its
mean, let `m(w) = E d / (w - d)`. The same transform `m = E x / (s - x)` of the eigenvalues `x` of
`J J^T` is found, at the complex point `s`, from the `w` that solves

    log s = (1 - L) log((1 + m) / m) + L (log w + g log(1 + m)),    m = m(w),

where `L` is the depth and `g` is 1 for Gaussian and 0 for orthogonal weights: S-transforms multiply
(Voiculescu, 1987), and that of `d` is `(1 + m) / (m w)`, of `W W^T` `(1 + m)^-g`. At negative `s`
the solution is real and unique. It is followed to positive `s`, where `-Im(1 + m) / pi` is the
density of `log x`. Source: Pennington, Schoenholz, Ganguli (2018), The emergence of spectral
universality in deep networks.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxgrad.activations import Activation
from jaxgrad.theory._quadrature import NODES, WEIGHTS, evaluator, mesh, standard_nodes

# What is below this share of the eigenvalues is left out, and the error of the sum of all shares.
_LEFT_OUT, _ERROR = 1e-10, 1e-8
# Panels are halved until the density is a polynomial to this error, but not more than so often.
_TOLERANCE, _HALVINGS = 3e-10, 20
_ATOM = 1e-9  # A value with a larger share is one of its own.
_CHUNK = 2_000_000


class Spectrum(NamedTuple):
    """The limit of the singular values of a Jacobian, apart from single values with a share.

    Attributes:
      log_singular_value: natural logs at which the others are known, in ascending order, from the
        smallest to the largest; `[points]`, as the next three.
      density: share of the singular values per unit of their natural log.
      cumulative: share of the singular values up to each, atoms included.
      share: shares that add up to 1 with those of the atoms: an average of `f` over the spectrum is
        `sum(share * f(log_singular_value))` plus that over the atoms.
      atom: logs of single values, -inf for zero, `[atoms]`.
      atom_share: the shares of these, `[atoms]`.
    """

    log_singular_value: Float[np.ndarray, " points"]
    density: Float[np.ndarray, " points"]
    cumulative: Float[np.ndarray, " points"]
    share: Float[np.ndarray, " points"]
    atom: Float[np.ndarray, " atoms"]
    atom_share: Float[np.ndarray, " atoms"]


class _Law(NamedTuple):
    """Values of the squared slope over its mean in increasing order, and their probabilities."""

    value: np.ndarray
    share: np.ndarray

    def transform(self, w: np.ndarray) -> list[np.ndarray]:
        """`m`, `1 + m` and `dm / dlog w` at real or complex points."""
        w = np.asarray(w)
        parts = []
        for chunk in np.array_split(w, 1 + w.size * len(self.value) // _CHUNK):
            inverse, product = 1 / (chunk[:, None] - self.value), self.share * self.value
            m, n = inverse @ product, chunk * (inverse @ self.share)
            inverse *= inverse
            parts.append((m, n, -chunk * (inverse @ product)))
        return [np.concatenate(part) for part in zip(*parts, strict=True)]


def slope_law(phi: Activation, log_q: float, panels: int) -> _Law:
    """The law of the squared slope over its mean, with so many panels a standard deviation."""
    scale = math.exp(log_q / 2)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        evaluate = evaluator(phi)

        def slope(z):
            return evaluate(scale * z)[1]

        grid = np.linspace(-9.0, 9.0, 18 * panels + 1)
        low, high = grid[:-1], grid[1:]
        start = slope(low)
        change = start * slope(high) < 0
        low, high, start = low[change], high[change], start[change]
        for _ in range(50 if len(low) else 0):
            middle = (low + high) / 2
            before = slope(middle) * start > 0
            low, high = np.where(before, middle, low), np.where(before, high, middle)
        # Around a zero of the slope, where its log has a pole, panels become smaller and smaller.
        near = 2.0 ** -np.arange(34)
        inner = (low[:, None] + np.concatenate([-near, [0.0], near])).ravel()
        edges = np.concatenate([np.asarray(mesh(phi).edges) / scale, grid, inner])
        z, weights = standard_nodes(edges, np.ones(1))
        value = slope(z) ** 2
    weights = weights / weights.sum()
    value = value / (weights @ value)
    order = np.argsort(value)
    value, weights = value[order], weights[order]
    # Values that differ by rounding, as on both sides of an even function, are one.
    new = np.diff(value, prepend=-1.0) > 1e-13 * value
    total = np.add.reduceat(weights, np.flatnonzero(new))
    law = _Law(value[new], total)
    return _Law(*(part[total > 0] for part in law))


def _log_s(law: _Law, u: np.ndarray, depth: int, gaussian: int) -> tuple[np.ndarray, np.ndarray]:
    """`log s` at `log w = u` in the upper half-plane, and its derivative by `u`."""
    m, n, slope = law.transform(np.exp(u))
    # 1 / m and 1 + 1 / m are in the upper half-plane with s and w; m and 1 + m in the lower one.
    log_m = np.log(np.abs(m)) - 1j * (np.pi - np.arctan2(np.abs(np.imag(m)), -np.real(m)))
    log_n = np.log(np.abs(n)) - 1j * np.arctan2(np.abs(np.imag(n)), np.real(n))
    log_s = (1 - depth) * (log_n - log_m) + depth * (u + gaussian * log_n)
    by_u = (1 - depth) * slope * (1 / n - 1 / m) + depth * (1 + gaussian * slope / n)
    return log_s, by_u


def _on_negative_axis(law: _Law, v: np.ndarray, depth: int, gaussian: int) -> np.ndarray:
    """`log(-s)` at `w = -exp(v)`."""
    m, n, _ = law.transform(-np.exp(v))
    return (1 - depth) * np.log(-n / m) + depth * (v + gaussian * np.log(n))


def _bisect(function, low, high, steps=70) -> np.ndarray:
    """Roots of increasing functions of arrays; the bounds are extended until they enclose one."""
    low, high = np.array(low, float), np.array(high, float)
    for _ in range(60):
        width = high - low
        above, below = function(low) > 0, function(high) < 0
        if not (above.any() or below.any()):
            break
        low, high = np.where(above, low - 2 * width, low), np.where(below, high + 2 * width, high)
    for _ in range(steps):
        middle = (low + high) / 2
        before = function(middle) < 0
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    return (low + high) / 2


def _follow(law: _Law, fine: _Law, log_x: np.ndarray, depth: int, gaussian: int) -> np.ndarray:
    """Solve for `log w` at positive `s = exp(log_x)`, by the way from the negative axis."""
    start = _bisect(
        lambda v: _on_negative_axis(law, v, depth, gaussian) - log_x,
        np.full_like(log_x, -1.0),
        np.full_like(log_x, 1.0),
    )
    u = start + 1j * np.pi
    for angle in np.pi * np.linspace(1, 0, 33)[1:-1]:
        u = _newton(law, u, log_x + 1j * angle, depth, gaussian, tolerance=1e-2)
    # Near the real axis the values of a smooth law must be denser than their distance from `w`.
    for angle in np.pi * 0.5 ** np.arange(6, 12):
        u = _newton(fine, u, log_x + 1j * angle, depth, gaussian, tolerance=1e-2)
    return _newton(fine, u, log_x + 0j, depth, gaussian, tolerance=1e-11)


def _newton(law, u, target, depth, gaussian, *, tolerance):
    """Solve `log s = target` for points in the upper half-plane, each until it is reached."""
    u, active = u.copy(), np.arange(len(u))
    for _ in range(60):
        value, slope = _log_s(law, u[active], depth, gaussian)
        change = (value - target[active]) / slope
        size = np.abs(change)
        new = u[active] - change / np.maximum(1.0, 4 * size)
        # In the upper half-plane arg s <= depth arg w, because the other terms are not positive.
        floor = np.maximum(target[active].imag / depth, 1e-300)
        u[active] = new.real + 1j * np.clip(new.imag, floor, np.pi)
        active = active[size > tolerance * np.maximum(1.0, np.abs(new))]
        if not len(active):
            break
    return u


def _critical_points(law: _Law, low: float, high: float, depth: int, gaussian: int) -> np.ndarray:
    """`log s` where it is stationary at real `w` between two values, with increasing `w`."""
    # Both ends may be poles, which critical points can be near to.
    near = np.geomspace(1e-12, 0.5, 200)
    share = np.append(near, 1 - near[-2::-1])
    w = low * np.exp(share * 60) if math.isinf(high) else low + share * (high - low)

    def derivative(w):
        m, n, slope = law.transform(w)
        return (1 - depth) * slope * (1 / n - 1 / m) + depth * (1 + gaussian * slope / n)

    with np.errstate(divide="ignore", invalid="ignore"):
        value = derivative(w)
        index = np.flatnonzero(value[:-1] * value[1:] < 0)
        if not len(index):
            return np.zeros(0)
        sign = np.sign(value[index + 1])
        left, right = w[index], w[index + 1]
        for _ in range(60):
            middle = (left + right) / 2
            before = derivative(middle) * sign < 0
            left, right = np.where(before, middle, left), np.where(before, right, middle)
        m, n, _ = law.transform(right)
        log_s = ((1 - depth) * np.log(n / m) if depth > 1 else 0.0) + depth * (
            np.log(right) + (np.log(n) if gaussian else 0.0)
        )
    return log_s[np.isfinite(log_s)]


def spectrum_of(phi: Activation, log_q: float, depth: int, gaussian: int) -> Spectrum:
    """Compute the spectrum; a ValueError reports that its shares do not add up to 1."""
    law, fine = slope_law(phi, log_q, 1), slope_law(phi, log_q, 8)
    atom, atom_share = _atoms(law, depth, gaussian)

    def density(log_x):
        u = _follow(law, fine, log_x, depth, gaussian)
        return np.maximum(-np.imag(fine.transform(np.exp(u))[1]) / np.pi, 0.0)

    # The mean square is that of the two terms of the variance, see `spectra.spectrum_variance`.
    square = 1 + depth * (float(law.share @ law.value**2) - 1 + gaussian)
    parts = [np.zeros(0)] * 4
    if atom_share.sum() < 1 - _ERROR:
        parts = _integrate(density, *_range(law, depth, gaussian, atom), square)
    log_x, values, share, running = parts
    error = share.sum() + atom_share.sum() - 1
    if not abs(error) < _ERROR:
        got = f"the shares for {phi.name!r} at depth {depth} add up to 1 {error:+.1e}"
        raise ValueError(f"activation must have a spectrum that can be resolved, but {got}")
    cumulative = running + (atom[None] <= log_x[:, None]) @ atom_share
    return Spectrum(log_x / 2, 2 * values, cumulative, share, atom / 2, atom_share)


def _atoms(law: _Law, depth: int, gaussian: int) -> tuple[np.ndarray, np.ndarray]:
    """Logs of single eigenvalues, and their shares (Belinschi, 2003)."""
    # Zeros of one layer are zeros of the product. Other values stay, for a vector that is an
    # eigenvector in every layer, unless Gaussian weights spread them.
    others = np.zeros(law.share.shape) if gaussian else depth * law.share - (depth - 1)
    remaining = np.where(law.value == 0, law.share, others)
    index = np.flatnonzero(remaining > _ATOM)
    with np.errstate(divide="ignore"):
        return depth * np.log(law.value[index]), remaining[index]


def _range(law: _Law, depth: int, gaussian: int, atom: np.ndarray) -> tuple[float, float]:
    """Logs of the smallest and the largest eigenvalue but the atoms."""
    positive = law.value[law.value > 0]
    values = np.append(0.0, positive)
    # Where s is real and increasing for real w, there are no eigenvalues: beyond all values, unless
    # there is an atom, of which s is the limit at the largest one. Then, between it and the next.
    top = len(atom) > 0 and abs(atom[-1] - depth * math.log(values[-1])) < 1e-9
    bounds = (values[-2], values[-1]) if top else (values[-1], math.inf)
    points = _critical_points(law, *bounds, depth, gaussian)
    high = points[-1] if len(points) else depth * math.log(values[-1])

    def rest(v):
        # The share of the eigenvalues below -s is at most twice 1 + m, without the zeros.
        total = (np.exp(v)[:, None] / (np.exp(v)[:, None] + positive)) @ law.share[-len(positive) :]
        return np.log(total) - math.log(_LEFT_OUT)

    cut = _bisect(rest, np.array([-1.0]), np.array([1.0]))
    low = float(_on_negative_axis(law, cut, depth, gaussian)[0])
    zeros = len(positive) < len(law.value)
    # Several singular factors, or square Gaussian ones, have eigenvalues down to zero.
    if (zeros and depth == 1) if gaussian else not zeros:
        points = _critical_points(law, 0.0, positive[0], depth, gaussian)
        low = max(low, points[0] if len(points) else depth * math.log(positive[0]))
    return low, high


_SERIES = np.polynomial.legendre
_FIT = _SERIES.legvander(NODES, 15) * WEIGHTS[:, None] * (2 * np.arange(16) + 1) / 2
_RUNNING = _FIT @ _SERIES.legval(NODES, _SERIES.legint(np.eye(16), lbnd=-1))


def _integrate(density: Callable, low: float, high: float, square: float) -> list[np.ndarray]:
    """Points between the edges, with density, quadrature weights times it, and running integral.

    Panels are those of an angle, in which square roots at both edges are smooth. They are halved
    until the density and its first two moments are polynomials on each of them.
    """
    half, middle = (high - low) / 2, (high + low) / 2
    bounds, done = np.linspace(0.0, np.pi, 5), []
    left, right = bounds[:-1], bounds[1:]
    for halving in range(_HALVINGS):
        width = (right - left)[:, None] / 2
        angle = (left + right)[:, None] / 2 + width * NODES
        log_x = middle - half * np.cos(angle)
        values = density(log_x.ravel()).reshape(log_x.shape)
        terms = values * width * half * np.sin(angle)
        x = np.exp(np.minimum(log_x, 300.0))
        series = (terms * (1 + x + x * x / square)) @ _FIT
        rough = np.abs(series[:, -2:]).max(axis=1) > _TOLERANCE
        rough &= halving < _HALVINGS - 1
        done.append([part[~rough] for part in (left, log_x, values, terms)])
        if not rough.any():
            break
        center = (left + right)[rough] / 2
        left, right = np.append(left[rough], center), np.append(center, right[rough])
    left, log_x, values, terms = map(np.concatenate, zip(*done, strict=True))
    order = np.argsort(left)
    log_x, values, terms = log_x[order], values[order], terms[order]
    totals = terms @ WEIGHTS
    running = (np.cumsum(totals) - totals)[:, None] + terms @ _RUNNING
    return [part.ravel() for part in (log_x, values, terms * WEIGHTS, running)]
