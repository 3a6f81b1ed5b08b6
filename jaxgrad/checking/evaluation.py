"""A function and its arguments, opened for a check.

`Opened` sorts the leaves of the arguments into those that are moved and those that stay, finds the
widest precision that the function allows, and compiles what a check needs: the change of the
function along given directions, and its derivatives by autodiff. The moved leaves, real and
imaginary parts apart, are the coordinates `0 ... size - 1` of a real vector, leaf after leaf.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate
from jaxgrad.checking import tracing, widening

CHUNK_BYTES = 2**23
ROWS_BYTES = 2**22

Directions = Sequence[tuple[int, np.ndarray]]


class LeafInfo(NamedTuple):
    """One leaf that is moved.

    Attributes:
      path: `jax.tree_util.keystr` within the gradient that `jax.grad` would return.
      shape, dtype: as the user gave it.
      start, stop: its coordinates; twice as many as elements if it is complex.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    start: int
    stop: int

    @property
    def complex(self) -> bool:
        """Whether each element has two coordinates, real parts first."""
        return bool(jnp.issubdtype(self.dtype, jnp.complexfloating))

    @property
    def axes(self) -> tuple[int, ...]:
        """The shape of its coordinates: for a complex leaf, two by its shape."""
        return (2, *self.shape) if self.complex else self.shape


class Numeric(NamedTuple):
    """The function as its numeric derivative is taken: in float64 throughout where possible.

    Attributes:
      programs: what is compiled of it.
      moved, fixed: its arguments.
      wide: whether it is evaluated in float64.
      eps: rounding of the narrowest type that its values pass through.
    """

    programs: Programs
    moved: list[Any]
    fixed: list[Any]
    wide: bool
    eps: float


@dataclass(frozen=True)
class _Static:
    """A leaf that is no array; compared by value if it can be, else by identity."""

    value: Any

    def __hash__(self):
        try:
            return hash(self.value)
        except TypeError:
            return id(self.value)


@dataclass(frozen=True)
class _Call:
    """`f` as a function of (moved leaves, fixed arrays) that returns its inexact outputs."""

    f: Callable[..., Any]
    tree: Any
    kinds: tuple[Any, ...]
    has_aux: bool

    def __call__(self, moved: Sequence[Any], fixed: Sequence[Any]) -> list[jax.Array]:
        moved_left, fixed_left = iter(moved), iter(fixed)
        leaves = [
            kind.value
            if isinstance(kind, _Static)
            else next(moved_left if kind == "moved" else fixed_left)
            for kind in self.kinds
        ]
        args = jax.tree.unflatten(self.tree, leaves)
        out = self.f(*args)
        if self.has_aux:
            if not (isinstance(out, (tuple, list)) and len(out) == 2):
                raise TypeError(f"f must return a pair with has_aux=True, got {type(out).__name__}")
            out = out[0]
        found = [jnp.asarray(leaf) for leaf in jax.tree.leaves(out) if _is_inexact(leaf)]
        if not found:
            raise TypeError(
                f"f must return a floating-point number or array, got {jax.tree.map(_words, out)}"
            )
        return found


