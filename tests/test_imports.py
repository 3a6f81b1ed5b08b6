"""Importing is pure, and modules import only downwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxgrad

ROOT = Path(jaxgrad.__file__).parent
MAY_IMPORT = {
    "_validate": set(),
    "_numerics": {"_validate"},
    "activations": {"_validate"},
    "theory": {"_numerics", "_validate", "activations", "theory"},
    "initializers": {"_numerics", "_validate", "activations", "initializers", "theory"},
    "layers": {
        *("_validate", "activations", "initializers", "normalization", "regularization"),
        "theory",
    },
    "networks": {"_validate", "activations", "initializers", "layers"},
    "propagation": {"_validate", "activations", "layers", "networks"},
    "jacobians": {"_validate", "layers", "networks", "propagation"},
    "regimes": {"_validate"},
    "sweeps": {"_validate"},
    "normalization": {"_validate"},
    "regularization": {"_validate"},
    "augmentation": {"_validate"},
    "training": {"_validate", "activations", "regularization", "training"},
    "plotting": {"regimes", "plotting", "theory"},
    "checking": {"_validate", "checking"},
    "testing": {"checking"},
}
OPTIONAL = {"xarray", "zarr", "matplotlib", "sklearn", "tqdm", "tyro", "torch", "scipy"}

PURITY = """
import jax
before = dict(jax.config.values)
import jaxgrad
after = dict(jax.config.values)
assert before == after, {k: (before[k], after[k]) for k in before if before[k] != after[k]}
# Refused once a backend has started.
jax.config.update("jax_num_cpu_devices", 3)
import sys
loaded = {name for name in sys.modules if "." not in name}
assert not loaded & OPTIONAL, loaded & OPTIONAL
"""


def imported(path):
    """Modules that a file imports when it is imported, top level only."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_import_changes_no_setting_and_starts_no_backend():
    subprocess.run([sys.executable, "-c", f"OPTIONAL = {OPTIONAL}{PURITY}"], check=True)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_import_only_downwards(path):
    module = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if module == "__init__":
        return
    for name in imported(path):
        top, _, rest = name.partition(".")
        assert top not in OPTIONAL
        assert not name.startswith("jax._src")
        if top == "jaxgrad":
            assert rest.split(".")[0] in MAY_IMPORT[module], name


@pytest.mark.parametrize("folder", ["experiments", "benchmarks"])
def test_experiments_use_public_names_only(folder):
    for path in (ROOT.parent / folder).glob("*.py"):
        for name in imported(path):
            if name.startswith("jaxgrad."):
                assert name.split(".")[1] in jaxgrad.__all__, (path.name, name)


def test_every_public_name_is_documented():
    for name in jaxgrad.__all__:
        module = getattr(jaxgrad, name)
        assert module.__doc__
        if callable(module):
            continue
        for public, value in vars(module).items():
            if callable(value) and getattr(value, "__module__", "").startswith("jaxgrad"):
                assert public.startswith("_") or value.__doc__, (name, public)
