"""What is known of a derivative rule after a check: one row for each argument and mode."""

import enum
from typing import NamedTuple


class RuleVerdict(enum.StrEnum):
    """Outcome of the check of a rule, worst first; the words of `Verdict`, and one more."""

    NONDETERMINISTIC = "NONDETERMINISTIC"
    """The function returns different values for the same arguments."""
    NONFINITE = "NONFINITE"
    """The rule gives NaN or infinity where the function is finite around the point."""
    WRONG = "WRONG"
    """The rule lies outside of the numeric derivative's error bar and the tolerance."""
    DIFFERS = "DIFFERS"
    """The rule is no derivative of the function's body, and it may be meant so."""
    UNRESOLVED = "UNRESOLVED"
    """The numeric derivative's error bar is too wide to decide."""
    KINK = "KINK"
    """The one-sided derivatives differ, and the rule lies between them."""
    AGREE = "AGREE"
    """The rule equals the numeric derivative."""


MODES = {"rev": "reverse", "fwd": "forward"}
RULE_ORDER = tuple(RuleVerdict)


class Rule(NamedTuple):
    """The check of a derivative rule for one argument in one mode, where a program calls it.

    Attributes:
      name: of the function with the rule, or of the operation of JAX.
      kind: "custom_jvp", "custom_vjp", or "primitive" for an operation of JAX.
      rule: function, file and line of the rule, such as `bwd at f.py:3`; "" for JAX's own.
      call: file, line and function of the call.
      mode: "rev" or "fwd".
      argument: name or number of the argument.
      output: position of its gradient among the outputs of a backward rule, from 1; 0 if unknown.
      verdict: the worst one at any of the inputs.
      element: index of the one with the largest error; `None` if none was singled out.
      value, numeric: the derivatives there by the rule and by differences.
      relative_error: of the derivative with respect to the whole argument.
      body_error: distance of the rule from the derivative of its body, relative to that; NaN if the
        body has no derivative, as an operation of JAX.
      factor: by which the rule multiplies the right derivative, if one number explains the error.
      reason: in words.
      through: the name of another wrong rule that this one uses, which explains the error; or "".
      inputs: types and shapes of all arguments.
      samples: number of inputs at which the rule was checked.
    """

    name: str
    kind: str
    rule: str
    call: str
    mode: str
    argument: str
    output: int
    verdict: RuleVerdict
    element: tuple[int, ...] | None
    value: complex
    numeric: complex
    relative_error: float
    body_error: float
    factor: float | None
    reason: str
    through: str
    inputs: str
    samples: int

    @property
    def fails(self) -> bool:
        """Whether the rule is wrong for this argument in this mode."""
        return self.verdict in RULE_ORDER[:3]

    @property
    def words(self) -> str:
        """The argument, the mode, and the reason of the verdict."""
        return f"{MODES[self.mode]} mode, {self.subject}: {self.reason or self.verdict}"

    @property
    def subject(self) -> str:
        """The argument, after the output of the backward rule that has its gradient."""
        return f"output {self.output} ({self.argument})" if self.output else self.argument
