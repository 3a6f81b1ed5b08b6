import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from experiments._kit import command
from experiments.gradient_atlas import __main__ as main
from experiments.gradient_atlas import functions, page, records
from experiments.gradient_atlas.functions import Argument, Entry

SEARCH: Any = {"points": 64, "judged": 60, "operations": 200_000, "seconds": 60}


@jax.custom_jvp
def wrong(x):
    """The sine, with a derivative that is wrong below zero."""
    return jnp.sin(x)


wrong.defjvp(lambda x, t: (jnp.sin(x[0]), jnp.where(x[0] < 0, 2.0, 1.0) * jnp.cos(x[0]) * t[0]))


def several(x):
    """Two outputs of different shapes, of which the second is never differentiated."""
    return jnp.sin(x), jnp.stack([x, jax.lax.stop_gradient(x)])


PLANTED = SimpleNamespace(wrong=wrong, right=jnp.arctan, several=several)
ENTRIES = [
    Entry("planted.wrong", "planted.wrong", (Argument("x"),)),
    Entry("planted.right", "planted.right", (Argument("x"),), aliases=("planted.alias",)),
    Entry("planted.sum", "lambda x, y: jnp.sum(x * y)", (Argument("x", shape=(2,)), Argument("y"))),
    Entry("planted.other", same="planted.right"),
    Entry("planted.skipped", reason="it <prints> | nothing"),
]


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    monkeypatch.setitem(functions.GLOBALS, "planted", PLANTED)
    monkeypatch.setattr(main, "catalog", lambda: ENTRIES)
    monkeypatch.setattr(main, "public", lambda: [(entry.name, None) for entry in ENTRIES])


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return main.Options(output=tmp_path_factory.mktemp("atlas") / "atlas", **SEARCH)


@pytest.fixture
def atlas(options):
    return main.atlas(options)[0]


@pytest.mark.slow
def test_a_planted_wrong_rule_is_reported(atlas):
    rows = [row for row in atlas.rows if row.kind == "WRONG"]
    assert {row.name for row in rows} == {"planted.wrong"} == set(atlas.failing)
    for row in rows:
        assert float(row.arguments) < 0
        truth = math.cos(float(row.arguments))
        assert float(row.derivative) == pytest.approx(truth, rel=1e-4)
        assert float(row.autodiff) == pytest.approx(2 * truth, rel=1e-4)
        assert row.line.startswith("jax.grad(planted.wrong)(jnp.float32(-")
        assert eval(row.line, functions.GLOBALS) == pytest.approx(2 * truth, rel=1e-4)


def test_right_functions_are_clean(atlas):
    assert [name for name, _ in atlas.clean] == ["planted.right", "planted.sum"]
    assert not atlas.unjudged
    assert not atlas.doubtful
    assert atlas.same == [("planted.other", "planted.right"), ("planted.alias", "planted.right")]
    assert "Of 6 public functions 3 were searched, 2 are other names" in atlas.summary


