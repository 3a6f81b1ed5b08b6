"""Checks at run time that arrays have the shapes and types that the signatures promise.

`install` adds an import hook. Every function and method of the packages named whose annotations
use jaxtyping is then wrapped as it is defined. When a call has succeeded, its arguments and its
result are held against the annotations by beartype, with one meaning of each axis name per call.
A call that fails is left alone, so that the tests of error messages see the library's errors.
The fields of a NamedTuple that is returned are checked as well, where jaxtyping annotates them.
"""

import ast
import functools
import inspect
import sys
import types
import typing
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader

from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import AbstractArray, PyTree, jaxtyped

# An int is accepted where a float is annotated, as type checkers do.
CONFIGURATION = BeartypeConf(is_pep484_tower=True)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class ShapeError(AssertionError):
    """An array does not have the shape or the type of its annotation."""


def install(*packages: str) -> None:
    """Check the functions of these packages. Call it before they are imported."""
    early = set(packages) & set(sys.modules)
    if early:
        raise RuntimeError(f"imported before their shapes could be checked: {sorted(early)}")
    sys.meta_path.insert(0, _Finder(packages))


class _Finder(MetaPathFinder):
    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] not in self.packages:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname):
        # Compiled afresh, because cached bytecode would be used without the hook, too.
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        decorator = ast.parse(f"__import__({__name__!r}, fromlist=['checked']).checked").body[0]
        assert isinstance(decorator, ast.Expr)
        for scope in ast.walk(tree):
            if isinstance(scope, ast.Module | ast.ClassDef):
                for node in scope.body:
                    if isinstance(node, FUNCTIONS):
                        # Innermost, since `jax.jit` and `jax.custom_vjp` return other objects.
                        node.decorator_list.append(decorator.value)
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


def checked(function):
    """Wrap a function whose annotations use jaxtyping; return any other function unchanged."""
    annotations = {n: a for n, a in function.__annotations__.items() if _mentions_arrays(a)}
    if not annotations:
        return function
    signature = inspect.signature(function)
    check = _check_call

    def wrapper(*args, **kwargs):
        result = function(*args, **kwargs)
        check(function, annotations, signature.bind(*args, **kwargs), result)
        return result

    # The module's namespace, by which doctest recognises a function of that module.
    wrapper = types.FunctionType(
        wrapper.__code__, function.__globals__, function.__name__, None, wrapper.__closure__
    )
    return functools.update_wrapper(wrapper, function)


def _mentions_arrays(annotation) -> bool:
    if _is_array_type(annotation):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, tuple):
        return any(map(_mentions_arrays, getattr(annotation, "__annotations__", {}).values()))
    return any(map(_mentions_arrays, typing.get_args(annotation)))


def _is_array_type(annotation) -> bool:
    return inspect.isclass(annotation) and (
        issubclass(annotation, AbstractArray) or issubclass(annotation, PyTree)
    )


def _check_call(function, annotations, bound, result) -> None:
    kinds = {name: p.kind for name, p in bound.signature.parameters.items()}
    with jaxtyped("context"):
        for name, value in bound.arguments.items():
            if name in annotations:
                values = [value]
                if kinds[name] is inspect.Parameter.VAR_POSITIONAL:
                    values = value
                elif kinds[name] is inspect.Parameter.VAR_KEYWORD:
                    values = value.values()
                for item in values:
                    _check(item, annotations[name], f"{function.__qualname__}({name}=...)")
        if "return" in annotations:
            _check(result, annotations["return"], f"the result of {function.__qualname__}")
    _check_fields(result)


def _check(value, annotation, label: str) -> None:
    if not is_bearable(value, annotation, conf=CONFIGURATION):
        raise ShapeError(f"{label} is annotated {annotation}, but is {_described(value)}")


def _check_fields(value) -> None:
    """Check the fields of NamedTuples, which name their axes independently of the function's."""
    if isinstance(value, tuple):
        annotations = getattr(type(value), "__annotations__", {})
        with jaxtyped("context"):
            for name in getattr(value, "_fields", ()):
                if _mentions_arrays(annotations.get(name)):
                    _check(
                        getattr(value, name), annotations[name], f"{type(value).__name__}.{name}"
                    )
        for item in value:
            _check_fields(item)


def _described(value) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {value.dtype}{list(value.shape)}"
    return f"{type(value).__name__} {value!r:.200}"
