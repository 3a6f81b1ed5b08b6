"""Operations on single numbers in arbitrary precision, by the names of JAX's primitives.

Numbers are those of an mpmath context: `mpf`, or `mpc` if they are complex. As in floating point,
1 / 0 is infinite and the square root of -1 is NaN. Unlike in floating point there is one zero, and
no number is too large or too small, except that exponentials beyond `2**LIMIT` are infinite or 0.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

LIMIT = 2.0**70  # the largest exponent of an exponential
REDUCED = 20_000  # sines of numbers of more bits than this are not known

Scalar = Callable[..., Any]


class UnknownError(NotImplementedError):
    """An operation, or its value at these numbers, is not known in arbitrary precision."""


def scalar_functions(c: Any) -> dict[str, Callable[[Mapping[str, Any]], Scalar]]:
    """Return a function of the parameters of each primitive that gives the function of numbers.

    `c` is an mpmath context. The results are right to its precision, relative to their size.
    """
    simple = {**_arithmetic(c), **_comparisons(c), **_exponentials(c), **_special(c)}
    table = {name: _constant(_real(c, name, function)) for name, function in simple.items()}
    table |= {"integer_pow": lambda params: _integer_power(c, params["y"])}
    table |= {"round": lambda params: _round(c, int(params["rounding_method"]) == 1)}
    return table


def _constant(function: Scalar) -> Callable[[Mapping[str, Any]], Scalar]:
    return lambda params: function


def _real(c: Any, name: str, function: Scalar) -> Scalar:
    """Return NaN where a real function leaves the real numbers; name what mpmath refuses."""

    def call(*args):
        if any(map(c.isnan, args)):
            # Comparisons with NaN are false, except "not equal"; all other results are NaN.
            return name == "ne" if name in COMPARISONS else c.nan
        try:
            value = function(*args)
        except UnknownError:
            raise
        except Exception as error:  # mpmath's own, for numbers that it cannot treat
            raise UnknownError(f"{name} is not known at {', '.join(map(str, args))}") from error
        if isinstance(value, c.mpc) and not any(isinstance(a, c.mpc) for a in args):
            return value if name == "complex" else c.nan
        return value

    return call


COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "is_finite")


def _comparisons(c: Any) -> dict[str, Scalar]:
    return {
        "eq": lambda x, y: x == y,
        "ne": lambda x, y: x != y,
        "lt": lambda x, y: _ordered(c, x) < _ordered(c, y),
        "le": lambda x, y: _ordered(c, x) <= _ordered(c, y),
        "gt": lambda x, y: _ordered(c, x) > _ordered(c, y),
        "ge": lambda x, y: _ordered(c, x) >= _ordered(c, y),
        "is_finite": lambda x: bool(c.isfinite(x)),
        "max": lambda x, y: x if _ordered(c, x) >= _ordered(c, y) else y,
        "min": lambda x, y: x if _ordered(c, x) <= _ordered(c, y) else y,
        "clamp": lambda low, x, high: min(max(_ordered(c, x), low), high),
    }


def _ordered(c: Any, x: Any) -> Any:
    if isinstance(x, c.mpc):
        raise UnknownError("complex numbers are not ordered")
    return x


def _arithmetic(c: Any) -> dict[str, Scalar]:
    return {
        "add": lambda x, y: x + y,
        "add_any": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "div": functools.partial(_divide, c),
        "rem": lambda x, y: _remainder(c, x, y),
        "neg": lambda x: -x,
        "square": lambda x: x * x,
        "one_minus_square": lambda x: (1 - x) * (1 + x),
        "abs": lambda x: abs(x),
        "sign": lambda x: x / abs(x) if x else x,
        "floor": lambda x: c.floor(_ordered(c, x)),
        "ceil": lambda x: c.ceil(_ordered(c, x)),
        "real": lambda x: c.re(x),
        "imag": lambda x: c.im(x),
        "conj": lambda x: c.mpc(x.real, -x.imag),
        "complex": lambda x, y: c.mpc(x, y),
        "sqrt": lambda x: c.sqrt(x),
        "rsqrt": lambda x: _divide(c, c.one, c.sqrt(x)),
        # The real cube root of a negative number is negative.
        "cbrt": lambda x: c.sign(x) * c.cbrt(abs(x)),
        "pow": lambda x, y: _power(c, x, y),
        # The constant comes first.
        "polynomial": lambda x, *terms: functools.reduce(
            lambda s, t: s * x + t, terms[::-1], c.zero
        ),
    }


def _polynomial(x: Any, *coefficients: Any) -> Any:
    # Horner's rule; the constant comes first.
    return functools.reduce(lambda total, term: total * x + term, coefficients[::-1])


def _divide(c: Any, x: Any, y: Any) -> Any:
    if y != 0:
        return x / y
    return c.nan if x == 0 else (c.sign(x) * c.inf if not isinstance(x, c.mpc) else c.nan)


def _remainder(c: Any, x: Any, y: Any) -> Any:
    # The result has the sign of the dividend.
    if y == 0 or c.isinf(x):
        return c.nan
    if c.isinf(y):
        return x
    quotient = x / y
    return x - y * (c.floor(quotient) if quotient >= 0 else c.ceil(quotient))


def _integer_power(c: Any, y: int) -> Scalar:
    return _real(c, "integer_pow", lambda x: _divide(c, c.one, x**-y) if y < 0 else x**y)


def _power(c: Any, x: Any, y: Any) -> Any:
    if isinstance(x, c.mpc) or isinstance(y, c.mpc):
        return c.power(x, y)
    if y == 0:
        return c.one
    if x == 0:
        return c.zero if y > 0 else c.inf
    if c.isinf(x) or c.isinf(y):
        if c.isinf(y):
            # Powers of numbers below 1 in size vanish, those of larger ones grow.
            size = abs(x)
            return c.one if size == 1 else (c.inf if (size > 1) == (y > 0) else c.zero)
        odd = y == c.floor(y) and c.floor(y / 2) * 2 != y
        sign = -1 if x < 0 and odd else 1
        return sign * (c.inf if y > 0 else c.zero)
    if x < 0 and y != c.floor(y):
        return c.nan
    if abs(y) * abs(c.mag(x)) > LIMIT:
        return c.inf if (abs(x) > 1) == (y > 0) else c.zero
    return c.power(x, y)


def _round(c: Any, to_even: bool) -> Scalar:
    def nearest(x):
        if to_even:
            return c.nint(_ordered(c, x))
        return c.sign(x) * c.floor(abs(x) + c.mpf(0.5))

    return _real(c, "round", nearest)


def _exponentials(c: Any) -> dict[str, Scalar]:
    bounded = functools.partial(_bounded, c)
    periodic = functools.partial(_periodic, c)
    inverse = {
        name: getattr(c, name) for name in ("asin", "acos", "atan", "asinh", "acosh", "atan2")
    }
    return inverse | {
        "exp": bounded(c.exp, c.zero, c.inf),
        "exp2": bounded(lambda x: c.power(2, x), c.zero, c.inf),
        "expm1": bounded(c.expm1, -c.one, c.inf),
        "log": lambda x: -c.inf if x == 0 else c.log(x),
        "log2": lambda x: -c.inf if x == 0 else c.log(x, 2),
        "log1p": lambda x: -c.inf if x == -1 else c.log1p(x),
        # Right to its relative precision for large numbers of either sign.
        "logistic": bounded(lambda x: 1 / (1 + c.exp(-x)), c.zero, c.one),
        "sin": periodic(c.sin),
        "cos": periodic(c.cos),
        "tan": periodic(c.tan),
        "sinh": bounded(c.sinh, -c.inf, c.inf),
        "cosh": bounded(c.cosh, c.inf, c.inf),
        "tanh": bounded(c.tanh, -c.one, c.one),
        "atanh": lambda x: x * c.inf if x in (1, -1) else c.atanh(x),
    }


def _bounded(c: Any, function: Scalar, low: Any, high: Any) -> Scalar:
    def call(x):
        if not isinstance(x, c.mpc) and abs(x) > LIMIT:
            return high if x > 0 else low
        return function(x)

    return call


def _periodic(c: Any, function: Scalar) -> Scalar:
    def call(x):
        if x and c.mag(x) > REDUCED:
            raise UnknownError("the argument of a sine is too large")
        return c.nan if c.isinf(x) else function(x)

    return call


def _special(c: Any) -> dict[str, Scalar]:
    def lower(a, x):
        return c.gammainc(a, 0, x, regularized=True)

    def order(m):
        if m != c.floor(m) or not 0 <= m <= 200:
            raise UnknownError("polygamma is known for whole orders up to 200")
        return int(m)

    def bessel(n):
        # besseli grows like the exponential that it is scaled by.
        return lambda x: c.besseli(n, x) * c.exp(-abs(x))

    return {
        "erf": lambda x: c.erf(x),
        "erfc": lambda x: c.erfc(x),
        "erf_inv": lambda x: c.nan if abs(x) > 1 else x * c.inf if abs(x) == 1 else c.erfinv(x),
        "lgamma": lambda x: c.inf if _is_pole(c, x) else c.re(c.loggamma(x)),
        "digamma": lambda x: c.nan if _is_pole(c, x) else c.psi(0, x),
        "polygamma": lambda m, x: c.nan if _is_pole(c, x) else c.psi(order(m), x),
        "zeta": lambda x, q: c.inf if x == 1 else c.zeta(_above(x, 1), _above(q, 0)),
        "bessel_i0e": bessel(0),
        "bessel_i1e": bessel(1),
        "igamma": lambda a, x: lower(_above(a, 0, 1e9), _from(x, 0)),
        "igammac": lambda a, x: c.gammainc(_above(a, 0, 1e9), _from(x, 0), c.inf, regularized=True),
        "igamma_grad_a": lambda a, x: c.diff(lambda t: lower(t, _from(x, 0)), _above(a, 0, 1e9)),
        "regularized_incomplete_beta": lambda a, b, x: c.betainc(
            _above(a, 0, 3e3), _above(b, 0, 3e3), 0, _from(x, 0), regularized=True
        ),
    }


def _is_pole(c: Any, x: Any) -> bool:
    return not isinstance(x, c.mpc) and x <= 0 and x == c.floor(x)


def _above(x: Any, least: float, most: float = math.inf) -> Any:
    # Series for very large parameters would take minutes.
    if not least < x <= most:
        raise UnknownError(f"special functions are not known at a parameter of {float(x):g}")
    return x


def _from(x: Any, least: float) -> Any:
    if not x >= least:
        raise UnknownError(f"special functions are not known at {float(x):g}")
    return x
