"""Each part of the gradient check finds what it claims, and its figures and tables say so."""

import dataclasses
import functools
import re
import runpy
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from experiments._kit import options as kit_options
from experiments.gradient_check import __main__ as command_line
from experiments.gradient_check import dropout, kinks, regularizer, steps, training
from experiments.gradient_check.network import Options
from jaxgrad.checking import Verdict
from tests.experiments.legible import legible, message
from tests.reference.record import hold, recorded

pytestmark = pytest.mark.slow

SMALL = Options(
    width=5,
    examples=4,
    networks=3,
    kink_examples=(24,),
    largest_strength=1e6,
    training_steps=(0, 30),
    batch_size=16,
)


@functools.cache
def measured(part):
    """One run of a part serves what is tested of it and the comparison with version 0.1."""
    return part.measure(SMALL)


def title(figure):
    return message(figure)


def words(report):
    """The text of a report, with tables that break a text into lines read on."""
    return " ".join(str(report).split())


# Part 1


def test_errors_fall_with_the_power_of_the_step_and_rise_with_rounding():
    result = measured(steps)
    assert [method.order for method in result.methods] == [1, 2, 2, 4, 2]
    for method, tolerance in zip(result.methods, (0.05, 0.3, 0.05, 0.2, 0.05), strict=True):
        assert method.slope == pytest.approx(method.order, abs=tolerance), method.name
    *rounded, exact = result.methods
    for method in rounded:
        assert method.small_slope == pytest.approx(-1, abs=0.15), method.name
        theory = method.rounding ** (1 / (method.order + 1))
        assert theory / 15 < result.steps[method.error.argmin()] < 15 * theory, method.name
    assert np.isnan(exact.small_slope)
    assert exact.error.min() < 1e-15
    one_sided, narrow, wide, extrapolated = (method.error.min() for method in rounded)
    assert extrapolated < wide / 5 < one_sided / 50 < narrow / 500
    assert 0 < result.gradient_error <= result.gradient_bar < 1e-7


def steps_like(gradient_error):
    sizes = 10.0 ** -np.arange(0, 13)
    errors = [sizes**order + 1e-14 / sizes for order in (1, 2, 3, 4)] + [sizes**2 + 1e-16]
    names = ["one", "two-sided, float32", "two-sided, float64", "four", "complex"]
    methods = [
        steps.method(name, error, order, sizes, np.float64)
        for name, error, order in zip(names, errors, (1, 2, 3, 4, 2), strict=True)
    ]
    return steps.Steps(sizes, tuple(methods), gradient_error, 1e-10)


def test_slopes_and_best_steps_are_read_off_the_curves():
    result = steps_like(1e-11)
    bests = (1e-7, 1e-5, 1e-4, 1e-3)
    for method, order, best in zip(result.methods, (1, 2, 3, 4), bests, strict=False):
        assert method.slope == pytest.approx(order, abs=0.05)
        assert method.small_slope == pytest.approx(-1, abs=0.05)
        assert result.steps[method.error.argmin()] == pytest.approx(best)
        assert f"{best:.0e} (~" in words(steps.report(result))
    assert np.isnan(result.methods[-1].small_slope)


@pytest.mark.parametrize(("error", "inside"), [(1e-11, True), (1e-9, False)])
def test_figure_and_table_of_the_steps_say_what_was_measured(error, inside):
    result = steps_like(error)
    best = "best at a step of $10^{-5}$ in float32 and $10^{-4}$ in float64"
    assert best in title(legible(lambda: steps.figure(result)))
    report = steps.report(result)
    assert report.claims[-1].test()[0] is inside
    assert "3.00 (3)" in words(report)
    assert "does not rise" in words(report)


# Part 2


def test_fixed_steps_raise_false_alarms_at_kinks_and_check_grads_does_not():
    result = measured(kinks)
    alarms = kinks.false_alarms(result)
    assert alarms.shape == (len(kinks.CHECKERS), 1, 3)
    np.testing.assert_array_equal(alarms[-1], False)
    assert set(result.verdicts.ravel()) <= {Verdict.AGREE, Verdict.KINK}
    course, crossed = alarms[:7].swapaxes(0, 1), result.crossed
    assert course.shape == crossed.shape == (1, 7, 3)
    assert course[0, 0].all()
    # From 1e-3 on curvature is no reason for an alarm, so a kink is.
    assert np.all(crossed[:, 1:] | ~course[:, 1:])
    assert np.all(crossed[:, :-1] | ~crossed[:, 1:])
    assert crossed.any()
    assert not crossed.all()


