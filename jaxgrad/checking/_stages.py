"""The stages of a check, one after the other."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad import _validate
from jaxgrad.checking._autodiff import differentiate
from jaxgrad.checking._compare import compare
from jaxgrad.checking._conclude import combine, conclude, reject
from jaxgrad.checking._joint import measure_jointly
from jaxgrad.checking._localize import localize
from jaxgrad.checking._numeric import choose_tolerance, differentiate_numerically
from jaxgrad.checking._prepare import problems
from jaxgrad.checking._report import Report
from jaxgrad.checking._resolve import resolve


class Settings(NamedTuple):
    """Arguments of `check_grads` that are the same for every function, as described there."""

    modes: tuple[str, ...] = ("rev",)
    order: int = 1
    exhaustive: int = 1024
    directions: int = 6
    rtol: float = 1e-5
    strict: bool = False


def seed_of(key: jax.Array | None) -> int:
    """Return the seed that belongs to a PRNG key, 0 for `None`."""
    if key is None:
        return 0
    _validate.key("key", key)
    _validate.known("key", key, "the check")
    return int.from_bytes(np.asarray(jax.random.key_data(key)).tobytes()[-8:], "little")


def run_check(
    f: Callable[..., Any], args: tuple, settings: Settings, seed: int, **options
) -> Report:
    """Return the report of `check_grads`, whose arguments have been checked before."""
    modes, order, exhaustive, count, rtol, strict = settings
    # Each stage hands a frozen value to the next; only `generator` goes on from draw to draw.
    report = None
    for problem in problems(f, args, order, seed, "rev" in modes, **options):
        if problem.rejection is not None:
            result = reject(problem, *problem.rejection, strict)
        else:
            # The same random directions each time, whatever the function.
            generator = np.random.default_rng([seed, 1])
            autodiff = differentiate(problem, "rev" in modes, rtol, generator)
            # Values that change under vmap belong to another function.
            mapped = all(i.holds is not False for i in autodiff.identities if i.name == "vmap")
            problem = dataclasses.replace(problem, batched=problem.batched and mapped)
            tolerance = choose_tolerance(problem, autodiff.eps, rtol, exhaustive)
            inputs = (problem, autodiff, tolerance, modes, count, generator)
            numeric = differentiate_numerically(*inputs, measure_jointly(*inputs))
            numeric = resolve(problem, autodiff, numeric)
            rows = [
                localize(problem, autodiff, numeric, comparison, generator)
                for comparison in compare(problem, autodiff, numeric)
            ]
            result = conclude(problem, autodiff, rows, numeric, strict)
        report = result if report is None else combine(report, result, problem)
        # A wrong derivative makes those of higher order wrong as well.
        if not report.ok:
            break
    assert report is not None
    return report
