"""The documentation's examples run and print what it shows; its files, links and names exist.

In every Markdown page each `python` block is run by itself. What it prints must equal the block
without a language that follows it directly. A comment on the line before the block changes that:

    <!-- continues -->        run after the block before, with its names
    <!-- slow -->             only in the slow tests
    <!-- not run: reason -->  not run
    <!-- tolerance 1e-3 -->   numbers in the output may differ by this relative error
    <!-- ignore ['w'] -->     lines that begin with `['w']` depend on the machine
"""

import contextlib
import io
import math
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import jax
import jupytext
import pytest

import jaxgrad
from docs import figures, from_tutorials

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
}
README = PAGES["README.md"]
# Pages that speak of names of former versions.
HISTORY = ("CHANGELOG.md", "docs/from_0_1_to_0_2.md")
BLOCK = re.compile(
    r"(?:^<!-- (?P<marks>.*?) -->\n)?"
    r"^```python\n(?P<code>.*?)^```$"
    r"(?:\n+^```\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Example:
    """A `python` block of a page, with the output that is shown below it, if any."""

    page: str
    line: int
    code: str
    output: str | None
    marks: str

    @property
    def tolerance(self) -> float:
        marked = re.search(r"tolerance ([^\s,]+)", self.marks)
        return float(marked[1]) if marked else 0.0

    def compared(self, output: str) -> str:
        """The lines of an output that are compared."""
        ignored = tuple(re.findall(r"ignore ([^\s,]+)", self.marks))
        return "\n".join(
            line for line in output.strip().splitlines() if not line.startswith(ignored)
        )


def examples(pages):
    for page, text in pages.items():
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code"))
            yield Example(page, line, match["code"], match["output"], match["marks"] or "")


def chains(examples):
    """Lists of examples that are run together: each with those that continue it."""
    result = []
    for example in examples:
        if "continues" in example.marks:
            assert result, example
            assert result[-1][0].page == example.page, example
            result[-1].append(example)
        else:
            result.append([example])
    return result


EXAMPLES = list(examples(PAGES))


def same(printed: str, shown: str, tolerance: float = 0.0) -> bool:
    """Whether two outputs are equal, the numbers in them up to a relative tolerance."""
    printed, shown = (re.sub(r" +$", "", text, flags=re.MULTILINE) for text in (printed, shown))
    if not tolerance:
        return printed == shown
    if [re.sub(r"\s+", " ", t) for t in NUMBER.split(printed)] != [
        re.sub(r"\s+", " ", t) for t in NUMBER.split(shown)
    ]:
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=tolerance) for a, b in pairs)


def parameter(chain):
    marks = [pytest.mark.slow] if any("slow" in example.marks for example in chain) else []
    return pytest.param(chain, marks=marks, id=f"{chain[0].page}:{chain[0].line}")


RUN = chains(example for example in EXAMPLES if "not run" not in example.marks)


