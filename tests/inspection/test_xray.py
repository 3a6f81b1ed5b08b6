"""Sizes of signals and gradients, against those of networks that are taken apart by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad._jaxprs import equations_of
from jaxgrad.inspection import instrument, xray
from jaxgrad.inspection._sites import plan_sites
from jaxgrad.inspection._taps import run, slots

DEPTH, WIDTH, BATCH = 5, 8, 4


def block(w, x):
    return jnp.tanh(x @ w)


@pytest.fixture
def weights(key):
    return 1.5 * jax.random.normal(key, (DEPTH, WIDTH, WIDTH)) / WIDTH**0.5


@pytest.fixture
def x(key):
    return jax.random.normal(jax.random.fold_in(key, 1), (BATCH, WIDTH))


def unrolled(weights, x):
    for w in weights:
        x = block(w, x)
    return jnp.sum(x**3)


def scanned(weights, x, apply=block):
    x, _ = jax.lax.scan(lambda x, w: (apply(w, x), None), x, weights)
    return jnp.sum(x**3)


def by_hand(weights, x):
    """Logs of the mean squares of each block's product and output, and of their cotangents."""
    products, outputs = [], []
    for w in weights:
        products.append(x @ w)
        x = jnp.tanh(products[-1])
        outputs.append(x)
    backward, ct = [], 3 * outputs[-1] ** 2
    for w, y in zip(weights[::-1], outputs[::-1], strict=True):
        before = ct * (1 - y**2)
        backward.append((before, ct))
        ct = before @ w.T
    return log_sizes(zip(products, outputs, strict=True)), log_sizes(backward[::-1])


def log_sizes(pairs):
    return np.array([[jnp.log(jnp.mean(a**2)) for a in pair] for pair in pairs])


@pytest.mark.parametrize(
    "apply", [block, jax.jit(block), jax.checkpoint(block)], ids=["plain", "jit", "checkpoint"]
)
def test_iterations_of_a_scan_equal_a_network_taken_apart(weights, x, apply):
    trace = xray(functools.partial(scanned, apply=apply), weights, x)
    product, output = trace.sites[:2]
    assert (product.operation, product.parameter) == ("dot_general", "argument")
    assert (output.operation, output.parameter) == ("tanh", "")
    forward, backward = by_hand(weights, x)
    for i, site in enumerate((product, output)):
        np.testing.assert_allclose(
            site.forward.log_mean_square, forward[:, i], rtol=1e-6, atol=1e-6
        )
        np.testing.assert_allclose(
            site.backward.log_mean_square, backward[:, i], rtol=1e-6, atol=1e-6
        )


def test_an_unrolled_network_has_a_site_for_each_block(weights, x):
    trace = xray(unrolled, list(weights), x)
    forward, backward = by_hand(weights, x)
    sites = [site for site in trace.sites if site.operation in ("dot_general", "tanh")]
    assert [site.parameter for site in sites[::2]] == [f"[{i}]" for i in range(DEPTH)]
    for name, expected in (("forward", forward), ("backward", backward)):
        logs = [getattr(site, name).log_mean_square for site in sites]
        np.testing.assert_allclose(np.reshape(logs, (-1, 2)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [unrolled, scanned])
def test_value_and_gradient_stay_what_they_are(weights, x, loss):
    trace = xray(loss, weights, x)
    value, gradient = jax.jit(jax.value_and_grad(loss))(weights, x)
    assert trace.value == value
    np.testing.assert_array_equal(trace.gradient, gradient)


def test_what_is_computed_again_in_the_backward_pass_is_not_stored(weights, x):
    def loss(weights, x):
        return scanned(
            weights, x, jax.checkpoint(block, policy=jax.checkpoint_policies.dots_saveable)
        )

    closed = jax.make_jaxpr(loss)(weights, x)
    plan = plan_sites(closed, ["w", ""])
    tapped = jax.make_jaxpr(lambda *args: run(closed, plan, slots(plan, False), args))(weights, x)
    (remat,) = (e for e in equations_of(tapped) if "policy" in e.params)
    assert remat.params["policy"] is jax.checkpoint_policies.dots_saveable


def test_lines_scopes_and_paths():
    def loss(params, x):
        with jax.named_scope("head"):
            return jnp.sum(x @ params["w"].T.reshape(3, 2))

    (site,) = xray(loss, {"w": jnp.ones((3, 2)), "steps": 3}, jnp.ones((4, 3))).sites
    assert (site.scope, site.parameter) == ("head", "['w']")
    assert "test_xray.py" in site.line
    assert "loss" in site.line


def test_what_jax_compiles_inside_has_the_line_of_the_user():
    def loss(w):
        return jnp.linalg.norm(w) + jax.nn.logsumexp(w)

    sites = {site.operation: site for site in xray(loss, jnp.ones(3)).sites}
    expected = f"{__file__}:{loss.__code__.co_firstlineno + 1} ("
    assert {"sqrt", "exp", "log"} <= set(sites)
    assert all(site.line.startswith(expected) for site in sites.values())


def test_a_factor_is_a_scale_but_in_a_compiled_function_it_is_none(x):
    @jax.jit
    def swish(x):
        return 0.5 * x * (1 + jnp.tanh(0.5 * x))

    def loss(w, x):
        return jnp.sum(swish(x @ w)) + jnp.sum(0.1 * (x @ w))

    sites = xray(loss, jnp.eye(WIDTH), x).sites
    assert [s.fan_in for s in sites if s.operation == "dot_general"] == [WIDTH, 0]


@pytest.mark.slow
def test_a_rule_of_the_user_is_one_site_and_stays(x):
    @jax.custom_vjp
    def doubled(x):
        return jnp.sin(x)

    doubled.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (2 * ct * jnp.cos(x),))
    trace = xray(lambda x: jnp.sum(doubled(x)), x)
    assert [site.operation for site in trace.sites] == ["doubled"]
    np.testing.assert_allclose(trace.gradient, 2 * jnp.cos(x), rtol=1e-6)


