"""Averages over the weights of a softmax of Gaussian logits, exact for any number of tokens.

Let `p` be the softmax of `T` logits `sqrt(v) z_j`, with independent standard normal `z_j`, and `p'`
that of another row, whose `z'_j` has correlation `c` with `z_j`. With `w = exp(sqrt(v) z)` and
`Z = sum_j w_j` the averages follow from `Z^-k = int_0^inf t^(k-1) e^(-t Z) dt / Gamma(k)`, which
makes of an average over `T` logits a product of averages over one:

    E sum_j p_j^2 = T int_0^inf t E[w^2 e^(-t w)] E[e^(-t w)]^(T-1) dt.

Two rows need two such integrals, and averages over two Gaussians; Mehler's formula makes of these
a sum of products of Hermite coefficients. All integrals are sums over uniform grids in `log t` and
`z`, which converge exponentially. Nothing is assumed of `v`: it may be small, where the weights are
uniform, or above `2 log T`, where a few tokens share all the weight.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from jaxgrad import _validate
from jaxgrad._numerics import in_float64
from jaxgrad.theory._moments import map_elements

# Points in log t and in z, and Hermite polynomials. The step in log t stays below 1, where the sum
# is off by 1e-6 at most; the step in z resolves changes of the logits by sqrt(v) up to 10.
_POINTS, _NORMAL_POINTS, _DEGREES = 224, 320, 96
LARGEST_VARIANCE = 100.0
_RANGE = 10.0
_LARGEST = 6.0  # exp(-exp(6)) is 0.
_CERTAIN = 1 - 1e-16  # Its logarithm is finite, so that a power of 0 is 1.


class SoftmaxMoments(NamedTuple):
    """Averages over the weights `p` of one row and `p'` of another, of the shape of the arguments.

    Sums are over tokens. With a mask, causal or not, they are means over rows, and over ordered
    pairs of rows, each a softmax of the tokens that it may see.

    Attributes:
      square, cube: `E sum p^2` and `E sum p^3`.
      squared_square: `E (sum p^2)^2`.
      spread: `E sum p^2 (z - z_mean)^2`, where `z_mean = sum p z`.
      squared_mean: `E (sum p z)^2`.
      overlap: `E sum p p'`.
      square_overlap: `E sum p^2 p'`.
      squared_overlap: `E (sum p p')^2`.
    """

    square: Any
    cube: Any
    squared_square: Any
    spread: Any
    squared_mean: Any
    overlap: Any
    square_overlap: Any
    squared_overlap: Any


def softmax_moments(
    variance: ArrayLike,
    tokens: ArrayLike,
    *,
    correlation: ArrayLike = 0.0,
    causal: bool = False,
    mask: Bool[np.ndarray | Array, "tokens tokens"] | None = None,
) -> SoftmaxMoments:
    """Average over the weights of a softmax whose logits are Gaussian.

    Args:
      variance: that of the logits about what they have in common, at least 0 and at most 100, may
        be traced; any shape.
      tokens: number of logits `T`, from 2; with `causal` or a mask an integer. It broadcasts.
      correlation: that of the logits of two rows, from -1 to 1, may be traced; broadcasts.
      causal: whether row `i` of 1, ..., `T` is a softmax of its first `i` logits alone.
      mask: of which logits (column) each row is a softmax, at least one; not traced. With `causal`,
        those that both allow.

    Returns:
      `SoftmaxMoments`, with a relative error of about 1e-6; of overlaps it is 1e-4 at a variance of
      30 and 5e-3 at 100 as the correlation tends to 1. Called with numbers, NumPy arrays of
      float64.

    Source: the integrals are above. Closed forms: uniform weights at variance 0; `E sum p^2` tends
    to `1 - sqrt(2) / beta` at a variance of `beta^2 log T`, `beta > sqrt(2)` (Derrida 1981, the
    random energy model).

    >>> averages = softmax_moments(0.0, 8)
    >>> round(float(averages.square), 9), round(float(averages.overlap), 9)
    (0.125, 0.125)
    """
    _validate.flag("causal", causal)
    _validate.numbers("variance", variance, minimum=0.0, maximum=LARGEST_VARIANCE)
    _validate.numbers("correlation", correlation, minimum=-1.0, maximum=1.0)
    if causal or mask is not None:
        tokens = _validate.integer("tokens", tokens, 2)
    if mask is not None:
        return _masked(variance, correlation, *_count(visible(mask, tokens, causal)))
    if causal:
        return _causal(variance, correlation, tokens)
    _validate.numbers("tokens", tokens, minimum=2.0)
    return _full(variance, correlation, tokens)


@in_float64
@jax.jit
def _full(variance, correlation, tokens):
    return map_elements(_average, variance, correlation, tokens, batch_size=8)


@in_float64
@functools.partial(jax.jit, static_argnums=2)
def _causal(variance, correlation, tokens):
    average = functools.partial(_average_causal, tokens=tokens)
    return map_elements(average, variance, correlation, batch_size=8)


@in_float64
@jax.jit
def _masked(variance, correlation, rows, pairs):
    average = functools.partial(_average_masked, rows=rows, pairs=pairs)
    return map_elements(average, variance, correlation, batch_size=8)


def visible(mask, tokens, causal):
    """Check a mask, and return which tokens (columns) each row sees, `[tokens, tokens]`."""
    if _validate.is_traced(mask):
        raise ValueError("mask must not be traced to be averaged over; pass a NumPy array")
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.shape != (tokens, tokens):
        raise ValueError(
            f"mask must be an array of booleans [{tokens}, {tokens}], got {_validate.show(mask)}"
        )
    mask = np.tril(mask) if causal else mask
    if not mask.any(axis=1).all():
        raise ValueError("mask must let each row see at least one token, got a row of none")
    return mask


def _count(mask):
    """Count rows by the tokens that they see, and pairs by what both see, and each alone.

    Returns `[kinds, (tokens, count)]` and `[kinds, (both, first alone, second alone, count)]`.
    """
    # In floating point, since NumPy multiplies matrices of integers slowly.
    seen, both = mask.sum(axis=1), mask.astype(float) @ mask.T.astype(float)
    rows = np.stack(np.unique(seen, return_counts=True), axis=1)
    ordered = np.stack([both, seen[:, None] - both, seen[None] - both], axis=-1)
    pairs, counts = np.unique(ordered[~np.eye(len(mask), dtype=bool)], axis=0, return_counts=True)
    return rows.astype(float), np.column_stack([pairs, counts])


class _Grid(NamedTuple):
    """Averages over one logit, at points of `log t`.

    Attributes:
      step: distance of the points.
      powers: Hermite coefficients of `(t w)^k e^(-t w)` for `k` of 0, ..., 4, `[points, degrees]`
        each; those of `k = 0` are of `1 - e^(-t w)`, which keeps the digits of small `t`.
      log_one: `log E e^(-t w)`, `[points]`.
    """

    step: Any
    powers: tuple[Any, ...]
    log_one: Any

    def mean(self, k: int, degree: int = 0) -> Any:
        """Return `E (t w)^k e^(-t w) z^degree`, `[points]`."""
        a = self.powers[k]
        # z^2 = sqrt(2) h_2 + h_0.
        return a[:, degree] if degree < 2 else np.sqrt(2) * a[:, 2] + a[:, 0]


@functools.cache
def _hermite():
    """Return points of `z`, and orthonormal Hermite polynomials there times their weights."""
    z = np.linspace(-_RANGE, _RANGE, _NORMAL_POINTS)
    h = np.ones((_DEGREES, _NORMAL_POINTS))
    h[1] = z
    for n in range(1, _DEGREES - 1):
        h[n + 1] = (z * h[n] - np.sqrt(n) * h[n - 1]) / np.sqrt(n + 1)
    weights = np.exp(-z * z / 2)
    return z, (h * weights / weights.sum()).T


def _grid(variance, tokens, fewest):
    """Place points of `log t` where `t^2 E[e^(-t w)]^(n-1)` is not negligible.

    Here `n` is from `fewest` to `tokens`.
    """
    z, hermite = _hermite()
    scale = jnp.sqrt(variance)
    log_tokens = jnp.log(tokens)
    # The sum Z is at most about T e^(v / 2), and at most T times its largest term.
    low = -log_tokens - jnp.minimum(variance / 2, scale * (jnp.sqrt(2 * log_tokens) + 2)) - 34
    # From where on a share 60 / T of all logits is above -log t: e^-60 is left of the power.
    many = jnp.maximum(fewest, 160.0)
    high = 5 + scale * jnp.where(fewest > 160, jax.scipy.special.ndtri(60 / many), 8.5)
    step = (high - low) / (_POINTS - 1)
    log_t = low + step * jnp.arange(_POINTS)
    tw = jnp.exp(jnp.minimum(log_t[:, None] + scale * z[None], _LARGEST))
    decay = jnp.exp(-tw)
    powers = (-jnp.expm1(-tw) @ hermite, *((tw**k * decay) @ hermite for k in range(1, 5)))
    return _Grid(step, powers, jnp.log1p(-jnp.minimum(powers[0][:, 0], _CERTAIN)))


def _pairs(grid, correlation):
    """Return `E (t w)^j (t' w')^k e^(-t w - t' w')` as a function of `j` and `k`, and its log at 0.

    By Mehler's formula it is `sum_n c^n a_n a'_n`, of the Hermite coefficients `a` and `a'`.
    """
    factors = correlation ** jnp.arange(_DEGREES)

    def product(j, k):
        return (grid.powers[j] * factors[None]) @ grid.powers[k].T

    # 1 - E e e' = E (1 - e) + E (1 - e') - E (1 - e) (1 - e').
    one = grid.powers[0][:, 0]
    return product, jnp.log1p(-jnp.minimum(one[:, None] + one[None] - product(0, 0), _CERTAIN))


def _average(variance, correlation, tokens):
    grid = _grid(variance, tokens, tokens)
    product, log_both = _pairs(grid, correlation)

    def total(integrand, selected):
        # What remains of T logits after `selected` different ones.
        return grid.step * jnp.sum(integrand * jnp.exp((tokens - selected) * grid.log_one))

    def double(integrand, selected):
        return grid.step**2 * jnp.sum(integrand * jnp.exp((tokens - selected) * log_both))

    one, two = _single(grid, tokens, total), product(1, 1)
    return SoftmaxMoments(
        *one,
        overlap=tokens * double(two, 1),
        square_overlap=tokens * double(product(2, 1), 1),
        squared_overlap=tokens * double(product(2, 2), 1)
        + tokens * (tokens - 1) * double(two * two, 2),
    )


def _single(grid, tokens, total):
    """Return the averages over one row; sums over different tokens are products of their own."""
    m, pairs = grid.mean, tokens * (tokens - 1)
    # The denominators are Gamma(k) of the power of Z.
    z_square = tokens * total(m(2, 2), 1)
    z_mean = (tokens * total(m(3, 2), 1) + pairs * total(m(2, 1) * m(1, 1), 2)) / 2
    mean_square = (
        tokens * total(m(4, 2), 1)
        + pairs * total(2 * m(3, 1) * m(1, 1) + m(2) * m(2, 2), 2)
        + pairs * (tokens - 2) * total(m(2) * m(1, 1) ** 2, 3)
    ) / 6
    return (
        tokens * total(m(2), 1),
        tokens * total(m(3), 1) / 2,
        (tokens * total(m(4), 1) + pairs * total(m(2) ** 2, 2)) / 6,
        z_square - 2 * z_mean + mean_square,
        tokens * total(m(2, 2), 1) + pairs * total(m(1, 1) ** 2, 2),
    )


def _row(grid, count):
    """Return the averages over one row of `count` tokens."""

    def integral(integrand, selected):
        # With fewer tokens than are selected, the factor before the integral is 0.
        power = jnp.maximum(count - selected, 0.0)
        return grid.step * jnp.sum(integrand * jnp.exp(power * grid.log_one))

    return _single(grid, count, integral)


def _average_masked(variance, correlation, *, rows, pairs):
    """Average over rows, and over ordered pairs of rows, that see different tokens."""
    tokens = jnp.sum(rows[:, 1])
    grid = _grid(variance, jnp.max(rows[:, 0]), jnp.min(rows[:, 0]))
    product, log_both = _pairs(grid, correlation)

    def row(total, kind):
        return jax.tree.map(lambda a, b: a + kind[1] * b, total, _row(grid, kind[0])), None

    singles = jax.lax.scan(row, (jnp.zeros(()),) * 5, rows)[0]

    # Tokens that one row of a pair sees alone leave an average over one logit each.
    def pair(weights, kind):
        both, first, second, count = kind
        alone = first * grid.log_one[:, None] + second * grid.log_one[None]
        one = count * both * jnp.exp(jnp.maximum(both - 1, 0) * log_both + alone)
        factor = count * both * (both - 1)
        two = factor * jnp.exp(jnp.maximum(both - 2, 0) * log_both + alone)
        return (weights[0] + one, weights[1] + two), None

    empty = jnp.zeros((_POINTS, _POINTS))
    (single, double), _ = jax.lax.scan(pair, (empty, empty), pairs)
    two, scale = product(1, 1), grid.step**2 / (tokens * (tokens - 1))
    return SoftmaxMoments(
        *(a / tokens for a in singles),
        overlap=scale * jnp.sum(single * two),
        square_overlap=scale * jnp.sum(single * product(2, 1)),
        squared_overlap=scale * jnp.sum(single * product(2, 2) + double * two * two),
    )


def _average_causal(variance, correlation, *, tokens):
    """Average over rows of 1, ..., T tokens, and over pairs of such rows."""
    grid = _grid(variance, jnp.asarray(float(tokens)), 1.0)
    product, log_both = _pairs(grid, correlation)
    one = jnp.exp(grid.log_one)

    def row(total, count):
        return jax.tree.map(jnp.add, total, _row(grid, count)), None

    counts = jnp.arange(1.0, tokens + 1)
    zeros = (jnp.zeros(()),) * 5
    singles = jax.lax.scan(row, zeros, counts)[0]

    # A row of n tokens and a longer one share n tokens; the others of the longer one are averaged
    # over their number, 1 to T - n: a geometric sum, taken from the longest row of pairs down.
    def pair(carry, count):
        longer, weights = carry
        longer = one * (1 + longer)
        shared = jnp.exp((count - 1) * log_both)
        squares = count * (count - 1) * jnp.exp(jnp.maximum(count - 2, 0.0) * log_both)
        weights = (weights[0] + count * shared * longer[None], weights[1] + squares * longer[None])
        return (longer, weights), None

    empty = jnp.zeros((_POINTS, _POINTS))
    start = (jnp.zeros(_POINTS), (empty, empty))
    (_, (single, double)), _ = jax.lax.scan(pair, start, counts[:-1][::-1])
    two = product(1, 1)
    # Either row of a pair may be the longer one.
    square_overlap = (product(2, 1) + product(1, 2)) / 2
    scale = grid.step**2 * 2 / (tokens * (tokens - 1))
    return SoftmaxMoments(
        *(a / tokens for a in singles),
        overlap=scale * jnp.sum(single * two),
        square_overlap=scale * jnp.sum(single * square_overlap),
        squared_overlap=scale * jnp.sum(single * product(2, 2) + double * two * two),
    )
