"""Tables, printed reports and the file of results."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments._kit import Claim, Estimate, FigureOptions, Report, figures, publish, table
from experiments._kit import report as kit_report
from experiments._kit.report import write_json
from jaxgrad import sweeps

LONG = "a cell of many words that has to be broken into several lines to leave room for others"


def test_table_aligns_columns():
    assert table(("name", "n"), [("a", "1"), ("bcdef", "10")], "A title.").splitlines() == [
        "A title.",
        "name    n",
        "-----  --",
        "a       1",
        "bcdef  10",
    ]


def test_table_formats_numbers_and_marks_lost_ones():
    columns = {"name": "", "n": "d", "error": ".1%"}
    rows = [("a", 1, Estimate(0.5, 0.01)), ("b", 10, Estimate(np.nan, np.nan)), ("c", 2, "none")]
    assert table(columns, rows).splitlines() == [
        "name   n         error",
        "----  --  ------------",
        "a      1  50.0% ± 1.0%",
        "b     10          lost",
        "c      2          none",
    ]


@pytest.mark.parametrize("columns", [2, 4])
def test_wide_tables_are_broken_at_words(columns):
    text = table((LONG, *["wide heading"] * columns), [(LONG, *["70.0% ± 0.6%"] * columns)] * 2)
    assert max(map(len, text.splitlines())) <= 100
    for word in LONG.split():
        assert word in text
    assert text.count("70.0% ± 0.6%") == 2 * columns


def test_headings_are_broken_before_cells():
    rows = [(LONG[:70], "1.5 to 2.5", "x")] * 2
    lines = table(("name", "largest learning rate", "a last heading"), rows).splitlines()
    assert lines[0].split() == ["name", "largest", "a", "last"]
    assert len(lines) == 5
    assert max(map(len, lines)) <= 100


@pytest.fixture
def report():
    claims = [
        Claim("the error falls", Estimate(-0.2, 0.01), "less", form="+.1%"),
        Claim("it is level", Estimate(0.5, 0.4), "equal", 0.0, tolerance=1.0),
    ]
    numbers = {"error": Estimate.of(np.eye(2)), "nested": {"x": np.float32(1.5), 3: [np.nan]}}
    return Report(["First.", table(("a", "b"), [("1", "2")])], claims, numbers)


def test_report_prints_claims_with_verdicts(report):
    lines = str(report).splitlines()
    assert lines[0] == "First."
    assert "Claims, with the p-values of 2 tests corrected together (Holm)." in lines
    assert "HOLDS      the error falls  -20.0% ± 1.0%  <0.0001" in lines
    assert "UNDECIDED  it is level          0.5 ± 0.4     0.21" in lines


def test_results_are_stored_beside_the_figure(report, tmp_path, capsys):
    path = tmp_path / "small.png"

    def draw():
        figure, ((ax,),) = figures.panels("A small figure")
        figures.error_bars(ax, [1, 2], Estimate.of(np.eye(2)))
        return figure

    publish(report, FigureOptions(output=path), draw)
    assert f"Figure: {path}" in capsys.readouterr().out
    results = json.loads((tmp_path / "small.json").read_text())
    assert results["options"] == {
        "output": str(path),
        "theme": "light",
        "verbose": False,
    }
    assert results["versions"]["jax"] == jax.__version__
    assert results["estimates"]["nested"] == {"x": 1.5, "3": ["nan"]}
    assert results["estimates"]["error"]["mean"] == [0.5, 0.5]
    assert [claim["outcome"] for claim in results["claims"]] == ["HOLDS", "UNDECIDED"]
    assert results["claims"][0]["estimate"]["degrees_of_freedom"] == "inf"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.json", "small.png"]


def test_several_figures_share_the_beginning_of_their_paths(report, tmp_path):
    def draw():
        return {name: figures.panels(name)[0] for name in ("a", "b")}

    publish(report, FigureOptions(output=tmp_path / "many"), draw)
    publish(report, FigureOptions(output=tmp_path / "many.svg", theme="both"), draw)
    names = ["a.png", "a.svg", "a_dark.svg", "b.png", "b.svg", "b_dark.svg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "many.json",
        *(f"many_{name}" for name in names),
    ]


def test_equal_figures_are_equal_files_and_themes_differ(tmp_path):
    def draw():
        return figures.panels("A figure")[0]

    files = []
    for theme in ("light", "dark", "light"):
        (path,) = figures.save(draw, tmp_path / "figure.svg", theme)
        files.append(path.read_bytes())
    assert files[0] == files[2] != files[1]
    # Text is drawn as it looks here, with no need of fonts there.
    assert b"<text" not in files[0]


def test_details_are_printed_on_request(report):
    whole = dataclasses.replace(report, details=["In detail.", "x" * 30 + " /" + "y" * 90])
    assert "In detail." not in str(whole)
    assert str(whole).endswith("More tables: --verbose.")
    text = whole.text(verbose=True)
    assert "In detail." in text
    assert max(map(len, text.splitlines())) <= 100


def test_tables_break_words_that_leave_no_room():
    text = table(("name", "value"), [("n" * 90, "v" * 90)])
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("n") == 91
    assert text.count("v") == 91


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}


def test_a_log_gets_a_line_a_minute(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(kit_report.time, "monotonic", lambda: clock[0])
    show = kit_report.progress("networks")
    for seconds, done in ((0, 10), (30, 20), (70, 30), (100, 40), (140, 50)):
        clock[0] = float(seconds)
        show(done, 2000)
    captured = capsys.readouterr()
    assert not captured.out
    # 20 networks in 70 seconds, and 40 in 140: the first 10 were there already.
    assert captured.err.splitlines() == [
        "30 of 2,000 networks, about 115 min left",
        "50 of 2,000 networks, about 114 min left",
    ]


def test_a_sweep_of_an_experiment_shows_a_forecast(capsys):
    assert kit_report.sweep_progress(None) == {}
    seen = []
    options = kit_report.sweep_progress(lambda *now: seen.append(now))
    sweeps.run(
        lambda key, point: {"y": jax.random.normal(key)},
        {"seed": range(3)},
        {"y": sweeps.Variable()},
        key=jax.random.key(0),
        chunk_cells=3,
        **options,
    )
    assert seen == [(0, 3), (3, 3)]
    assert capsys.readouterr().err.startswith("3 cells, 1 chunk, 1 program, 12 bytes of values")
