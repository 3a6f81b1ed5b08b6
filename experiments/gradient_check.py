"""How does one check a gradient, and what goes wrong when one does it by the book?

Run `python -m experiments.gradient_check`, or `--help` for its options.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from sklearn import datasets
from tqdm import tqdm

from experiments import frontend
from jaxgrad import check_grads, checking, initializers, plotting
from jaxgrad.checking import Report, Verdict, differences
from jaxgrad.training import normalization

Part = Literal["steps", "kinks", "regulariser", "dropout", "training"]

COURSE_STEP = 1e-4
"""The step of the course's numeric derivative."""
FALSE_ALARM = 1e-5
"""A correct gradient with a larger relative error is taken for suspicious or wrong."""
TIERS = tuple((float(limit), name) for limit, name in differences.TIERS["course"])
CLASSES = 10


@dataclass(frozen=True)
class Config:
    """Options of the gradient check."""

    parts: tuple[Part, ...] = ("steps", "kinks", "regulariser", "dropout", "training")
    """Which parts to run, in this order."""
    width: int = 16
    """Hidden units of the network, 64 inputs to WIDTH to 10 classes of digits."""
    examples: int = 8
    """How many digits the loss is the mean of, drawn at random and standardized."""
    seed: int = 0
    """Of the weights and of the digits that are drawn."""
    smallest_step: float = 1e-12
    """steps: the smallest step; the largest is 1."""
    steps_per_decade: int = 3
    """steps: how many steps between one power of ten and the next."""
    networks: int = 20
    """kinks: how many ReLU networks, each with a correct gradient."""
    kink_examples: tuple[int, ...] = (2, 32)
    """kinks: numbers of digits in the loss, a panel each; more of them have more kinks."""
    planted: float = 0.01
    """regulariser: the backward pass is off by this share."""
    largest_strength: float = 1e6
    """regulariser: the L2 strengths are 0, 0.01, 0.1, ... up to this."""
    keep: float = 0.8
    """dropout: the share of hidden units that is kept."""
    at: tuple[int, ...] = (0, 1, 3, 10, 30, 100, 300)
    """training: numbers of optimizer steps after which to check."""
    batch: int = 32
    """training: digits in a batch."""
    rate: float = 0.003
    """training: learning rate of gradient descent with momentum 0.9."""
    output: Path = Path("results/gradient_check")
    """Where to write: one figure for each part, OUTPUT_PART.png."""


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    if not config.parts or len(set(config.parts)) != len(config.parts):
        raise ValueError(
            f"parts must be different names, at least one, got {config.parts}; drop the repeats"
        )
    for name in ("width", "examples", "steps_per_decade", "networks", "batch"):
        _at_least(name, getattr(config, name), 1)
    for name in ("seed", "planted"):
        _at_least(name, getattr(config, name), 0)
    for name in ("kink_examples", "at"):
        values = getattr(config, name)
        if not values or list(values) != sorted(set(values)):
            raise ValueError(f"{name} must be increasing, at least one, got {values}; sort them")
        _at_least(name, values[0], 0 if name == "at" else 1)
    for name in ("examples", "batch", "kink_examples"):
        value = np.max(getattr(config, name))
        if value > ROWS:
            raise ValueError(
                f"{name} must be at most the {ROWS} digits there are, got {value}; "
                "pass a smaller number"
            )
    if not 1e-30 <= config.smallest_step <= 1e-6:
        raise ValueError(
            f"smallest_step must be at least 1e-30 and at most 1e-6, got {config.smallest_step:g}; "
            "try 1e-12"
        )
    if not 0 < config.keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, got {config.keep:g}; try 0.8")
    if not 0.01 <= config.largest_strength < np.inf:
        raise ValueError(
            f"largest_strength must be finite and at least 0.01, got {config.largest_strength:g}; "
            "try 1e6"
        )
    if not 0 < config.rate < np.inf:
        raise ValueError(f"rate must be positive and finite, got {config.rate:g}; try 0.003")


