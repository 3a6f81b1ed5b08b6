"""All steps of a usual training run together, as one function of a seed."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets

from jaxgrad import layers, training
from jaxgrad.checking import check_terms
from jaxgrad.training import augmentation, normalization, regularization

SIDE, CLASSES = 8, 10


@pytest.fixture(scope="module")
def digits():
    loaded: Any = datasets.load_digits()
    return loaded.data[:300].astype(np.float32), loaded.target[:300]


def network(width, rate):
    block = layers.sequential(
        layers.dense(width, w_variance=2.0),
        layers.batch_norm(1e-5),
        layers.activation("relu"),
        layers.dropout(rate),
    )
    readout = layers.dense(CLASSES, bias=True)
    return layers.sequential(block, layers.repeat(block, 2), readout)


def terms(net, strength, examples):
    """The terms of the loss by name, and the state; images are augmented in training."""

    def loss(params, state, batch, key):
        key_shift, key_noise, key_net = jax.random.split(key, 3)
        images = batch["x"].reshape(-1, SIDE, SIDE, 1)
        images = augmentation.shift(images, 1, key=key_shift)
        images = augmentation.noise(images, 0.1, key=key_noise)
        flat = images.reshape(len(images), -1)
        logits, state = layers.apply(net, params, state, flat, key=key_net)
        data = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        penalty = regularization.l2(params, strength, examples=examples)
        return {"data": jnp.mean(data), "regulariser": penalty}, state

    return loss


def run(seed, x, labels, strength=1.0, rate=0.2, width=32, steps=60):
    key_split, key_init, key_fit = jax.random.split(jax.random.fold_in(jax.random.key(0), seed), 3)
    train, dev, _ = training.splits.split(labels, (0.6, 0.2, 0.2), key=key_split)
    standardizer = normalization.fit(jnp.asarray(x)[train])
    x, targets = normalization.apply(standardizer, x), jnp.asarray(labels, jnp.int32)
    net = network(width, rate)
    params, state = layers.init(net, (SIDE * SIDE,), key=key_init)
    loss = terms(net, strength, len(train))

    def total(params, state, batch, key):
        parts, state = loss(params, state, batch, key)
        return parts["data"] + parts["regulariser"], state

    def evaluate(params, state):
        logits, _ = layers.apply(net, params, state, x[dev])
        return jnp.mean(jnp.argmax(logits, axis=1) != targets[dev]), ()

    data = {"x": x[train], "label": targets[train]}
    options = {"steps": steps, "batch_size": 30, "evaluate": evaluate, "every": 15}
    return training.fit(
        total, params, optax.adam(0.02), data, key=key_fit, state=state, patience=3, **options
    )


@pytest.mark.slow
def test_everything_jits_and_maps_over_seeds(digits):
    x, labels = digits
    traces = []

    @jax.jit
    @jax.vmap
    def every(seed, strength, rate):
        traces.append(1)
        return run(seed, x, labels, strength, rate)

    strengths, rates = jnp.asarray([1.0, 1.0, 10.0]), jnp.asarray([0.2, 0.2, 0.1])
    result = every(jnp.arange(3), strengths, rates)
    assert np.all(result.best.error < 0.35)
    assert np.all(result.error[:, 0] > 0.7)
    assert np.unique(result.loss[:, 0]).size == 3
    other = every(jnp.arange(3, 6), strengths, rates)
    assert len(traces) == 1
    assert not np.any(other.loss[:, 0] == result.loss[:, 0])
    alone = run(1, x, labels, 1.0, 0.2)
    chex.assert_trees_all_close(
        jax.tree.map(lambda a: a[1], result.loss[:, :15]), alone.loss[:15], rtol=1e-5
    )


@pytest.mark.slow
def test_gradients_of_its_terms_are_right(digits):
    """The key is fixed, so that dropout and augmentation draw the same each time."""
    x, labels = digits
    net = network(4, 0.2)
    standardized = normalization.apply(normalization.fit(x), x)
    batch = {"x": standardized[:12], "label": jnp.asarray(labels[:12], jnp.int32)}
    params, state = layers.init(net, (SIDE * SIDE,), key=jax.random.key(1))
    loss = terms(net, 5.0, 180)

    def of_params(params):
        return loss(params, state, batch, jax.random.key(3))[0]

    reports = check_terms(of_params, params)
    assert list(reports) == ["['data']", "['regulariser']"]
    for report in reports.values():
        assert report.ok, report
        assert all(leaf.verdict.name in ("AGREE", "KINK") for leaf in report.leaves), report