@pytest.mark.slow
def test_a_function_that_does_not_end_has_a_record_and_the_program_goes_on(tmp_path):
    # A loop in XLA, which no signal stops.
    code = """
import sys, jax, jax.numpy as jnp
from experiments.gradient_atlas import records
from experiments.gradient_atlas.functions import Entry
records.PATIENCE = 3
def search(entry, **_):
    if entry.name == "endless":
        loop = jax.lax.while_loop(lambda i: i >= 0, lambda i: (i + 1) % 7, jnp.int32(0))
        jax.block_until_ready(loop)
    return {"error": None}
records.search = search
for name in ("endless", "other"):
    print(records.searched(Entry(name), {"search": {"seconds": 1}}, records.Path(sys.argv[1]))[0])
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "an operation does not end within 3 s" in done.stdout, done.stderr
    assert done.stdout.endswith("{'error': None}\n")


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(options, atlas, tmp_path, monkeypatch):
    again = main.Options(output=tmp_path / "atlas", **SEARCH)
    search, names = records.search, []

    def interrupted(entry, **kwargs):
        names.append(entry.name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return search(entry, **kwargs)

    monkeypatch.setattr(records, "search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main.atlas(again)
    result, damaged = main.atlas(again)
    assert names == ["planted.wrong", "planted.right", "planted.right", "planted.sum"]
    assert result.results == atlas.results
    assert damaged == 0


@pytest.mark.slow
def test_damaged_records_are_computed_again(options, atlas, monkeypatch):
    names, search = [], records.search
    monkeypatch.setattr(records, "search", lambda e, **k: names.append(e.name) or search(e, **k))
    first, second, _ = sorted(options.output.parent.rglob("planted.*.json"))
    # Half a file, and one in which a number was changed.
    first.write_text(first.read_text()[:100])
    text = second.read_text()
    assert '"tried": ' in text
    second.write_text(text.replace('"tried": ', '"tried": 9'))
    result, damaged = main.atlas(options)
    assert damaged == 2
    assert [f"{name}.json" for name in names] == [first.name, second.name]
    assert result.results == atlas.results
    assert main.atlas(options)[1] == 0


def test_records_of_other_versions_and_options_are_not_read(options, atlas, monkeypatch):
    names = []
    monkeypatch.setattr(records, "search", lambda e, **_: names.append(e.name) or CLEAN)
    main.atlas(options)
    assert names == []
    main.atlas(main.Options(output=options.output, **SEARCH | {"points": 65}))
    assert len(names) == 3
    monkeypatch.setattr(records, "version", lambda package: f"{package} of tomorrow")
    main.atlas(options)
    assert len(names) == 6
    # The same function with another domain.
    path = next(options.output.parent.rglob("planted.right.json"))
    body = json.loads(path.read_text())["body"]
    assert records.read(path, body["made_with"])[0] == body["result"]
    assert records.read(path, body["made_with"] | {"arguments": ["x > 0"]}) == (None, False)


CLEAN = {
    "findings": [],
    "tried": 9,
    "judged": 9,
    "states": {"right": 9},
    "notes": [],
    "error": None,
}


def result_of(**changes):
    finding = {
        "kind": "LOST",
        "arguments": [1.0],
        "autodiff": "0.0",
        "derivative": "1",
        "line": "f",
    }
    finding |= {"region": "x < 1", "reproduced": True, "confirmed": True, "cause": "ROUNDING"}
    return CLEAN | {"findings": [finding | changes]}


@pytest.mark.parametrize(
    ("result", "place"),
    [
        (result_of(), "rows"),
        (result_of(confirmed=False), "doubtful"),
        (result_of(confirmed=None), "doubtful"),
        (result_of(reproduced=False), "doubtful"),
        (CLEAN, "clean"),
        (CLEAN | {"states": {"outside": 5, "unknown": 4}}, "unjudged"),
        (CLEAN | {"error": "it fails"}, "unjudged"),
    ],
)
def test_every_result_is_in_one_list(result, place):
    atlas = page.Atlas([ENTRIES[0]], {"planted.wrong": result}, records.identity(SEARCH))
    lists = ("rows", "doubtful", "clean", "unjudged")
    assert [name for name in lists if getattr(atlas, name)] == [place]


def test_a_finding_that_the_reference_denies_is_not_confirmed():
    entry = ENTRIES[1]
    kwargs = {"region": "", "element": "", "points": 1, "dtype": "float32"}
    finding = records.checking.Finding(
        "WRONG",
        (jnp.float32(1.0),),
        autodiff=0.5,
        derivative="0.7",
        code="jax.grad(f)(1.0)",
        **kwargs,
    )
    plain = records.finding_of(entry, entry.function, finding)
    assert plain["line"] == "jax.grad(planted.right)(1.0)"
    assert (plain["reproduced"], plain["confirmed"], plain["cause"]) == (True, False, "RIGHT")


def test_the_line_shows_one_element_of_one_argument():
    entry = ENTRIES[2]
    arguments = (jnp.array([1.0, 2.0]), jnp.float32(3.0))
    code = "jax.grad(f, argnums=(0, 1))(jnp.array([1.0, 2.0]), 3.0)"
    for element, autodiff in (("0, 1", 3.0), ("1", 3.0), ("1", 2.0)):
        finding = records.checking.Finding(
            "LOST", arguments, "", element, autodiff, "0", 1, "float32", code
        )
        plain = records.finding_of(entry, entry.function, finding)
        assert plain["line"].endswith(")[0][1]" if element == "0, 1" else ")[1]")
        assert plain["reproduced"] == (autodiff == 3.0)


@pytest.mark.slow
def test_the_time_of_a_function_is_bounded(monkeypatch):
    def forever(*_, **__):
        while True:
            try:
                sum(range(1000))
            except Exception:  # as a library might do
                continue

    monkeypatch.setattr(records.checking, "check_domain", forever)
    result = records.search(ENTRIES[1], **SEARCH | {"seconds": 1})
    assert result["error"] == "it takes more than 1 s of CPU"


class Page(HTMLParser):
    """The tags with their attributes, and the text of each cell."""

    def __init__(self):
        super().__init__()
        self.tags, self.cells, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data


def test_the_page_is_complete_and_has_no_external_resources(atlas):
    text = page.as_html(atlas)
    parser = Page()
    parser.feed(text)
    assert parser.open == []
    assert not any({"src", "href"} & set(attrs) for _, attrs in parser.tags)
    assert "@import" not in text
    assert "url(" not in text
    assert "$" not in text
    rows = [row for cells in [page.HEADINGS, *atlas.rows] for row in cells]
    assert parser.cells == rows
    assert [tag for tag, _ in parser.tags].count("details") == len(atlas.lists)
    # Text of errors and reasons is no markup.
    assert "it &lt;prints&gt; | nothing" in text


def test_the_markdown_table_has_a_row_for_each_finding(atlas):
    text = page.as_markdown(atlas)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(atlas.rows)
    assert all(row.replace("\\|", "").count("|") == 8 for row in rows)
    assert "- `planted.skipped`: it <prints> | nothing" in text


def test_several_outputs_become_one():
    entry = functions.checked(Entry("planted.several", "planted.several", (Argument("x"),)))
    gradient = jax.grad(records.weighted(entry.function))(0.0)
    assert gradient == 1.0 + 2.0
    entry = functions.checked(functions.parsed("planted.several", "x:unit[2] -> f(x)[0]"))
    assert entry.source == "lambda x: planted.several(x)[0]"
    assert str(entry.arguments[0]) == "x in [0, 1], shape (2,)"


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("jax.numpy.tanh", [()]),
        ("jax.numpy.hypot", [(), ()]),
        ("jax.numpy.sort", [(3,)]),
        ("jax.numpy.linalg.det", [(2, 2)]),
        ("jax.numpy.linalg.tensorsolve", [(2, 2), (2,)]),
        ("jax.scipy.stats.norm.cdf", [(), (), ()]),
        ("jax.scipy.stats.dirichlet.logpdf", [(3,), (3,)]),
    ],
)
def test_arguments_fit_the_function(name, shapes):
    entry = functions.entry_of(name, eval(name))
    assert not entry.reason
    assert [argument.shape for argument in entry.arguments] == shapes


@pytest.mark.slow
def test_every_public_function_is_accounted_for_once():
    namespaces = ("jax.nn", "jax.numpy.linalg", "jax.scipy.special", "optax.losses")
    entries = functions.catalog(namespaces)
    names = [name for entry in entries for name in (entry.name, *entry.aliases)]
    assert sorted(names) == sorted(name for name, _ in functions.public(namespaces))
    assert not [entry.name for entry in entries if entry.reason.startswith(functions.REFUSED)]
    by_name = {entry.name: entry for entry in entries}
    assert by_name["jax.scipy.special.expit"].same == "jax.nn.sigmoid"
    assert by_name["jax.numpy.linalg.matrix_rank"].reason == "no real output, only int32"
    assert by_name["jax.nn.one_hot"].reason.startswith("it makes an array")


@pytest.mark.slow
def test_all_namespaces_are_accounted_for():
    # JAX itself adds dimensions to some arguments.
    with jax.numpy_rank_promotion("allow"):
        entries = functions.catalog()
    assert not [entry.name for entry in entries if entry.reason.startswith(functions.REFUSED)]
    known = {entry.name.rsplit(".", 1)[-1] for entry in entries}
    rows = (*functions.CALLS, *functions.NOT_SEARCHED)
    # Rows of functions that no longer exist are removed.
    assert not [
        row for row in rows if not row.endswith("*") and row.rsplit(".", 1)[-1] not in known
    ]


def test_a_name_that_does_not_exist_is_refused(tmp_path):
    options = main.Options(functions=("planted.wrnog",), output=tmp_path / "atlas")
    with pytest.raises(ValueError, match="functions must be public names .* got 'planted.wrnog'"):
        main.atlas(options)


def test_the_command_writes_the_reports(options, atlas, monkeypatch, capsys):
    arguments = ["gradient_atlas", "--functions", "planted.w*", "--out", str(options.output)]
    for name, value in SEARCH.items():
        arguments += [f"--{name}", str(value)]
    monkeypatch.setattr("sys.argv", arguments)
    command(main.Options, main.run, resumable=True)
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "Of 1 public functions 1 were searched" in out
    assert "5 more public functions were not selected" in " ".join(out.split())
    for end in (".html", ".md", ".json"):
        assert options.output.with_name(f"atlas{end}").is_file()
    content = json.loads(options.output.with_name("atlas.json").read_text())
    assert content["estimates"]["results"]["planted.wrong"]["findings"]
