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
      decrease: Decrease of the loss as a share of its first value, which is the first loss or the
        median of the first tenth of the run. The last value is the median of the last tenth.
      log_ratio: Log of |update| / |weights|, `[steps, layers]`; NaN for weights of 0.
      log_sensitivity: Log of |gradient| |weights| / loss, `[steps, layers]`, about the relative
        change of the loss if the layer doubles; NaN for weights of 0.
      zero_start: Whether the weights of a layer are 0 at the start, `[layers]`.
      straightness: |weights at the end| / (steps * largest |update|), in the median layer. For
        weights that start at 0 it is 1 if all updates are equal.
      log_input_rms: Log root mean square of the network inputs.
      feature_mean, feature_std: Of each input feature that is not constant, `[features]`.
      units, unit_steps: Statistics of the units, and the step of each of their rows.
      dev_error, train_error: Errors, `[evaluations]`, with `every` steps between evaluations.
    """

    # Any stands for an array or None, as without norms or units; the rules check which.
    loss: Float[np.ndarray, " steps"]
    decrease: float
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

    def sensitivity_from(self, step: int) -> Any:
        """Return the largest log sensitivity of each layer in a tenth of the run, `[layers]`."""
        return largest(self.log_sensitivity[step : step + self.tenth], axis=0)

    def first_rise(self) -> int | None:
        """Return the first step at which the loss has risen, or `None`.

        It has risen at a peak, or where a tenth of the run lies above the first loss. Losses of
        single examples differ a lot: the first may be small by chance, and the largest large.
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
        steps = np.flatnonzero(rises)
        return int(steps[0]) if len(steps) else None