def kinks_like(*verdicts):
    error = np.full((1, 7, 4), 1e-9)
    error[0, :2] = [[1e-2, 1e-2, 1e-4, 1e-9], [1e-6, 1e-9, 1e-9, np.nan]]
    alarms = {
        "float32": np.array([[True, False, False, False]]),
        "float64": np.array([[True, True, False, False]]),
    }
    return kinks.Kinks((8,), error, error > 1e-3, np.array([verdicts]), alarms)


def test_shares_of_networks_are_counted():
    result = kinks_like(Verdict.KINK, Verdict.WRONG, Verdict.AGREE, Verdict.UNRESOLVED)
    shares = kinks.false_alarms(result).mean(axis=2).ravel()
    # An error that is NaN counts as an alarm.
    assert shares.tolist() == [0.75, 0.25, *[0.0] * 5, 0.25, 0.5, 0.25]
    table = words(kinks.report(result))
    assert "step 1e-02 50% 75%" in table
    assert "step 1e-03 0% 25%" in table
    assert "float64 50%" in table
    assert "crosses a kink in 2 of 4 false alarms" in table
    assert "1 WRONG, 1 UNRESOLVED, 1 KINK, 1 AGREE" in table


@pytest.mark.parametrize(("verdict", "share"), [(Verdict.WRONG, "25%"), (Verdict.AGREE, "0%")])
def test_figure_of_the_kinks_says_what_was_measured(verdict, share):
    figure = legible(lambda: kinks.figure(kinks_like(verdict, *[Verdict.AGREE] * 3)))
    words = "A fixed step rejects up to 75% of correct ReLU gradients, JAX's check_grads 50%, "
    assert title(figure) == f"{words}jaxgrad's {share}"


# Part 3


def test_a_strong_regularizer_hides_the_error_from_the_whole_gradient_alone():
    result = measured(regularizer)
    assert result.strengths.tolist() == [0, *10.0 ** np.arange(-2, 7)]
    assert result.error[0] > 1e-3
    assert result.error[-2] > 1e-7 > result.error[-1]
    wrong = {n: np.array(v) == Verdict.WRONG for n, v in result.verdicts.items()}
    assert wrong[regularizer.TERM].all()
    assert wrong[regularizer.BIASES].all()
    # The weights' error is seen longer than that of the whole gradient, but not to the end.
    weights = wrong[regularizer.WEIGHTS]
    assert np.all(np.diff(weights.astype(int)) <= 0)
    assert weights[np.argmax(result.error < 1e-3)]
    assert not weights[-1]
    np.testing.assert_allclose(result.leaf_error[regularizer.TERM], 0.01, rtol=0.02)
    assert "from strength $10^{6}$" in title(legible(lambda: regularizer.figure(result)))

    # Without a planted error nothing is named.
    options = dataclasses.replace(SMALL, planted_error=0.0, largest_strength=0.01)
    result = regularizer.measure(options)
    assert result.strengths.tolist() == [0, 0.01]
    assert {v for row in result.verdicts.values() for v in row} == {Verdict.AGREE}
    assert result.error.max() < 1e-7
    assert not regularizer.report(result).claims


@pytest.mark.parametrize(
    ("errors", "verdicts", "finding", "holds"),
    [
        ([1e-2, 1e-4, 1e-8], "WRONG WRONG AGREE", "“right” from strength $10^{5}$ on", False),
        # It must stay below for good.
        ([1e-8, 1e-8, 1e-2], "AGREE WRONG WRONG", "never hidden", False),
        ([1e-8, np.nan, 1e-8], "WRONG WRONG WRONG", "“right” from strength $10^{5}$ on", True),
    ],
)
def test_figure_and_table_of_the_regularizer_say_what_was_measured(
    errors, verdicts, finding, holds
):
    verdicts = tuple(map(Verdict, verdicts.split()))
    rows = dict.fromkeys(regularizer.CHECKERS, verdicts)
    leaf_error = dict.fromkeys(rows, np.full(3, 1e-2))
    strengths = np.array([0.0, 1.0, 1e5])
    result = regularizer.Regularizer(0.02, strengths, np.array(errors), rows, leaf_error)
    text = title(legible(lambda: regularizer.figure(result)))
    assert f"off by 2% is {finding}" in text
    assert f"names it at {verdicts.count(Verdict.WRONG)} of 3" in text
    report = regularizer.report(result)
    for row in zip(("0", "1", "100000"), verdicts, strict=True):
        assert re.search(rf"\n{row[0]} .* {row[1]}, 1e-02\n", str(report))
    assert report.claims[0].test()[0] is holds


# Part 4


