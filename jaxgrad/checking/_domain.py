"""`check_domain`: arguments at which the gradient of a function is wrong, NaN, or lost."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate
from jaxgrad.checking._domain_edges import edge_points
from jaxgrad.checking._domain_judge import (
    FAILURES,
    STATES,
    Judge,
    Judgement,
    judge,
    judge_numerically,
    judge_of,
)
from jaxgrad.checking._domain_report import DomainReport, Finding, argument_numbers, code
from jaxgrad.checking._domain_screen import Target, describe, screen, spread, suspects
from jaxgrad.checking._domain_shrink import boundary, complexity, range_text, simplify
from jaxgrad.checking._domain_values import candidates, next_number, space
from jaxgrad.checking._precision import first_line
from jaxgrad.checking._programs import gradient_of, precision
from jaxgrad.checking._stages import seed_of

# How many points are judged for each reason of suspicion, per 100 of `judged`.
SHARES = {
    "not finite": 20,
    "differs": 20,
    "lost": 20,
    "zero": 10,
    "not finite at an edge": 8,
    "flat": 8,
    "none": 14,
}
GROUPS = 6  # At most so many failures of a kind are shrunk.
COARSE = 20  # decades; findings closer than that are merged
NEIGHBOR = 16  # steps from one number to the next to those that must have lost digits, too
CHANCE = 3  # So many right points may lie within a range of lost digits.
NUMERIC = 12  # At most so many points are judged by `check_grads`.


class Failure(NamedTuple):
    """A point at which the gradient fails."""

    point: list[np.ndarray]
    judgement: Judgement


def check_domain(
    f: Callable[..., Any],
    *domains: Any,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    dtypes: Sequence[Any] | None = None,
    points: int = 1024,
    judged: int = 100,
    lost: float = 1.0,
    operations: int = 3_000_000,
    key: jax.Array | None = None,
) -> DomainReport:
    """Search a domain for arguments at which the gradient of `f` fails; `print` the report.

    Points are drawn in exponent space, at special numbers, at ties and degenerate arrays, and at
    the branches that the trace of `f` shows. All of them are screened in one compiled program, and
    suspicious ones are judged in arbitrary precision, as by `reference`. A failure is WRONG if the
    rule for the derivative is wrong also without rounding, NONFINITE if the gradient is NaN or
    infinite where the derivative is finite and the type can hold it, and LOST if none of its digits
    is right. Points where `f` is not finite, jumps, or has no derivative are no failures, nor are
    numbers that underflow. Each failure is shrunk to the simplest arguments that show it.

    Args:
      f: returns a number, or arrays, whose elements are then summed with weights 1, 2, 3, ...
      *domains: for each argument an example array or a `jax.ShapeDtypeStruct`, which stand for all
        finite numbers of that shape and type, an `interval`, or a pytree of them. Leaves that are
        not floating point are held fixed.
      argnums: the arguments to differentiate; `None` are all that have floating-point leaves.
      has_aux: as for `jax.grad`.
      dtypes: floating-point types to try in turn; `None` are those of the domains.
      points: number of points that are screened, besides those at branches.
      judged: about how many of them are judged.
      lost: relative error from which a gradient is LOST: 1 is no right digit, and the square root
        of the machine epsilon is half of the digits.
      operations: bound on the number of operations on single numbers in arbitrary precision; about
        20 s for the default. The result does not depend on the speed of the machine.
      key: PRNG key of the points; `None` takes the same ones each time.

    Raises:
      ImportError: if mpmath is not installed; `pip install jaxgrad[reference]` installs it.
      TypeError, ValueError: if an argument is not as described, or if `f` raises.

    >>> import jax, jax.numpy as jnp
    >>> def length(x):
    ...     return jnp.sqrt(x**2)
    >>> report = check_domain(length, jax.ShapeDtypeStruct((), jnp.float32))
    >>> sorted({finding.kind for finding in report.findings})
    ['NONFINITE']
    """
    if not callable(f):
        raise TypeError(f"f must be a function, got {type(f).__name__}; pass it before its domains")
    points = _validate.integer("points", points, 16)
    judged = _validate.integer("judged", judged, 1)
    operations = _validate.integer("operations", operations, 1)
    _validate.flag("has_aux", has_aux)
    _validate.scalar("lost", lost, minimum=0.0, above=True)
    chosen = None
    if argnums is not None:
        chosen = list(argnums) if isinstance(argnums, (tuple, list)) else [argnums]
        last = len(domains) - 1
        chosen = [_validate.integer("argnums", i, -last - 1, last) % len(domains) for i in chosen]
        _validate.distinct("argnums", chosen)
    if dtypes is not None:
        if isinstance(dtypes, str) or not isinstance(dtypes, Sequence) or not dtypes:
            got = f"got {_validate.show(dtypes)}; pass for example (jnp.float32,)"
            raise TypeError(f"dtypes must be a sequence of floating-point types, {got}")
        dtypes = [_validate.dtype("dtypes", dtype) for dtype in dtypes]
    _validate.installed("check_domain", "reference", "mpmath")
    seed = seed_of(key)
    reports = []
    for dtype in dtypes or (None,):
        target = Target(f, space(domains, chosen, dtype), has_aux)
        generator = np.random.default_rng(seed)
        # Numbers at the ends of the type overflow in the arithmetic of this search as well.
        with np.errstate(all="ignore"):
            reports.append(_search(target, points, judged, lost, operations, generator))
    return _combined(reports)


def _combined(reports: list[DomainReport]) -> DomainReport:
    findings = itertools.chain(*(report.findings for report in reports))
    totals = [(s, sum(dict(report.states)[s] for report in reports)) for s in STATES]
    return DomainReport(
        tuple(sorted(findings, key=lambda finding: FAILURES.index(finding.kind))),
        sum(report.tried for report in reports),
        sum(report.judged for report in reports),
        tuple(totals),
        tuple(dict.fromkeys(note for report in reports for note in report.notes)),
    )


def _search(target: Target, count, judged, lost, operations, generator) -> DomainReport:
    """Search one space: candidates, screening, judgement, findings."""
    space, notes = target.space, []
    points = candidates(space, count, generator)
    try:
        _output_shapes(target, *target.split(points[0]))
    except Exception as error:  # whatever a user's function raises
        message = f"f raised {type(error).__name__} when it was traced: {first_line(error)}"
        raise ValueError(f"{message}; it must be a function that jax.jit accepts") from error
    try:
        with precision(space.intervals[0].dtype == np.float64):
            points += edge_points(lambda p: target(*target.split(p)), space, generator)[:count]
    except Exception as error:  # an operation that cannot be evaluated by itself
        notes.append(f"branches were not searched: {type(error).__name__}")
    dtype = space.intervals[0].dtype
    screened = screen(target, points)
    judges = _judgements(judge_of(target, points[0], lost, operations // 8), operations)
    used: set[int] = set()
    rows: list[Failure] = []
    for name, mask in suspects(screened, dtype):
        number = max(1, SHARES[name] * judged // 100)
        for i in spread(points, mask, number, used):
            used.add(i)
            point = _without_subnormal(points[i], dtype)
            rows.append(Failure(point, judges(point)))
    failures = [row for row in rows if row.judgement.state in FAILURES]
    findings = (_on_line if space.scalar else _in_groups)(target, failures, rows, judges)
    states = [row.judgement.state for row in rows]
    reasons = {row.judgement.unknown for row in rows if row.judgement.state == "unknown"}
    notes += [f"not judged: {reason}" for reason in sorted(reasons)[:3]]
    totals = tuple((state, states.count(state)) for state in STATES)
    return DomainReport(tuple(findings), len(points), len(rows), totals, tuple(notes))


def _without_subnormal(point: list[np.ndarray], dtype: Any) -> list[np.ndarray]:
    """Replace subnormal numbers, which processors may take for zero, by the smallest normal."""
    tiny = float(jnp.finfo(dtype).tiny)

    def normal(x):
        x = x.astype(np.float64)
        return np.where((x != 0) & (np.abs(x) < tiny), np.copysign(tiny, x), x)

    return [normal(leaf).astype(leaf.dtype) for leaf in point]


def _judgements(judge_: Judge, operations: int) -> Callable[[Sequence[np.ndarray]], Judgement]:
    """Return a function that judges points, each once, until the operations are spent."""
    known: dict[bytes, Judgement] = {}
    spent, numeric = [0], [0]

    def first(point):
        name = b"".join(leaf.tobytes() for leaf in point)
        if name not in known:
            if spent[0] > operations:
                return Judgement("unknown", unknown="`operations` were spent")
            known[name], count = judge(judge_, point)
            spent[0] += count
            if known[name].state == "unknown" and numeric[0] < NUMERIC:
                numeric[0] += 1
                other = judge_numerically(judge_, point)
                known[name] = other if other.state != "unknown" else known[name]
        return known[name]

    def call(point):
        result = first(point)
        # Where a derivative passes through zero, or next to a kink, all digits of some number are
        # wrong. They are lost only if those of its neighbors are as well.
        if result.state == "LOST" and not any(first(p).state == "LOST" for p in moved(point)):
            return Judgement("right")
        return result

    def moved(point):
        selected = [i for i, chosen in enumerate(judge_.target.space.selected) if chosen]
        ends = np.cumsum([point[i].size for i in selected])
        coordinate = first(point).coordinate
        which = int(np.searchsorted(ends, coordinate, side="right"))
        j = selected[which]
        for steps in (NEIGHBOR, -NEIGHBOR):
            leaf = point[j].copy()
            place = coordinate - int(ends[which])
            leaf.flat[place] = next_number(leaf.ravel(), steps)[place]
            yield [*point[:j], leaf, *point[j + 1 :]]

    return call


def _on_line(target: Target, failures, rows, judges) -> list[Finding]:
    """Return the findings of a function of one number: ranges on which it fails."""
    leaf = target.space.intervals[0]
    ordered = sorted(rows, key=lambda row: float(row.point[0]))
    findings = []
    for kind in FAILURES:
        runs: list[list[Failure]] = [[]]
        passed = 0
        for row in ordered:
            state = row.judgement.state
            passed = 0 if state == kind else passed + (state == "right")
            if state == kind:
                runs[-1].append(row)
            # Where digits are lost, some numbers are right by chance.
            elif passed > CHANCE * (kind == "LOST") and runs[-1]:
                runs.append([])

        def fails(point, kind=kind):
            return judges([np.asarray(point[0])]).state == kind

        for run in sorted(filter(None, runs), key=len, reverse=True)[:GROUPS]:
            numbers = [float(row.point[0]) for row in run]
            others = [float(row.point[0]) for row in ordered if row.judgement.state == "right"]
            ends = []
            for end, side in ((numbers[0], -1), (numbers[-1], 1)):
                beyond = [x for x in others if (x - end) * side > 0]
                limit = min(beyond, key=lambda x: abs(x - end), default=None)
                if limit is not None:
                    end = boundary(end, limit, leaf.dtype, lambda x: fails(_number(x, leaf.dtype)))
                ends.append(end)
            start = min((row.point for row in run), key=complexity)
            point = simplify(start, [leaf], fails)
            # A simpler number may lie in another range, which is reported by itself.
            if not ends[0] <= float(point[0]) <= ends[1]:
                inside = [leaf.__class__(ends[0], ends[1], (), leaf.dtype)]
                point = simplify(start, inside, fails)
            region = range_text(ends[0], ends[1], leaf)
            findings.append(_finding(target, point, judges(point), region, len(run)))
    return findings


def _number(x: float, dtype: Any) -> list[np.ndarray]:
    return [np.array(x).astype(dtype)]


def _in_groups(target: Target, failures, rows, judges) -> list[Finding]:
    """Return the findings of a function of several numbers, one for each kind of points."""
    findings: dict[Any, Finding] = {}
    for kind in FAILURES:
        groups: dict[Any, list[Failure]] = {}
        for row in failures:
            if row.judgement.state == kind:
                groups.setdefault(describe(row.point), []).append(row)

        def fails(point, kind=kind):
            return judges(point).state == kind

        total = sum(map(len, groups.values()))
        for group in sorted(groups.values(), key=len, reverse=True)[:GROUPS]:
            start = min((row.point for row in group), key=complexity)
            point = simplify(start, target.space.intervals, fails)
            region = f"{total} of {len(rows)} points"
            finding = _finding(target, point, judges(point), region, total)
            findings.setdefault((kind, describe(point, COARSE)), finding)
    return list(findings.values())


def _finding(target: Target, point, judgement: Judgement, region: str, count: int) -> Finding:
    moved, fixed = target.split(point)
    outputs = _output_shapes(target, moved, fixed)
    # The coordinate of the worst element, within the leaf that holds it.
    index, which = judgement.coordinate, 0
    while index >= moved[which].size:
        index -= moved[which].size
        which += 1
    place = [int(i) for i in np.unravel_index(index, moved[which].shape)]
    several = len(argument_numbers(target.space)) > 1 or len(moved) > 1
    element = ", ".join(map(str, ([which] if several else []) + place))
    with precision(any(leaf.dtype == np.float64 for leaf in point)):
        one = [jnp.ones((), jnp.finfo(outputs[0].dtype).dtype)]
        leaves = gradient_of(target, list(map(jnp.asarray, moved)), list(fixed), one)
    eager = float(np.asarray(leaves[which], np.float64).ravel()[index])
    # Operations that XLA fuses may round in another way.
    compiled = not np.isclose(eager, judgement.autodiff, rtol=0.1, atol=0, equal_nan=True)
    return Finding(
        judgement.state,
        target.space.arguments(point),
        region,
        element,
        judgement.autodiff,
        judgement.truth,
        count,
        str(np.dtype(target.space.intervals[0].dtype)),
        code(
            target.f,
            target.space,
            point,
            outputs,
            has_aux=target.has_aux,
            compiled=compiled,
        ),
    )


def _output_shapes(target: Target, moved, fixed) -> list[Any]:
    with precision(any(leaf.dtype == np.float64 for leaf in moved)):
        return jax.eval_shape(lambda m, x: target.outputs(m, x), moved, fixed)
