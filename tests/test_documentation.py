"""The README's Python blocks run, and its commands are the ones that exist."""

import re
import tomllib
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_examples():
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_examples_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # As at a reader's, whose own functions may promote ranks.
    with jax.numpy_rank_promotion("allow"):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_readme_commands_name_modules_that_exist():
    modules = set(re.findall(r"python -m ((?:experiments|benchmarks)\.\w+)", README))
    assert "experiments.depth_variance" in modules
    for module in modules:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module


def test_readme_pictures_exist():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).is_file(), picture


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
    asked = project["dependencies"] + extras["experiments"] + extras["test"]
    names = {re.split(r"[\[><=]", requirement)[0].lower() for requirement in asked}
    assert names - {"jaxgrad"} <= pinned