def test_a_held_mask_passes_and_fresh_masks_do_not():
    result = measured(dropout)
    held, *fresh = result
    assert held.verdict is Verdict.AGREE
    assert held.error < 1e-7
    assert len(fresh) == 2
    for case in fresh:
        assert case.verdict is Verdict.NONDETERMINISTIC
        assert case.error > 0.9
    report = dropout.report(result)
    assert str(report).count("NONDETERMINISTIC") == 2
    assert [claim.test()[0] for claim in report.claims] == [True, True]
    figure = legible(lambda: dropout.figure(result))
    assert "makes numeric slopes up to" in title(figure)
    labels = "\n".join(label.get_text() for label in figure.axes[0].get_yticklabels())
    assert labels.count("check_grads: NONDETERMINISTIC") == 2
    assert labels.count("check_grads: AGREE") == 1


# Part 5


def test_the_wrong_rule_shows_once_weights_have_grown():
    result = measured(training)
    assert result.verdicts[training.RIGHT] == (Verdict.AGREE, Verdict.AGREE)
    assert result.verdicts[training.NEAR_ZERO] == (Verdict.AGREE, Verdict.WRONG)
    assert result.error[training.NEAR_ZERO][1] > 1e-3
    assert result.error[training.RIGHT].max() < 1e-6


@pytest.mark.parametrize(
    ("verdicts", "finding", "holds"),
    [
        (("AGREE", "WRONG"), "wrong rule is called WRONG after 30 steps", True),
        (("WRONG", "AGREE"), "wrong rule is called WRONG after 0 steps", True),
        (("AGREE", "AGREE"), "wrong rule is never called wrong", False),
    ],
)
def test_figure_and_table_of_the_training_say_what_was_measured(verdicts, finding, holds):
    names = (training.RIGHT, training.NEAR_ZERO)
    verdicts = {names[0]: (Verdict.AGREE,) * 2, names[1]: tuple(map(Verdict, verdicts))}
    errors = dict.fromkeys(names, np.array([1e-9, 1e-3]))
    result = training.Training(np.array([0, 30]), errors, verdicts)
    text = title(legible(lambda: training.figure(result)))
    assert "the right rule is never called wrong" in text
    assert finding in text
    report = training.report(result)
    for row in zip(("0", "30"), verdicts[names[1]], strict=True):
        assert re.search(rf"\n{row[0]} .* {row[1]}\b", str(report))
    assert [claim.test()[0] for claim in report.claims] == [True, holds]


# The numbers of version 0.1


def texts(rows):
    """Verdicts one by one, as 0.1 had them."""
    return {name: [np.asarray(str(verdict)) for verdict in row] for name, row in rows.items()}


def test_steps_are_those_of_version_0_1():
    result = measured(steps)
    old = recorded()["experiments.gradient_check.steps"]
    np.testing.assert_array_equal(result.steps, old["steps"])
    for i, method in enumerate(result.methods):
        before = old[f"methods/{i}/error"]
        # Rounding, which no two programs share, is divided by the step where values are subtracted.
        subtracts = "complex" not in method.name
        noise = method.rounding / (result.steps if subtracts else 1)
        assert np.all(np.abs(method.error - before) < 1e-3 * before + 3 * noise), method.name
        # Its size is that of the steps and of the precision, whatever the program.
        assert np.all((before / 2 < method.error) & (method.error < 2 * before)), method.name
        assert method.order == old[f"methods/{i}/order"]
        assert method.rounding == old[f"methods/{i}/rounding"]
        np.testing.assert_allclose(method.slope, old[f"methods/{i}/slope"], rtol=0.02)
    np.testing.assert_allclose(result.gradient_error, old["found_error"], rtol=0.5)
    np.testing.assert_allclose(result.gradient_bar, old["found_bar"], rtol=0.5)


def test_kinks_are_those_of_version_0_1():
    result = measured(kinks)
    out = {
        "steps": kinks.STEPS,
        "error": result.error,
        "crossed": result.crossed,
        "alarms": {dtype: rows.mean(axis=1) for dtype, rows in result.jax_alarms.items()},
        "examples": {"0": result.examples[0]},
        "verdicts": texts({"0": result.verdicts[0]}),
    }
    hold("experiments.gradient_check.kinks", out, left_out=("error",))
    # The errors of smooth networks are rounding; those of kinks are larger by far.
    old = recorded()["experiments.gradient_check.kinks"]["error"]
    np.testing.assert_allclose(result.error, old, rtol=1e-4, atol=1e-6)


def test_regularizer_is_that_of_version_0_1():
    result = measured(regularizer)
    out = {
        "planted": result.planted_error,
        "strengths": result.strengths,
        "verdicts": texts(result.verdicts),
        "checkers": regularizer.CHECKERS,
    }
    hold("experiments.gradient_check.regulariser", out, left_out=("error", "leaf_error", "tiers"))
    old = recorded()["experiments.gradient_check.regulariser"]
    np.testing.assert_allclose(result.error, old["error"], rtol=1e-4, atol=1e-9)
    for name, error in result.leaf_error.items():
        np.testing.assert_allclose(error, old[f"leaf_error/{name}"], rtol=1e-4, atol=1e-9)


