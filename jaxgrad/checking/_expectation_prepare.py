"""A random function and its gradient, made ready to be measured for many keys."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate
from jaxgrad._numerics import rms
from jaxgrad.checking import _expectation_samples as sampling
from jaxgrad.checking._arguments import Arguments, FlatFunction, LeafInfo, sort_arguments
from jaxgrad.checking._expectation_samples import Moments, Sampler
from jaxgrad.checking._precision import choose_precision, first_line, trace
from jaxgrad.checking._programs import gradient_of, precision, reuse


@dataclass(frozen=True)
class Experiment:
    """Everything that is needed to measure a random function and its gradient."""

    arguments: Arguments
    inputs: tuple[Any, ...]  # moved leaves, fixed arrays after the key, cotangents
    programs: dict[str, Callable[..., Any]]  # "differences" and "jumps", see `compile_moments`
    wide: bool
    tolerance: float  # relative error of a leaf's gradient that may pass
    chunk: int
    notes: tuple[str, ...]

    @property
    def leaves(self) -> tuple[LeafInfo, ...]:
        """The leaves that are moved."""
        return self.arguments.leaves

    def measure(self, name: str, keys, chunk: int, steps, vectors) -> Moments:
        """Return the moments over `keys` of the quantities of one program."""
        program = self.programs[name]
        return sampling.measure(program, keys, chunk, self.inputs, steps, vectors, self.wide)

    def part(self, index: int) -> np.ndarray:
        """Indices in `Moments` of the coordinates of a leaf; that along its vector is the last."""
        info = self.leaves[index]
        return np.append(np.arange(info.start, info.stop), len(self.arguments.point) + index)


@dataclass(frozen=True)
class _Estimator:
    """A user's estimator of the gradient, as a function that returns its moved leaves."""

    grad: FlatFunction
    argnums: tuple[int, ...]  # positions among (key, *args) in the order of the result
    several: bool  # whether the result is a tuple
    leaves: tuple[LeafInfo, ...]

    def __call__(self, moved, fixed, cotangents) -> list[jax.Array]:
        args = self.grad.arguments(moved, fixed)
        result = self.grad.f(*args)
        expected = tuple(args[i] for i in self.argnums)
        if jax.tree.structure(result) != jax.tree.structure(
            expected if self.several else expected[0]
        ):
            raise TypeError(
                f"grad must return a pytree like the argument, got {jax.tree.structure(result)}; "
                "return what jax.grad(f, argnums) would"
            )
        # Leaves that cannot be moved have an entry in the pytree as well.
        parts = dict(zip(self.argnums, result if self.several else (result,), strict=True))
        starts = np.cumsum([0] + [len(jax.tree.leaves(arg)) for arg in args])
        selected = [
            jnp.asarray(leaf)
            for i in sorted(parts)
            for leaf, (kind, _) in zip(
                jax.tree.leaves(parts[i]), self.grad.kinds[starts[i] : starts[i + 1]], strict=True
            )
            if kind == "moved"
        ]
        for leaf, info in zip(selected, self.leaves, strict=True):
            if leaf.shape != info.shape:
                raise TypeError(
                    f"grad must return arrays of the shapes of the arguments, got {leaf.shape} in "
                    f"place of {info.shape} at {info.path or 'the argument'}"
                )
        # The cotangent of a number is 1 here, but another scale costs nothing.
        return [leaf * jnp.asarray(cotangents[0], leaf.dtype) for leaf in selected]


def prepare(f, grad, args, key, argnums, has_aux, kwargs) -> Experiment:
    # Errors name the arguments as the user counts them.
    sort_arguments(f, args, argnums, has_aux, False, kwargs)
    several = not isinstance(argnums, int)
    numbers = tuple(argnums) if several else (argnums,)
    numbers = [_validate.integer("argnums", i, -len(args)) for i in numbers]
    # The key comes first; a negative number still counts from the end.
    moved_args = tuple(i + 1 if i >= 0 else i + len(args) + 1 for i in numbers)
    shifted = moved_args if several else moved_args[0]
    arguments = sort_arguments(f, (key, *args), shifted, has_aux, False, kwargs)
    computation, facts, deterministic, obstacle = choose_precision(arguments)
    # A function that is called point by point cannot be mapped over keys.
    if not (deterministic and facts.fingerprint and computation.programs.mapped):
        raise ValueError(
            "f must be a pure function that jax.jit and jax.vmap accept; draw all random numbers "
            "from its key with jax.random"
        )
    moved, fixed, wide = computation.moved, computation.fixed[1:], computation.wide
    gradient: Callable[..., Any] = functools.partial(gradient_of, arguments.function)
    if grad is not None:
        flat = sort_arguments(grad, (key, *args), shifted, False, False, kwargs).function
        gradient = _Estimator(flat, moved_args, several, arguments.leaves)
    with precision(wide):
        cotangents = _choose_cotangents(arguments.function, key, moved, fixed, grad is not None)
        try:
            program = trace(
                lambda m, f: gradient(m[0], f, m[1]), (moved, cotangents), [key, *fixed]
            )
        except TypeError as error:
            if str(error).startswith("grad must"):
                raise
            raise ValueError(_cannot_differentiate(grad, error)) from error
        except Exception as error:  # whatever a user's function raises
            raise ValueError(_cannot_differentiate(grad, error)) from error
        # In float32 ten halvings of a step reach the rounding of its ends.
        halvings = 24 if computation.eps < 1e-12 else 10
        sampler = Sampler(arguments.function, gradient, arguments.leaves, halvings, computation.eps)
        size = sampling.bytes_per_key(sampler, moved, fixed, cotangents, key)
    programs = reuse(
        ("expectation", computation.key, program.fingerprint, grad, argnums),
        lambda: {
            "differences": sampling.compile_moments(sampler, sampling.sample_differences),
            "jumps": sampling.compile_moments(sampler, sampling.sample_jumps),
        },
    )
    notes = () if wide else (f"float64 was not possible: {obstacle}",)
    tolerance = max(1e-5, 1e4 * computation.eps)
    chunk = sampling.CHUNK_BYTES // max(size, 1)
    inputs = (moved, fixed, cotangents)
    return Experiment(arguments, inputs, programs, wide, tolerance, chunk, notes)


def _cannot_differentiate(grad, error: Exception) -> str:
    name = "f cannot be differentiated by reverse mode" if grad is None else "grad failed"
    hint = "; pass an estimator as grad" * (grad is None)
    return f"{name}: {type(error).__name__}: {first_line(error)}{hint}"


def _choose_cotangents(function, key, moved, fixed, scalar: bool) -> list[jax.Array]:
    """Return 1 for a real number, else normal weights such that all outputs count equally."""
    keys = jax.random.split(jax.random.fold_in(key, 0), 16)
    outputs = jax.vmap(lambda k: function(moved, [k, *fixed]))(keys)
    if len(outputs) == 1 and outputs[0].shape == (16,):
        if jnp.iscomplexobj(outputs[0]):
            raise TypeError("f must return a real number, got a complex one; take its real part")
        return [jnp.ones((), outputs[0].dtype)]
    if scalar:
        shapes = [output.shape[1:] for output in outputs]
        raise TypeError(f"f must return one real number if grad is passed, got shapes {shapes}")
    generator, cotangents = np.random.default_rng(0), []
    # The size of an output is that for several keys, since one sample may be zero.
    for output in map(np.asarray, outputs):
        draw = generator.standard_normal(output.shape[1:])
        draw /= (rms(output.ravel()) or 1.0) * math.sqrt(max(draw.size, 1))
        cotangents.append(jnp.asarray(draw, output.dtype))
    return cotangents
