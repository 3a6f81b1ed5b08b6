"""Curves and dots with error bars."""

import numpy as np

from experiments._kit import Estimate, figures


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
