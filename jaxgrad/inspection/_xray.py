"""`xray`: the size of the signal and of the gradient at every operation of a model."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, checking
from jaxgrad._html import curve, fragment, save
from jaxgrad._jaxprs import equations_of, has_user_rule, is_traced
from jaxgrad.inspection._depth import Growth, growth, in_blocks
from jaxgrad.inspection._faults import Fault, find_faults, instances_of, rule_fault
from jaxgrad.inspection._non_finite import NonFinite, diagnose, outputs_by_operations
from jaxgrad.inspection._problem import Call, Problem, prepare
from jaxgrad.inspection._site import Site, site_columns
from jaxgrad.inspection._sites import plan_sites
from jaxgrad.inspection._statistics import Details, SiteSums, Statistics, Sums, details, is_exact
from jaxgrad.inspection._statistics import statistics as statistics_of
from jaxgrad.inspection._taps import run, slots, sums_of

if TYPE_CHECKING:
    import xarray

ROWS = 60  # A longer table is cut in its middle.
SHOWN = 5  # causes in a summary
RULE_SAMPLES = 2  # inputs at which a derivative rule is checked
TITLES = ["operation", "scope", "parameter", "signal", "gradient", "zeros", "line"]
LOG10 = math.log(10)


@dataclass(frozen=True)
class XRay:
    """What `xray` has measured.

    Attributes:
      value: of the loss.
      gradient: of the loss, as by `jax.grad`.
      sites: one for each measured operation, in the order of computation.
      non_finite: where a value or gradient that is not finite comes from, as by
        `explain_non_finite`; empty if all is finite.
      rules: derivative rules by hand that are wrong, as in `jaxgrad.audit`.
      problem: the loss and its arguments, as `prescribe` measures them again.
    """

    value: jax.Array
    gradient: Any
    sites: tuple[Site, ...]
    non_finite: tuple[NonFinite, ...]
    rules: tuple[checking.Rule, ...]
    problem: Problem = field(repr=False)

    def __str__(self) -> str:
        """A table with one line for each operation."""
        rows = [_row(site) for site in self.sites]
        if len(rows) > ROWS:
            hidden = [f"... {len(rows) - ROWS} more operations ..."] + 6 * [""]
            rows = [*rows[: ROWS // 2], hidden, *rows[len(rows) - ROWS // 2 :]]
        widths = [max(map(len, column)) for column in zip(TITLES, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [TITLES, *rows]
        ]
        note = "log10 of the root mean square of each result and of its cotangent:"
        return "\n".join([self.summary, "", *self._growth(), note, *lines])

    @property
    def summary(self) -> str:
        """What is wrong with the model, in words: the first causes, without what follows from them.

        Where nothing stands out, this is what it says.
        """
        lines = list(map(str, self.non_finite))
        faults = [] if lines else self.faults
        if faults:
            # Causes of one kind may be independent of each other, others may follow from them.
            first = [fault for fault in faults if fault.kind == faults[0].kind]
            lines = [f"{fault.kind}: {fault.text} ({_file(fault.line)})" for fault in first[:SHOWN]]
            if len(first) > SHOWN:
                lines.append(f"... and {len(first) - SHOWN} more of this kind")
        return "\n".join(lines or ["nothing stands out"])

    @property
    def growth(self) -> list[Growth]:
        """How much the signal and the gradient grow in each operation that repeats with depth."""
        return growth(self.sites)

    def _growth(self) -> list[str]:
        lines = [
            f"{g.operation} {g.parameter} in {g.blocks} blocks: the signal grows by "
            f"{g.forward:.3g} +- {g.forward_error:.1g} a block"
            f"{in_blocks(g.forward_range, g.blocks)}, the gradient by "
            f"{g.backward:.3g} +- {g.backward_error:.1g}"
            f"{in_blocks(g.backward_range, g.blocks)} ({_file(g.line)})"
            for g in self.growth
            if g.parameter
        ]
        return [*lines, ""] if lines else []

    def to_xarray(self) -> "xarray.Dataset":
        """Return the statistics as a labelled data set; needs xarray.

        Its axes are `site` and `iteration`, those of nested scans after each other; NaN beyond the
        iterations of a site. `signal` and `gradient` are log10 of the root mean square.
        """
        _validate.installed("to_xarray", "experiments", "xarray")
        import xarray

        return xarray.Dataset(*site_columns(self.sites))

    def _repr_html_(self) -> str:
        """The summary, two curves over depth, and a table that can be sorted."""
        # The stream and what is added to it, without what normalizations and attention do between.
        sites = [s for s in self.sites if s.fan_in or s.operation.startswith("add")] or self.sites
        instances = list(instances_of(sites))
        curves = ""
        for name, color in (("signal", "#0072b2"), ("gradient", "#d55e00")):
            logs = [getattr(instance, name) / (2 * LOG10) for instance in instances]
            label = f"{name}, log10 of its size"
            curves += curve(label, logs, color, "products and sums, from the input to the loss")
        text = "\n".join([self.summary, "", *self._growth()]).strip()
        rows = list(map(_row, self.sites))
        return fragment("X-ray of a model", text, TITLES, rows, curves=curves)

    def save_html(self, path: Any) -> None:
        """Write a page with the summary, two curves over depth, and the table of all operations."""
        save(path, "X-ray of a model", self._repr_html_())

    @property
    def faults(self) -> list[Fault]:
        """What is wrong with the model, the most likely cause first; see `Fault`."""
        return [*map(rule_fault, self.rules), *find_faults(self.sites, self.problem)]


def xray(
    loss: Callable[..., Any],
    *args: Any,
    argnums: int = 0,
    has_aux: bool = False,
    rules: bool = True,
    progress: Callable[[int, int], Any] | None = None,
) -> XRay:
    """Measure the signal and the gradient at every operation of a model; `print` the result.

    The model stays as it is: its program is traced and evaluated with taps, which measure results
    and cotangents and change neither. Measured are products with parameters or of signals,
    non-linear functions, functions with a derivative rule, and sums of two signals. Operations in
    `jit`, `scan`, `cond` and `checkpoint` are measured, those in a scan at each iteration. Of a
    `while` loop, a function with its own derivative rule, `shard_map`, a kernel or a callback, the
    first floating-point result is measured, and nothing inside.

    The program is compiled once for each function and shapes, as by `jax.jit`. If the loss or its
    gradient is not finite, `explain_non_finite` compiles it anew to find out why. It is compiled
    once more, operation by operation, if a measured value is not finite or a boolean becomes a
    number, since XLA may hide NaN then.

    Args:
      loss: a function that returns a real number.
      *args, argnums, has_aux: as for `jax.value_and_grad`, with a single number for `argnums`.
      rules: whether derivative rules by hand are checked, as by `jaxgrad.audit`, except for those
        of installed packages. Each takes about a second.
      progress: called as `progress(done, total)` at the start and after each of the three steps:
        measurement, which compiles the program, search for what is not finite, check of rules.

    Raises:
      TypeError: if `loss` is no function, does not return a real number, or nothing in the
        argument can be differentiated.

    >>> import jax, jax.numpy as jnp
    >>> def loss(params, x):
    ...     for w in params:
    ...         x = jnp.tanh(x @ w)
    ...     return jnp.mean(x**2)
    >>> params = [0.1 * jnp.eye(3), 10 * jnp.eye(3)]
    >>> trace = xray(loss, params, jnp.ones((2, 3)))
    >>> [(site.operation, site.parameter) for site in trace.sites[:3]]
    [('dot_general', '[0]'), ('tanh', ''), ('dot_general', '[1]')]
    """
    _validate.flag("rules", rules)
    progress = _validate.progress(progress)
    problem = prepare(loss, args, argnums, has_aux)
    progress(0, 3)
    # The names of operations are read anew each time; nothing is compiled for them.
    plan = plan_sites(problem.program, problem.call.labels)
    value, leaves, measured = _measure(problem.call, problem.moved, problem.fixed, False)
    measured = jax.device_get(measured)
    if not all(map(is_exact, measured.sums)):
        *_, measured = jax.device_get(_measure(problem.call, problem.moved, problem.fixed, True))
    progress(1, 3)
    gradient = problem.argument(leaves)
    columns = (plan.locations(), measured.forward, measured.backward, measured.details)
    sites = tuple(Site.create(*parts) for parts in zip(*columns, strict=True))
    finite = _is_finite([value, *leaves])
    if finite and _is_doubtful(problem, measured):
        finite = _is_finite(outputs_by_operations(problem.call, problem.moved, problem.fixed))
    non_finite = () if finite else diagnose(problem)
    progress(2, 3)
    wrong = _wrong_rules(problem) if rules and finite else ()
    progress(3, 3)
    return XRay(value, gradient, sites, non_finite, wrong, problem)


class Measurement(NamedTuple):
    """What is measured at all sites, in the order of `XRay.sites`; a pytree of arrays.

    Attributes:
      signals, cotangents: sums, of which the properties are made: with JAX while a function is
        traced, with NumPy otherwise.
    """

    signals: list[SiteSums]
    cotangents: list[Sums]

    @property
    def forward(self) -> list[Statistics]:
        """Statistics of the signal at each site."""
        return [statistics_of(site.signal, self._numpy) for site in self.signals]

    @property
    def backward(self) -> list[Statistics]:
        """Statistics of the cotangent at each site."""
        return [statistics_of(sums, self._numpy) for sums in self.cotangents]

    @property
    def details(self) -> list[Details]:
        """What else is measured at each site."""
        return [details(site, self._numpy) for site in self.signals]

    @property
    def sums(self) -> list[Sums]:
        """All sums over arrays."""
        leaves = jax.tree.leaves(tuple(self), is_leaf=lambda node: isinstance(node, Sums))
        return [leaf for leaf in leaves if isinstance(leaf, Sums)]

    @property
    def _numpy(self) -> Any:
        return jnp if any(map(is_traced, jax.tree.leaves(tuple(self)))) else np


def instrument(
    loss: Callable[..., Any], argnums: int = 0, has_aux: bool = False, *, exact: bool = True
) -> Callable[..., tuple[Any, Any, Measurement]]:
    """Return a function that also measures what `xray` does, to be compiled, mapped or sharded.

    It takes the arguments of the loss and returns its value, its gradient and a `Measurement`, as
    for a training loop that watches its signals. It compiles nothing by itself.

    Args:
      loss, argnums, has_aux: as for `xray`.
      exact: whether sizes are right at any size, and where elements are not finite. Otherwise they
        are infinite or NaN there, and the function compiles in half the time.

    >>> import jax, jax.numpy as jnp
    >>> step = jax.jit(instrument(lambda w, x: jnp.sum(jnp.tanh(x @ w))))
    >>> value, gradient, measurement = step(jnp.eye(3), jnp.ones((2, 3)))
    >>> [round(float(jnp.exp(part.log_mean_square)), 3) for part in measurement.forward]
    [1.0, 0.58]
    """
    _validate.function("loss", loss)
    _validate.integer("argnums", argnums, 0)
    _validate.flag("has_aux", has_aux)

    def instrumented(*args):
        problem = prepare(loss, args, argnums, has_aux)
        value, leaves, measured = _evaluate(problem.program, problem.call, *problem[1:3], exact)
        return value, problem.argument(leaves), measured

    return instrumented


@functools.partial(jax.jit, static_argnums=(0, 3))
def _measure(call: Call, moved, fixed, exact: bool):
    """Return the loss, its gradient, and what is measured at all sites."""
    # The program is traced here too, since the constants of another trace would be copied into it.
    return _evaluate(jax.make_jaxpr(call)(moved, fixed), call, moved, fixed, exact)


def _evaluate(closed: Any, call: Call, moved, fixed, exact: bool):
    plan = plan_sites(closed, call.labels)

    # The sums over signals are auxiliary outputs, those over cotangents the slots' gradients.
    def measured(moved, slot_values):
        (value,), signals = run(closed, plan, slot_values, [*moved, *fixed])
        return value, signals

    value, pullback, signals = jax.vjp(measured, moved, slots(plan, exact), has_aux=True)
    gradient, cotangents = pullback(jnp.ones_like(value))
    return value, gradient, Measurement(sums_of(signals), sums_of(cotangents))


def _is_finite(arrays: Sequence[Any]) -> bool:
    return all(bool(jnp.all(jnp.isfinite(x))) for x in arrays)


def _is_doubtful(problem: Problem, measured: Measurement) -> bool:
    """Whether the compiler may hide a value that is not finite.

    Then one was measured, or there is a mask of numbers: XLA makes a selection of the product.
    """
    parts = [*measured.forward, *measured.backward]
    return any(np.any(np.asarray(part.non_finite) > 0) for part in parts) or any(
        equation.primitive.name == "convert_element_type"
        and equation.invars[0].aval.dtype == bool
        and jnp.issubdtype(equation.params["new_dtype"], jnp.inexact)
        for equation in equations_of(problem.program)
    )


def _wrong_rules(problem: Problem) -> tuple[checking.Rule, ...]:
    """Return the user's derivative rules that are wrong, not those that only use another one."""
    if not any(map(has_user_rule, equations_of(problem.program))):
        return ()
    rows = checking.check_rules(
        problem.call, problem.moved, problem.fixed, select=has_user_rule, samples=RULE_SAMPLES
    ).rules
    return tuple(row for row in rows if row.fails and not row.through)


def _row(site: Site) -> list[str]:
    zeros = float(np.nanmean(site.forward.zeros)) if site.forward.zeros.size else 0.0
    sizes = [_size(part.log_mean_square) for part in (site.forward, site.backward)]
    return [
        *(site.operation, site.scope, site.parameter),
        *(*sizes, f"{zeros:.0%}", _file(site.line)),
    ]


def _file(line: str) -> str:
    """Return the name of a file, without its folder, and what follows."""
    return line.rpartition("/")[2]


def _size(log_mean_square: np.ndarray) -> str:
    """Write the size, or those of the first and the last iteration."""
    values = np.ravel(log_mean_square) / (2 * LOG10)
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{values[0]:.2f} to {values[-1]:.2f}" if len(values) else "-"
