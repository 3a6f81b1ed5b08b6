"""A loss and its arguments, as a function of the arrays that are differentiated."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate
from jaxgrad._numerics import float_eps


class Call(NamedTuple):
    """A loss as a function of the leaves that are differentiated, and of all other arrays.

    It is hashable, so that a program compiled for it serves all arguments of the same shapes.
    """

    loss: Callable[..., Any]
    has_aux: bool
    structure: Any  # of all arguments
    kinds: tuple[str, ...]  # of each leaf: "moved", "fixed" or "static"
    statics: tuple[Any, ...]  # leaves that are no arrays, such as the activation of a model
    labels: tuple[str, ...]  # of moved and fixed leaves: the path of a parameter, "" for data

    def arguments(self, moved, fixed, *, statics: bool = True) -> Any:
        """Return the arguments of the loss, without leaves that are no arrays if not `statics`."""
        others = self.statics if statics else [None] * len(self.statics)
        parts = {"moved": iter(moved), "fixed": iter(fixed), "static": iter(others)}
        return jax.tree.unflatten(self.structure, [next(parts[kind]) for kind in self.kinds])

    def __call__(self, moved, fixed):
        out = self.loss(*self.arguments(moved, fixed))
        return out[0] if self.has_aux else out


class Problem(NamedTuple):
    """A loss and its arguments.

    Attributes:
      call: the loss as a function of the two lists that follow.
      moved: the floating-point leaves of the argument that is differentiated.
      fixed: all other arrays.
      argnums: the index of the argument that is differentiated.
      program: the trace of `call`, whose inputs are `moved` and `fixed`.
    """

    call: Call
    moved: list[Any]
    fixed: list[Any]
    argnums: int
    program: Any

    def argument(self, leaves: Sequence[Any]) -> Any:
        """Return the argument that is differentiated, with `leaves` instead of `moved`.

        Its other leaves are `None`.
        """
        nothing = [None] * len(self.fixed)
        return self.call.arguments(leaves, nothing, statics=False)[self.argnums]


def prepare(loss: Callable[..., Any], args: tuple, argnums: int, has_aux: bool) -> Problem:
    """Check the arguments of `xray` and return them as a `Problem`."""
    if not callable(loss):
        raise TypeError(f"loss must be a function, got {type(loss).__name__}; pass it first")
    _validate.flag("has_aux", has_aux)
    argnums = _validate.integer("argnums", argnums, 0)
    if argnums >= len(args):
        raise TypeError(f"argnums must be below the number of arguments {len(args)}, got {argnums}")
    call, moved, fixed = _split(loss, args, argnums, has_aux)
    if not moved:
        raise TypeError(
            f"args[{argnums}] must have a floating-point leaf, got none; convert it or pass argnums"
        )
    program = jax.make_jaxpr(call)(moved, fixed)
    outputs = program.out_avals
    if [aval.shape for aval in outputs] != [()] or not float_eps(outputs[0].dtype):
        got = ", ".join(f"{aval.dtype}{list(aval.shape)}" for aval in outputs)
        raise TypeError(f"loss must return a real number, got {got}; sum it, or pass has_aux")
    return Problem(call, moved, fixed, argnums, program)


def _split(loss: Callable[..., Any], args: tuple, argnums: int, has_aux: bool):
    leaves, structure = jax.tree.flatten_with_path(args)
    parts: dict[str, list[Any]] = {"moved": [], "fixed": [], "static": []}
    kinds, paths = [], []
    for path, leaf in leaves:
        array = isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))
        moves = array and path[0].idx == argnums and float_eps(jnp.result_type(leaf))
        kind = "moved" if moves else "fixed" if array else "static"
        kinds.append(kind)
        parts[kind].append(jnp.asarray(leaf) if moves else leaf)
        if moves:
            paths.append(jax.tree_util.keystr(path[1:]) or "argument")
    labels = (*paths, *([""] * len(parts["fixed"])))
    call = Call(loss, has_aux, structure, tuple(kinds), tuple(parts["static"]), labels)
    return call, parts["moved"], parts["fixed"]
