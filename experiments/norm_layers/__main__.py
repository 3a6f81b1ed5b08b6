"""The command: claims, tables and the figure."""

from __future__ import annotations

import itertools

import numpy as np

from experiments import _kit as kit
from experiments._kit import Claim, Estimate
from experiments.norm_layers.figure import figure
from experiments.norm_layers.measurement import (
    GROWTH_TOLERANCE,
    KINDS,
    LEARNS,
    TEST,
    Options,
    Results,
    measure,
)


def claims(results: Results, options: Options) -> list[Claim]:
    """Gradients grow as theory says, norms learn at any variance, and what training changes."""
    growth = {kind: one.growth() for kind, one in results.start.items()}
    statements = []
    for kind, (measured, predicted) in growth.items():
        for i, w_variance in enumerate(options.w_variances):
            if kind == "plain" or i == 0:  # norms make the variance indifferent
                text = f"{kind}, weight variance {w_variance:g}: growth as in theory, within 10 %"
                difference = Estimate.of(measured[:, i] - predicted[i])
                bounds = (0.0, GROWTH_TOLERANCE)
                statements.append(Claim(text, difference, "equal", *bounds, form="+.3f"))
        if "batch" in kind:
            text = f"{kind}: gradients explode at every variance (smallest growth)"
            smallest = Estimate.of(measured.min(axis=1))
            statements.append(Claim(text, smallest, "greater", form="+.3f"))
    critical = options.critical
    for (kind, depth), one in results.trained.items():
        text = f"{kind}, depth {depth}: test accuracy above 20 % at every weight variance"
        worst = Estimate.of(one.test.min(axis=1))  # in each seed, over variances
        # Seeds share one test set, whose sampling error is added; all may predict one class.
        noise = Estimate.share(worst.mean * TEST, TEST).standard_error
        worst = worst - Estimate(0.0, noise)
        statements.append(Claim(text, worst, "greater", LEARNS, form=".1%"))
    for depth in options.depths:
        plain = results.trained["plain", depth]
        ratio = plain.ratio()[:, critical]
        text = f"plain, depth {depth}, critical: log10 of first over last gradient stays within 1"
        drift = Estimate.of(ratio[:, -1] - ratio[:, 0])
        statements.append(Claim(text, drift, "equal", tolerance=1.0, form="+.2f"))
        for kind in KINDS:
            one = results.trained[kind, depth]
            fitted = min(float(t.train[:, critical].mean()) for t in (one, plain))
            # A loss gap says something about overfitting only where both networks have fitted.
            if kind != "plain" and fitted >= 0.95:
                gaps = ((t.test_loss - t.train_loss)[:, critical] for t in (one, plain))
                text = f"{kind}, depth {depth}: smaller gap of test and train loss than plain"
                statements.append(Claim(text, Estimate.paired(*gaps), "less", form="+.3f"))
    text = "running statistics change the accuracy of batch norm by less than 2 %"
    change = Estimate.of(statistics_change(results))
    return [*statements, Claim(text, change, "equal", tolerance=0.02, form="+.1%")]


def statistics_change(results: Results) -> np.ndarray:
    """Test accuracy with running statistics less that with those of the test set, by network."""
    changes = [
        one.test - one.test_batch for (kind, _), one in results.trained.items() if "batch" in kind
    ]
    return np.concatenate([change.ravel() for change in changes])


