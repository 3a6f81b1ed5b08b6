"""Bad arguments of public functions end in an error of the library before any work starts."""

import re
import traceback
import types
import warnings

import jax
import pytest

import jaxgrad
from tests import bad_arguments

# Without arguments, or for annotations and for fields of classes.
NOT_FUNCTIONS = {
    "jaxgrad.initializers": {"zeros"},
    "jaxgrad.layers": {"Params", "Shape", "State", "static"},
    "jaxgrad.training.regularization": {"leaf_paths"},
}


def public_functions(module, seen):
    """All functions of a module and of the modules that it makes public."""
    seen.add(module.__name__)
    listed = getattr(module, "__all__", None)
    names = vars(module) if listed is None else listed
    for name in set(names) - NOT_FUNCTIONS.get(module.__name__, set()):
        value = getattr(module, name)
        home = getattr(value, "__module__", None) or getattr(value, "__name__", "")
        # Without a list, what a module imports is not its own.
        if name.startswith("_") or not home.startswith("jaxgrad" if listed else module.__name__):
            continue
        if isinstance(value, types.ModuleType):
            if value.__name__ not in seen:
                yield from public_functions(value, seen)
        elif callable(value) and not isinstance(value, type):
            yield f"{home}.{value.__qualname__}"


# The rows are made when a test asks for them: every process of the suite collects all tests.
NAMES = sorted(
    {*public_functions(jaxgrad, set()), "tests.bad_arguments._initializers.<locals>.draw"}
)


def problem(case, name, value):
    """What is wrong with the answer to a bad value, `None` if nothing."""
    compiled = []

    def listener(event, seconds, **_):
        compiled.append("backend_compile" in event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            case.call(name, value)
        return "returned"
    except (TypeError, ValueError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    if "/jaxgrad/" not in frame.filename.replace("\\", "/"):
        return f"raised in {frame.filename}: {text}"
    names = case.names.get(name, name) if name == "*" else f"{name}|{case.names.get(name, name)}"
    if not re.search(rf"\b({names})\b", text):
        return f"does not name the argument: {text}"
    if not re.search(r"\b(got|but)\b", text) or not ("must" in text or ";" in text):
        return f"does not say what it got and what to do: {text}"
    # Converting an argument to an array of JAX takes up to one program for each of its dtypes.
    return f"compiled {sum(compiled)} programs" if sum(compiled) > 3 else None


@pytest.mark.parametrize("function", NAMES)
def test_bad_arguments_are_named_before_any_work(function):
    case = bad_arguments.cases()[function]
    problems = {}
    for name, values in case.bad.items():
        for value in values:
            reason = problem(case, name, value)
            if reason is not None:
                problems[f"{name}={value!r:.60}"] = reason
    assert not problems


def test_the_table_has_all_public_functions_and_a_thousand_bad_values():
    assert set(bad_arguments.cases()) == set(NAMES)
    rows = [case.bad.values() for case in bad_arguments.cases().values()]
    assert sum(len(values) for row in rows for values in row) > 5000


# A store is needed to open one; the tests of sweeps do.
@pytest.mark.slow
@pytest.mark.parametrize("function", [name for name in NAMES if "open_store" not in name])
def test_good_arguments_pass(function):
    case = bad_arguments.cases()[function]
    case.function(*case.args, **case.good)
