"""Matrix factorizations and Fourier transforms in arbitrary precision.

Signs and phases that a factorization leaves open are those of LAPACK: of its algorithm where that
fixes them, and else of its own result in float64.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxgrad.checking._arbitrary_arrays import Equation, exact_numbers, objects
from jaxgrad.checking._arbitrary_scalars import UnknownError

GAP = 2.0**-40  # Eigenvalues that are closer, relative to the largest, are taken for equal.


def _over_matrices(function: Callable[..., Any]) -> Callable[..., Any]:
    """Apply a function of matrices to all matrices along the last two axes."""

    def apply(call: Equation, *args: Any) -> list[np.ndarray]:
        batch = args[0].shape[:-2]
        count = int(np.prod(batch, dtype=int))
        rows = [a.reshape(count, *a.shape[-2:]) for a in args]
        call.spend(sum(max(a.shape) ** 3 for row in rows for a in row))
        results = [function(call, *(row[i] for row in rows)) for i in range(count)]
        if not count:
            raise UnknownError("factorizations of no matrix are not known")
        columns = zip(*results, strict=True)
        return [
            np.stack(column).reshape(*batch, *np.shape(column[0])).astype(column[0].dtype)
            for column in columns
        ]

    return apply


def _conjugate(a: np.ndarray) -> np.ndarray:
    # Real numbers of mpmath have this attribute, too.
    return objects([x.conjugate() for x in a.ravel()], a.shape)


def _cholesky(call: Equation, a: np.ndarray) -> list[np.ndarray]:
    c, n = call.context, len(a)
    # LAPACK reads the lower triangle alone.
    result = np.full((n, n), c.zero, object)
    for j in range(n):
        row = result[j, :j]
        pivot = c.re(a[j, j] - (row @ _conjugate(row) if j else 0))
        if not pivot > 0:
            return [np.full((n, n), c.nan, object)]
        result[j, j] = c.sqrt(pivot)
        for i in range(j + 1, n):
            inner = result[i, :j] @ _conjugate(row) if j else 0
            result[i, j] = (a[i, j] - inner) / result[j, j]
    return [result]


def _triangular_solve(call: Equation, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    params, c = call.params, call.context
    lower, left = params["lower"], params["left_side"]
    # A transposed lower triangle is an upper one.
    if params["transpose_a"]:
        a, lower = a.T, not lower
    if params["conjugate_a"]:
        a = _conjugate(a)
    if not left:
        # x a = b is the same as a^T x^T = b^T.
        a, b, lower = a.T, b.T, not lower
    x = np.empty(b.shape, object)
    for i in range(len(a)) if lower else reversed(range(len(a))):
        known = slice(0, i) if lower else slice(i + 1, None)
        rest = b[i] - (a[i, known] @ x[known] if len(a[i, known]) else 0)
        if params["unit_diagonal"]:
            x[i] = rest
        elif a[i, i] == 0:
            x[i] = [c.nan if r == 0 else c.inf * c.sign(r) for r in rest]
        else:
            x[i] = rest / a[i, i]
    return [x if left else x.T]


def _lu(call: Equation, a: np.ndarray) -> list[np.ndarray]:
    a = a.copy()
    rows, columns = a.shape
    permutation, pivots = np.arange(rows), []
    for k in range(min(a.shape)):
        # LAPACK measures complex numbers by the sum of their parts.
        sizes = [abs(x.real) + abs(x.imag) for x in a[k:, k]]
        pivot = k + max(range(len(sizes)), key=lambda i, s=sizes: (s[i], -i))
        pivots.append(pivot)
        a[[k, pivot]] = a[[pivot, k]]
        permutation[[k, pivot]] = permutation[[pivot, k]]
        if a[k, k] == 0:
            raise UnknownError("the factorization of a singular matrix is not known")
        a[k + 1 :, k] = a[k + 1 :, k] / a[k, k]
        if k + 1 < min(rows, columns) or columns > k + 1:
            a[k + 1 :, k + 1 :] = a[k + 1 :, k + 1 :] - np.outer(a[k + 1 :, k], a[k, k + 1 :])
    return [a, np.array(pivots, np.int32), permutation.astype(np.int32)]


def _qr(call: Equation, a: np.ndarray) -> list[np.ndarray]:
    if call.params.get("pivoting"):
        raise UnknownError("qr with pivoting is not known in arbitrary precision")
    c, (rows, columns) = call.context, a.shape
    size = rows if call.params["full_matrices"] else min(rows, columns)
    q, r = exact_numbers(c, np.eye(rows)), a.copy()
    for k in range(min(rows - 1, columns) if _is_real(c, a) else min(rows, columns)):
        # Householder's reflection maps the column to a number of the opposite sign.
        x = r[k:, k]
        length = c.sqrt(sum(abs(value) ** 2 for value in x))
        if length == 0:
            continue
        beta = -length if x[0].real >= 0 else length
        v = x.copy()
        v[0] = v[0] - beta
        tau = (beta - x[0]) / beta
        if v[0] == 0:
            continue
        v = v / v[0]
        adjoint = _conjugate(v)
        r[k:] = r[k:] - np.outer(v, np.conj(tau) * (adjoint @ r[k:]))
        q[:, k:] = q[:, k:] - np.outer(tau * (q[:, k:] @ v), adjoint)
    below = np.tril(np.ones((rows, columns)), -1) == 1
    r[below] = c.zero
    return [q[:, :size], r[:size]]


def _is_real(c: Any, a: np.ndarray) -> bool:
    return not any(isinstance(x, c.mpc) for x in a.ravel())


def _matrix(c: Any, a: np.ndarray) -> Any:
    return c.matrix(a.tolist())


def _array(a: Any) -> np.ndarray:
    return objects([a[i, j] for i in range(a.rows) for j in range(a.cols)], (a.rows, a.cols))


def _in_float64(a: np.ndarray) -> np.ndarray:
    return np.array([float(x) for x in a.ravel()]).reshape(a.shape)


def _separate(c: Any, values: list[Any], name: str) -> None:
    size = max([abs(v) for v in values], default=c.zero)
    ordered = sorted(values)
    if any(y - x <= GAP * size for x, y in itertools.pairwise(ordered)):
        raise UnknownError(f"vectors of {name} that are equal are not unique")


def _sign(c: Any, vector: np.ndarray, float64: np.ndarray) -> Any:
    """Return the sign that turns a vector into LAPACK's."""
    inner = sum(c.mpf(float(y)) * x for y, x in zip(float64, vector, strict=True))
    if abs(inner) < 0.5:
        raise UnknownError("the vectors of a factorization are not those of float64")
    return c.sign(inner)