def test_scans_in_scans_and_branches(x):
    def inner(c, w):
        c = jax.lax.cond(jnp.sum(w) > 0, lambda c: jnp.tanh(c * w), lambda c: jnp.sin(c), c)
        return c, None

    def loss(weights, x):
        outer = lambda c, ws: (jax.lax.scan(inner, c, ws)[0], None)  # noqa: E731
        return jnp.sum(jax.lax.scan(outer, x, weights)[0])

    signs = jnp.array([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    trace = xray(loss, signs, x)
    sites = {site.operation: site for site in trace.sites}
    # A branch that was not taken has no size.
    taken = np.isfinite(sites["tanh"].forward.log_mean_square)
    np.testing.assert_array_equal(taken, signs > 0)
    np.testing.assert_array_equal(np.isfinite(sites["sin"].forward.log_mean_square), signs < 0)
    np.testing.assert_array_equal(trace.gradient, jax.jit(jax.grad(loss))(signs, x))


def test_what_cannot_be_opened_is_one_site(x):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("rows")
    split = jax.shard_map(jnp.tanh, mesh=mesh, in_specs=rows, out_specs=rows)

    def loss(w, x):
        count, scale = jax.lax.while_loop(
            lambda s: s[0] < 3, lambda s: (s[0] + 1, 2 * s[1]), (0, 1.0)
        )
        solved = jnp.linalg.solve(jnp.eye(WIDTH) + w, split(x @ w).T)
        return jnp.sum(jnp.sin(scale * solved)) + count

    w = 0.1 * jnp.eye(WIDTH)
    trace = xray(loss, w, x)
    sizes = {site.operation: site.forward.log_mean_square for site in trace.sites}
    expected = jnp.log(jnp.mean(jnp.tanh(x @ w) ** 2))
    assert sizes["shard_map"] == pytest.approx(float(expected), rel=1e-5)
    assert "sin" in sizes
    expected = jax.jit(jax.grad(loss))(w, x)
    np.testing.assert_allclose(trace.gradient, expected, rtol=1e-5, atol=1e-6 * jnp.max(expected))


def test_sizes_beyond_the_range_of_squares():
    trace = xray(lambda w, x: jnp.sum(x @ w), 1e25 * jnp.eye(2), jnp.full((1, 2), 1e10))
    product = trace.sites[0]
    assert product.forward.log_mean_square == pytest.approx(2 * np.log(1e35), rel=1e-6)
    assert product.forward.log_largest == pytest.approx(np.log(1e35), rel=1e-6)


@pytest.mark.slow
def test_zeros_and_values_that_are_not_finite():
    def loss(x):
        return jnp.sum(jax.nn.relu(x)) + jnp.sum(jnp.sqrt(x[2:]))

    trace = xray(loss, jnp.array([-1.0, 2.0, 0.0, -3.0]))
    sites = {site.operation: site for site in trace.sites}
    assert sites["relu"].forward.zeros == 0.75
    assert sites["sqrt"].forward.non_finite == 0.5
    # Only finite elements have a size.
    assert sites["sqrt"].forward.log_mean_square == -np.inf
    assert str(trace).startswith("the loss is not finite because of sqrt")


def test_narrow_types_and_wide_ones(x, x64):
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float64):
        trace = xray(lambda w, x: jnp.sum(x @ w), jnp.eye(WIDTH, dtype=dtype), x.astype(dtype))
        expected = np.log(np.mean(np.square(np.asarray(x.astype(dtype), np.float64))))
        assert trace.gradient.dtype == dtype
        assert trace.sites[0].forward.log_mean_square == pytest.approx(expected, abs=1e-3)


def test_a_sum_of_two_parameters():
    def loss(params, tokens):
        return jnp.sum(jnp.tanh(params["embedding"][tokens] + params["position"]))

    params = {"embedding": jnp.ones((5, 3)), "position": jnp.ones((2, 3))}
    trace = xray(loss, params, jnp.array([1, 4]))
    assert [site.operation for site in trace.sites] == ["tanh"]


def test_a_second_call_compiles_nothing(weights, x):
    traces = []

    def loss(weights, x):
        traces.append(1)
        return scanned(weights, x)

    xray(loss, weights, x)
    first = len(traces)
    xray(loss, 2 * weights, x)
    # The program is read again for the names of its operations.
    assert len(traces) - first == 1 < first


def test_an_instrumented_loss_is_compiled_and_mapped(weights, x):
    step = instrument(scanned)
    trace = xray(scanned, weights, x)
    value, gradient, measurement = jax.jit(instrument(scanned, exact=False))(weights, x)
    assert value == trace.value
    np.testing.assert_array_equal(gradient, trace.gradient)
    for name in ("forward", "backward", "details"):
        expected = [getattr(site, name) for site in trace.sites]
        jax.tree.map(np.testing.assert_array_equal, getattr(measurement, name), expected)
    # Within a function that is compiled, the statistics are computed by JAX.
    exact = jax.jit(lambda *args: step(*args)[2].forward)(weights, x)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-6), exact, measurement.forward
    )
    # Several batches, each with its own statistics.
    batches = jnp.stack([x, 2 * x])
    _, _, mapped = jax.jit(jax.vmap(step, (None, 0)))(weights, batches)
    sizes = mapped.forward[0].log_mean_square
    np.testing.assert_allclose(sizes[0], trace.sites[0].forward.log_mean_square, rtol=1e-5)
    assert sizes[1, 0] - sizes[0, 0] == pytest.approx(2 * np.log(2), rel=1e-5)


