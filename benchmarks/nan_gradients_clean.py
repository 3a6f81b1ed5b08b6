"""Functions with a finite loss and gradient that resemble those which are not.

Many of them have infinite values on the way, or infinite slopes that are masked correctly.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy import special, stats

CLEAN: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
ZEROS = [0.0, 0.0, 0.0]
SCORES = [[1.0, 2.0, -1.0], [0.5, -1.0, 0.3], [0.1, 0.2, 0.3]]


def clean(*args):
    """Register a function with its arguments; numbers and lists become arrays of float32."""

    def register(f):
        arrays = [np.asarray(a, np.float32) if isinstance(a, list | float) else a for a in args]
        CLEAN.append((f, tuple(arrays)))
        return f

    return register


# Masks with infinite numbers.


@clean(SCORES)
def causal_attention(scores):
    mask = jnp.tril(jnp.ones((3, 3), bool))
    return jnp.sum(jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)) ** 2)


@clean(SCORES)
def attention_with_an_additive_mask(scores):
    bias = jnp.log(jnp.tril(jnp.ones((3, 3))))
    return jnp.sum(jax.nn.softmax(scores + bias) ** 2)


@clean(SCORES)
def attention_with_rows_masked_before(scores):
    mask = jnp.array([[True, True, False], [False] * 3, [True] * 3])
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores)
    return jnp.sum(jnp.where(mask.any(-1, keepdims=True), weights, 0) ** 2)


@clean(SCORES)
def log_softmax_of_allowed_actions(logits):
    mask = jnp.array([True, False, True])
    log_p = jax.nn.log_softmax(jnp.where(mask, logits, -jnp.inf))
    return -jnp.sum(jnp.where(mask, log_p, 0))


@clean([1.0, 2.0, 3.0])
def logsumexp_with_impossible_entries(x):
    return jax.nn.logsumexp(x.at[1].set(-jnp.inf))


@clean([1.0, 2.0, 3.0])
def logsumexp_of_a_subset(x):
    return special.logsumexp(x, where=jnp.array([True, False, True]))


@clean([1.0, 2.0, 3.0])
def maximum_with_an_initial_value(x):
    return jnp.max(x, where=jnp.array([True, False, True]), initial=-jnp.inf)


@clean([1.0, 2.0])
def logaddexp_with_log_zero(x):
    return jnp.sum(jnp.logaddexp(x, -jnp.inf))


@clean([[0.1, 0.2], [0.3, 0.4]])
def shortest_path(costs):
    distance = jnp.array([0.0, jnp.inf])

    def relax(distance, _):
        return jnp.minimum(distance, jnp.min(distance[:, None] + costs, axis=0)), None

    return jnp.sum(jax.lax.scan(relax, distance, None, length=3)[0])


@clean([[1.0, 2.0], [0.5, -1.0]])
def viterbi_with_forbidden_transitions(scores):
    transitions = jnp.array([[0.0, -jnp.inf], [0.0, 0.0]])

    def step(state, score):
        return jnp.max(state[:, None] + transitions, axis=0) + score, None

    return jnp.max(jax.lax.scan(step, jnp.zeros(2), scores)[0])


@clean([3.0, 1.0, 2.0])
def largest_two(x):
    best, _ = jax.lax.top_k(x, 2)
    return jnp.sum(jnp.where(x >= best[-1], x, 0.0) ** 2)


@clean([0.5, 2.0])
def clipped_between_infinite_bounds(x):
    return jnp.sum(jnp.clip(x, -jnp.inf, jnp.inf) ** 2)


# Where with safe inputs.


@clean([4.0, 0.0, 9.0])
def double_where_sqrt(x):
    return jnp.sum(jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0))


@clean([4.0, 0.0, 9.0])
def double_where_log(x):
    return jnp.sum(jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), 0.0))


@clean(1.0, [4.0, 0.0, 9.0])
def division_masked_twice(a, x):
    return jnp.sum(jnp.where(x != 0, a / jnp.where(x != 0, x, 1.0), 0.0))


@clean([4.0, 0.0])
def logarithm_in_a_branch(x):
    one = jax.vmap(lambda x: jax.lax.cond(x > 0, jnp.log, lambda x: x, x))
    return jnp.sum(one(x))


@clean(0.0)
def square_root_in_the_other_branch(x):
    return jax.lax.cond(x > 0, jnp.sqrt, lambda x: 2 * x, x)


@clean([0.0, 3.0])
def infinite_slope_behind_a_mask(x):
    return jnp.sum(jnp.sqrt(jnp.where(x > 0, x, 0.0)))


@clean([0.0, 2.0, -1.0])
def elu(x):
    return jnp.sum(jax.nn.elu(100 * x))


@clean([4.0, 9.0], [0.0, 1.0])
def weight_without_a_gradient(x, w):
    return jnp.sum(x * jnp.sqrt(jax.lax.stop_gradient(w)))


@clean([2.0, 1.0], [0.0, 0.0])
def infinite_data_that_is_replaced(x, y):
    return jnp.sum(jnp.nan_to_num(jnp.divide(1, y), posinf=1.0) * x)


# Clips, epsilons and safe norms.


@clean(ZEROS)
def norm_with_an_epsilon(x):
    return jnp.sqrt(jnp.sum(x**2) + 1e-12)


@clean(ZEROS)
def safe_norm(x):
    return optax.safe_norm(x, 1e-6) + jnp.sum(x)


@clean(ZEROS)
def squared_norm(x):
    return jnp.vdot(x, x)


@clean([0.0, 0.5, 1.0])
def clipped_log(p):
    return -jnp.sum(jnp.log(jnp.clip(p, 1e-7, 1)))


@clean([1.0, 1.0, 1.0])
def variance_of_a_constant(x):
    return jnp.var(x)


@clean([1.0, 0.5])
def clipped_arccos(x):
    return jnp.sum(jnp.arccos(jnp.clip(x, -1 + 1e-6, 1 - 1e-6)))


@clean(np.ones((2, 4), np.float32))
def layer_norm_of_a_constant(x):
    return jnp.sum(nn.LayerNorm().init_with_output(jax.random.key(0), x)[0] ** 3)


@clean(eqx.nn.LayerNorm(4), np.ones(4, np.float32))
def equinox_layer_norm_of_a_constant(layer, x):
    return jnp.sum(layer(x) ** 3)


@clean([[0.0, 0.0], [3.0, 4.0]])
def cosine_similarity_with_an_epsilon(x):
    return jnp.sum(optax.cosine_similarity(x + 1e-3, jnp.ones((2, 2)), epsilon=1e-6))


@clean([0.0, 1.0])
def standardized(x):
    return jnp.sum(jax.nn.standardize(jnp.stack([x, x]), axis=-1) ** 3)


@clean([0.0, 2.0])
def adam_with_a_root_epsilon(w):
    optimizer = optax.adam(0.1, eps_root=1e-8)
    updates, _ = optimizer.update(w**3, optimizer.init(w), w)
    return jnp.sum((w + updates) ** 2)


# Stable functions at their limits.


@clean([1000.0, -1000.0, 0.0])
def softplus(x):
    return jnp.sum(jax.nn.softplus(x))


@clean([1000.0, -1000.0, 0.0])
def sigmoid_cross_entropy(x):
    return jnp.sum(optax.sigmoid_binary_cross_entropy(x, jnp.array([1.0, 0, 1])))


@clean([1000.0, -1000.0, 0.0])
def softmax_cross_entropy(x):
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(x[None], jnp.array([1])))


@clean([[0.0, 0.0], [1.0, 2.0]])
def safe_softmax_cross_entropy(x):
    logits = x.at[0, 0].set(-jnp.inf)
    return jnp.sum(optax.safe_softmax_cross_entropy(logits, jnp.array([[0.0, 1], [1, 0]])))


@clean([0.0, 1.0])
def sinc(x):
    return jnp.sum(jnp.sinc(x))


@clean([0.0, 2.0, 3.0])
def product_with_a_zero(x):
    return jnp.prod(x) + jnp.sum(jnp.cumprod(x))


@clean([0.0, 1.0, -2.0])
def activations(x):
    return jnp.sum(jax.nn.relu(x) + jax.nn.gelu(x) + jax.nn.silu(x) + jnp.abs(x))


@clean([0.0, 1.0])
def cube_by_a_power(x):
    return jnp.sum(x**3.0)


@clean([40.0, -40.0])
def log_cdf_in_the_tail(x):
    return jnp.sum(stats.norm.logcdf(x))


@clean(np.diag([1.0, 1.0, 2.0]).astype(np.float32))
def eigenvalues_alone(m):
    return jnp.sum(jnp.linalg.eigvalsh(m) ** 2)


@clean([1.0, 2.0])
def infinite_temperature(x):
    return jnp.sum(x / jnp.inf + x**2)


@jax.custom_jvp
def safe_root(x):
    """The square root, with slope 0 at 0."""
    return jnp.sqrt(x)


@safe_root.defjvp
def _safe_root_rule(primals, tangents):
    (x,), (t,) = primals, tangents
    return safe_root(x), jnp.where(x > 0, 0.5 / jnp.sqrt(x), 0.0) * t


@clean([0.0, 4.0])
def root_with_a_rule(x):
    return jnp.sum(safe_root(x))