def report(results: Results, options: Options) -> kit.Report:
    """Gradients at the start, accuracies and gradients after training, and the claims."""
    rows = []
    for kind, one in results.start.items():
        measured, predicted = one.growth()
        for i, w_variance in enumerate(options.w_variances):
            estimate, factor = Estimate.of(measured[:, i]), np.exp(measured[:, i].mean())
            row = (kind if i == 0 else "", f"{w_variance:g}", f"{estimate:+.3f}")
            rows.append(
                (*row, f"{predicted[i]:+.3f}", f"{factor:.3g}", f"{np.exp(predicted[i]):.4g}")
            )
    title = (
        f"{options.activation}, before training: growth per layer of the log squared gradient, "
        f"layers {options.start_depth // 2} to {options.start_depth}, width {options.start_width}, "
        f"one batch of {options.start_examples} digits; mean over {options.start_seeds} seeds ± "
        "standard error. Theory: infinite width, large batch; a plain relu network of finite width "
        f"grows less, by 2.5 / width = {2.5 / options.start_width:.3f}."
    )
    headings = ("kind", "w var", "measured", "theory", "factor", "theory")
    first = kit.table(headings, rows, title)

    def show(values, form):
        return f"{Estimate.of(values):{form}}" if np.isfinite(values).all() else "lost"

    # A number that one seed has lost has no mean.
    rows = []
    for (kind, depth), one in results.trained.items():
        ratio, rates = one.ratio(), np.asarray(options.learning_rates)[one.rate]
        for i, w_variance in enumerate(options.w_variances):
            row = (f"{kind}, {depth}" if i == 0 else "", f"{w_variance:g}", f"{rates[i]:g}")
            accuracies = (show(v[:, i], ".1%") for v in (one.train, one.test, one.test_batch))
            rows.append((*row, *accuracies, *(show(ratio[:, i, j], "+.2f") for j in (0, -1))))
    title = (
        f"After {options.steps} steps of gradient descent with momentum 0.9 (width "
        f"{options.width}, batches of {options.batch_size}), each at the rate of best dev "
        "accuracy; first/last: log10 of the norm of the gradient with respect to the input of the "
        f"first repeated layer over that of the last; mean over {options.seeds} seeds ± standard "
        "error; lost: 0 or no longer finite."
    )
    accuracies = ("train accuracy", "test accuracy", "by batch statistics")
    headings = ("kind, depth", "w var", "rate", *accuracies, "first/last, start", "end")
    second = kit.table(headings, rows, title)
    numbers = {
        f"{kind}, depth {depth}": {"test": Estimate.of(one.test), "train": Estimate.of(one.train)}
        for (kind, depth), one in results.trained.items()
    }
    sections = [first, second, in_words(results, options)]
    return kit.Report(sections, claims(results, options), numbers)


def in_words(results: Results, options: Options) -> str:
    """Where training fails, how far gradients drift, and what running statistics change."""
    lines = ["Mean test accuracy below 20 %, twice that of chance:"]
    for depth, kind in itertools.product(options.depths, KINDS):
        lost = results.trained[kind, depth].test.mean(axis=0) < LEARNS  # [variances]
        places = ", ".join(f"{w:g}" for w in itertools.compress(options.w_variances, lost))
        words = f"weight variance {places}" if places else "nowhere"
        lines.append(f"- {kind}, depth {depth}: {words}.")
    for depth in options.depths:
        ratio = results.trained["plain", depth].ratio()[:, options.critical]
        # Over all seeds and times, relative to the start.
        drift = np.max(np.abs(ratio - ratio[:, :1]))
        words = f"drifts at most {10**drift:.3g}-fold in any network at any time"
        words = words if np.isfinite(drift) else "is lost, 0 or no longer finite"
        near = f"weight variance {options.w_variances[options.critical]:g}"
        lines.append(f"First over last gradient, plain, depth {depth}, {near}: it {words}.")
    lines.append("Loss gaps are compared where both networks have a train accuracy of 95 %.")
    largest = np.abs(statistics_change(results)).max()
    lines.append(f"Running statistics change one batch norm network by at most {largest:.1%}.")
    return "\n".join(lines)


def run(options: Options) -> None:
    """Compare plain networks with batch and layer norm: gradients at the start and in training."""
    results = measure(options, kit.progress("networks"))
    kit.publish(report(results, options), options, figure(results, options))


if __name__ == "__main__":
    kit.command(Options, run)