def read_run(
    fit: Any,
    norms: Norms | None,
    units: Units | None,
    *,
    names: Sequence[str] | None,
    inputs: Any,
    train_error: Any,
    dev_error: Any,
) -> Run:
    """Check the arguments of `diagnose` and compute what its rules read."""
    _check_types(fit, norms, units, names)
    # Findings are text, so that all numbers must be known.
    values = {"fit": fit.loss, "fit.error": fit.error, "norms": norms, "units": units}
    values |= {"inputs": inputs, "train_error": train_error, "dev_error": dev_error}
    for name, value in values.items():
        _validate.known(name, value, "diagnose")
    loss = np.asarray(fit.loss, np.float64)
    if loss.ndim != 1 or len(loss) == 0:
        raise ValueError(
            f"fit must be of one run, with a loss [steps], got shape {loss.shape}; select a run "
            "with jax.tree.map(lambda a: a[i], fit)"
        )
    steps = len(loss)
    watched = _error("fit.error", fit.error, steps)
    dev = watched if dev_error is None else _error("dev_error", dev_error, steps)
    train = _error("train_error", train_error, steps)
    if train is not None and (dev is None or train.shape != dev.shape):
        raise ValueError(
            "train_error must come with as many evaluations of dev_error, got "
            f"{len(train)} and {0 if dev is None else len(dev)}; record it beside the dev error"
        )
    # Units may have been recorded at each step or each evaluation; the number of rows tells which.
    times = {steps: np.arange(steps)}
    for error in (watched, dev):
        if error is not None:
            times[len(error)] = np.arange(0, steps + 1, _every(steps, error))
    taken, every = steps, 1
    if watched is not None and fit.best is not None and bool(fit.best.stopped):
        # The first evaluation comes before the first step.
        taken = max(1, (int(fit.best.evaluations) - 1) * _every(steps, watched))
    # Evaluations after the last step that was taken say nothing new.
    if dev is not None:
        every = _every(steps, dev)
        dev, train = (e if e is None else e[: taken // every + 1] for e in (dev, train))
    log_input_rms, feature_mean, feature_std = _checked_inputs(inputs)
    log_ratio, log_sensitivity, zero_start, straightness = _ratios(norms, loss, taken)
    units, unit_steps = _checked_units(units, times, steps, taken)
    return Run(
        loss=loss[:taken],
        decrease=_decrease(loss[:taken]),
        log_ratio=log_ratio,
        log_sensitivity=log_sensitivity,
        zero_start=zero_start,
        straightness=straightness,
        log_input_rms=log_input_rms,
        feature_mean=feature_mean,
        feature_std=feature_std,
        units=units,
        unit_steps=unit_steps,
        names=_checked_names(names, _layer_count(log_ratio, units)),
        dev_error=dev,
        train_error=train,
        every=every,
    )


def _decrease(loss):
    tenth = max(1, len(loss) // 10)
    with np.errstate(invalid="ignore", over="ignore"):
        # The larger of the two, because the first batch may be an easy one.
        first = np.fmax(loss[0], np.median(loss[:tenth]))
        return float((first - np.median(loss[-tenth:])) / (abs(first) or 1.0))


def _ratios(norms, loss, taken):
    """Return log ratio, log sensitivity, whether weights start at 0, and straightness."""
    if norms is None:
        return None, None, None, 0.0
    gradient, weight, update = (part[:taken] for part in _checked_norms(norms, len(loss)))
    zero_start = np.isneginf(weight[0])
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        straightness = float(np.exp(median(weight[-1] - update.max(axis=0))) / taken)
        # Weights of 0 give no scale.
        weight = np.where(np.isneginf(weight), np.nan, weight)
        log_sensitivity = gradient + weight - np.log(np.abs(loss[:taken]))[:, None]
    return update - weight, log_sensitivity, zero_start, straightness


def _check_types(fit, norms, units, names):
    # By attributes, so that records of other training loops are accepted.
    missing = [name for name in ("loss", "error", "best") if not hasattr(fit, name)]
    if missing:
        raise TypeError(
            f"fit must be a result of jaxgrad.training.fit, got {type(fit).__name__} without "
            f"{', '.join(missing)}"
        )
    for name, part, kind, source in (
        ("norms", norms, Norms, "fit.trace of monitor=layer_norms"),
        ("units", units, Units, "monitoring.units, recorded by evaluate"),
    ):
        if part is not None and not all(hasattr(part, field) for field in kind._fields):
            raise TypeError(
                f"{name} must be a {kind.__name__} of jaxgrad.training.monitoring, got "
                f"{type(part).__name__}; pass {source}"
            )
    if names is not None and norms is None and units is None:
        raise ValueError(
            "names must come with norms or units, whose layers they name, got neither; pass them"
        )


def _error(name, error, steps):
    """Return errors as numbers `[evaluations]`, `None` for none."""
    if error is None:
        return None
    numbers = _validate.vector(name, error, length=2, axes="[evaluations]")
    # One before the first step and one after every so many steps.
    if steps % (len(numbers) - 1):
        raise ValueError(
            f"{name} must be [evaluations], steps / every + 1 of them for {steps} steps, got "
            f"shape {numbers.shape}; record it as jaxgrad.training.fit does"
        )
    return numbers


def _every(steps, error):
    """Steps between evaluations."""
    return steps // (len(error) - 1)


def _checked_inputs(inputs):
    """Return log root mean square, and mean and standard deviation of the varying features."""
    if inputs is None:
        return None, None, None
    x = np.asarray(inputs, np.float64)
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"inputs must be [examples, features], none empty, got shape {x.shape}; reshape them"
        )
    x = x.reshape(len(x), -1)
    if not np.all(np.isfinite(x)):
        raise ValueError("inputs must be finite, got NaN or infinity; remove or impute them")
    mean, std = x.mean(axis=0), x.std(axis=0)
    # Rounding of the mean alone gives a constant feature some spread.
    varies = std > 1e-6 * np.abs(x).max(axis=0)
    if not varies.any():
        raise ValueError("inputs must vary over examples, got only constant features; check them")
    return 0.5 * float(np.log(np.mean(np.square(x)))), mean[varies], std[varies]


def _checked_norms(norms, steps):
    parts = [np.asarray(part, np.float64) for part in norms]
    # All three have the shape [steps, layers].
    expected = (steps, parts[0].shape[-1] if parts[0].ndim else 0)
    if any(part.shape != expected for part in parts):
        raise ValueError(
            f"norms must be three arrays [steps, layers], of {steps} steps, got shapes "
            f"{[part.shape for part in parts]}; pass fit.trace of monitor=layer_norms"
        )
    return parts


def _checked_units(units, times, steps, taken):
    """Return the units of the steps that were taken, and the step of each row."""
    if units is None:
        return None, None
    units = jax.tree.map(lambda part: np.asarray(part, np.float64), units)
    rows = len(units.dead) if units.dead.ndim == 2 else None
    if rows not in times:
        raise ValueError(
            "units must be arrays [evaluations, layers] or [steps, layers], with "
            f"{' or '.join(map(str, times))} rows, got shape {units.dead.shape}; record them at "
            "each step or at each evaluation"
        )
    # An evaluation after the last step counts, a step after it does not.
    selected = times[rows] <= (taken - 1 if rows == steps else taken)
    return Units(*(part[selected] for part in units)), times[rows][selected]


def _layer_count(log_ratio, units):
    # Norms may have one layer more, the readout.
    layers = 0 if log_ratio is None else log_ratio.shape[1]
    with_units = 0 if units is None else units.dead.shape[1]
    if log_ratio is not None and with_units > layers:
        raise ValueError(
            f"units must have at most the {layers} layers of norms, got {with_units}; select the "
            "layers that both describe"
        )
    return layers or with_units


def _checked_names(names, layers):
    if names is None:
        return tuple(f"layer {index + 1}" for index in range(layers))
    if len(names) != layers:
        raise ValueError(
            f"names must be one for each of {layers} layers, got {len(names)}; use "
            "jaxgrad.training.monitoring.layer_names"
        )
    return tuple(names)


def first_lasting(holds):
    """Return the first step from which a condition holds until the end.

    `None` if there is none or it lies within the last tenth of the run.
    """
    # Share of the steps from each one to the end.
    share = np.cumsum(holds[::-1])[::-1] / np.arange(len(holds), 0, -1)
    steps = np.flatnonzero(holds & (share >= MOSTLY))
    lasting = len(steps) and steps[0] <= len(holds) - max(1, len(holds) // 10)
    return int(steps[0]) if lasting else None


def median(values):
    """Return the lower median over the first axis, without NaN but with -inf."""
    # Sorting puts NaN last.
    middle = np.maximum((~np.isnan(values)).sum(axis=0) - 1, 0) // 2
    return np.take_along_axis(np.sort(values, axis=0), middle[None], 0)[0]


def largest(values, axis=None):
    """Return the maximum without NaN, -inf if there are only NaN."""
    return np.max(np.where(np.isnan(values), -np.inf, values), axis=axis, initial=-np.inf)
