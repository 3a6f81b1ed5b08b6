"""The graph of a program: where its operations are, and which results are parameters."""

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxgrad import _jaxprs
from jaxgrad.inspection._graph import applied, graph, plan

LENGTH = 3


def loop(body, start, xs=None):
    return jax.lax.scan(body, start, xs, length=LENGTH)[0]


def nodes_of(f, *args):
    """The nodes of a function whose first argument is the parameter."""
    program = jax.make_jaxpr(f)(*args)
    labels = ["w", *[""] * (len(program.jaxpr.invars) - 1)]
    return program, graph(program, labels)


def one(nodes, name):
    (node,) = [node for node in nodes if node.name == name]
    return node


def everything(w, x):
    def branch(x):
        return jnp.exp(x)

    def body(x, _):
        x = jax.checkpoint(lambda x: jnp.sin(x))(jax.nn.relu(x))
        x = jax.lax.cond(x[0, 0] > 0, branch, jnp.cos, x)
        return loop(lambda x, _: (jnp.tanh(x), None), x), None

    with jax.named_scope("outer"):
        x = loop(body, jax.jit(lambda x: jnp.log(x @ w))(x))
    return jnp.linalg.norm(x)


def line_of(function, text):
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


def equation_with(program, key):
    """The operation that a key leads to, by another way than that of the graph."""
    equation = getattr(program, "jaxpr", program).eqns[key[0]]
    if len(key) == 1:
        return equation
    if equation.primitive.name == "cond":
        return equation_with(equation.params["branches"][key[1]], key[2:])
    (inner,) = _jaxprs.inner_programs(equation)
    return equation_with(inner, key[1:])


def test_each_operation_has_a_key_and_each_key_an_operation():
    program, nodes = nodes_of(everything, jnp.eye(2), jnp.ones((2, 2)))
    operations = {node.key: node for node in nodes if node.equation is not None}
    assert {node.primitive for node in operations.values()} >= {
        *("dot_general", "log", "sin", "exp", "cos", "tanh", "sqrt", "custom_jvp_call")
    }
    for key, node in operations.items():
        assert equation_with(program, key) is node.equation
    # What a plan has for them it returns in the order of computation.
    numbers = {key: i for i, key in enumerate(operations)}
    assert plan(program, numbers).locations() == list(range(len(operations)))


def test_operations_have_lines_scopes_and_loops():
    _, nodes = nodes_of(everything, jnp.eye(2), jnp.ones((2, 2)))
    product, sine, exponential, cosine, tanh, root = (
        one(nodes, name) for name in ("dot_general", "sin", "exp", "cos", "tanh", "sqrt")
    )
    for node, text in ((product, "x @ w"), (sine, "jnp.sin"), (exponential, "jnp.exp")):
        assert node.line.startswith(f"{__file__}:{line_of(everything, text)}:")
        assert node.place.startswith(f"{__file__}:{line_of(everything, text)} (")
    assert product.scope == sine.scope == "outer"
    assert (product.lengths, sine.lengths, tanh.lengths) == ((), (LENGTH,), (LENGTH, LENGTH))
    assert () == product.scan != sine.scan == tanh.scan
    # Bodies of loops, branches and what is computed again are regions, compiled functions are not.
    parts = [product, one(nodes, "relu"), sine, exponential, cosine, tanh]
    assert len({node.region for node in parts}) == len(parts)
    assert product.region == root.region == ()


def test_a_compiled_function_of_jax_has_the_line_of_its_call():
    _, nodes = nodes_of(everything, jnp.eye(2), jnp.ones((2, 2)))
    root = one(nodes, "sqrt")
    assert _jaxprs.user_line(root.equation) == ""
    assert root.line.startswith(f"{__file__}:{line_of(everything, 'norm')}:")
    assert root.function == "norm"
    assert one(nodes, "log").function == ""


def test_the_line_of_a_package_is_the_last_resort():
    program = jax.make_jaxpr(lambda x: optax.l2_loss(x))(1.0)
    assert "optax" in _jaxprs.source_line(program.eqns[-1])
    assert __file__ in _jaxprs.user_line(program.eqns[-1])
    # Compiled on its own, what is inside has no line of the user.
    (call,) = jax.make_jaxpr(jax.jit(optax.l2_loss))(1.0).eqns
    inner = _jaxprs.called_program(call).eqns[-1]
    assert "optax" in _jaxprs.user_line(inner)
    assert _jaxprs.user_line(inner, "model.py:3:4 (f)") == "model.py:3:4 (f)"
    assert "optax" in _jaxprs.user_line(inner, f"{inspect.__file__}:3:4 (f)")


def passed_on(w, x):
    return loop(lambda c, _: ((c[0], c[1] @ c[0]), None), (w, x))[1]


def transposed(w, x):
    return loop(lambda c, _: ((c[0].T, c[1] @ c[0]), None), (w, x))[1]


def replaced(w, x):
    return loop(lambda c, _: ((jnp.ones_like(w), c[1] @ c[0]), None), (w, x))[1]


def swapped(w, x):
    body = lambda c, _: ((c[1], c[0], c[2] @ c[0]), None)  # noqa: E731
    return loop(body, (w, 2 * w, x))[2]


def scanned(w, x):
    return loop(lambda x, w: (x @ w, None), x, w)


def of_two(w, x):
    return x @ (w @ w)


def scaled(w, x):
    return x @ (2 * w.T.reshape(2, 2) / jnp.sum(x))


@pytest.mark.parametrize(
    ("f", "shape", "lengths"),
    [
        (passed_on, (2, 2), ()),
        (transposed, (2, 2), None),
        (replaced, (2, 2), "none"),
        (swapped, (2, 2), None),
        (scanned, (LENGTH, 2, 2), (LENGTH,)),
        (of_two, (2, 2), "none"),
        (scaled, (2, 2), ()),
    ],
)
def test_what_is_computed_from_a_parameter_alone_is_that_parameter(f, shape, lengths):
    _, nodes = nodes_of(f, jnp.ones(shape), jnp.ones((2, 2)))
    product = [node for node in nodes if node.name == "dot_general"][-1]
    parameter = nodes[product.inputs[1]].parameter
    assert (parameter.lengths if parameter else "none") == lengths
    assert applied(product, nodes) == ((1, "w") if parameter else (-1, ""))


def test_a_choice_comes_from_all_branches():
    def choice(w, x):
        return jax.lax.cond(x > 0, lambda: jnp.sin(x), lambda: w)

    _, nodes = nodes_of(choice, 1.0, 2.0)
    result = nodes[-1]
    assert [nodes[i].name for i in result.inputs] == ["", "sin"]
    assert nodes[result.inputs[0]].parameter.path == "w"
    assert result.parameter is None
