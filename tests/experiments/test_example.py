"""The experiment that the documentation of the kit shows runs as it stands."""

import json
import textwrap

import pytest

from experiments import _kit as kit

IMPORTS = """
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
import jax, jax.numpy as jnp, optax
from experiments import _kit as kit
from experiments._kit import Estimate, classifier, figures
from jaxgrad import layers
"""


@pytest.mark.slow
def test_the_example_runs(tmp_path, monkeypatch, capsys):
    paragraphs = kit.__doc__.split("\n\n")
    code = textwrap.dedent("\n\n".join(p for p in paragraphs if p.startswith("    ")))
    (tmp_path / "width.py").write_text(IMPORTS + code)
    monkeypatch.syspath_prepend(tmp_path)
    import width

    width.run(width.Options(seeds=3, width=16, output=tmp_path / "width.png"))
    assert "a wider layer lowers the dev error" in capsys.readouterr().out
    results = json.loads((tmp_path / "width.json").read_text())
    assert results["estimates"]["change"]["mean"] < -0.3
    assert (tmp_path / "width.png").exists()
