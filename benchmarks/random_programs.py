"""Gradients of random programs, right ones and ones with a planted error, judged by `check_grads`.

Run `python -m benchmarks.random_programs [--count N] [--start SEED] [--audit] [--json FILE]`.

Each program of `benchmarks.random_programs_generate` is judged as it is, and with an error planted
in its middle. An error is planted where it changes the gradient of a leaf by more than 1e-4 of its
norm, compared in float64; a leaf that changes the outputs by 1e-12 of what all leaves do has a
gradient of rounding alone, and does not count. A right gradient called wrong is a false alarm, a
wrong one that passes with `AGREE` or `KINK` is a miss. `UNRESOLVED` is neither: the values of a
badly conditioned program do not show its derivative.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxgrad
from benchmarks.random_programs_generate import Plant, Program, random_plant, random_program
from jaxgrad.checking import reference

OPERATIONS = 100_000  # Programs with more operations on numbers have no reference.
LEAST_EFFECT = 1e-4  # of a planted error, relative to the norm of a leaf of the gradient
ROUNDING = 1e-12  # A leaf that changes the outputs by a smaller share of all shows no error.
LOST = 1e-4  # A gradient with a larger relative error is not right, whatever its program is.
TRIALS = 20  # Errors that are drawn until one has an effect.
MISTAKES = ("false_alarm", "miss", "too_sure")


class Outcome(NamedTuple):
    """The verdict on a program, right or with an error."""

    seed: int
    plant: Plant | None
    verdict: str  # of the report; "crash" if the check raised; see `judge` for two others
    ok: bool
    text: str  # the report
    error: float | None = None  # of autodiff in float64, see `autodiff_error`

    @property
    def false_alarm(self) -> bool:
        """Whether a right gradient was called wrong."""
        return self.plant is None and not self.ok

    @property
    def miss(self) -> bool:
        """Whether a wrong gradient passed as right."""
        return self.plant is not None and self.verdict in ("AGREE", "KINK")

    @property
    def too_sure(self) -> bool:
        """Whether the report agrees with a gradient of a right program that is lost in rounding."""
        lost = self.error is not None and self.error > LOST
        return self.plant is None and self.verdict == "AGREE" and lost


def gradient(program: Program, plant: Plant | None, right: bool) -> list[np.ndarray]:
    """Return the gradient of the weighted outputs in float64, as leaves."""
    with jax.enable_x64(True):
        f = program.function(plant, right)
        params = jax.tree.map(lambda v: jax.numpy.asarray(v, np.float64), program.params)
        out, pullback = jax.vjp(f, params)
        generator = np.random.default_rng([program.seed, 3])
        weights = jax.tree.map(lambda v: jax.numpy.asarray(generator.standard_normal(v.shape)), out)
        return list(map(np.asarray, jax.tree.leaves(pullback(weights)[0])))


def effect(program: Program, right: list[np.ndarray], wrong: list[np.ndarray]) -> float:
    """Return how far two gradients differ, relative to the norm of a leaf."""
    norms = [(np.linalg.norm(b - a), np.linalg.norm(a)) for a, b in zip(right, wrong, strict=True)]
    differences, sizes = np.array(norms).T
    # The change of the outputs if each leaf moves by its size.
    changes = sizes * [np.sqrt(np.mean(np.square(v))) for v in jax.tree.leaves(program.params)]
    seen = np.isfinite(differences) & (changes > ROUNDING * np.sum(changes[np.isfinite(changes)]))
    return float(np.max(differences[seen] / sizes[seen], initial=0.0))


def visible_plant(program: Program) -> Plant | None:
    """Return an error that changes the gradient enough, or `None` if none was drawn."""
    generator = np.random.default_rng([program.seed, 29])
    unchanged = gradient(program, None, True)
    for _ in range(TRIALS):
        plant = random_plant(program, generator)
        # A term that the wrong rule drops is not in the program without an error.
        right = gradient(program, plant, True) if plant.kind == "term" else unchanged
        if effect(program, right, gradient(program, plant, False)) > LEAST_EFFECT:
            return plant
    return None


def autodiff_error(program: Program, plant: Plant | None = None) -> float:
    """Return how far autodiff in float64 is from the derivative in arbitrary precision.

    The error is relative to the norm of a leaf. It is NaN if the derivative is not known.
    """
    worst = 0.0
    with jax.enable_x64(True):
        params = {n: jax.numpy.asarray(v, np.float64) for n, v in program.params.items()}
        try:
            truth = reference(program.function(plant), params, digits=20, operations=OPERATIONS)
        except (NotImplementedError, ValueError):
            return np.nan
    for leaf in truth.leaves:
        # Without a derivative, as at a kink, a number is NaN.
        derivative = np.array([float(v) for v in leaf.derivative.ravel()])
        known = np.isfinite(derivative)
        error = np.linalg.norm((leaf.autodiff.ravel() - derivative)[known])
        worst = max(worst, float(error / max(np.linalg.norm(derivative[known]), 1e-300)))
    return worst


def judge(program: Program, plant: Plant | None) -> Outcome:
    """Check a program, right or with an error."""
    f, seed = program.function(plant), program.seed
    options: dict[str, Any] = {}
    if plant is None:
        # Forward mode and the second order are checked in a part of the right programs.
        options = {"modes": ("rev", "fwd") if seed % 4 == 0 else ("rev",)}
        options["order"] = 2 if seed % 10 == 5 else 1
    with jax.enable_x64(program.wide):
        params = {name: jax.numpy.asarray(value) for name, value in program.params.items()}
        try:
            report = jaxgrad.check_grads(f, params, **options)
        except Exception as error:
            return Outcome(seed, plant, "crash", False, f"{type(error).__name__}: {error}")
        verdict = str(report.verdict)
        # Without a finite value nothing can be said of the gradient, and nothing else is reported.
        if report.leaves[0].reason.startswith("f itself is not finite"):
            return Outcome(seed, plant, "no finite value", True, str(report))
        if plant is None and verdict == "NONFINITE":
            # A right rule may overflow in the type of the arguments, as `jax.vjp` then shows.
            out, pullback = jax.vjp(f, params)
            leaves = jax.tree.leaves(pullback(jax.tree.map(jax.numpy.ones_like, out)))
            if not all(np.all(np.isfinite(leaf)) for leaf in leaves):
                return Outcome(seed, plant, "NaN from jax.vjp", True, str(report))
    return Outcome(seed, plant, verdict, report.ok, str(report))


def run(seeds: range, audit: bool = False) -> Iterator[Outcome]:
    """Judge the programs of some seeds.

    With `audit` each right gradient is compared with the derivative in arbitrary precision.
    """
    for seed in seeds:
        program = random_program(seed)
        plant = visible_plant(program)
        for error in [None] if plant is None else [None, plant]:
            outcome = judge(program, error)
            if outcome.false_alarm or (audit and error is None):
                outcome = outcome._replace(error=autodiff_error(program))
            yield outcome
        if seed % 10 == 9:
            jax.clear_caches()  # JAX stores every program that it compiles.


def describe(outcome: Outcome) -> str:
    """Return a program, its error and the report."""
    words = " ".join(word for word in MISTAKES if getattr(outcome, word))
    names = ", ".join(random_program(outcome.seed).names)
    lines = [f"\n{words} seed {outcome.seed}: {names}"]
    lines.append(f"{outcome.plant or 'right'}, autodiff errs by {outcome.error}")
    return "\n".join([*lines, outcome.text])


def table(outcomes: list[Outcome]) -> str:
    """Return how often each verdict was given, and the numbers of mistakes."""
    lines = []
    for words, part in (
        ("right", [o for o in outcomes if o.plant is None]),
        ("wrong", [o for o in outcomes if o.plant is not None]),
    ):
        counts = collections.Counter(outcome.verdict for outcome in part).most_common()
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts)
        lines.append(f"{len(part)} {words} programs: {verdicts}")
    counts = {word: sum(getattr(o, word) for o in outcomes) for word in MISTAKES}
    audited = sum(o.error is not None and np.isfinite(o.error) for o in outcomes)
    lines.append(f"{counts['false_alarm']} false alarms, {counts['miss']} misses")
    lines.append(f"{counts['too_sure']} agree with a gradient lost in rounding, of {audited} known")
    return "\n".join(lines)


def main() -> None:
    """Judge random programs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--count", type=int, default=500, help="number of programs")
    parser.add_argument("--start", type=int, default=0, help="seed of the first one")
    parser.add_argument("--verbose", action="store_true", help="print every report")
    parser.add_argument("--json", type=Path, help="write all outcomes to this file")
    parser.add_argument("--audit", action="store_true", help="compare with arbitrary precision")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    start = time.process_time()
    seeds, outcomes = range(options.start, options.start + options.count), []
    for outcome in run(seeds, options.audit):
        outcomes.append(outcome)
        if options.verbose or any(getattr(outcome, word) for word in MISTAKES):
            print(describe(outcome), flush=True)
        if options.json:
            # After each program, since a run takes long and may be stopped.
            options.json.write_text(json.dumps([o._asdict() for o in outcomes], indent=1))
    print(f"\n{table(outcomes)}\n{time.process_time() - start:.0f} s of CPU time")


if __name__ == "__main__":
    main()