def _eigh(call: Equation, a: np.ndarray) -> list[np.ndarray]:
    c = call.context
    if call.params.get("subset_by_index") not in (None, (0, len(a))):
        raise UnknownError("eigh of a subset is not known in arbitrary precision")
    lower = a if call.params["lower"] else _conjugate(a.T)
    a = np.where(np.tril(np.ones(a.shape)) == 1, lower, _conjugate(lower.T))
    if not _is_real(c, a):
        raise UnknownError("the phases of complex eigenvectors are not unique")
    values, vectors = c.eigsy(_matrix(c, a))
    values, vectors = list(values), _array(vectors)
    order = sorted(range(len(values)), key=lambda i: values[i])
    values, vectors = [values[i] for i in order], vectors[:, order]
    _separate(c, values, "eigenvalues")
    float64 = np.linalg.eigh(_in_float64(a))[1]
    for k in range(len(values)):
        vectors[:, k] = vectors[:, k] * _sign(c, vectors[:, k], float64[:, k])
    return [vectors, objects(values, (len(values),))]


def _svd(call: Equation, a: np.ndarray) -> list[np.ndarray]:
    c, params = call.context, call.params
    real = _is_real(c, a)
    tall = a if a.shape[0] >= a.shape[1] else _conjugate(a.T)
    if not params["compute_uv"]:
        values = list((c.svd_r if real else c.svd_c)(_matrix(c, tall), compute_uv=False))
        return [objects(sorted(values, reverse=True), (len(values),))]
    if not real:
        raise UnknownError("the phases of complex singular vectors are not unique")
    if params["full_matrices"] and a.shape[0] != a.shape[1]:
        raise UnknownError("svd with full matrices is not unique")
    u, s, vh = c.svd_r(_matrix(c, tall), compute_uv=True)
    values = list(s)
    order = sorted(range(len(values)), key=lambda i: -values[i])
    values = [values[i] for i in order]
    _separate(c, values, "singular values")
    u, vh = _array(u)[:, order], _array(vh)[order]
    if a.shape[0] < a.shape[1]:
        u, vh = _conjugate(vh.T), _conjugate(u.T)
    float64 = np.linalg.svd(_in_float64(a), full_matrices=False)[0]
    for k in range(len(values)):
        sign = _sign(c, u[:, k], float64[:, k])
        u[:, k], vh[k] = u[:, k] * sign, vh[k] * sign
    return [objects(values, (len(values),)), u, vh]


