"""`audit`: every derivative rule of a program, checked alone at the inputs that it gets there."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxgrad import _validate, checking
from jaxgrad._html import fragment, save
from jaxgrad.checking import Rule, RuleVerdict
from jaxgrad.inspection._audit_report import cells, describe, table


@dataclass(frozen=True)
class Audit:
    """The outcome of `jaxgrad.audit`; `print` it.

    Attributes:
      rules: a row for each rule, argument and mode, worst first. Equal rules that are called in one
        line have one row.
      closed: operations that have rules inside and were not opened, such as `shard_map`.
    """

    rules: tuple[Rule, ...]
    closed: tuple[str, ...] = ()

    @property
    def verdict(self) -> RuleVerdict:
        """The worst verdict on a rule; "AGREE" if there is none."""
        order = list(RuleVerdict)
        return min((row.verdict for row in self.rules), key=order.index, default=RuleVerdict.AGREE)

    @property
    def wrong(self) -> tuple[Rule, ...]:
        """The rows of rules that are wrong by themselves, not through another wrong rule."""
        failing = [row for row in self.rules if row.fails]
        return tuple([row for row in failing if not row.through] or failing)

    @property
    def ok(self) -> bool:
        """Whether no rule is wrong; `DIFFERS` and `UNRESOLVED` are no failures."""
        return not any(row.fails for row in self.rules)

    def __bool__(self) -> bool:
        """Whether the audit is `ok`, so that it can be asserted."""
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as dictionaries, lists, text and numbers."""
        rows = [row._asdict() | {"verdict": str(row.verdict)} for row in self.rules]
        fields = {"verdict": str(self.verdict), "ok": self.ok} | dataclasses.asdict(self)
        # Rules are tuples with names, which `asdict` leaves as they are.
        return fields | {"rules": rows, "closed": list(self.closed)}

    def _repr_html_(self) -> str:
        """What is wrong in words, and a table of all rules that can be sorted."""
        # The table tells what agrees in fewer rows than there are rules.
        headings, rows = cells(self.rules)
        text = "\n".join(describe(self.rules, self.closed))
        # As in `Rule.fails`.
        bad = list(RuleVerdict)[:3]
        return fragment("Audit of derivative rules", text, headings, rows, bad=bad)

    def save_html(self, path: Any) -> None:
        """Write a page with what is wrong and a table of all rules."""
        save(path, "Audit of derivative rules", self._repr_html_())

    def __str__(self) -> str:
        """What is wrong, and where, in words; then a table."""
        return "\n".join([*describe(self.rules, self.closed), "", *table(self.rules)])


def audit(
    f: Callable[..., Any],
    *args: Any,
    primitives: bool = False,
    iterations: int = 3,
    rtol: float = 1e-5,
    key: jax.Array | None = None,
    kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Audit:
    """Check each derivative rule that `f(*args)` uses by itself; `print` the result.

    Rules are those of `jax.custom_jvp` and `jax.custom_vjp`, wherever they are called: in `jit`,
    `vmap`, `scan`, `while_loop`, `checkpoint`, the branch of a `cond` that is taken, or in another
    function with a rule. The program is evaluated once, and each rule is checked at the inputs that
    it gets there, as by `check_grads`: by reverse mode, and by forward mode if it has that. It is
    also compared with the derivative that JAX takes of the function's body if no rules are used.

    Where rule and body differ and the body returns its input, calls `stop_gradient` or has no slope
    there, the verdict is `DIFFERS`: a gradient may be reversed, clipped or passed straight through
    on purpose. Rules that a gradient inside of `f` has used leave no trace in its program, so pass
    the loss instead of the training step.

    Args:
      f: any function of arrays, also one that is no loss. It is traced and called once.
      *args, kwargs: its arguments; numbers that are not finite stay as they are.
      primitives: whether the rules of JAX's operations are checked, too, one for each operation,
        parameters, types and shapes. Each takes about a second.
      iterations: at most so many calls of a rule in one line are checked, among them the first and
        the last; likewise the iterations of a loop.
      rtol: relative error that may pass.
      key: PRNG key of the iterations, directions and cotangents; `None` takes the same each time.
      progress: called as `progress(done, total)` with numbers of rules, at the start, when `f` has
        been called, and after each rule.

    Raises:
      TypeError, ValueError: if an argument is not as described. Whatever `f` raises.

    >>> import jax, jax.numpy as jnp
    >>> @jax.custom_vjp
    ... def square(x):
    ...     return x**2
    >>> square.defvjp(lambda x: (x**2, x), lambda x, ct: (2.02 * x * ct,))
    >>> def f(x):
    ...     return jax.lax.scan(lambda c, _: (jax.nn.relu(square(c)), None), x, length=3)[0]
    >>> report = audit(f, jnp.array([0.9, 1.1]))
    >>> [(row.name, str(row.verdict), row.factor) for row in report.rules[:2]]
    [('square', 'WRONG', 1.01), ('relu', 'AGREE', None)]
    """
    if not callable(f):
        raise TypeError(
            f"f must be a function, got {type(f).__name__}; pass it before its arguments"
        )
    _validate.flag("primitives", primitives)
    iterations = _validate.integer("iterations", iterations, 1)
    _validate.scalar("rtol", rtol, minimum=0.0)
    if any(map(_validate.is_traced, jax.tree.leaves((args, kwargs)))):
        raise TypeError(
            "args must be arrays with known values, got a tracer; call audit outside of jit, vmap "
            "and grad"
        )
    options = {"primitives": primitives, "samples": iterations, "rtol": rtol, "key": key}
    options["progress"] = _validate.progress(progress)
    checks = checking.check_rules(f, *args, kwargs=kwargs, **options)
    return Audit(checks.rules, checks.closed)
