"""Checks at run time that arrays have the shapes and types that the signatures promise.

`install` adds an import hook. Every function and method of the packages named whose annotations
use jaxtyping is then wrapped as it is defined. When a call has succeeded, its arguments and its
result are held against the annotations by beartype, with one meaning of each axis name per call.
A call that fails is left alone, so that the tests of error messages see the library's errors.
The fields of a NamedTuple that is returned are checked as well, where jaxtyping annotates them.
"""

import ast
import builtins
import contextlib
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
    """Wrap a function that may take or return annotated arrays; return any other unchanged."""
    if not any(map(_may_hold_arrays, function.__annotations__.values())):
        return function
    signature = inspect.signature(function)
    check = _check_call

    def wrapper(*args, **kwargs):
        result = function(*args, **kwargs)
        check(function, signature, args, kwargs, result)
        return result

    # The module's namespace, by which doctest recognises a function of that module.
    wrapper = types.FunctionType(
        wrapper.__code__, function.__globals__, function.__name__, None, wrapper.__closure__
    )
    return functools.update_wrapper(wrapper, function)


def _may_hold_arrays(annotation) -> bool:
    """Decide what can be decided before the module is complete."""
    if isinstance(annotation, str):
        return annotation not in dir(builtins) and annotation != "None"
    return _holds_arrays(annotation)


@functools.cache
def _array_annotations(owner) -> dict[str, object]:
    """The annotations of a function or of a NamedTuple's fields that mention arrays, evaluated."""
    namespace = getattr(owner, "__globals__", None) or vars(sys.modules[owner.__module__])
    annotations = {}
    for name, annotation in getattr(owner, "__annotations__", {}).items():
        if isinstance(annotation, typing.ForwardRef):
            annotation = annotation.__forward_arg__
        if isinstance(annotation, str):
            # A name that is only imported for type checkers is no array's.
            with contextlib.suppress(NameError):
                annotation = eval(annotation, dict(namespace))
        if not isinstance(annotation, str) and _holds_arrays(annotation):
            annotations[name] = annotation
    return annotations


def _holds_arrays(annotation) -> bool:
    if inspect.isclass(annotation):
        if issubclass(annotation, AbstractArray | PyTree):
            return True
        if issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
            return bool(_array_annotations(annotation))
    return any(map(_holds_arrays, typing.get_args(annotation)))


def _check_call(function, signature, args, kwargs, result) -> None:
    annotations = _array_annotations(function)
    if not annotations:
        return
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    with jaxtyped("context"):
        for name, value in signature.bind(*args, **kwargs).arguments.items():
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
        with jaxtyped("context"):
            if hasattr(value, "_fields"):
                for name, annotation in _array_annotations(type(value)).items():
                    _check(getattr(value, name), annotation, f"{type(value).__name__}.{name}")
            for item in value:
                _check_fields(item)


def _described(value) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {value.dtype}{list(value.shape)}"
    return f"{type(value).__name__} {value!r:.200}"