def _at_least(name: str, value: float, minimum: float) -> None:
    if not minimum <= value < np.inf:
        raise ValueError(f"{name} must be finite and at least {minimum}, got {value:g}; change it")


# The network and its data. Weights and digits are drawn in float32 and widened, so that both
# precisions are at the same point.

ROWS = 1797


@contextlib.contextmanager
def precise() -> Iterator[None]:
    """Float64 allowed, and matrix products without shortcuts."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


def digits(examples: int, seed: int) -> tuple[jax.Array, jax.Array]:
    """Standardized images `[examples, 64]` and one-hot classes `[examples, 10]`, float64."""
    loaded: Any = datasets.load_digits()
    with precise():
        table = normalization.apply(normalization.fit(loaded.data), loaded.data)
        rows = np.random.default_rng(seed).choice(len(table), examples, replace=False)
        return _wide(table[rows]), _wide(np.eye(CLASSES)[loaded.target[rows]])


def network(key: jax.Array, width: int, first: initializers.Initializer) -> dict[str, Any]:
    """Weights of a network 64 - `width` - 10, float64."""
    keys = jax.random.split(key)
    return {
        "first": {
            "kernel": _wide(first(keys[0], (64, width), jnp.float32)),
            "bias": _wide(np.zeros(width)),
        },
        "readout": {
            "kernel": _wide(initializers.lecun()(keys[1], (width, CLASSES), jnp.float32)),
            "bias": _wide(np.zeros(CLASSES)),
        },
    }


def _wide(value: Any) -> jax.Array:
    return jnp.asarray(jnp.asarray(value, jnp.float32), jnp.float64)


def cross_entropy(params, x, y, phi: Callable[[jax.Array], jax.Array], mask=None) -> jax.Array:
    """The mean loss; written with analytic functions, so that the complex step is possible."""
    z = x @ params["first"]["kernel"]
    hidden = phi(z + params["first"]["bias"][None])
    hidden = hidden if mask is None else hidden * mask
    logits = hidden @ params["readout"]["kernel"] + params["readout"]["bias"][None]
    normalizer = jnp.log(jnp.sum(jnp.exp(logits), axis=1))
    return jnp.mean(normalizer - jnp.sum(logits * y, axis=1))


def tanh_loss(params, x, y):
    """The loss of a tanh network."""
    return cross_entropy(params, x, y, jnp.tanh)


def relu_loss(params, x, y):
    """The loss of a ReLU network."""
    return cross_entropy(params, x, y, jax.nn.relu)


def split(theta: jax.Array, like: Any) -> Any:
    """The course's one vector as a pytree like another, in the type of the vector."""
    leaves, tree = jax.tree.flatten(like)
    parts = jnp.split(theta, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return tree.unflatten(shaped)


@functools.partial(jax.jit, static_argnums=0)
def course_error(loss: Callable[..., jax.Array], params: Any, eps: jax.Array, *args: Any):
    """The course's relative error of `jax.grad(loss)(params, *args)` at each step of `eps`."""

    def f(theta):
        return loss(split(theta, params), *args)

    theta = ravel_pytree(params)[0]
    autodiff = jax.grad(f)(theta)

    def error(eps):
        return differences.relative_error(differences.central_difference(f, theta, eps), autodiff)

    return jax.lax.map(error, eps)


def _each(values, description: str):
    return tqdm(list(values), desc=description, unit="check", disable=None, leave=False)


# Part 1: which step?


class Method(NamedTuple):
    """One way to take a numeric gradient, at every step.

    Attributes:
      name: in words.
      error: relative error of the whole gradient at each step.
      order: the power of the step with which the error should fall.
      slope: the measured power, over steps where the step's own error rules; NaN if there is none.
      small_slope: the same over steps where rounding rules.
      rounding: of the type that it is computed in.
    """

    name: str
    error: np.ndarray
    order: int
    slope: float
    small_slope: float
    rounding: float

    @property
    def best(self) -> int:
        """The index of the step with the smallest error."""
        return int(np.argmin(self.error))


class Steps(NamedTuple):
    """What `steps` measures.

    Attributes:
      steps: `[K]`, falling.
      methods: see `Method`.
      found_error: relative error of `differences.gradient`, which finds its steps itself.
      found_bar: the error bar that it gives, as a relative error.
      tiers: the course's words for a relative error below a number.
    """

    steps: np.ndarray
    methods: tuple[Method, ...]
    found_error: float
    found_bar: float
    tiers: tuple[tuple[float, str], ...] = TIERS


def steps(config: Config) -> Steps:
    """The error of numeric gradients against their step, for a tanh network."""
    with precise():
        x, y = digits(config.examples, config.seed)
        params = network(jax.random.key(config.seed), config.width, initializers.lecun())
        theta = ravel_pytree(params)[0]

        def loss(theta):
            return tanh_loss(split(theta, params), *(a.astype(theta.dtype) for a in (x, y)))

        trusted = jax.grad(loss)(theta)

        def extrapolated(f, x, eps):
            half, full = (differences.central_difference(f, x, e) for e in (eps / 2, eps))
            return (4 * half - full) / 3

        central = differences.central_difference
        decades = -np.log10(config.smallest_step)
        count = int(np.ceil(decades * config.steps_per_decade - 1e-9))
        sizes = 10.0 ** (-np.arange(count + 1) / config.steps_per_decade)
        methods = []
        cases = (
            ("one-sided, float64", differences.one_sided_difference, jnp.float64, 1),
            ("two-sided, float32", central, jnp.float32, 2),
            ("two-sided, float64", central, jnp.float64, 2),
            ("extrapolated (Richardson), float64", extrapolated, jnp.float64, 4),
            ("complex step, float64", differences.complex_step, jnp.float64, 2),
        )
        for name, difference, dtype, order in _each(cases, "steps"):

            @jax.jit
            def errors(theta, sizes, difference=difference):
                return jax.lax.map(
                    lambda eps: differences.relative_error(difference(loss, theta, eps), trusted),
                    sizes,
                )

            error = errors(theta.astype(dtype), jnp.asarray(sizes, dtype))
            error = np.asarray(error, np.float64)
            methods.append(_method(name, error, order, sizes, float(jnp.finfo(dtype).eps)))
        found = differences.gradient(loss, theta)
        size = np.linalg.norm(found.value) + np.linalg.norm(trusted)
        bar = np.linalg.norm(found.error) / size
        error = float(differences.relative_error(found.value, trusted))
        return Steps(sizes, tuple(methods), error, float(bar))


def _method(name, error, order, sizes, rounding) -> Method:
    """Fit both slopes: well above the least error, and where the loss is not yet a line."""
    best, index = int(np.argmin(error)), np.arange(len(sizes))
    apart = error > 3 * error[best]
    large = apart & (index < best) & (sizes < 0.2)
    small = apart & (index > best) & (error < 0.1)
    return Method(
        name, error, order, _slope(sizes, error, large), _slope(sizes, error, small), rounding
    )


def _slope(sizes, error, where) -> float:
    if where.sum() < 2:
        return np.nan
    return float(np.polyfit(np.log(sizes[where]), np.log(error[where]), 1)[0])


def report_steps(found: Steps) -> str:
    """Slopes, best step and least error of each method."""
    rows = []
    for method in found.methods:
        # Rounding over the step meets the power of the step: where both are alike, up to scales.
        theory = method.rounding ** (1 / (method.order + 1))
        rounds = np.isfinite(method.small_slope)
        small, best = f"{method.small_slope:.2f} (-1)", f"{found.steps[method.best]:.0e}"
        rows.append(
            (
                method.name,
                f"{method.slope:.2f} ({method.order})",
                small if rounds else "does not rise",
                f"{best} (~{theory:.0e})" if rounds else "never",
                f"{method.error[method.best]:.0e}",
            )
        )
    rows.append(("differences.gradient", "", "", "finds its steps", f"{found.found_error:.0e}"))
    headings = (
        "numeric gradient (in brackets: theory)",
        "slope at large steps",
        "at small steps",
        "rounding rules below",
        "least error",
    )
    table = frontend.table(headings, rows)
    inside = "inside" if found.found_error <= found.found_bar else "OUTSIDE"
    return (
        f"{table}\n\ndifferences.gradient gives itself an error bar of {found.found_bar:.0e}; "
        f"its error is {inside} of it."
    )


# Part 2: what checkers say of kinks


class Kinks(NamedTuple):
    """What `kinks` measures of networks whose gradients are all correct.

    Attributes:
      examples: `[E]`, digits in the loss.
      steps: `[K]`, of the course's rule.
      error: the course's relative error, `[E, K, networks]`.
      crossed: whether moving one weight by the step takes a unit across its kink, likewise.
      verdicts: of `check_grads`, `E` tuples of one verdict for each network.
      alarms: how many networks `jax.test_util.check_grads` rejects, by the type it runs in, `[E]`.
    """

    examples: tuple[int, ...]
    steps: np.ndarray
    error: np.ndarray
    crossed: np.ndarray
    verdicts: tuple[tuple[Verdict, ...], ...]
    alarms: dict[str, np.ndarray]

    def tiers(self) -> dict[str, np.ndarray]:
        """The share of networks in each tier of the course, `[E, K]` each."""
        names = [name for _, name in TIERS]
        said = np.vectorize(differences.tier)(self.error)
        return {name: np.mean(said == name, axis=2) for name in names}

    def false_alarms(self) -> np.ndarray:
        """The share of networks that the course's rule takes for suspicious or wrong, `[E, K]`."""
        return np.mean(self.alarmed(), axis=2)

    def alarmed(self) -> np.ndarray:
        """Whether the course's rule takes a network for suspicious or wrong, `[E, K, networks]`."""
        return ~(self.error <= FALSE_ALARM)

    def rejected(self) -> np.ndarray:
        """The share of networks that `jaxgrad.check_grads` takes for wrong, `[E]`."""
        bad = (Verdict.WRONG, Verdict.NONFINITE, Verdict.NONDETERMINISTIC)
        return np.array([np.mean([v in bad for v in row]) for row in self.verdicts])


def kinks(config: Config) -> Kinks:
    """Check ReLU networks, all of them right, by three checkers."""
    sizes = 10.0 ** -np.arange(2, 9)

    alarms = {"float32": [], "float64": []}
    all_errors, all_crossed, all_verdicts = [], [], []
    with precise():
        jitted = jax.jit(relu_loss)
        for examples in config.kink_examples:
            rows, crossed, verdicts = [], [], []
            rejected = dict.fromkeys(alarms, 0)
            for seed in _each(range(config.networks), f"kinks, {examples} examples"):
                x, y = digits(examples, config.seed + seed)
                key = jax.random.fold_in(jax.random.key(config.seed), seed)
                params = network(key, config.width, initializers.he())
                rows.append(np.asarray(course_error(relu_loss, params, jnp.asarray(sizes), x, y)))
                crossed.append(_to_nearest_kink(params, x) <= sizes)
                verdicts.append(check_grads(relu_loss, params, x, y).verdict)
                for name in alarms:
                    rejected[name] += _jax_rejects(jitted, params, x, y, name)
            all_errors.append(np.stack(rows, axis=1))
            all_crossed.append(np.stack(crossed, axis=1))
            all_verdicts.append(tuple(verdicts))
            for name, count in rejected.items():
                alarms[name].append(count / config.networks)
    return Kinks(
        config.kink_examples,
        sizes,
        np.stack(all_errors),
        np.stack(all_crossed),
        tuple(all_verdicts),
        {name: np.array(share) for name, share in alarms.items()},
    )


def _to_nearest_kink(params, x) -> float:
    """The smallest step of one weight or bias that takes a hidden unit across its kink."""
    z = np.asarray(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    # A weight moves a pre-activation by the step times its input, a bias by the step.
    reach = np.maximum(np.max(np.abs(x), axis=1, keepdims=True), 1.0)
    return float(np.min(np.abs(z) / reach))


def _jax_rejects(f, params, x, y, dtype: str) -> bool:
    params, x, y = jax.tree.map(lambda a: a.astype(dtype), (params, x, y))
    try:
        jax.test_util.check_grads(lambda p: f(p, x, y), (params,), order=1, modes=("rev",))
    except AssertionError:
        return True
    return False


def report_kinks(found: Kinks) -> str:
    """Shares of false alarms."""
    tiers = found.tiers()
    lines = []
    for e, examples in enumerate(found.examples):
        rows: list[tuple[str, ...]] = [
            (
                f"two-sided, step {step:.0e}",
                *(f"{tiers[name][e, k]:.0%}" for name in tiers),
                f"{found.crossed[e, k].mean():.0%}",
                f"{found.false_alarms()[e, k]:.0%}",
            )
            for k, step in enumerate(found.steps)
        ]
        blank = [""] * (len(tiers) + 1)
        for name, share in found.alarms.items():
            rows.append((f"jax.test_util.check_grads, {name}", *blank, f"{share[e]:.0%}"))
        rows.append(("jaxgrad.check_grads", *blank, f"{found.rejected()[e]:.0%}"))
        counts = ", ".join(
            f"{sum(v is verdict for v in found.verdicts[e])} {verdict}"
            for verdict in Verdict
            if verdict in found.verdicts[e]
        )
        lines += [
            f"{len(found.verdicts[e])} ReLU networks with correct gradients, {examples} examples:",
            frontend.table(("checker", *tiers, "step crosses a kink", "false alarms"), rows),
            f"A false alarm of the course's rule is a relative error above {FALSE_ALARM:.0e}; in "
            f"{np.sum(found.alarmed()[e] & found.crossed[e])} of {np.sum(found.alarmed()[e])} the "
            f"step crosses a kink. jaxgrad.check_grads: {counts}.",
            "",
        ]
    return "\n".join(lines[:-1])


# Part 3: a regulariser that hides an error


class Regulariser(NamedTuple):
    """What `regulariser` measures.

    Attributes:
      planted: the backward pass is off by this share.
      strengths: `[S]`, of the L2 term.
      error: the course's relative error of the whole gradient, `[S]`.
      verdicts: `[S]` of `check_grads` for each leaf of the whole loss, and of `check_terms` for
        the data term, by name; the leaves that the planted error changes and the term alone.
      leaf_error: the relative errors of the same, `[S]`.
      checkers: the function that says so, by the same names.
      tiers: the course's words for a relative error below a number.
    """

    planted: float
    strengths: np.ndarray
    error: np.ndarray
    verdicts: dict[str, tuple[Verdict, ...]]
    leaf_error: dict[str, np.ndarray]
    checkers: dict[str, str]
    tiers: tuple[tuple[float, str], ...] = TIERS

    def named_until(self, name: str) -> float:
        """The largest strength up to which every verdict is WRONG; NaN if the first is not."""
        wrong = [v is Verdict.WRONG for v in self.verdicts[name]]
        count = wrong.index(False) if False in wrong else len(wrong)
        return float(self.strengths[count - 1]) if count else np.nan

    def hidden_from(self, threshold: float) -> float:
        """The smallest strength from which the course's error stays below; NaN if there is none."""
        above = ~(self.error < threshold)
        first = len(above) - int(np.argmax(above[::-1])) if above.any() else 0
        return float(self.strengths[first]) if first < len(above) else np.nan


TERM = "data term alone"


@jax.custom_vjp
def tanh_off_by(z: jax.Array, share: jax.Array) -> jax.Array:
    """`tanh(z)` whose backward pass is too large by a share of itself."""
    return jnp.tanh(z)


tanh_off_by.defvjp(
    lambda z, share: (jnp.tanh(z), (jnp.tanh(z), share)),
    lambda saved, cotangent: (
        (1 + saved[1]) * cotangent * (1 - saved[0] ** 2),
        jnp.zeros_like(saved[1]),
    ),
)


def terms(params, x, y, strength, planted) -> dict[str, jax.Array]:
    """The loss with a planted error and, beside it, the L2 term."""
    squares = sum(jnp.sum(params[layer]["kernel"] ** 2) for layer in ("first", "readout"))
    return {
        "data": cross_entropy(params, x, y, lambda z: tanh_off_by(z, planted)),
        # As the course has it: over twice the examples, biases left out.
        "regulariser": strength / (2 * x.shape[0]) * squares,
    }


def regularised_loss(params, x, y, strength, planted):
    """The sum of the terms."""
    both = terms(params, x, y, strength, planted)
    return both["data"] + both["regulariser"]


def regulariser(config: Config) -> Regulariser:
    """Plant an error in the data term's backward pass, and raise the regulariser beside it."""
    count = int(np.floor(np.log10(config.largest_strength) + 1e-9)) + 3
    strengths = np.concatenate([[0.0], 10.0 ** np.arange(-2, count - 2)])
    errors, verdicts, leaf_errors = [], {}, {}
    with precise():
        x, y = digits(config.examples, config.seed)
        params = network(jax.random.key(config.seed), config.width, initializers.lecun())
        for strength in _each(strengths, "regulariser"):
            args = (x, y, jnp.asarray(strength), jnp.asarray(config.planted))
            eps = jnp.asarray([COURSE_STEP])
            errors.append(float(course_error(regularised_loss, params, eps, *args)[0]))
            found = check_grads(regularised_loss, params, *args)
            whole = {leaf.path: leaf for leaf in found.leaves}
            alone = checking.check_terms(terms, params, *args)["['data']"].leaves[0]
            for name, leaf in (
                ("first layer's weights", whole["['first']['kernel']"]),
                ("first layer's biases", whole["['first']['bias']"]),
                (TERM, alone),
            ):
                verdicts.setdefault(name, []).append(leaf.verdict)
                leaf_errors.setdefault(name, []).append(leaf.relative_error)
    return Regulariser(
        config.planted,
        strengths,
        np.array(errors),
        {name: tuple(found) for name, found in verdicts.items()},
        {name: np.array(found) for name, found in leaf_errors.items()},
        {name: "check_terms" if name == TERM else "check_grads" for name in verdicts},
    )


def report_regulariser(found: Regulariser) -> str:
    """Both rules at each strength, and until where the error is named."""
    rows = []
    for s, strength in enumerate(found.strengths):
        said = (
            f"{row[s]}, {found.leaf_error[name][s]:.0e}" for name, row in found.verdicts.items()
        )
        error = found.error[s]
        rows.append((f"{strength:g}", f"{error:.0e}", differences.tier(error), *said))
    headings = ("L2 strength", "whole gradient", "course says", *found.verdicts)
    lines = [
        f"A backward pass that is off by {found.planted:.0%}, and the relative errors seen:",
        frontend.table(headings, rows),
        "",
    ]
    for threshold, word in ((1e-3, "no longer wrong"), (1e-7, "right")):
        start = found.hidden_from(threshold)
        where = "at no strength" if np.isnan(start) else f"from strength {start:g} on"
        lines.append(f"The course's rule calls it {word} {where}.")
    for name in found.verdicts:
        until = found.named_until(name)
        where = "at no strength" if np.isnan(until) else f"up to strength {until:g}"
        where += ", the largest" if until == found.strengths[-1] else ""
        lines.append(f"{found.checkers[name]} names it in the {name} {where}.")
    return "\n".join(lines)


# Part 4: dropout


class Dropout(NamedTuple):
    """What `dropout` measures, one of a kind for each case.

    Attributes:
      name: of the case, in words.
      numeric, autodiff: every element of both gradients, `[P]`.
      error: the course's relative error.
      verdict: of `check_grads`.
    """

    name: str
    numeric: np.ndarray
    autodiff: np.ndarray
    error: float
    verdict: Verdict


def dropout(config: Config) -> tuple[Dropout, ...]:
    """Check a network with dropout whose mask is held, or drawn anew at each call."""

    @jax.jit
    def masked(params, x, y, key):
        kept = jax.random.bernoulli(key, config.keep, (x.shape[0], config.width))
        return cross_entropy(params, x, y, jnp.tanh, kept / config.keep)

    @jax.jit
    def given(params, x, y, kept):
        return cross_entropy(params, x, y, jnp.tanh, kept / config.keep)

    found = []
    with precise():
        x, y = digits(config.examples, config.seed)
        key = jax.random.key(config.seed)
        params = network(key, config.width, initializers.lecun())
        fresh_keys = (jax.random.fold_in(key, i) for i in itertools.count())
        generator = np.random.default_rng(config.seed)
        shape = (config.examples, config.width)
        cases = (
            ("one key for every call", lambda p: masked(p, x, y, key)),
            ("a fresh key for each call", lambda p: masked(p, x, y, next(fresh_keys))),
            (
                "drawn by NumPy in each call",
                lambda p: given(p, x, y, generator.random(shape) < config.keep),
            ),
        )
        for name, loss in _each(cases, "dropout"):
            autodiff, unravel = ravel_pytree(jax.grad(loss)(params))
            numeric = _by_the_book(loss, params, unravel)
            found.append(
                Dropout(
                    name,
                    numeric,
                    np.asarray(autodiff),
                    float(differences.relative_error(numeric, autodiff)),
                    check_grads(loss, params).verdict,
                )
            )
    return tuple(found)


def _by_the_book(loss, params, unravel) -> np.ndarray:
    """The course's loop: two calls of the loss for each element."""
    theta = np.asarray(ravel_pytree(params)[0])
    numeric = np.zeros(len(theta))
    for i in range(len(theta)):
        values = []
        for sign in (1, -1):
            moved = theta.copy()
            moved[i] += sign * COURSE_STEP
            values.append(float(loss(unravel(moved))))
        numeric[i] = (values[0] - values[1]) / (2 * COURSE_STEP)
    return numeric


def report_dropout(found: tuple[Dropout, ...]) -> str:
    """Both rules for each way to draw the mask."""
    rows = [
        (
            case.name,
            f"{np.max(np.abs(case.autodiff)):.2g}",
            f"{np.max(np.abs(case.numeric)):.2g}",
            f"{case.error:.0e}",
            differences.tier(case.error),
            str(case.verdict),
        )
        for case in found
    ]
    headings = (
        "dropout mask",
        "largest slope, autodiff",
        "numeric",
        "relative error",
        "course says",
        "check_grads says",
    )
    return frontend.table(headings, rows)


# Part 5: before and after some training


class Training(NamedTuple):
    """What `training` measures, for a loss with the right rule and one with the wrong rule.

    Attributes:
      at: `[S]`, numbers of optimizer steps.
      error: the largest relative error of a leaf, `[S]` by the rule's name.
      verdicts: of `check_grads`, `[S]` by the rule's name.
    """

    at: np.ndarray
    error: dict[str, np.ndarray]
    verdicts: dict[str, tuple[Verdict, ...]]

    def named_from(self, name: str) -> int | None:
        """The first of the steps at which the rule is found wrong."""
        wrong = (s for s, v in zip(self.at, self.verdicts[name], strict=True) if v is Verdict.WRONG)
        return next(map(int, wrong), None)


RIGHT, NEAR_ZERO = "right rule, 1 − tanh²(z)", "wrong rule, 1 − z²"


@jax.custom_vjp
def tanh_near_zero(z: jax.Array) -> jax.Array:
    """`tanh(z)` whose rule has the first terms of the derivative's series, never below 0."""
    return jnp.tanh(z)


tanh_near_zero.defvjp(
    lambda z: (jnp.tanh(z), z), lambda z, cotangent: (cotangent * jnp.maximum(1 - z * z, 0),)
)


def training(config: Config) -> Training:
    """Check a right and a wrong gradient along a training that starts from small weights."""
    with precise():
        x, y = digits(ROWS, config.seed)
        # Standardized images sum to pre-activations of about 0.01.
        small = initializers.normal(1e-6)
        params = network(jax.random.key(config.seed), config.width, small)

        def batches():
            generator = np.random.default_rng(config.seed)
            while True:
                rows = generator.choice(ROWS, config.batch, replace=False)
                yield x[rows], y[rows]

        reports = {}
        for name, phi in _each(((RIGHT, jnp.tanh), (NEAR_ZERO, tanh_near_zero)), "training"):
            reports[name] = checking.check_along_training(
                functools.partial(cross_entropy, phi=phi),
                params,
                batches(),
                optax.sgd(config.rate, momentum=0.9),
                at=config.at,
            )
    return Training(
        np.array(config.at),
        {n: np.array([_largest(r) for r in found.values()]) for n, found in reports.items()},
        {n: tuple(r.verdict for r in found.values()) for n, found in reports.items()},
    )


def _largest(found: Report) -> float:
    return max(leaf.relative_error for leaf in found.leaves)


def report_training(found: Training) -> str:
    """Errors and verdicts after each number of steps."""
    rows = [
        (
            str(step),
            *(
                text
                for name in found.error
                for text in (f"{found.error[name][s]:.0e}", str(found.verdicts[name][s]))
            ),
        )
        for s, step in enumerate(found.at)
    ]
    headings = ("optimizer steps", *(part for name in found.error for part in (name, "verdict")))
    lines = [frontend.table(headings, rows), ""]
    for name in found.error:
        step = found.named_from(name)
        when = "never found wrong" if step is None else f"found wrong after {step} steps"
        lines.append(f"The {name}, is {when}.")
    return "\n".join(lines)


class _Measured(NamedTuple):
    question: str
    measure: Callable[[Config], Any]
    report: Callable[[Any], str]
    draw: Callable[[Any], Any]


PARTS: dict[str, _Measured] = {
    "steps": _Measured("Which step?", steps, report_steps, plotting.gradient_check_steps),
    "kinks": _Measured(
        "What do checkers say of kinks?", kinks, report_kinks, plotting.gradient_check_kinks
    ),
    "regulariser": _Measured(
        "Does a regulariser hide an error?",
        regulariser,
        report_regulariser,
        plotting.gradient_check_regulariser,
    ),
    "dropout": _Measured(
        "What if dropout is left on?", dropout, report_dropout, plotting.gradient_check_dropout
    ),
    "training": _Measured(
        "Is the start of training the place to check?",
        training,
        report_training,
        plotting.gradient_check_training,
    ),
}


def run(config: Config) -> None:
    """Show what goes right and wrong when the gradient of a small network is checked."""
    checked(config)
    output = frontend.writable("output", config.output)
    start = time.perf_counter()
    for name in config.parts:
        part = PARTS[name]
        found = part.measure(config)
        path = output.with_name(f"{output.name}_{name}.png")
        part.draw(found).savefig(path, dpi=110)
        print(f"\n{part.question}\n\n{part.report(found)}\nFigure: {path}")
    print(f"\n{len(config.parts)} parts in {time.perf_counter() - start:.1f} s.")


if __name__ == "__main__":
    frontend.main(Config, run)
