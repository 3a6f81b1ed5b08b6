"""`check_expectation`: is the mean of a gradient over keys the gradient of the mean?"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxgrad.checking import ExpectationVerdict as Verdict
from jaxgrad.checking import check_expectation
from jaxgrad.checking._expectation_report import with_error
from jaxgrad.checking._expectation_verdicts import _holm

VALUES = jnp.array([1.0, -2.0, 0.5])
LOGITS = jnp.array([0.2, -0.5, 0.1])
stop = jax.lax.stop_gradient


@pytest.fixture
def key():
    return jax.random.key(7)


def normal(key, mean, scale):
    return jnp.sum((mean + scale * jax.random.normal(key, mean.shape)) ** 2)


def chosen(key, logits):
    """A value that is chosen with probabilities softmax(logits)."""
    return VALUES[jax.random.categorical(key, logits)]


def gradient_of_chosen(logits):
    p = np.asarray(jax.nn.softmax(logits))
    return p * (VALUES - p @ VALUES)


def by_scores(baseline):
    """The gradient of `chosen` by score functions, with a baseline that may see the sample."""

    def surrogate(key, logits):
        index = jax.random.categorical(key, logits)
        return stop(VALUES[index] - baseline(VALUES[index])) * jax.nn.log_softmax(logits)[index]

    return jax.grad(surrogate, argnums=1)


def one_hot_straight_through(key, logits):
    p = jax.nn.softmax(logits)
    one_hot = jax.nn.one_hot(jax.random.categorical(key, logits), 3)
    return jnp.sum(VALUES * (one_hot + p - stop(p))) ** 2


def gumbel_softmax(key, logits, hard, temperature=0.5):
    noisy = logits + jax.random.gumbel(key, (3,))
    soft = jax.nn.softmax(noisy / temperature)
    one_hot = jax.nn.one_hot(jnp.argmax(noisy), 3)
    return jnp.sum(VALUES * (one_hot + soft - stop(soft) if hard else soft))


def wrong_product(factor):
    @jax.custom_jvp
    def product(x, noise):
        return x * noise

    product.defjvp(lambda x, t: (product(*x), factor * t[0] * x[1] + t[1] * x[0]))
    return lambda key, x: jnp.sum(product(x, 1 + jax.random.normal(key, x.shape)))


def agrees(leaf, exact):
    """Whether both estimates of one element are within 4 standard errors of the exact value."""
    return all(
        abs(value - exact) <= 4 * error + 1e-4 * abs(exact)
        for value, error in (
            (leaf.autodiff, leaf.autodiff_error),
            (leaf.numeric, leaf.numeric_error),
        )
    )


@pytest.mark.slow
def test_a_reparameterized_normal_is_unbiased_and_the_paired_error_is_tiny(key):
    mean, scale = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.5, 0.2])
    report = check_expectation(normal, mean, scale, key=key, argnums=(0, 1))
    assert report
    assert report.verdict is Verdict.UNBIASED == "UNBIASED"
    assert {leaf.path for leaf in report.leaves} == {"[0]", "[1]"}
    for leaf, argument in zip(
        sorted(report.leaves, key=lambda r: r.path), (mean, scale), strict=True
    ):
        # E sum (m + s n)^2 = sum m^2 + s^2.
        assert agrees(leaf, 2 * float(argument[leaf.worst_index]))
        assert 0.001 < leaf.autodiff_error < 0.05
        assert leaf.difference_error < 1e-9
        assert leaf.minimum_detectable < 1e-4 * leaf.gradient_size


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.01, 0.999, -1.0])
def test_a_wrong_factor_is_seen(key, factor):
    report = check_expectation(wrong_product(factor), jnp.array([1.0, 2.0]), key=key)
    (leaf,) = report.leaves
    assert not report.ok
    assert leaf.verdict is Verdict.BIASED
    ratio, error = leaf.autodiff / leaf.numeric, leaf.difference_error / abs(leaf.numeric)
    assert abs(ratio - factor) < 4 * error < 0.2 * abs(factor - 1)


@pytest.mark.slow
def test_a_bias_that_no_element_shows_is_seen_along_a_direction(optimized, key):
    x = jnp.linspace(0.5, 1.5, 2000)
    report = check_expectation(wrong_product(1.01), x, key=key, samples=1024)
    (leaf,) = report.leaves
    assert leaf.verdict is Verdict.BIASED
    assert leaf.worst_index is None
    assert "a direction" in str(report)
    assert (
        check_expectation(wrong_product(1.0), x, key=key, samples=1024).leaves[0].verdict
        is Verdict.UNBIASED
    )


@pytest.mark.parametrize(
    ("f", "args"),
    [
        (lambda k, x: jnp.clip(x + jax.random.normal(k), -1, 1), 0.4),
        (lambda k, x: jax.nn.relu(x + jax.random.normal(k)), 0.1),
        (lambda k, x: jnp.sum(jnp.tanh(x * jax.random.bernoulli(k, 0.7, (4,)) / 0.7)), jnp.ones(4)),
        (lambda k, x: gumbel_softmax(k, x, hard=False), LOGITS),
        (lambda k, x: x + stop(jnp.floor(x + jax.random.uniform(k)) - x), 1.3),
        (lambda k, x: jax.random.normal(k, (2,)) * x + x**2, jnp.array([1.0, 3.0])),
    ],
    ids=["clip", "relu", "dropout", "gumbel-softmax", "stochastic rounding", "array"],
)
@pytest.mark.slow
def test_unbiased(key, f, args):
    report = check_expectation(f, args, key=key)
    assert report.verdict is Verdict.UNBIASED, str(report)


@pytest.mark.slow
def test_a_hard_sample_is_discontinuous_and_its_jumps_are_the_difference(key):
    report = check_expectation(chosen, LOGITS, key=key)
    (leaf,) = report.leaves
    assert leaf.verdict is Verdict.DISCONTINUOUS
    assert not report
    exact = float(gradient_of_chosen(LOGITS)[leaf.worst_index])
    assert leaf.autodiff == 0
    assert abs(leaf.numeric - exact) < 4 * leaf.numeric_error < 0.25 * abs(exact)
    assert leaf.jump_share is not None
    assert 0.02 < leaf.jump_share < 0.5
    assert abs(leaf.jump_contribution - exact) < 4 * leaf.jump_error < 0.25 * abs(exact)


@pytest.mark.slow
def test_a_branch_on_a_draw_is_discontinuous(key):
    def f(key, p):
        return jnp.where(jax.random.uniform(key) < jax.nn.sigmoid(p), 2.0, 5.0) + p

    (leaf,) = check_expectation(f, 0.3, key=key).leaves
    slope = float(jax.nn.sigmoid(0.3) * jax.nn.sigmoid(-0.3))
    assert leaf.verdict is Verdict.DISCONTINUOUS
    assert leaf.autodiff == 1
    assert abs(leaf.numeric - (1 - 3 * slope)) < 4 * leaf.numeric_error < 0.2


@pytest.mark.parametrize(
    ("f", "argument", "samples"),
    [
        (one_hot_straight_through, LOGITS, 32768),
        (lambda k, p: (jax.random.bernoulli(k, stop(p)) + p - stop(p) + 1) ** 3, 0.3, 32768),
        # The mean of the gradient is half of what it should be.
        (lambda k, a: stop(jax.random.gamma(k, a)) * a, 2.0, 4096),
    ],
    ids=["categorical", "bernoulli", "gamma without its gradient"],
)
@pytest.mark.slow
def test_estimators_that_are_biased(key, f, argument, samples):
    report = check_expectation(f, argument, key=key, samples=samples)
    assert report.verdict is Verdict.BIASED, str(report)


@pytest.mark.slow
def test_straight_through_gumbel_softmax_is_biased(key):
    def f(key, logits):
        return gumbel_softmax(key, logits, hard=True, temperature=2.0)

    report = check_expectation(f, LOGITS, key=key, samples=32768)
    assert report.verdict is Verdict.BIASED, str(report)


@pytest.mark.slow
def test_score_functions_are_unbiased_and_a_baseline_that_sees_the_sample_is_not(key):
    few = check_expectation(chosen, LOGITS, key=key, grad=by_scores(lambda v: 0.0), samples=1024)
    assert few.verdict is Verdict.UNRESOLVED
    assert few.ok
    assert "would need samples=" in few.leaves[0].reason
    report = check_expectation(
        chosen, LOGITS, key=key, grad=by_scores(lambda v: 0.3), samples=65536
    )
    assert report.verdict is Verdict.UNBIASED, str(report)
    leaf = report.leaves[0]
    assert agrees(leaf, float(gradient_of_chosen(LOGITS)[leaf.worst_index]))
    wrong = check_expectation(chosen, LOGITS, key=key, grad=by_scores(lambda v: 0.5 * v**2))
    assert wrong.verdict is Verdict.BIASED


def trigamma(a):
    return float(scipy.special.polygamma(1, a))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("f", "args", "exact"),
    [
        (lambda k, a: jnp.log(jax.random.gamma(k, a)), (2.5,), (trigamma(2.5),)),
        (lambda k, a: jax.random.gamma(k, a), (0.4,), (1.0,)),
        # E x_0 = a_0 / sum(a)
        (lambda k, a: jax.random.dirichlet(k, a)[0], (jnp.array([1.0, 2.0, 3.0]),), (None,)),
        (lambda k, s: jnp.tanh(jax.random.t(k, s) ** 2), (5.0,), (None,)),
    ],
    ids=["log gamma", "gamma", "dirichlet", "t"],
)
def test_implicit_gradients_of_rejection_samplers(key, f, args, exact):
    samples = 65536 if len(args) == 1 and jnp.ndim(args[0]) == 0 and exact[0] else 4096
    options = {"argnums": tuple(range(len(args))), "samples": samples, "resolution": 0.25}
    report = check_expectation(f, *args, key=key, **options)
    assert report.verdict in (Verdict.UNBIASED, Verdict.UNRESOLVED), str(report)
    for leaf in report.leaves:
        value = exact[int(leaf.path[1:-1])]
        if value is not None:
            assert agrees(leaf, value)


@pytest.mark.slow
def test_rare_jumps_are_not_taken_for_a_bias(key):
    # The sampler rejects one draw of fifty; its jumps carry a part of the gradient.
    report = check_expectation(lambda k, a: jnp.log(jax.random.gamma(k, a)), 2.5, key=key)
    assert report.verdict in (Verdict.UNBIASED, Verdict.UNRESOLVED), str(report)
    assert agrees(report.leaves[0], trigamma(2.5))
    assert report.leaves[0].numeric_error < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_heavy_tails_are_unresolved(seed):
    def noise(key):
        return jnp.exp(3 * jax.random.normal(key))

    report = check_expectation(
        lambda k, x: noise(k) * x,
        1.0,
        key=jax.random.key(seed),
        grad=lambda k, x: noise(jax.random.fold_in(k, 1)),
    )
    assert report.verdict is Verdict.UNRESOLVED
    assert report.ok
    assert "of the variance" in str(report)
    assert report.leaves[0].largest_share > 0.05


@pytest.mark.slow
def test_gradients_that_are_not_finite_for_some_keys(key):
    def f(key, x):
        return jnp.where(jax.random.uniform(key) > 0.01, x, 0 * jnp.sqrt(x - x) + x)

    report = check_expectation(f, jnp.float32(1.0), key=key)
    assert report.verdict is Verdict.NONFINITE
    assert not report
    log = check_expectation(lambda k, x: jnp.log(x * jax.random.normal(k)), 1.0, key=key)
    assert log.verdict is Verdict.UNRESOLVED
    assert "f is not finite" in str(log)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.3, 0.4, 0.97])
def test_steps_beyond_the_domain_of_a_probability_are_no_bias(key, p):
    # The mean is p within [0, 1], and constant outside.
    report = check_expectation(
        lambda k, p: 1.0 * (jax.random.uniform(k) < p), p, key=key, grad=lambda k, p: 1 + 0 * p
    )
    (leaf,) = report.leaves
    assert report.ok, str(report)
    if 0.1 < p < 0.9:
        assert abs(leaf.numeric - 1) < 4 * leaf.numeric_error + leaf.step_bias < 0.3


@pytest.mark.slow
def test_small_and_large_parameters(key):
    def f(key, x):
        return jnp.sin(x / 1e-3 + jax.random.normal(key)), jnp.sqrt(x) * jax.random.normal(key)

    assert check_expectation(f, 2e-4, key=key).verdict is Verdict.UNBIASED
    report = check_expectation(lambda k, x: jnp.sin(x + jax.random.normal(k)), 1000.3, key=key)
    assert report.verdict is Verdict.UNBIASED
    assert agrees(report.leaves[0], math.cos(1000.3) * math.exp(-0.5))


@pytest.mark.slow
def test_leaves_are_judged_together_and_the_worst_is_first(key):
    def f(key, params, x, name):
        noise = jax.random.normal(key, (3,))
        return jnp.sum(wrong_product(1.02)(key, params["wrong"])) + jnp.sum(
            (params["right"] + noise + 1j * params["complex"]).real ** 2 * x
        )

    params = {
        "complex": jnp.array([1 + 2j, 3j, 0.5]),
        "count": 3,
        "right": jnp.ones(3),
        "wrong": jnp.array([1.0, 2.0]),
    }
    report = check_expectation(
        lambda key, *args, **kwargs: (f(key, *args, **kwargs), "aux"),
        params,
        2.0,
        key=key,
        has_aux=True,
        kwargs={"name": "a"},
    )
    assert report.leaves[0].path == "['wrong']"
    assert [str(leaf.verdict) for leaf in report.leaves] == ["BIASED", "UNBIASED", "UNBIASED"]
    assert report.left_out == (("['count']", "int"),)
    lines, worst = str(report).splitlines(), report.leaves[0].worst_index or ()
    assert lines[0] == "BIASED: the mean gradient is not the gradient of the mean (1 of 3 leaves)"
    assert lines[3].split()[:3] == ["['wrong']", "BIASED", str(list(worst))]
    assert "times the gradient of the mean" in str(report)


@pytest.mark.slow
def test_the_report_as_data(key):
    report = check_expectation(chosen, LOGITS, key=key, samples=1024)
    data = json.loads(report.to_json())
    assert data["verdict"] == str(report.verdict)
    assert data["ok"] is report.ok
    assert data["leaves"][0]["verdict"] == str(report.leaves[0].verdict)
    assert data["samples"] == report.samples >= 1024
    assert report == check_expectation(chosen, LOGITS, key=key, samples=1024)
    assert report != check_expectation(chosen, LOGITS, key=jax.random.key(8), samples=1024)


@pytest.mark.slow
def test_strict_fails_where_nothing_can_be_seen(key):
    options = {"key": key, "grad": by_scores(lambda v: 0.0), "samples": 512}
    assert check_expectation(chosen, LOGITS, **options).ok
    assert not check_expectation(chosen, LOGITS, strict=True, **options).ok


@pytest.mark.slow
def test_legacy_keys_and_float32_functions(key):
    legacy = jax.random.PRNGKey(3)
    assert check_expectation(lambda k, x: x * jax.random.normal(k) + x**2, 1.0, key=legacy).ok

    def narrow(key, x):
        return jnp.sum(jnp.float32(x) ** 2 * jax.random.uniform(key, dtype=jnp.float32))

    report = check_expectation(narrow, jnp.float32(0.7), key=key)
    assert report.verdict is Verdict.UNBIASED
    wrong = check_expectation(
        narrow, jnp.float32(0.7), key=key, grad=lambda k, x: 1.02 * jax.grad(narrow, 1)(k, x)
    )
    assert wrong.verdict is Verdict.BIASED


@pytest.mark.slow
def test_grad_for_several_arguments_in_any_order(key):
    def f(key, x, y):
        return jnp.sum(x["a"]) * y + jax.random.normal(key) * y

    def estimate(key, x, y):
        return jax.grad(f, (2, 1))(key, x, y)

    args = {"a": jnp.ones(2)}, jnp.array(3.0)
    report = check_expectation(f, *args, key=key, argnums=(1, 0), grad=estimate)
    assert report.verdict is Verdict.UNBIASED
    assert {leaf.path for leaf in report.leaves} == {"[0]", "[1]['a']"}
    assert check_expectation(f, *args, key=key, argnums=-1).leaves[0].path == ""


def test_errors_name_the_argument(key):
    def f(k, x):
        return x * jax.random.normal(k)

    rng = np.random.default_rng(0)
    bad = [
        (TypeError, "f must be a function", (None, 1.0), {}),
        (TypeError, "key must be one PRNG key", (f, 1.0), {"key": 0}),
        (ValueError, "samples must be at least 512", (f, 1.0), {"samples": 10}),
        (ValueError, "alpha must be at most 0.5", (f, 1.0), {"alpha": 0.9}),
        (ValueError, "resolution must be greater", (f, 1.0), {"resolution": 0.0}),
        (TypeError, "grad must be a function", (f, 1.0), {"grad": 1.0}),
        (TypeError, "argnums=0 must choose", (f, 1), {}),
        (TypeError, "grad must return a pytree like", (f, 1.0), {"grad": lambda k, x: (x, x)}),
        (TypeError, "shapes of the arguments", (f, 1.0), {"grad": lambda k, x: jnp.ones(2)}),
        (TypeError, "f must return one real number if grad", (lambda k, x: jnp.ones(2) * x, 1.0),
         {"grad": f}),
        (ValueError, "pure function", (lambda k, x: x * rng.normal(), 1.0), {}),
        (ValueError, "f raised ZeroDivisionError", (lambda k, x: x * (1 / 0), 1.0), {}),
        (ValueError, "grad failed: ZeroDivisionError", (f, 1.0), {"grad": lambda k, x: 1 / 0}),
        (ValueError, "pass an estimator as grad",
         (lambda k, x: jax.lax.while_loop(lambda v: v < 3, lambda v: v + 1, x), 1.0), {}),
    ]  # fmt: skip
    for kind, message, args, options in bad:
        with pytest.raises(kind, match=message):
            check_expectation(*args, **{"key": key, **options})
    with pytest.raises(TypeError, match="args must be known"):
        jax.jit(lambda x: check_expectation(f, x, key=key).ok)(1.0)


@pytest.mark.slow
def test_a_second_call_with_another_key_and_point_compiles_nothing(key):
    traced = []

    def f(key, logits):
        traced.append(logits)
        return chosen(key, logits)

    check_expectation(f, LOGITS, key=key, samples=512)
    first = len(traced)
    check_expectation(f, LOGITS + 0.1, key=jax.random.key(1), samples=512)
    # Each check traces the function anew to see whether it has changed, but compiles nothing.
    assert len(traced) - first < first


def test_numbers_are_printed_to_the_second_digit_of_their_error():
    assert with_error(1.23456, 0.0123) == "1.235 ± 0.012"
    assert with_error(0.0, 0.0) == "0 ± 0"
    assert with_error(5.0, math.inf) == "5 ± inf"


def test_holm():
    assert _holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert _holm([0.6, 0.9]) == [1.0, 1.0]


def rates(f, argument, grad, seeds, samples=2048):
    """Verdicts for many keys; `grad` is compiled once."""
    reports = [
        check_expectation(f, argument, key=jax.random.key(s), grad=grad, samples=samples)
        for s in seeds
    ]
    return [report.leaves[0] for report in reports]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["score", "bernoulli"])
def test_false_alarms_are_as_rare_as_alpha(case):
    f, argument, grad = {
        "score": (chosen, LOGITS, by_scores(lambda v: 0.0)),
        "bernoulli": (
            lambda k, p: 1.0 * (jax.random.uniform(k) < p),
            0.4,
            lambda k, p: 1.0 + 0 * p,
        ),
    }[case]
    leaves = rates(f, argument, grad, range(100), 1024)
    alarms = sum(leaf.verdict in (Verdict.BIASED, Verdict.DISCONTINUOUS) for leaf in leaves)
    # With a rate of 0.01 more than 5 of 100 have a probability below 6e-4.
    assert alarms <= 5


@pytest.mark.slow
@pytest.mark.parametrize("size", [2.0, 4.0, 10.0])
def test_the_power_is_that_of_a_normal_test(size):
    def f(key, p):
        return 1.0 * (jax.random.uniform(key) < jax.nn.sigmoid(p))

    slope = float(jax.nn.sigmoid(0.4) * jax.nn.sigmoid(-0.4))
    error = rates(f, 0.4, lambda k, p: slope + 0 * p, range(1))[0].difference_error
    leaves = rates(f, 0.4, lambda k, p: slope + size * error + 0 * p, range(60))
    power = np.mean([leaf.p_value <= 0.01 for leaf in leaves])
    expected = 0.5 * math.erfc((2.576 - size) / math.sqrt(2))
    # The bound on the bias of the step costs half a standard error, about.
    least = 0.5 * math.erfc((2.576 + 0.6 - size) / math.sqrt(2))
    spread = 3 * math.sqrt(expected * (1 - expected) / 60)
    assert least - spread - 0.03 < power < expected + spread + 0.03
    if size == 10.0:
        assert sum(leaf.verdict is Verdict.BIASED for leaf in leaves) >= 45