class Opened:
    """A function and its arguments, ready to be evaluated and differentiated.

    Raises `TypeError` or `ValueError` if nothing can be differentiated or the function raises.

    Attributes:
      call: the function of (moved leaves, fixed arrays), which returns its inexact outputs.
      given, given_fixed: the moved leaves and the other arrays, as the user gave them.
      moved, fixed: the same in the precision of the check.
      batched: whether the function is evaluated under `vmap`.
      programs: what is compiled, kept from one check of the function to the next.
      leaves: the leaves that are moved.
      left_out: (path, why) of the others among the differentiated arguments.
      size: number of coordinates.
      point: the coordinates, `[size]`, float64.
      wide: whether the function is evaluated in float64.
      numeric: the function as its numeric derivative is taken.
      why_narrow: what it raised in float64, or "".
      facts: of the trace, or `None` if the function cannot be traced.
      eps: rounding of the narrowest type that its values pass through.
      deterministic: whether two traces (or two calls) agree.
      outputs: the inexact outputs at the point, NumPy.
      cotangents: one for each output.
    """

    leaves: tuple[LeafInfo, ...]
    left_out: tuple[tuple[str, str], ...]
    size: int
    point: np.ndarray
    wide: bool
    why_narrow: str
    facts: tracing.Facts | None
    eps: float
    deterministic: bool
    outputs: list[np.ndarray]
    cotangents: list[np.ndarray]
    numeric: Numeric

    def __init__(self, f, args, argnums, has_aux, holomorphic, seed):
        tree, kinds, values, self.leaves, self.left_out = _sorted(args, argnums, holomorphic)
        self.call = _Call(f, tree, kinds, has_aux)
        given = [v for v, kind in zip(values, kinds, strict=True) if kind == "moved"]
        fixed = [v for v, kind in zip(values, kinds, strict=True) if kind == "fixed"]
        self.given, self.given_fixed = given, fixed
        self.point = np.concatenate([coordinates(v) for v in given])
        self.size = len(self.point)
        _check_finite(self.leaves, given)
        self._attempt(given, fixed)
        if self.deterministic:
            self._outputs(holomorphic, seed)
            self.numeric = self._numeric()
        else:
            self.outputs, self.cotangents, self.batched = [], [], False

    def _attempt(self, given, fixed):
        """Find the first of: traced or not, in float64 or as given, that the function allows."""
        errors = []
        self.why_narrow = ""
        for traced in (True, False):
            for wide, widen in ((True, True), (True, False), (False, False)):
                self.wide = wide
                with self.context():
                    self.moved = [_widened(v) for v in given] if wide else list(given)
                    self.fixed = [_widened(v) for v in fixed] if widen else list(fixed)
                    try:
                        if traced:
                            self.facts = tracing.facts(self.call, self.moved, self.fixed)
                            again = tracing.facts(self.call, self.moved, self.fixed)
                            self.deterministic = self.facts.fingerprint == again.fingerprint
                        else:
                            self.facts = None
                            first = self.call(self.moved, self.fixed)
                            again = self.call(self.moved, self.fixed)
                            self.deterministic = all(map(_same, first, again))
                    except jax.errors.UnexpectedTracerError:
                        # The function kept something of its first call for its second.
                        self.facts, self.deterministic = None, False
                    except Exception as error:  # whatever a user's function raises
                        errors.append(error)
                        continue
                self.programs = _programs_of(self.call, self.facts, self.wide)
                if not wide:
                    self.why_narrow = f"{type(errors[-2]).__name__}: {line(errors[-2])}"
                narrowest = max(_eps(v) for v in self.moved)
                self.eps = max(self.facts.eps if self.facts else narrowest, narrowest)
                return
        error = errors[2]
        if isinstance(error, jax.errors.ConcretizationTypeError):
            error = errors[-1]
        raise ValueError(
            f"f raised {type(error).__name__} at the given arguments: {line(error)}"
        ) from error

    def _outputs(self, holomorphic, seed):
        with self.context():
            found, batched = self.programs.values(self.moved, self.fixed)
        self.outputs = [np.asarray(v) for v in found]
        self.batched = batched
        generator = np.random.default_rng(seed)
        if len(found) == 1 and self.outputs[0].shape == ():
            if np.iscomplexobj(self.outputs[0]) and not holomorphic:
                raise TypeError(
                    "f must return a real number, got a complex one; pass holomorphic=True, or "
                    "take its real part or size"
                )
            unit = np.ones((), self.outputs[0].dtype)
            angle = np.exp(1j * generator.uniform(0.3, 1.2)) if holomorphic else 1.0
            self.cotangents = [(unit * angle).astype(unit.dtype)]
        else:
            self.cotangents = [_cotangent(v, generator) for v in self.outputs]

    def _numeric(self) -> Numeric:
        """The function without the rounding to narrower types inside, if it is still the same."""
        as_is = Numeric(self.programs, self.moved, self.fixed, self.wide, self.eps)
        if self.eps <= np.finfo(np.float64).eps or not self.programs.traced:
            return as_is
        with self.context():
            programs = self.programs.widened(self.moved, self.fixed)
        if programs is None:
            return as_is
        with _precision(True):
            moved, fixed = ([_widened(v) for v in part] for part in (self.moved, self.fixed))
            found, batched = programs.values(moved, fixed)
        near = all(
            np.allclose(wide, narrow, rtol=0, atol=self.eps**0.5 * _largest(narrow), equal_nan=True)
            for wide, narrow in zip(found, self.outputs, strict=True)
        )
        if not near or batched != self.batched:
            return as_is
        return Numeric(programs, moved, fixed, True, float(np.finfo(np.float64).eps))

    def backward(self, moved, fixed, cotangents):
        """The gradient of the weighted outputs by reverse mode, as leaves."""
        out, pull = jax.vjp(lambda m: self.call(m, fixed), list(moved))
        return pull([jnp.asarray(c, v.dtype) for c, v in zip(cotangents, out, strict=True)])[0]

    @contextlib.contextmanager
    def context(self):
        """The precision of the check; leaves JAX's settings as they were."""
        with _precision(self.wide):
            yield

    @property
    def total(self) -> float:
        """Sum of the sizes of the weighted outputs, the scale of the function's rounding."""
        return float(
            sum(
                np.sum(np.abs(np.asarray(c, complex) * np.where(c == 0, 0, v)))
                for c, v in zip(self.cotangents, self.outputs, strict=True)
            )
        )

    def scale(self, leaf: LeafInfo) -> float:
        """The size that steps of a leaf are measured in: its root mean square, or 1 if zero."""
        part = self.point[leaf.start : leaf.stop]
        size = np.max(np.abs(part))
        return float(size * np.sqrt(np.mean(np.square(part / size)))) if size > 0 else 1.0

    def changes(self, directions: Directions, steps: np.ndarray) -> np.ndarray:
        """The weighted change of the outputs for each direction and step.

        Args:
          directions: `P` pairs of a first coordinate and the values from there on.
          steps: `[P, m]`, signed.

        Returns:
          `[P, m]`, float64; relative to a step of zero in the same program.
        """
        found = []
        for part, dense, rows in self._chunks(directions, steps):
            moves = np.concatenate([[0.0], rows.ravel()])
            which = np.concatenate([[0], np.repeat(np.arange(len(part)), rows.shape[1])])
            change = self._evaluate(_change, self.numeric, dense, which, moves)
            found.append((change[1:] - change[0]).reshape(rows.shape))
        return np.concatenate(found)

    def pushforwards(self, directions: Directions) -> np.ndarray:
        """The weighted tangent of the outputs along each direction by forward mode, `[P]`."""
        found = []
        as_is = Numeric(self.programs, self.moved, self.fixed, self.wide, self.eps)
        for part, dense, _ in self._chunks(directions, np.empty((len(directions), 0))):
            every, ones = np.arange(len(part)), np.ones(len(part))
            found.append(self._evaluate(_push, as_is, dense, every, ones))
        return np.concatenate(found)

    def _chunks(self, directions, steps):
        chunk = int(np.clip(CHUNK_BYTES // (4 * self.size), 8, 1024))
        for start in range(0, len(directions), chunk):
            part = directions[start : start + chunk]
            kind = np.result_type(*(values.dtype for _, values in part))
            dense = np.zeros((chunk, self.size), kind)
            for row, (first, values) in zip(dense, part, strict=False):
                row[first : first + len(values)] = values
            yield part, dense, steps[start : start + chunk]

    def _evaluate(self, what, of: Numeric, dense, which, steps):
        rows = int(np.clip(ROWS_BYTES // (8 * self.size), 1, 64)) if self.batched else 1
        with _precision(of.wide):
            return of.programs.evaluate(
                what, of.moved, of.fixed, self.cotangents, dense, which, steps, rows
            )

    def derived(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)` in the check's precision, compiled once under `name`."""
        with self.context():
            return self.programs.derived(name, function)(*args)


class Programs:
    """The compiled programs of one function, in one precision."""

    def __init__(self, call: Callable[..., list[jax.Array]], traced: bool):
        self.call, self.traced = call, traced
        self.one = jax.jit(call) if traced else call
        self.batched: bool | None = None if traced else False
        self._derived: dict[Any, Callable[..., Any]] = {}
        self._tried_wider, self._wider = False, None

    def widened(self, moved, fixed) -> Programs | None:
        """The programs of the function in float64 throughout; `None` if that is not possible."""
        if not self._tried_wider:
            self._tried_wider = True
            call = widening.widened(self.call, moved, fixed)
            self._wider = None if call is None else Programs(call, traced=True)
        return self._wider

    def values(self, moved, fixed):
        """The outputs, and whether the function can be vmapped."""
        if self.batched is None:
            try:
                several = [jnp.stack([v, v]) for v in moved]
                jax.eval_shape(jax.vmap(lambda m: self.call(m, fixed)), several)
                self.batched = True
            except Exception:  # whatever a user's function raises
                self.batched = False
        return self.one(moved, fixed), self.batched

    def evaluate(self, what, moved, fixed, cotangents, directions, which, steps, rows):
        """`what` at the rows `(directions[which[r]], steps[r])`, `rows` of them at a time."""
        if not self.traced:
            base = self.call(moved, fixed)
            function = functools.partial(what, self.call, moved, fixed, cotangents, base)
            return np.array(
                [float(function(directions[i], t)) for i, t in zip(which, steps, strict=True)]
            )
        count = -(-len(steps) // rows)
        # Few sizes, so that few programs are compiled; what is beyond `count` is not computed.
        size = max(1024, 1 << (count * rows - 1).bit_length())
        function = self.derived((what, rows), functools.partial(_rows, what, self.call, rows))
        dtype = jnp.finfo(jnp.result_type(*moved)).dtype
        pad = size - len(steps)
        out = function(
            moved,
            fixed,
            [jnp.asarray(c) for c in cotangents],
            directions,
            np.pad(which, (0, pad)).astype(np.int32),
            jnp.asarray(np.pad(steps, (0, pad)), dtype),
            np.int32(count),
        )
        return np.asarray(out, np.float64)[: len(steps)]

    def derived(self, name, function):
        """`function` jitted once under `name`, or as it is if `f` cannot be traced."""
        if name not in self._derived:
            self._derived[name] = jax.jit(function) if self.traced else function
        return self._derived[name]


def _change(call, moved, fixed, cotangents, base, direction, step):
    out = call(plus(moved, shifts(moved, step, direction)), fixed)
    return weighted(cotangents, [v - b for v, b in zip(out, base, strict=True)])


def _push(call, moved, fixed, cotangents, base, direction, step):
    del base
    tangent = shifts(moved, step, direction)
    return weighted(cotangents, jax.jvp(lambda m: call(m, fixed), (moved,), (tangent,))[1])


def _rows(what, call, rows, moved, fixed, cotangents, directions, which, steps, count):
    base = call(moved, fixed)

    def one(row):
        index, step = row
        return what(call, moved, fixed, cotangents, base, directions[index], step)

    def body(i, out):
        part = [jax.lax.dynamic_slice_in_dim(a, i * rows, rows) for a in (which, steps)]
        found = jax.vmap(one)(part) if rows > 1 else one([a[0] for a in part])[None]
        return jax.lax.dynamic_update_slice_in_dim(out, found.astype(out.dtype), i * rows, 0)

    return jax.lax.fori_loop(0, count, body, jnp.zeros_like(steps))


@contextlib.contextmanager
def _precision(wide: bool):
    with jax.default_matmul_precision("highest"):
        if wide:
            with jax.enable_x64(True):
                yield
        else:
            yield


@functools.lru_cache(maxsize=32)
def _kept_programs(call, fingerprint, wide):
    """The compiled programs of a function that was seen before, as JAX keeps them for `jit`."""
    return Programs(call, traced=True)


def _programs_of(call, facts, wide) -> Programs:
    if facts is None:
        return Programs(call, traced=False)
    try:
        return _kept_programs(call, facts.fingerprint, wide)
    except TypeError:  # not hashable
        return Programs(call, traced=True)


def shifts(leaves: Sequence[Any], step: Any, direction: Any) -> list[jax.Array]:
    """`step` times the direction, as leaves."""
    out, start = [], 0
    for leaf in leaves:
        real, parts = jnp.finfo(leaf.dtype).dtype, []
        for _ in range(2 if jnp.iscomplexobj(leaf) else 1):
            part = direction[start : start + leaf.size].reshape(leaf.shape)
            parts.append(jnp.asarray(step, real) * jnp.asarray(part, real))
            start += leaf.size
        out.append(parts[0] if len(parts) == 1 else jax.lax.complex(*parts))
    return out


def plus(leaves: Sequence[Any], shifts: Sequence[Any]) -> list[jax.Array]:
    """Each leaf moved by its shift."""
    return [leaf + shift for leaf, shift in zip(leaves, shifts, strict=True)]


def weighted(cotangents: Sequence[Any], values: Sequence[Any]) -> Any:
    """The real part of `<cotangents, values>`, without a conjugate, as JAX has it."""
    total = 0.0
    for cotangent, value in zip(cotangents, values, strict=True):
        cotangent = jnp.asarray(cotangent, value.dtype)
        # An output without a weight may be infinite.
        product = jnp.where(cotangent == 0, 0, value * cotangent)
        total = total + jnp.sum(jnp.real(product))
    return total


def coordinates_of_gradient(leaf: Any) -> np.ndarray:
    """A leaf of a gradient as real coordinates, such that `<g, move>` is the change of `f`."""
    flat = np.asarray(leaf).ravel()
    if np.iscomplexobj(flat):
        return np.concatenate([np.real(flat), -np.imag(flat)]).astype(np.float64)
    return flat.astype(np.float64)


def coordinates(value: Any) -> np.ndarray:
    """The elements of a leaf as real coordinates, real parts before imaginary ones."""
    flat = np.asarray(value).ravel()
    if np.iscomplexobj(flat):
        return np.concatenate([np.real(flat), np.imag(flat)]).astype(np.float64)
    return flat.astype(np.float64)


def _sorted(args, argnums, holomorphic):
    """Split the leaves of `args` into moved, fixed and static ones."""
    indices = _argnums(argnums, len(args))
    several = not isinstance(argnums, int)
    kinds, values, infos, left_out = [], [], [], []
    start = 0
    for position, arg in enumerate(args):
        with_paths, _ = jax.tree_util.tree_flatten_with_path(arg, is_leaf=lambda a: a is None)
        for path, leaf in with_paths:
            name = jax.tree_util.keystr(path)
            if several and position in indices:
                name = f"[{indices.index(position)}]{name}"
            elif position not in indices:
                name = f"args[{position}]{name}"
            chosen = position in indices
            if leaf is None:
                if chosen:
                    left_out.append((name, "None"))
                continue
            if _validate.is_traced(leaf):
                raise TypeError(
                    f"args must be arrays with known values, got a tracer at {name or 'args'}; "
                    "call check_grads outside of jit, vmap and grad"
                )
            array = isinstance(leaf, (jax.Array, np.ndarray, np.generic, float, complex))
            if chosen and array and _is_inexact(leaf) and np.size(leaf):
                value = jnp.asarray(leaf)
                if holomorphic and not jnp.iscomplexobj(value):
                    raise TypeError(
                        f"args must be complex with holomorphic=True, got {value.dtype} at "
                        f"{name or 'the argument'}; convert it to a complex type"
                    )
                count = value.size * (2 if jnp.iscomplexobj(value) else 1)
                infos.append(LeafInfo(name, value.shape, value.dtype, start, start + count))
                start += count
                kinds.append("moved")
                values.append(value)
                continue
            if chosen:
                left_out.append((name, "empty" if array and not np.size(leaf) else _words(leaf)))
            if isinstance(leaf, (jax.Array, np.ndarray, np.generic)) and _is_number(leaf):
                kinds.append("fixed")
                values.append(leaf)
            else:
                kinds.append(_Static(leaf))
                values.append(leaf)
    if not infos:
        raise TypeError(
            f"argnums={argnums} must choose an argument with floating-point leaves, got only "
            + (", ".join(f"{why}" for _, why in left_out[:4]) or "no leaves")
            + "; convert them to a floating-point type or choose another argument"
        )
    return jax.tree.structure(args), tuple(kinds), values, tuple(infos), tuple(left_out)


def _argnums(argnums, count):
    given = (argnums,) if isinstance(argnums, int) else argnums
    try:
        indices = [_validate.integer("argnums", i, -count) for i in given]
    except TypeError:
        raise TypeError(
            f"argnums must be a whole number or a sequence of them, got {argnums!r}"
        ) from None
    if not indices or any(i >= count for i in indices):
        raise ValueError(
            f"argnums must choose among the {count} arguments given, got {argnums}; pass the "
            "arguments of f after f"
        )
    indices = [i % count for i in indices]
    _validate.distinct("argnums", indices)
    return indices


def _check_finite(infos, given):
    for info, value in zip(infos, given, strict=True):
        bad = int(np.sum(~np.isfinite(np.asarray(value))))
        if bad:
            raise ValueError(
                f"args must be finite, got {bad} NaN or infinite of {value.size} values at "
                f"{info.path or 'the argument'}; check at a point where the function is defined"
            )


def _cotangent(value, generator):
    """A random weight for each entry of an output, all outputs of equal size."""
    draw = generator.standard_normal(value.shape)
    if np.iscomplexobj(value):
        draw = draw + 1j * generator.standard_normal(value.shape)
    finite = np.abs(np.asarray(value, complex)[np.isfinite(value)])
    size = np.max(finite, initial=0.0)
    size = size * np.sqrt(np.mean(np.square(finite / size))) if size > 0 else 1.0
    draw = draw / (size * np.sqrt(max(value.size, 1)))
    return np.where(np.isfinite(value), draw, 0).astype(value.dtype)


def _is_inexact(leaf):
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, (float, complex))
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def _is_number(leaf):
    kinds = (np.number, np.bool_, jax.dtypes.prng_key)
    return any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds)


def _widened(value):
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return value
    wide = jnp.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.float64
    return jnp.asarray(value).astype(wide)


def _eps(value) -> float:
    return float(jnp.finfo(value.dtype).eps)


def _largest(value) -> float:
    return float(np.max(np.abs(value), initial=0.0, where=np.isfinite(value)))


def _same(a, b):
    return bool(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True))


def _words(leaf):
    dtype = getattr(leaf, "dtype", None)
    return type(leaf).__name__ if dtype is None else f"{dtype}{list(np.shape(leaf))}"


def line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [""])[0][:200]