def test_an_aux_output_and_another_argument(x):
    def loss(x, w):
        return jnp.sum(x @ w), {"x": x}

    trace = xray(loss, x, jnp.eye(WIDTH), argnums=1, has_aux=True)
    assert [site.parameter for site in trace.sites] == ["argument"]
    assert trace.gradient.shape == (WIDTH, WIDTH)


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((3, 1.0), {}, "loss must be a function, got int"),
        ((jnp.sin, 1.0), {"argnums": 1}, "argnums must be below the number of arguments 1, got 1"),
        ((jnp.sin, jnp.ones(2)), {}, r"loss must return a real number, got float32\[2\]"),
        ((jnp.sin, 1), {}, r"args\[0\] must have a floating-point leaf"),
    ],
)
def test_bad_arguments(args, options, message):
    with pytest.raises(TypeError, match=message):
        xray(*args, **options)


@pytest.mark.parametrize("loss", [unrolled, scanned])
def test_growth_per_block_is_that_of_the_weights(x, loss):
    def linear(weights, x):
        if loss is scanned:
            return jnp.sum(jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0])
        for w in weights:
            x = x @ w
        return jnp.sum(x)

    # Orthogonal matrices times 0.5 halve every signal, and every gradient, in each block.
    orthogonal = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (9, WIDTH, WIDTH)))[0]
    weights = 0.5 * orthogonal if loss is scanned else list(0.5 * orthogonal)
    (row,) = xray(linear, weights, x).growth
    assert row.blocks == 9
    assert (row.forward, row.backward) == pytest.approx((0.5, 0.5), rel=1e-5)
    assert max(row.forward_error, row.backward_error) < 1e-6
