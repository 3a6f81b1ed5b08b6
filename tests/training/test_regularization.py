"""Penalties, dropout and early stopping, against optax, flax and closed forms."""

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.early_stopping import EarlyStopping

from jaxgrad import check_grads, layers
from jaxgrad.training import regularization
from tests.tolerances import within_errors


@pytest.fixture
def params(key):
    block = layers.sequential(layers.layer_norm(), layers.activation("parametric_relu"))
    network = layers.sequential(layers.dense(5, bias=True, b_variance=1.0), block, layers.dense(2))
    return layers.init(network, (3,), key=key)[0]


# Which leaves


def test_weights_alone_are_selected_by_default(params):
    mask = regularization.select(params)
    assert mask[0] == {"kernel": True, "bias": False}
    assert mask[1] == ({"scale": False, "shift": False}, {"slope": False})
    assert mask[2] == {"kernel": True}


def test_stacked_biases_are_no_weights(key):
    network = layers.mlp(4, 5, bias=True, b_variance=1.0)
    params, _ = layers.init(network, (3,), key=key)
    assert regularization.select(params)["hidden"] == {"kernel": True, "bias": False}


@pytest.mark.parametrize("name", ["kernel", "w", "W1", "weight", "weights_2"])
def test_usual_names_of_weights(name):
    result = regularization.select({"a": {name: 0.0, "b1": 0.0, "weighting": 0.0, "bias": 0.0}})
    assert [path for path, taken in result["a"].items() if taken] == [name]


def test_selection_by_path_and_by_predicate(params):
    by_path = regularization.select(params, "^0/")
    assert by_path[0] == {"kernel": True, "bias": True}
    assert not any(jax.tree.leaves(by_path[1:]))
    by_predicate = regularization.select(params, lambda path, leaf: leaf.ndim == 2)
    assert by_predicate == regularization.select(params)


# Penalties


def test_penalties_are_the_course_formulas(params):
    kernels = np.concatenate([np.ravel(params[i]["kernel"]) for i in (0, 2)]).astype(np.float64)
    l2 = regularization.l2(params, 0.7, examples=20)
    np.testing.assert_allclose(l2, 0.7 / 40 * np.sum(kernels**2), rtol=1e-6)
    l1 = regularization.l1(params, 0.7, examples=20)
    np.testing.assert_allclose(l1, 0.7 / 40 * np.sum(np.abs(kernels)), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [regularization.l1, regularization.l2])
def test_gradients_of_penalties(params, penalty):
    assert check_grads(penalty, params, 0.7).ok
    slope = jax.grad(lambda p: penalty(p, 0.7))(params)
    assert not np.any(slope[0]["bias"])
    assert np.all(np.isfinite(jax.grad(lambda w: penalty({"w": w}, 1.0))(jnp.zeros(3))))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 20])
def test_l2_under_gradient_descent_is_weight_decay(x64, params, steps):
    """W := (1 - lr lambda / m) W - lr dW, as optax.add_decayed_weights does it."""
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    strength, examples, rate = 3.0, 40, 0.05

    def data(params):
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(params))

    def penalized(params):
        return data(params) + regularization.l2(params, strength, examples=examples)

    def descend(loss, optimizer, params):
        slots = optimizer.init(params)
        for _ in range(steps):
            updates, slots = optimizer.update(jax.grad(loss)(params), slots, params)
            params = optax.apply_updates(params, updates)
        return params

    mask = regularization.select(params)
    decay = optax.chain(optax.add_decayed_weights(strength / examples, mask), optax.sgd(rate))
    with_penalty = descend(penalized, optax.sgd(rate), params)
    chex.assert_trees_all_close(with_penalty, descend(data, decay, params), rtol=1e-13)
    by_hand = params
    for _ in range(steps):
        by_hand = jax.tree.map(
            lambda w, d, taken: (1 - rate * strength / examples * taken) * w - rate * d,
            by_hand,
            jax.grad(data)(by_hand),
            mask,
        )
    chex.assert_trees_all_close(with_penalty, by_hand, rtol=1e-13)
    # Adam divides the penalty's part of the gradient, too, and not the decay.
    adam = descend(penalized, optax.adam(rate), params)
    adamw = descend(data, optax.adamw(rate, weight_decay=strength / examples, mask=mask), params)
    differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), adam, adamw)
    assert max(jax.tree.leaves(differences)) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"strength": -1.0}, ValueError, "strength must be at least 0, got -1"),
        ({"strength": jnp.ones(2)}, ValueError, "strength must be one number"),
        ({"examples": 0}, ValueError, "examples must be greater than 0, got 0"),
        ({"where": "nowhere"}, ValueError, r"where must select .* got none of \['0/bias'"),
    ],
)
@pytest.mark.parametrize("penalty", [regularization.l1, regularization.l2])
def test_penalty_errors(params, penalty, arguments, error, match):
    with pytest.raises(error, match=match):
        penalty(params, **{"strength": 1.0} | arguments)


