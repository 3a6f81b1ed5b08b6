"""Each part of the gradient check finds what it claims, and its figures and tables say so."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from experiments._kit import options as kit_options
from experiments.gradient_check import dropout, kinks, regularizer, steps, training
from experiments.gradient_check.__main__ import PARTS
from experiments.gradient_check.network import Options
from jaxgrad.checking import Verdict

ROOT = Path(__file__).parents[2]
SMALL = Options(
    width=5,
    examples=4,
    networks=3,
    kink_examples=(24,),
    largest_strength=1e6,
    training_steps=(0, 30),
    batch_size=16,
)


def texts(figure):
    artists = [*figure.texts, *(text for ax in figure.axes for text in (ax.title, *ax.texts))]
    return "\n".join(text.get_text() for text in artists) + (figure.get_suptitle() or "")


def words_on_axes(figure):
    return all(ax.get_xlabel() or ax.texts for ax in figure.axes) and figure.axes[0].get_ylabel()


# Part 1


def test_errors_fall_with_the_power_of_the_step_and_rise_with_rounding():
    result = steps.measure(SMALL)
    assert [method.order for method in result.methods] == [1, 2, 2, 4, 2]
    for method, tolerance in zip(result.methods, (0.05, 0.3, 0.05, 0.2, 0.05), strict=True):
        assert method.slope == pytest.approx(method.order, abs=tolerance), method.name
    *rounded, exact = result.methods
    for method in rounded:
        assert method.small_slope == pytest.approx(-1, abs=0.15), method.name
        theory = method.rounding ** (1 / (method.order + 1))
        assert theory / 15 < result.steps[method.best] < 15 * theory, method.name
    assert np.isnan(exact.small_slope)
    assert exact.error.min() < 1e-15
    one_sided, narrow, wide, extrapolated = (method.error.min() for method in rounded)
    assert extrapolated < wide / 5 < one_sided / 50 < narrow / 500
    assert 0 < result.gradient_error <= result.gradient_bar < 1e-7
    assert result.is_inside


def steps_like(gradient_error):
    sizes = 10.0 ** -np.arange(0, 13)
    names = ["one", "two-sided, float32", "two-sided, float64", "four", "complex"]
    methods = [
        steps.method(name, sizes**order + 1e-14 / sizes, order, sizes, np.float64)
        for name, order in zip(names[:-1], (1, 2, 3, 4), strict=True)
    ]
    smooth = steps.method(names[-1], sizes**2 + 1e-16, 2, sizes, np.float64)
    return steps.Steps(sizes, (*methods, smooth), gradient_error, 1e-10)


def test_slopes_and_best_steps_are_read_off_the_curves():
    found = steps_like(1e-11)
    for method, order, best in zip(
        found.methods, (1, 2, 3, 4), (1e-7, 1e-5, 1e-4, 1e-3), strict=False
    ):
        assert method.slope == pytest.approx(order, abs=0.05)
        assert method.small_slope == pytest.approx(-1, abs=0.05)
        assert found.steps[method.best] == pytest.approx(best)
    assert np.isnan(found.methods[-1].small_slope)


@pytest.mark.parametrize(("error", "word"), [(1e-11, "inside"), (1e-9, "OUTSIDE")])
def test_figure_and_table_of_the_steps_say_what_was_measured(error, word):
    found = steps_like(error)
    figure = steps.figure(found)
    assert words_on_axes(figure)
    assert "best at a step of $10^{-5}$ in float32 and $10^{-4}$ in float64" in texts(figure)
    assert f"is {word} of its bar" in texts(figure)
    assert texts(figure).count("best at $") == 4
    report = steps.report(found)
    assert report.claims[-1].test()[0] is (word == "inside")
    table = str(report)
    assert "3.00 (3)" in table
    assert "does not rise" in table


# Part 2


def test_fixed_steps_raise_false_alarms_at_kinks_and_check_grads_does_not():
    result = kinks.measure(SMALL)
    np.testing.assert_array_equal(result.rejected(), False)
    assert {v for row in result.verdicts for v in row} <= {Verdict.AGREE, Verdict.KINK}
    alarmed = result.alarms()
    assert alarmed.shape == result.crossed.shape == (1, 7, 3)
    assert alarmed[0, 0].all()
    # From 1e-3 on curvature is no reason for an alarm, so a kink is.
    assert np.all(result.crossed[:, 1:] | ~alarmed[:, 1:])
    assert np.all(result.crossed[:, :-1] | ~result.crossed[:, 1:])
    assert result.crossed.any()
    assert not result.crossed.all()


def kinks_like(*verdicts):
    error = np.array([[[1e-2, 1e-2, 1e-4, 1e-9], [1e-6, 1e-9, 1e-9, 1e-9]]])
    alarms = {
        "float32": np.array([[True, False, False, False]]),
        "float64": np.array([[True, True, False, False]]),
    }
    return kinks.Kinks((8,), error, error > 1e-3, (verdicts,), alarms)


def test_shares_of_networks_are_counted(monkeypatch):
    found = kinks_like(Verdict.KINK, Verdict.WRONG, Verdict.AGREE, Verdict.UNRESOLVED)
    shares = {name: share.tolist() for name, share in found.tiers().items()}
    assert shares == {
        "right": [[0.25, 0.75]],
        "look again": [[0.0, 0.25]],
        "suspicious": [[0.25, 0.0]],
        "wrong": [[0.5, 0.0]],
    }
    assert found.alarms().mean(axis=2).tolist() == [[0.75, 0.0]]
    assert found.rejected().mean() == 0.25
    monkeypatch.setattr(kinks, "STEPS", kinks.STEPS[:2])
    table = str(kinks.report(found))
    assert "In 2 of 3 false alarms the step crosses a kink" in table
    assert "1 WRONG, 1 UNRESOLVED, 1 KINK, 1 AGREE" in table


@pytest.mark.parametrize(("verdict", "share"), [(Verdict.WRONG, "25%"), (Verdict.AGREE, "0%")])
def test_figure_of_the_kinks_says_what_was_measured(verdict, share):
    figure = kinks.figure(kinks_like(verdict, *[Verdict.AGREE] * 3))
    assert f"75% with a fixed step, 50% with JAX's check_grads, {share} with" in texts(figure)
    assert words_on_axes(figure)


# Part 3


def test_a_strong_regularizer_hides_the_error_from_the_whole_gradient_alone():
    found = regularizer.measure(SMALL)
    assert found.strengths.tolist() == [0, *10.0 ** np.arange(-2, 7)]
    assert found.error[0] > 1e-3
    assert found.error[-1] < 1e-7
    assert found.hidden_from(1e-7) == 1e6
    assert found.named_until(regularizer.TERM) == 1e6
    assert found.named_until("first layer's biases") == 1e6
    weights = found.named_until("first layer's weights")
    assert found.hidden_from(1e-3) <= weights < 1e6
    np.testing.assert_allclose(found.leaf_error[regularizer.TERM], 0.01, rtol=0.02)

    # Without a planted error nothing is named.
    options = dataclasses.replace(SMALL, planted_error=0.0, largest_strength=0.01)
    found = regularizer.measure(options)
    assert found.strengths.tolist() == [0, 0.01]
    assert {v for row in found.verdicts.values() for v in row} == {Verdict.AGREE}
    assert found.error.max() < 1e-7


def regularizer_like(error, *verdicts):
    rows = dict.fromkeys(regularizer.CHECKERS, verdicts)
    leaf_error = dict.fromkeys(rows, np.array([1e-2, 1e-2, 1e-2]))
    strengths = np.array([0.0, 1.0, 1e5])
    return regularizer.Regularizer(0.02, strengths, np.array(error), rows, leaf_error)


def test_figure_and_table_of_the_regularizer_say_what_was_measured():
    found = regularizer_like([1e-2, 1e-4, 1e-8], Verdict.WRONG, Verdict.WRONG, Verdict.AGREE)
    assert found.hidden_from(1e-3) == 1
    assert found.named_until(regularizer.TERM) == 1
    figure = regularizer.figure(found)
    assert figure.axes[1].get_xlabel()
    assert "off by 2% is “right” to the course's rule from strength $10^{5}$ on" in texts(figure)
    assert "names it at 2 of 3" in texts(figure)
    table = str(regularizer.report(found))
    assert "calls it right from strength 100000 on" in table
    assert "names it in the data term alone up to strength 1." in table

    # It must stay below for good.
    found = regularizer_like([1e-8, 1e-8, 1e-2], Verdict.AGREE, Verdict.WRONG, Verdict.WRONG)
    assert np.isnan(found.hidden_from(1e-7))
    assert np.isnan(found.named_until(regularizer.TERM))
    assert "never hidden" in texts(regularizer.figure(found))
    table = str(regularizer.report(found))
    assert "right at no strength" in table
    assert "names it in the data term alone at no strength" in table


# Part 4


def test_a_held_mask_passes_and_fresh_masks_do_not():
    found = dropout.measure(SMALL)
    held, *fresh = found
    assert held.verdict is Verdict.AGREE
    assert held.error < 1e-7
    assert len(fresh) == 2
    for case in fresh:
        assert case.verdict is Verdict.NONDETERMINISTIC
        assert case.error > 0.9
    assert str(dropout.report(found)).count("NONDETERMINISTIC") == 2
    figure = dropout.figure(found)
    assert words_on_axes(figure)
    assert texts(figure).count("check_grads: NONDETERMINISTIC") == 2
    assert texts(figure).count("check_grads: AGREE") == 1


# Part 5


def test_the_wrong_rule_shows_once_weights_have_grown():
    found = training.measure(SMALL)
    assert found.verdicts[training.RIGHT] == (Verdict.AGREE, Verdict.AGREE)
    assert found.verdicts[training.NEAR_ZERO] == (Verdict.AGREE, Verdict.WRONG)
    assert found.error[training.NEAR_ZERO][1] > 1e-3
    assert found.error[training.RIGHT].max() < 1e-6


@pytest.mark.parametrize(
    ("verdicts", "title", "row"),
    [
        (
            (Verdict.AGREE, Verdict.WRONG),
            "passes at first and is called WRONG after 30",
            "after 30",
        ),
        (
            (Verdict.WRONG, Verdict.AGREE),
            "is called WRONG after 0 steps",
            "called wrong after 0 steps",
        ),
        ((Verdict.AGREE, Verdict.AGREE), "wrong rule is never called wrong", "never called wrong"),
    ],
)
def test_figure_and_table_of_the_training_say_what_was_measured(verdicts, title, row):
    names = (training.RIGHT, training.NEAR_ZERO)
    found = training.Training(
        np.array([0, 30]),
        dict.fromkeys(names, np.array([1e-9, 1e-3])),
        {names[0]: (Verdict.AGREE, Verdict.AGREE), names[1]: verdicts},
    )
    figure = training.figure(found)
    assert words_on_axes(figure)
    assert "the right rule is never called wrong" in texts(figure)
    assert title in texts(figure)
    assert row in training.report(found).sections[-1].splitlines()[-1]


# The command line


def command(*options, folder):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "experiments.gradient_check", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_draws_the_chosen_parts_alone(tmp_path):
    small = ("--width", "4", "--examples", "3", "--output", "here/check")
    done = command("--parts", "dropout", *small, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "What if dropout is left on?" in done.stdout
    assert "Which step?" not in done.stdout
    written = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert written == ["check.json", "check_dropout.png"]
    picture = matplotlib.image.imread(tmp_path / "here" / "check_dropout.png")
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50


def test_every_part_has_a_place():
    assert tuple(PARTS) == Options().parts


def test_a_bad_option_ends_in_one_line(tmp_path):
    done = command("--parts", "guess", folder=tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "parts" in lines[0]


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


def test_help_reads_well(tmp_path):
    done = command("--help", folder=tmp_path)
    assert done.returncode == 0
    for words in ("--parts", "--kink-examples", "a panel each", "learning rate"):
        assert words in done.stdout
