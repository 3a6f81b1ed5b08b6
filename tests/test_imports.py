"""Importing is pure, packages import only those below them, and what is public is listed."""

import ast
import functools
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxgrad

ROOT = Path(jaxgrad.__file__).parent
REPOSITORY = ROOT.parent
SHARED = {"_validate", "_numerics", "_jaxprs", "_html"}
MAY_IMPORT = {
    "_validate": set(),
    "_numerics": {"_validate"},
    "_jaxprs": set(),
    "_html": set(),
    "activations": SHARED,
    "regimes": SHARED,
    "checking": SHARED,
    "inspection": SHARED | {"checking", "regimes"},
    "testing": SHARED | {"checking"},
    "_pytest_audit": SHARED | {"inspection"},
    "sweeps": SHARED,
    "theory": SHARED | {"activations"},
    "initializers": SHARED | {"activations", "theory"},
    "layers": SHARED | {"activations", "theory", "initializers"},
    "propagation": SHARED | {"activations", "theory", "initializers", "layers"},
    "training": SHARED | {"activations", "theory", "initializers", "layers", "propagation"},
    # Figures take results, so that anything that returns such a result can be drawn.
    "plotting": SHARED | {"activations", "regimes", "theory"},
}
OPTIONAL = {
    "distributed",
    "xarray",
    "zarr",
    "matplotlib",
    "sklearn",
    "tqdm",
    "tyro",
    "torch",
    "scipy",
}
# It has a subclass of that library, and is itself imported where it is used.
SUBCLASS = "jaxgrad/sweeps/_cluster.py"
SOURCES = sorted(ROOT.rglob("*.py"))
USERS = sorted(
    p for folder in ("experiments", "benchmarks") for p in REPOSITORY.glob(f"{folder}/**/*.py")
)
PUBLIC_MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages([str(ROOT)], "jaxgrad.")
    if not any(part.startswith("_") for part in module.name.split("."))
]

PURITY = """
import jax
before = dict(jax.config.values)
import jaxgrad
after = dict(jax.config.values)
assert before == after, {k: (before[k], after[k]) for k in before if before[k] != after[k]}
# JAX refuses this setting once a backend has started.
jax.config.update("jax_num_cpu_devices", 3)
import sys
loaded = {name for name in sys.modules if "." not in name}
assert not loaded & OPTIONAL, loaded & OPTIONAL
"""


def relative(path):
    return str(path.relative_to(REPOSITORY))


def imports(tree):
    """Full names that are imported anywhere in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def public_names(module):
    """Public functions and classes that a module offers, by name."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    return {name: getattr(module, name) for name in names}


def test_import_changes_no_setting_and_starts_no_backend():
    subprocess.run([sys.executable, "-c", f"OPTIONAL = {OPTIONAL}{PURITY}"], check=True)


@functools.cache
def parsed(path):
    """The tree of a source file, which several tests walk."""
    return ast.parse(path.read_text())


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("matplotlib", "experiments", lambda: jaxgrad.plotting.depth_map(None)),
        ("matplotlib", "experiments", lambda: jaxgrad.plotting.phase_diagram(None, None)),
        ("matplotlib", "experiments", lambda: jaxgrad.plotting.xray(None)),
        ("matplotlib", "experiments", lambda: jaxgrad.plotting.style.theme()),
        ("xarray", "experiments", lambda: jaxgrad.sweeps.open_store("store")),
        ("zarr", "experiments", lambda: jaxgrad.sweeps.open_store("store")),
        ("mpmath", "reference", lambda: jaxgrad.checking.reference(abs, 1.0)),
        ("mpmath", "reference", lambda: jaxgrad.checking.check_domain(abs, 1.0)),
        ("hypothesis", "test", lambda: jaxgrad.testing.arguments(1.0)),
        ("pandas", "experiments", lambda: jaxgrad.check_grads(abs, 1.0).to_pandas()),
        ("xarray", "experiments", lambda: jaxgrad.xray(abs, 1.0).to_xarray()),
        ("tyro", "experiments", lambda: importlib.reload(importlib.import_module("experiments"))),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(
    monkeypatch, package, extra, call
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}; run python -m pip install.*\[{extra}\]"):
        call()


def test_packages_import_only_those_below():
    for path in SOURCES:
        package = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in imports(parsed(path)):
            assert not name.startswith("jax._src"), relative(path)
            top, _, rest = name.partition(".")
            if top == "jaxgrad" and package != "__init__":
                allowed = MAY_IMPORT[package] | {package}
                assert rest.split(".")[0] in allowed, (relative(path), name)


def test_optional_libraries_are_imported_where_they_are_used():
    for path in SOURCES:
        allowed = {"distributed"} if relative(path) == SUBCLASS else set()
        for node in parsed(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = list(imports(node))
                assert not OPTIONAL & ({name.split(".")[0] for name in names} - allowed), path
                assert not any(name.endswith("._cluster") for name in names), path


def test_private_names_stay_within_their_package():
    for path in SOURCES + USERS:
        assert not list(foreign_private_names(path)), relative(path)


def foreign_private_names(path):
    """Private names of other packages that a file uses."""
    parts = path.relative_to(REPOSITORY).parts
    package = f"{parts[0]}.{parts[1].removesuffix('.py')}"
    tree = parsed(path)
    names = [name for name in imports(tree) if name.split(".")[0] in ("jaxgrad", "experiments")]
    # The kit is private to the repository, which ships experiments and benchmarks together.
    shared = {"jaxgrad": [f"jaxgrad.{name}" for name in SHARED]}
    allowed = shared.get(parts[0], ["experiments._kit"])
    for name in names:
        if not name.startswith((package, *allowed)) and "._" in name:
            yield name
    modules = {name.split(".")[-1] for name in names if not name.startswith(package)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if node.value.id in modules and private:
                yield ast.unparse(node)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("__init__.py")), ids=relative)
def test_each_package_lists_what_is_public(path):
    package = ".".join(path.parent.relative_to(REPOSITORY).parts)
    listed = importlib.import_module(package).__all__
    bound = {
        alias.asname or alias.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(listed) == {name for name in bound if not name.startswith("_")}


def test_the_library_lists_all_its_packages():
    modules = {m.name for m in pkgutil.iter_modules([str(ROOT)]) if not m.name.startswith("_")}
    assert modules <= set(jaxgrad.__all__)


@pytest.mark.parametrize("module", PUBLIC_MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_documented(module):
    assert module.__doc__
    for name, value in public_names(module).items():
        if callable(value):
            assert inspect.getdoc(value), name
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    if inspect.isfunction(function) and not method.startswith("_"):
                        assert inspect.getdoc(getattr(value, method)), (name, method)