def test_dropout_is_that_of_version_0_1():
    result = measured(dropout)
    old = recorded()["experiments.gradient_check.dropout"]
    for i, case in enumerate(result):
        assert str(case.verdict) == old[f"{i}/verdict"]
        np.testing.assert_allclose(case.autodiff, old[f"{i}/autodiff"], rtol=1e-9, atol=1e-12)
        # A difference of two numbers of size 1, divided by a step of 1e-4.
        np.testing.assert_allclose(case.numeric, old[f"{i}/numeric"], rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(case.error, old[f"{i}/error"], rtol=1e-2)


def test_training_is_that_of_version_0_1():
    result = measured(training)
    out = {"at": result.steps, "verdicts": texts(result.verdicts)}
    hold("experiments.gradient_check.training", out, left_out=("error",))
    old = recorded()["experiments.gradient_check.training"]
    for name, error in result.error.items():
        np.testing.assert_allclose(error, old[f"error/{name}"], rtol=1e-4, atol=1e-9)


# The command line


def test_command_draws_the_chosen_parts_alone(tmp_path, monkeypatch, capsys):
    small = ["--width", "4", "--examples", "3", "--output", "here/check"]
    monkeypatch.setattr(sys, "argv", ["gradient_check", "--parts", "dropout", *small])
    monkeypatch.chdir(tmp_path)
    # runpy warns of a module that is there already.
    monkeypatch.delitem(sys.modules, "experiments.gradient_check.__main__")
    runpy.run_module("experiments.gradient_check", run_name="__main__", alter_sys=True)
    out, err = capsys.readouterr()
    assert err == ""
    assert "What if dropout is left on?" in out
    assert "Which step?" not in out
    written = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert written == ["check.json", "check_dropout.png"]
    picture = matplotlib.image.imread(tmp_path / "here" / "check_dropout.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50


def test_every_part_has_a_place():
    assert tuple(command_line.PARTS) == Options().parts


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run the command in this process, and return its exit message."""
    monkeypatch.chdir(tmp_path)

    def function(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradient_check", *arguments])
        with pytest.raises(SystemExit) as stop:
            kit_options.command(Options, command_line.run)
        return stop.value.code

    return function


def test_a_bad_option_ends_in_one_line(call):
    message = call("--parts", "guess")
    assert len(message.splitlines()) == 1
    assert message.startswith("error: ")
    assert "parts" in message


def test_help_reads_well(call, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert call("--help") == 0
    text = capsys.readouterr().out
    for words in ("--parts", "--kink-examples", "numbers of digits in the loss", "learning rate"):
        assert words in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": Path("/proc/nowhere/check")}, "output must be in a folder that can be written"),
        ({"parts": ()}, "parts must have at least 1 value"),
        ({"parts": ("steps", "steps")}, "parts must have no value twice"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"examples": 0}, "examples must be at least 1"),
        ({"examples": 1798}, "examples must be at least 1 and at most 1797, got 1798"),
        ({"batch_size": 1798}, "batch_size must be at least 1 and at most 1797"),
        ({"kink_examples": (2, 1798)}, "kink_examples must have values at least 1 and at most"),
        ({"kink_examples": ()}, "kink_examples must have at least 1 value"),
        ({"kink_examples": (0,)}, "kink_examples must have values at least 1"),
        ({"networks": 0}, "networks must be"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"smallest_step": 0.1}, "smallest_step must be at least 1e-30 and at most 1e-06"),
        ({"smallest_step": 0.0}, "smallest_step must be"),
        ({"steps_per_decade": 0}, "steps_per_decade must be"),
        ({"planted_error": -0.1}, "planted_error must be"),
        ({"planted_error": float("nan")}, "planted_error must be"),
        ({"largest_strength": float("inf")}, "largest_strength must be"),
        ({"dropout_rate": -0.1}, "dropout_rate must be at least 0 and below 1, got -0.1"),
        ({"dropout_rate": 1.0}, "dropout_rate must be"),
        ({"training_steps": (10, 0)}, "training_steps must have its values in ascending order"),
        ({"training_steps": (-1, 0)}, "training_steps must have values at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_bad_options_are_named(change, message, tmp_path):
    options = dataclasses.replace(SMALL, **{"output": tmp_path / "check", **change})
    with pytest.raises(ValueError, match=message):
        kit_options.check(options)