# Dropout


@pytest.mark.slow
def test_dropout_equals_flax_given_its_mask(key):
    h = 1.0 + jnp.abs(jax.random.normal(key, (200, 30)))
    ours = regularization.dropout(h, 0.2, key=key)
    flax_out = flax.linen.Dropout(0.2, deterministic=False).apply({}, h, rngs={"dropout": key})
    nonzero = {name: np.asarray(out) != 0 for name, out in (("ours", ours), ("flax", flax_out))}
    np.testing.assert_allclose(ours, np.where(nonzero["ours"], h / np.float32(0.8), 0), rtol=1e-6)
    both = nonzero["ours"] & nonzero["flax"]
    np.testing.assert_allclose(ours[both], flax_out[both], rtol=1e-6)
    off = flax.linen.Dropout(0.2, deterministic=True).apply({}, h)
    np.testing.assert_array_equal(regularization.dropout(h, 0.2, key=None), off)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_dropout_keeps_the_expectation(key, rate):
    h = jnp.asarray([1.0, -2.0, 5.0])
    keys = jax.random.split(key, 20_000)
    out = jax.vmap(lambda k: regularization.dropout(h, rate, key=k))(keys)
    within_errors(out, h)
    within_errors(out == 0, rate)


def test_rate_0_changes_nothing_and_the_rate_is_data(key):
    h = jax.random.normal(key, (50, 4))
    np.testing.assert_array_equal(regularization.dropout(h, 0.0, key=key), h)
    mapped = jax.vmap(lambda rate: regularization.dropout(h, rate, key=key))(
        jnp.asarray([0.7, 0.0])
    )
    np.testing.assert_allclose(mapped[0], regularization.dropout(h, 0.7, key=key), rtol=1e-6)
    np.testing.assert_array_equal(mapped[1], h)


@pytest.mark.parametrize("rate", [1, -0.5, 1.2, float("nan"), "half"])
def test_rate_errors(key, rate):
    with pytest.raises((ValueError, TypeError), match="rate must be"):
        regularization.dropout(jnp.ones(3), rate, key=key)
    with pytest.raises((ValueError, TypeError), match="rate must be"):
        layers.dropout(rate)


# Early stopping


def watched(errors, **options):
    state = regularization.early_stopping(jnp.asarray(-1.0))
    states = []
    for step, error in enumerate(errors):
        state = regularization.watch(state, jnp.asarray(float(step)), error, **options)
        states.append(state)
    return states


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("min_delta", [0.0, 0.05])
def test_stops_when_flax_does(patience, min_delta):
    """Flax counts the evaluations that it waits beyond the first without improvement."""
    errors = np.random.default_rng(patience).uniform(0.2, 1, 12) + np.linspace(0, 0.3, 12)
    reference = EarlyStopping(min_delta=min_delta, patience=patience - 1)
    for state, error in zip(
        watched(errors, patience=patience, min_delta=min_delta), errors, strict=True
    ):
        reference = reference.update(error)
        assert bool(state.stopped) == reference.should_stop
        np.testing.assert_allclose(state.error, reference.best_metric, rtol=1e-6)
        if reference.should_stop:
            break
    assert reference.should_stop


def test_best_parameters_are_kept_and_nothing_changes_after_stopping():
    states = watched([0.5, 0.2, 0.3, 0.4, 0.1], patience=2)
    assert [bool(state.stopped) for state in states] == [False, False, False, True, True]
    last = states[-1]
    assert (float(last.params), float(last.error), int(last.best)) == (1.0, pytest.approx(0.2), 1)
    assert int(last.evaluations) == 4


def test_without_patience_the_best_of_all_is_kept():
    (*_, last) = watched([0.5, 0.2, 0.3, 0.4, 0.1, 0.6])
    assert (float(last.params), int(last.best), bool(last.stopped)) == (4.0, 4, False)


def test_nan_is_never_better():
    (*_, last) = watched([np.nan, 0.4, np.nan, np.nan], patience=3)
    assert (float(last.params), int(last.waited), bool(last.stopped)) == (1.0, 2, False)
    (*_, never) = watched([np.nan, np.inf], patience=2)
    assert (float(never.params), int(never.best), bool(never.stopped)) == (-1.0, -1, True)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"params": {"w": jnp.ones(2)}}, "params must have the structure and shapes"),
        ({"params": jnp.ones(2)}, "params must have the structure and shapes"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"min_delta": -1.0}, "min_delta must be at least 0"),
        ({"error": jnp.ones(2)}, r"error must be one number, got shape \(2,\)"),
    ],
)
def test_early_stopping_errors(arguments, match):
    state = regularization.early_stopping(jnp.zeros(()))
    with pytest.raises(ValueError, match=match):
        regularization.watch(state, **{"params": jnp.zeros(()), "error": 0.5} | arguments)
