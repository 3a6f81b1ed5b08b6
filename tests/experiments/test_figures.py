"""Curves and dots with error bars."""

from pathlib import Path

import numpy as np
import pytest

import experiments
from experiments._kit import Estimate, figures
from tests.experiments.legible import legible


def test_dots_have_a_row_for_each_name_and_a_label_for_each_series():
    _, axes = figures.panels("A figure")
    rows = {
        "plain": {"train": Estimate(0.1, 0.01), "test": Estimate(0.3, 0.05)},
        "dropout": {"test": Estimate(0.2, 0.05)},
    }
    figures.dots(axes[0, 0], rows)
    assert [label.get_text() for label in axes[0, 0].get_yticklabels()] == ["plain", "dropout"]
    containers = {c.get_label(): c for c in axes[0, 0].containers}
    assert set(containers) == {"train", "test"}
    points, _, (bars,) = containers["test"].lines
    np.testing.assert_array_equal(points.get_xdata(), [0.3, 0.2])
    np.testing.assert_allclose(bars.get_segments()[0][:, 0], [0.2, 0.4])
    # The first row is at the top.
    assert axes[0, 0].yaxis_inverted()


def test_curves_are_labelled_and_differ_in_grey():
    _, axes = figures.panels("A figure")
    curves = {name: Estimate(np.arange(3.0), np.ones(3)) for name in ("a", "b")}
    figures.curves(axes[0, 0], [1, 2, 3], curves)
    first, second = axes[0, 0].get_lines()
    assert [line.get_label() for line in (first, second)] == ["a", "b"]
    assert first.get_marker() != second.get_marker()
    assert first.get_linestyle() != second.get_linestyle()


def test_text_on_text_and_faint_text_are_seen():
    def drawn(y=0.5, **options):
        figure, ((ax,),) = figures.panels("A figure", height=3)
        ax.plot([0, 1], [0, 1])
        ax.set(xlabel="time, s", ylabel="length, m")
        ax.text(0.5, 0.5, "first")
        ax.text(0.52, y, "second", **options)
        return figure

    legible(lambda: drawn(y=0.2))
    with pytest.raises(AssertionError, match="'first' lies on 'second'"):
        legible(drawn)
    with pytest.raises(AssertionError, match="second"):
        legible(lambda: drawn(y=0.2, color="0.5"))
    with pytest.raises(AssertionError, match="8.0"):
        legible(lambda: drawn(y=0.2, fontsize=8))


def test_the_figure_of_every_experiment_is_checked():
    folder = Path(__file__).parent
    names = [p.stem for p in Path(experiments.__path__[0]).iterdir() if not p.name.startswith("_")]
    checked = {p.stem for p in folder.glob("test_*.py") if "legible(" in p.read_text()}
    # These two draw nothing.
    names = set(names) - {"course_examples", "gradient_atlas"}
    assert {name for name in names if f"test_{name}" not in checked} == set()