@pytest.mark.parametrize("chain", [parameter(chain) for chain in RUN])
def test_examples_run_and_print_what_is_shown(chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {"__name__": "example"}
    for example in chain:
        printed = io.StringIO()
        # As at a reader's, whose own functions may promote ranks.
        with jax.numpy_rank_promotion("allow"), contextlib.redirect_stdout(printed):
            exec(compile(example.code, example.page, "exec"), names)
        outputs = map(example.compared, (printed.getvalue(), example.output or ""))
        assert same(*outputs, example.tolerance), (example.line, printed.getvalue())


def test_the_readme_is_short_and_has_examples_with_output():
    assert README.count("\n") <= 150
    shown = [example for example in EXAMPLES if example.page == "README.md" and example.output]
    assert len(shown) >= 3


def test_addresses_of_the_site_in_the_readme_are_pages_of_the_documentation():
    for address in re.findall(re.escape(from_tutorials.SITE) + r"([\w/]*)\)", README):
        path = address.rstrip("/") or "index"
        # The others are pages of files at the top level.
        files = ROOT / "docs" / f"{path}.md", ROOT / f"{path.upper()}.md"
        assert any(file.is_file() for file in files), address


@pytest.mark.parametrize("name", from_tutorials.NAMES)
def test_notebooks_are_those_of_the_tutorials(name):
    """Their code is that of examples which run above."""
    page = PAGES[f"docs/tutorials/{name}.md"]
    text = (ROOT / "docs" / "notebooks" / f"{name}.py").read_text()
    # The formatter decides on blank lines.
    ours, made = (re.sub(r"\n+", "\n", t) for t in (text, from_tutorials.notebook(page)))
    assert ours == made, "run python -m docs.from_tutorials"
    code = [example.code.strip() for example in EXAMPLES if example.page.endswith(f"als/{name}.md")]
    cells = [cell.source for cell in jupytext.reads(text, "py:percent").cells]
    assert [cell for cell in cells if cell in code] == code
    compile(text, name, "exec")


def test_blocks_are_read_with_their_marks_and_output():
    text = (
        "<!-- slow, tolerance 1e-2, ignore b -->\n```python\nprint(1)\n```\n\n```\n1\n```\n"
        "```python\nx = 1\n```\n\nProse.\n\n```\nnot output\n```\n"
    )
    first, second = examples({"page": text})
    assert (first.output, first.tolerance, first.line) == ("1\n", 0.01, 2)
    assert first.compared("a\nb 1\n") == "a"
    assert (second.code, second.output, second.marks) == ("x = 1\n", None, "")
    text = text.replace("```python\nx", "<!-- continues -->\n```python\nx")
    continued = list(examples({"page": text}))
    assert [len(chain) for chain in chains(continued)] == [2]


def test_outputs_are_compared():
    assert same("a 1.0 \nb", "a 1.0\nb")
    assert not same("a 1.0", "a 1.01")
    assert same("a  1.0", "a 1.001", 1e-2)
    assert not same("a 1.0", "a 1.1", 1e-2)
    assert not same("a 1.0", "b 1.0", 1e-2)
    assert not same("1.0", "", 1e-2)


def test_commands_name_modules_that_exist():
    for page, text in PAGES.items():
        if page not in HISTORY:
            for module in re.findall(
                r"python -m ((?:experiments|benchmarks|tests)\.[\w.]*\w)", text
            ):
                path = ROOT / module.replace(".", "/")
                assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    assert "python -m experiments.depth_variance" in README


def test_links_and_pictures_exist():
    drawn = {ROOT / "docs" / path for path in figures.images()}
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path = Path(os.path.normpath((ROOT / page).parent / target.partition("#")[0]))
            if not re.match(r"https?:|mailto:|#", target) and path not in drawn:
                notebook = path.parent.name == "notebooks" and path.with_suffix(".py").exists()
                assert notebook or path.exists(), (page, target)


def test_paths_in_backticks_exist():
    for page, text in PAGES.items():
        if page not in HISTORY:
            for path in re.findall(
                r"`((?:jaxgrad|experiments|tests|benchmarks|docs)/[\w./]*)`", text
            ):
                assert (ROOT / path).exists(), (page, path)


def test_names_in_backticks_exist():
    for page, text in PAGES.items():
        if page not in HISTORY:
            for name in re.findall(r"`jaxgrad\.([A-Za-z][\w.]*\w)(?:\(.*?\))?`", text):
                value = jaxgrad
                for part in name.split("."):
                    assert hasattr(value, part), (page, name)
                    value = getattr(value, part)


def test_ci_runs_the_readme_test_command_to_the_letter():
    command = 'python -m pip install -e ".[test]" && python -m pytest'
    assert command in README
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_constraints_are_versions_alone_and_cover_what_is_asked_for():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9][0-9A-Za-z.]*)", line) for line in lines]
    assert all(pins)
    pinned = {pin[1].lower().replace("_", "-") for pin in pins if pin}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = project["dependencies"] + extras["docs"] + extras["experiments"] + extras["test"]
    names = {re.split(r"[\[><=]", requirement)[0].lower() for requirement in asked}
    assert names - {"jaxgrad"} <= pinned


def test_the_linter_of_the_hooks_is_the_pinned_one():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    version = re.search(r"ruff-pre-commit\n    rev: v(\S+)", hooks)
    assert version
    assert f"ruff=={version[1]}\n" in (ROOT / "constraints.txt").read_text()


def test_the_version_is_the_changelog_s_and_the_citation_s():
    version = re.search(
        r"^## (\d+\.\d+\.\d+), (\d{4}-\d\d-\d\d)$", PAGES["CHANGELOG.md"], re.MULTILINE
    )
    assert version
    assert version[1] == jaxgrad.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {version[1]}\n" in citation
    assert f"date-released: {version[2]}\n" in citation


def test_the_paper_cites_what_its_bibliography_has():
    paper, bibliography = ((ROOT / name).read_text() for name in ("paper.md", "paper.bib"))
    cited = set(re.findall(r"@([a-z]+\d*)", paper))
    entries = set(re.findall(r"^@\w+\{(\w+),$", bibliography, re.MULTILINE))
    assert cited == entries
    for heading in ("Summary", "Statement of need", "State of the field", "References"):
        assert f"\n# {heading}\n" in paper
