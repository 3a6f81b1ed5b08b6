"""The records of one training run, checked, and the quantities that the rules of diagnosis read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxgrad import _validate
from jaxgrad.training.monitoring import Norms, Units

RISE = 3.0
"""A loss above this multiple of the first loss is not explained by a difference of batches."""
PEAK = 10.0
"""Hardly any single batch, even of one example, has a loss above this multiple of the usual."""
MOSTLY = 0.9
"""A condition holds from a step on if it holds on this share of the steps from there to the end."""


class Run(NamedTuple):
    """The steps that were taken, as NumPy arrays of float64. Logs are natural.

    Attributes:
      loss: Loss of each step's batch.
      log_ratio: Log of |update| / |weights|, `[steps, layers]`; NaN for weights of 0.
      log_sensitivity: Log of |gradient| |weights| / loss, `[steps, layers]`; NaN for weights of 0.
      zero_start: Whether the weights of a layer are 0 at the start, `[layers]`.
      straightness: |weights at the end| / (steps * largest |update|), in the median layer; 1 if
        weights start at 0 and all updates are equal.
      log_input_rms: Log root mean square of the network inputs.
      feature_mean, feature_std: Of each input feature that is not constant, `[features]`.
      units, unit_steps: Statistics of the units, and the step of each of their rows.
      dev_error, train_error: `[evaluations]`, with `every` steps between; `None` without numbers.
    """

    # Any stands for an array or None, as without norms or units; the rules check which.
    loss: Float[np.ndarray, " steps"]
    log_ratio: Any
    log_sensitivity: Any
    zero_start: Any
    straightness: float
    log_input_rms: float | None
    feature_mean: Any
    feature_std: Any
    units: Any
    unit_steps: Any
    names: tuple[str, ...]
    dev_error: Any
    train_error: Any
    every: int

    @property
    def tenth(self) -> int:
        """Number of steps in a tenth of the run."""
        return max(1, len(self.loss) // 10)

    @property
    def decrease(self) -> float:
        """Decrease from the first tenth of the run to the last, as a share of the first value."""
        with np.errstate(invalid="ignore", over="ignore"):
            # The larger of the two, because the first batch may be an easy one.
            start = np.fmax(self.loss[0], np.median(self.loss[: self.tenth]))
            return float((start - np.median(self.loss[-self.tenth :])) / (abs(start) or 1.0))

    def sensitivity_from(self, step: int) -> Any:
        """Return the largest log sensitivity of each layer in a tenth of the run, `[layers]`."""
        return largest(self.log_sensitivity[step : step + self.tenth], axis=0)

    def first_rise(self) -> int | None:
        """Return the first step of a peak, or of a tenth of the run above the first loss.

        Losses of single examples differ a lot: the first may be small by chance, others large.
        """
        loss = np.where(np.isfinite(self.loss), self.loss, np.inf)
        first, span = abs(loss[0]) or 1.0, max(1, min(len(loss) - 1, max(10, self.tenth)))
        with np.errstate(invalid="ignore", over="ignore"):
            rise = loss - loss[0]
            usual = [np.quantile(part, 0.9, method="lower") for part in (loss, loss[: self.tenth])]
            rises = rise > (PEAK - 1) * max(first, *usual)
            # In each window of a tenth: all losses are high, or the median is far higher.
            spans = np.lib.stride_tricks.sliding_window_view(rise, span)
            far = (2 * RISE - 1) * max(first, abs(np.median(loss)))
            lasting = (spans.min(axis=1) > (RISE - 1) * first) | (np.median(spans, axis=1) > far)
            rises[: len(lasting)] |= lasting & (rise[: len(lasting)] > (RISE - 1) * first)
        return first_step(rises)


def read_run(fit, norms, units, names, inputs, train_error, dev_error) -> Run:
    """Check the arguments of `diagnose` and compute what its rules read."""
    _check_types(fit, norms, units)
    # Findings are text, so that all numbers must be known.
    values = {"fit": fit.loss, "fit.error": fit.error, "norms": norms, "units": units}
    values |= {"inputs": inputs, "train_error": train_error, "dev_error": dev_error}
    for name, value in values.items():
        _validate.known(name, value, "diagnose")
    loss = _validate.in_float64("fit", fit.loss)
    if loss.ndim != 1 or len(loss) == 0:
        remedy = "select a run with jax.tree.map(lambda a: a[i], fit)"
        raise ValueError(f"fit must be of one run, [steps], got shape {loss.shape}; {remedy}")
    steps = taken = len(loss)
    watched = _error("fit.error", fit.error, steps)
    dev = watched if dev_error is None else _error("dev_error", dev_error, steps)
    train = _error("train_error", train_error, steps)
    if train is not None and (dev is None or train.shape != dev.shape):
        got = f"got {len(train)} and {0 if dev is None else len(dev)}; pass both"
        raise ValueError(f"train_error must come with as many evaluations of dev_error, {got}")
    # Units may have been recorded at each step or each evaluation; the number of rows tells which.
    times = {steps: np.arange(steps)}
    for error in (watched, dev):
        if error is not None:
            times[len(error)] = np.linspace(0, steps, len(error), dtype=int)
    if watched is not None and fit.best is not None and bool(fit.best.stopped):
        # The first evaluation comes before the first step.
        taken = max(1, int(times[len(watched)][int(fit.best.evaluations) - 1]))
    every = 1
    if dev is not None:
        # Evaluations after the last step that was taken say nothing new.
        every = steps // (len(dev) - 1)
        dev, train = (e if e is None else e[: taken // every + 1] for e in (dev, train))
        train = train if np.isfinite(dev).any() else None
    ratios = _ratios(norms, loss, taken)
    units, unit_steps = _checked_units(units, times, steps, taken)
    names = _checked_names(names, ratios[0], units)
    features = _checked_inputs(inputs)
    return Run(loss[:taken], *ratios, *features, units, unit_steps, names, dev, train, every)


def _check_types(fit, norms, units):
    """Check attributes, not classes, so that records of other training loops are accepted."""
    missing = [name for name in ("loss", "error", "best") if not hasattr(fit, name)]
    if missing:
        got = f"got {type(fit).__name__} without {', '.join(missing)}"
        raise TypeError(f"fit must be a result of jaxgrad.training.fit, {got}")
    for name, part, kind in (("norms", norms, Norms), ("units", units, Units)):
        if part is not None and not all(hasattr(part, field) for field in kind._fields):
            rule = f"be a {kind.__name__} of jaxgrad.training.monitoring"
            raise TypeError(f"{name} must {rule}, got {type(part).__name__}; record it there")


def _error(name, error, steps):
    """Return errors as numbers `[evaluations]`, `None` for none."""
    if error is None:
        return None
    numbers = _validate.vector(name, error, length=2, axes="[evaluations]")
    # One before the first step and one after every so many steps.
    if steps % (len(numbers) - 1):
        got = f"got {len(numbers)} for {steps} steps; record it as fit does"
        raise ValueError(f"{name} must be [evaluations], steps / every + 1 of them, {got}")
    return numbers


def _checked_inputs(inputs):
    """Return log root mean square, and mean and standard deviation of the varying features."""
    if inputs is None:
        return None, None, None
    x = _validate.in_float64("inputs", inputs)
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"inputs must be [examples, features], got shape {x.shape}; reshape them")
    x = x.reshape(len(x), -1)
    if not np.all(np.isfinite(x)):
        raise ValueError("inputs must be finite, got NaN or infinity; remove or impute them")
    mean, std = x.mean(axis=0), x.std(axis=0)
    # Rounding of the mean alone gives a constant feature some spread.
    varies = std > 1e-6 * np.abs(x).max(axis=0)
    if not varies.any():
        raise ValueError("inputs must vary over examples, got only constant features; check them")
    return 0.5 * float(np.log(np.mean(np.square(x)))), mean[varies], std[varies]


def _ratios(norms, loss, taken):
    """Return log ratio, log sensitivity, whether weights start at 0, and straightness."""
    if norms is None:
        return None, None, None, 0.0
    parts = [np.asarray(part, np.float64) for part in norms]
    shapes = [part.shape for part in parts]
    if any(shape != (len(loss), *shapes[0][-1:]) for shape in shapes):
        rule = f"be three arrays [steps, layers], of {len(loss)} steps"
        raise ValueError(f"norms must {rule}, got shapes {shapes}; pass the trace of layer_norms")
    gradient, weight, update = (part[:taken] for part in parts)
    zero_start = np.isneginf(weight[0])
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        straightness = float(np.exp(median(weight[-1] - update.max(axis=0))) / taken)
        # Weights of 0 give no scale.
        weight = np.where(np.isneginf(weight), np.nan, weight)
        log_sensitivity = gradient + weight - np.log(np.abs(loss[:taken]))[:, None]
    return update - weight, log_sensitivity, zero_start, straightness


def _checked_units(units, times, steps, taken):
    """Return the units of the steps that were taken, and the step of each row."""
    if units is None:
        return None, None
    units = jax.tree.map(lambda part: np.asarray(part, np.float64), units)
    rows = len(units.dead) if units.dead.ndim == 2 else None
    if rows not in times:
        counts = " or ".join(map(str, times))
        rule = f"be arrays [evaluations, layers] or [steps, layers], with {counts} rows"
        raise ValueError(f"units must {rule}, got shape {units.dead.shape}; record all of them")
    # An evaluation after the last step counts, a step after it does not.
    selected = times[rows] <= (taken - 1 if rows == steps else taken)
    return Units(*(part[selected] for part in units)), times[rows][selected]


def _checked_names(names, log_ratio, units):
    """Return a name for each layer. Norms may have one layer more than units, the readout."""
    with_units = 0 if units is None else units.dead.shape[1]
    layers = with_units if log_ratio is None else log_ratio.shape[1]
    if with_units > layers:
        got = f"got {with_units}; select the layers of both"
        raise ValueError(f"units must have at most the {layers} layers of norms, {got}")
    if names is None:
        return tuple(f"layer {index + 1}" for index in range(layers))
    if not isinstance(names, Sequence):
        got = f"got {_validate.show(names)}; use monitoring.layer_names"
        raise TypeError(f"names must be a sequence of texts, {got}")
    for name in names:
        _validate.text("names", name)
    if len(names) != layers:
        rule = f"be one for each of the {layers} layers of norms or units"
        raise ValueError(f"names must {rule}, got {len(names)}; use monitoring.layer_names")
    return tuple(names)


def first_step(holds) -> int | None:
    """Return the first step at which a condition holds, `None` if it never does."""
    return next(map(int, np.flatnonzero(holds)), None)


def first_lasting(holds):
    """Return the first step, if before the last tenth, from which a condition holds to the end."""
    # Share of the steps from each one to the end.
    share = np.cumsum(holds[::-1])[::-1] / np.arange(len(holds), 0, -1)
    step = first_step(holds & (share >= MOSTLY))
    lasts = step is not None and step <= len(holds) - max(1, len(holds) // 10)
    return step if lasts else None


def median(values):
    """Return the lower median over the first axis, without NaN, which is sorted last."""
    middle = np.maximum((~np.isnan(values)).sum(axis=0) - 1, 0) // 2
    return np.take_along_axis(np.sort(values, axis=0), middle[None], 0)[0]


def largest(values, axis=None):
    """Return the maximum without NaN, -inf if there are only NaN."""
    return np.fmax.reduce(values, axis, initial=-np.inf)
