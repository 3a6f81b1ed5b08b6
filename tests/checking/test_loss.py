"""The course's advice: terms one by one, and again after some training."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxgrad.checking import Verdict, check_along_training, check_grads, check_terms


@jax.custom_vjp
def small_angle_sine(x):
    return jnp.sum(jnp.sin(x))


# Right near zero, wrong for large arguments.
small_angle_sine.defvjp(
    lambda x: (small_angle_sine(x), x), lambda x, ct: (ct * (1 - x**2 / 2 + x**4 / 24),)
)


@pytest.mark.slow
def test_terms_are_checked_one_by_one():
    def terms(w):
        return {"data": 1e-9 * small_angle_sine(w), "regularizer": 1e6 * jnp.sum(w**2)}

    w = jnp.linspace(0.5, 2.0, 5)
    together = check_grads(lambda w: sum(terms(w).values()), w)
    assert together.ok
    by_term = check_terms(terms, w)
    assert list(by_term) == ["['data']", "['regularizer']"]
    assert by_term["['data']"].verdict is Verdict.WRONG
    assert by_term["['regularizer']"].verdict is Verdict.AGREE


def test_an_error_that_shows_after_training():
    def loss(w, x):
        return -small_angle_sine(w * x)

    batches = [(jnp.ones(3),)] * 30
    reports = check_along_training(
        loss, jnp.full(3, 1e-3), batches, optax.sgd(0.05), steps=(29, 0, 2)
    )
    assert [reports[step].verdict for step in (0, 2, 29)] == [
        Verdict.AGREE,
        Verdict.AGREE,
        Verdict.WRONG,
    ]


@pytest.mark.parametrize(
    "optimizer", [optax.adam(1e-2), optax.chain(optax.clip(1.0), optax.sgd(0.1, 0.9))]
)
def test_any_optimizer_and_aux(optimizer):
    def loss(params, x):
        value = jnp.mean((x @ params["w"] - params["b"]) ** 2)
        return value, {"value": value}

    params = {"w": jnp.ones(4), "b": jnp.zeros(())}
    reports = check_along_training(
        loss, params, ((jnp.eye(4),) for _ in range(6)), optimizer, steps=[5], has_aux=True
    )
    assert list(reports) == [5]
    assert reports[5].ok
    first = check_grads(loss, params, jnp.eye(4), has_aux=True)
    assert reports[5].leaves[0].numeric != first.leaves[0].numeric


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: check_along_training(
                jnp.sum, jnp.ones(2), [()] * 3, optax.sgd(1.0), steps=(3,)
            ),
            ValueError,
            "batches must have at least 4 entries to check after 3 steps, got 3",
        ),
        (
            lambda: check_along_training(jnp.sum, jnp.ones(2), [], optax.sgd(1.0)),
            ValueError,
            "got 0",
        ),
        (
            lambda: check_along_training(jnp.sum, jnp.ones(2), [()], optax.sgd(1.0), steps=()),
            ValueError,
            "steps must not be empty",
        ),
        (
            lambda: check_along_training(jnp.sum, jnp.ones(2), [()], optax.sgd(1.0), steps=(-1,)),
            ValueError,
            "steps must be at least 0",
        ),
        (
            lambda: check_along_training(
                lambda w: jnp.sum(w**4), jnp.full(2, 1e3), [()] * 9, optax.sgd(1e3), steps=(8,)
            ),
            ValueError,
            "stay finite, got NaN or infinity at .* after 8 steps; lower the learning rate",
        ),
        (lambda: check_terms(jnp.sin, 1.0, has_aux=True), TypeError, "has_aux must not be given"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