def _fft(call: Equation, operand: Any) -> np.ndarray:
    kind, lengths = call.params["fft_type"].name, call.params["fft_lengths"]
    axes = range(operand.ndim - len(lengths), operand.ndim)
    result = operand
    if kind == "IRFFT":
        *others, last = zip(axes, lengths, strict=True)
        for axis, n in others:
            result = _dft(call, result, axis, n, +1)
        axis, n = last
        # The other half of the spectrum is the conjugate of this one, read backwards.
        half = np.moveaxis(result, axis, -1)
        mirror = _conjugate(half[..., 1 : (n + 1) // 2][..., ::-1])
        result = np.moveaxis(np.concatenate([half, mirror], -1), -1, axis)
        result = _dft(call, result, axis, n, +1)
        return objects([x.real for x in result.ravel()], result.shape)
    for axis, n in zip(reversed(axes), reversed(lengths), strict=True):
        result = _dft(call, result, axis, n, +1 if kind == "IFFT" else -1)
        if kind == "RFFT" and axis == operand.ndim - 1:
            result = result[..., : n // 2 + 1]
    return result


def _dft(call: Equation, operand: np.ndarray, axis: int, n: int, sign: int) -> np.ndarray:
    """Return the discrete Fourier transform along an axis; `sign` is that of the exponent."""
    c = call.context
    roots = [c.expjpi(c.mpf(2 * sign * k) / n) for k in range(n)]
    scale = n if sign > 0 else 1
    matrix = objects([roots[j * k % n] / scale for j in range(n) for k in range(n)], (n, n))
    lines = np.moveaxis(operand, axis, -1)
    call.spend(lines.size * n)
    return np.moveaxis(lines @ matrix, -1, axis)


def _tridiagonal_solve(call: Equation, low: Any, middle: Any, high: Any, b: Any) -> np.ndarray:
    if b.ndim != 2:
        raise UnknownError("batches of tridiagonal systems are not known in arbitrary precision")
    call.spend(b.size)
    # Thomas' algorithm.
    n, middle, x = len(middle), middle.copy(), b.copy()
    for i in range(1, n):
        factor = low[i] / middle[i - 1]
        middle[i] = middle[i] - factor * high[i - 1]
        x[i] = x[i] - factor * x[i - 1]
    for i in reversed(range(n)):
        x[i] = (x[i] - (high[i] * x[i + 1] if i + 1 < n else 0)) / middle[i]
    return x


MATRIX_OPERATIONS: dict[str, Callable[..., Any]] = {
    "cholesky": _over_matrices(_cholesky),
    "triangular_solve": _over_matrices(_triangular_solve),
    "lu": _over_matrices(_lu),
    "qr": _over_matrices(_qr),
    "eigh": _over_matrices(_eigh),
    "svd": _over_matrices(_svd),
    "fft": _fft,
    "tridiagonal_solve": _tridiagonal_solve,
}
