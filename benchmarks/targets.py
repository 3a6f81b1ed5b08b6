"""Published and derived numbers of deep random networks, compared with the library's results.

Run `python -m benchmarks.targets`. A row of theory holds if it agrees to the stated digits, and a
row of simulation if it lies within three standard errors.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import activations, initializers, layers, propagation, theory
from jaxgrad.theory import Moments


class Row(NamedTuple):
    """One number.

    Attributes:
      label: description of the number.
      expected: the published or derived value.
      result: the library's value.
      allowed: the largest difference: half a unit of the last digit, or three standard errors.
      simulated: whether `result` is a mean over random networks.
    """

    label: str
    expected: float
    result: float
    allowed: float
    simulated: bool = False

    @property
    def holds(self) -> bool:
        """Whether the difference is allowed."""
        return bool(abs(self.result - self.expected) <= self.allowed)


def digits(label: str, expected: float, result: Any, places: int) -> Row:
    """A row of theory, with `places` digits after the point."""
    return Row(label, expected, float(result), 0.5000001 * 10.0**-places)


def sampled(label: str, expected: float, sample: Any) -> Row:
    """A row of simulation, from independent samples."""
    sample = np.asarray(sample, np.float64)
    error = sample.std(ddof=1) / math.sqrt(len(sample))
    return Row(label, expected, float(sample.mean()), 3 * error, simulated=True)


def over_seeds(function: Callable[[jax.Array], Any], seeds: int, batch: int = 8) -> np.ndarray:
    """Map `function(key)` over several keys, in one program."""
    keys = jax.random.split(jax.random.key(2026), seeds)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(function, keys, batch_size=batch))(keys))


def critical_lines() -> Iterator[Row]:
    """Rows 1 to 3, 6 to 8: averages and critical points."""
    residual = 0.0
    for name in ("tanh", "hard_tanh", "selu", "gelu", "sigmoid"):
        line = theory.critical_line(name, np.geomspace(1e-3, 1e3, 25))
        w, b, q, _ = (part[np.isfinite(line.q)] for part in line)
        # On the line chi_perp is 1, and q is a fixed point of the length.
        for ratio in (theory.chi_perp(name, q, w), theory.q_map(name, q, w, b) / q):
            residual = max(residual, float(np.max(np.abs(ratio - 1))))
    yield digits("1 critical lines of five activations: residual", 0.0, residual, 11)
    erf = theory.critical_line("erf", 0.7)
    yield digits("2 erf, q = 0.7: w_variance", 1.531023, erf.w_variance, 6)
    yield digits("2 erf, q = 0.7: b_variance", 0.092944, erf.b_variance, 6)
    for b, w in ((0.0, 1.0), (0.01, 1.424205), (0.05, 1.760955)):
        yield digits(f"3 tanh critical, b_variance {b:g}", w, theory.critical("tanh", b)[0], 6)
    yield digits(
        "3 tanh critical, b_variance 0.05: q", 0.570048, theory.critical("tanh", 0.05).q, 6
    )
    q = 0.37
    expected = math.erf(1 / math.sqrt(2 * q))
    yield digits("6 hard tanh, D(0.37)", expected, theory.slope_moment("hard_tanh", q), 12)
    expected = (1 + math.exp(-2 * q)) / 2
    yield digits("7 sin, D(0.37)", expected, theory.slope_moment("sin", q), 12)
    yield digits("7 sin, M(0.37)", 1 - expected, theory.second_moment("sin", q), 12)
    leaky = activations.leaky_relu(0.2)
    yield digits("8 leaky ReLU 0.2, chi at variance 1.7", 0.884, theory.chi_perp(leaky, q, 1.7), 12)
    gain = math.sqrt(float(theory.critical(leaky).w_variance))
    yield digits("8 leaky ReLU 0.2, gain", math.sqrt(2 / 1.04), gain, 12)
    yield digits("8 ReLU (1.5, 0.1): q", 0.4, theory.limit("relu", 1.5, 0.1).q, 12)
    yield digits("8 ReLU (1.5, 0.1): xi", 3.476, theory.correlation("relu", 1.5, 0.1).xi_c, 3)


def phases() -> Iterator[Row]:
    """Rows 4, 5, 10 to 17: fixed points, depth scales, power laws."""
    length = theory.limit("tanh", 1.3, 0.05)
    angle = theory.correlation("tanh", 1.3, 0.05)
    yield digits("4 tanh (1.3, 0.05): q", 0.315316, length.q, 6)
    yield digits("4 tanh (1.3, 0.05): chi", 0.880164, length.chi_perp, 6)
    yield digits("4 tanh (1.3, 0.05): 1 - c", 0.0, angle.gap, 12)
    yield digits("4 tanh (1.3, 0.05): xi_c", 7.834, angle.xi_c, 3)
    yield digits("4 tanh (1.3, 0.05): xi_q", 1.785, length.xi_q, 3)
    for w in (1.3, 2.5):
        network = layers.mlp(1, 190, w_variance=w, b_variance=0.05, bias=True)
        gap = np.asarray(propagation.predict(network, Moments(0.0, gap=0.4)).gap)
        end = theory.correlation("tanh", w, 0.05)
        decay = np.log(np.abs((gap[180] - end.gap) / (gap[160] - end.gap))) / 20
        yield digits(f"5 tanh ({w}, 0.05): -1 / decay over 20 layers", end.xi_c, -1 / decay, 3)
    gaps = np.array([4e-10, 1e-10])
    # The square root of 1 / gap grows by a constant per layer, up to the root of the gap itself.
    rise = theory.c_map("relu", gaps, 1.0, 2.0) ** -0.5 - gaps**-0.5
    limit = (2 * rise[1] - rise[0]) ** -2
    yield digits("10 ReLU critical: l^2 (1 - c_l)", 44.413, limit, 3)
    expected = (math.sqrt(1 - 0.4**2) + (math.pi - math.acos(0.4)) * 0.4) / math.pi
    yield digits("10 ReLU c-map at c = 0.4", expected, 1 - theory.c_map("relu", 0.6, 1.0, 2.0), 12)
    w, b, q, _ = theory.critical("tanh", 0.05)
    # 1 / gap grows by a constant per layer, and so does 1 / q in row 12.
    gap = 1e-6
    limit = 1 / (1 / theory.c_map("tanh", gap, q, w, b) - 1 / gap)
    yield digits("11 tanh critical, b_variance 0.05: l (1 - c_l)", 6.17113, limit, 4)
    q = 1e-6
    yield digits("12 tanh (1, 0): 2 l q_l", 1.0, 2 / (1 / theory.q_map("tanh", q, 1.0) - 1 / q), 5)
    log_ratio = propagation.predict(layers.mlp(1, 2000), Moments(0.0)).log_ratio
    power = (log_ratio[1999] - log_ratio[999]) / math.log(2)
    yield digits("12 tanh (1, 0): power of l in the product of chi", -1.0, power, 2)
    after = theory.activate(Moments(0.0, gaussian=True), activations.get("selu"))
    yield digits("13 SELU: mean of a standard normal", 0.0, after.mean, 12)
    yield digits("13 SELU: mean square of a standard normal", 1.0, np.exp(after.log_q), 12)
    yield digits("14 SELU, LeCun: chi", 1.071575, theory.chi_perp("selu", 1.0, 1.0), 6)
    for row, name, expected in (
        (15, "gelu", ((3 + math.sqrt(17)) / 2, 1.983058, 0.172922)),
        (16, "silu", (14.320174, 1.988005, 0.555143)),
    ):
        point = theory.critical(name)
        yield digits(f"{row} {name}, both slopes 1: q", expected[0], point.q, 6)
        yield digits(f"{row} {name}, both slopes 1: w_variance", expected[1], point.w_variance, 6)
        yield digits(f"{row} {name}, both slopes 1: b_variance", expected[2], point.b_variance, 6)
        yield digits(f"{row} {name}, both slopes 1: chi_par", 1.0, point.chi_par, 6)
    chi = theory.chi_perp("relu", theory.limit("relu", 1 / 3, 1 / 300).q, 1 / 3)
    yield digits("17 default linear layer, ReLU: chi", 1 / 6, chi, 12)


def growth(block: layers.Layer, depth: int = 12, **first: Any) -> float:
    """Predicted growth of the squared gradient per block, deep in the stack."""
    stack = layers.repeat(block, depth)
    log_gradient = propagation.predict(stack, Moments(0.0, **first)).log_gradient
    return float(np.exp(log_gradient[-1] - log_gradient[-2]))


def measured_growth(
    block: layers.Layer, width: int, *, batch: int, depth: int, seeds: int
) -> np.ndarray:
    """Measured log growth per block over the last half of the stack, one number per network."""
    stack = layers.repeat(block, depth)

    def one(key):
        keys = jax.random.split(key, 3)
        params, _ = layers.init(stack, (width,), key=keys[0])
        x = jax.random.normal(keys[1], (batch, width))
        log_gradient = propagation.probe(stack, params, x, key=keys[2]).log_gradient
        return (log_gradient[-1] - log_gradient[depth // 2 - 1]) / (depth - depth // 2)

    return over_seeds(one, seeds)


def architectures() -> Iterator[Row]:
    """Rows 18 to 21: norms and residual blocks."""
    for name, expected in (
        ("relu", math.pi / (math.pi - 1)),
        ("tanh", 1.177807),
        ("gelu", 1.318845),
    ):
        block = layers.sequential(layers.dense(1), layers.batch_norm(), layers.activation(name))
        yield digits(f"18 batch norm, {name}: chi", expected, growth(block, gap=1.0), 6)
    linear = layers.sequential(layers.dense(256), layers.batch_norm())
    sample = measured_growth(linear, 256, batch=5, depth=12, seeds=32)
    # The log of a mean exceeds the mean of logs by half the variance of the log.
    bias = np.var(sample, ddof=1) * 6 / 2
    yield sampled("19 batch norm, linear, batch of 5", 1.5, np.exp(sample + bias))
    for w in (0.7, 3.0):
        block = layers.sequential(
            layers.dense(1, w_variance=w), layers.layer_norm(), layers.activation("relu")
        )
        yield digits(f"20 layer norm, ReLU, variance {w:g}: chi", 1.0, growth(block), 12)
    biased = layers.sequential(
        layers.dense(1, w_variance=1.5, b_variance=0.3, bias=True),
        layers.layer_norm(),
        layers.activation("tanh"),
    )
    m, d = (float(f("tanh", 1.0)) for f in (theory.second_moment, theory.slope_moment))
    yield digits("20 layer norm, tanh (1.5, 0.3)", 1.5 * d / (1.5 * m + 0.3), growth(biased), 12)
    depth = 64

    def residual(scale, features=1):
        branch = layers.sequential(
            layers.activation("relu"), layers.dense(features, w_variance=1.2)
        )
        return layers.residual(branch, scale)

    def total_growth(scale):
        stack = layers.repeat(residual(scale), depth)
        return propagation.predict(stack, Moments(0.0, gaussian=True)).log_gradient[-1]

    label, expected = "21 residual ReLU, 64 blocks: log growth", depth * math.log(1.6)
    yield digits(label, expected, total_growth(1.0), 10)
    label, expected = "21 branch / sqrt(L): log growth", math.log1p(0.6 / depth)
    yield digits(label, depth * expected, total_growth(depth**-0.5), 10)
    block = residual(depth**-0.5, 256)
    sample = measured_growth(block, 256, batch=4, depth=depth, seeds=16)
    yield sampled("21 branch / sqrt(L), measured: log growth a block", expected, sample)


def finite_width() -> Iterator[Row]:
    """Rows 9, 23, 24: laws of layers of finite width."""
    width, depth, w = 8, 5, 1.4
    network = layers.mlp(width, depth, "relu", w_variance=w)

    def jacobian(key):
        keys = jax.random.split(key, 2)
        params, state = layers.init(network, (width,), key=keys[0])
        x = jax.random.normal(keys[1], (width,))

        def output(x):
            return layers.apply(network, params, state, x[None])[0][0]

        return jnp.sum(jax.jacobian(output)(x) ** 2) / width

    squares = over_seeds(jacobian, 10_000, 500)
    yield sampled("9 ReLU, width 8: squared Jacobian / n", (w / 2) ** depth, squares)
    for name, k in (("relu", 5.0), ("linear", 2.0), (activations.leaky_relu(0.2), 4.556)):
        law = theory.finite_width.layer_law(name, 1.0, 1.0, 50)
        yield digits(f"23 {activations.get(name).name}: k", k, 50 * np.expm1(law.log_spread), 3)
    n = 64
    law = theory.finite_width.layer_law("relu", 1.0, 2.0, n)
    # The number of units that are on is binomial, given that it is not 0.
    count = np.arange(1, n + 1)
    log_share = -np.array([math.lgamma(c + 1) + math.lgamma(n - c + 1) for c in count])
    share = np.exp(log_share - log_share.max())
    share /= share.sum()
    with jax.enable_x64(True):
        logs = np.asarray(jax.scipy.special.digamma(count / 2.0)) + math.log(4 / n)
    yield digits("24 ReLU He, width 64: mean log of a layer", share @ logs, law.mean_log, 8)
    wide = theory.finite_width.layer_law("relu", 1.0, 2.0, 100_000)
    yield digits("24 width 1e5: n times the mean", -2.5, 1e5 * wide.mean_log, 3)
    yield digits("24 width 1e5: n times the variance", 5.0, 1e5 * wide.var_log, 3)
    depth = 10
    # The ratio of the gradients at the first and the last layer is a product of ten factors.
    deep = layers.mlp(n, depth + 1, "relu", w_variance=2.0, parameterization="ntk")

    def log_ratio(key):
        keys = jax.random.split(key, 3)
        params, _ = layers.init(deep, (n,), key=keys[0])
        x = jax.random.normal(keys[1], (1, n))
        return propagation.probe(deep, params, x, key=keys[2]).log_ratio[-1]

    sample = over_seeds(log_ratio, 800, 50)
    yield sampled("24 measured: mean log of ten layers", depth * float(law.mean_log), sample)
    squares = (sample - sample.mean()) ** 2
    yield sampled("24 measured: variance of the log", depth * float(law.var_log), squares)


def deep_networks() -> Iterator[Row]:
    """Rows 28 and 33: dead networks, and numbers beyond the range of float32."""
    probability = theory.finite_width.alive_probability(3, 10)
    yield digits("28 P(alive), width 3, depth 10", 0.26308, probability, 5)
    narrow = layers.mlp(3, 10, "relu")

    def alive(key):
        keys = jax.random.split(key, 2)
        params, state = layers.init(narrow, (3,), key=keys[0])
        x = jax.random.normal(keys[1], (1, 3))
        return jnp.any(layers.apply(narrow, params, state, x)[0] > 0)

    yield sampled("28 measured", (1 - 2**-3) ** 10, over_seeds(alive, 10_000, 500))
    deep = layers.mlp(64, 1000, "relu", w_variance=4.0, parameterization="ntk")

    def doublings(key):
        keys = jax.random.split(key, 3)
        params, _ = layers.init(deep, (64,), key=keys[0])
        x = jax.random.normal(keys[1], (1, 64))
        log_gradient = propagation.probe(deep, params, x, key=keys[2]).log_gradient
        return (log_gradient[-1] - log_gradient[0]) / 999 / jnp.log(2)

    sample = over_seeds(doublings, 8, 1)
    typical = 1 + float(theory.finite_width.layer_law("relu", 1.0, 2.0, 64).mean_log) / math.log(2)
    yield sampled("33 ReLU, w_variance 4, depth 1000: doublings a layer", typical, sample)
    log_gradient = propagation.predict(deep, Moments(0.0)).log_gradient
    doubling = np.diff(log_gradient)[-1] / np.log(2)
    yield digits("33 mean over networks: doublings a layer", 1.0, doubling, 9)


def spectra() -> Iterator[Row]:
    """Rows 25 to 27: singular values."""
    exponents = theory.spectra.lyapunov_exponents(8)
    yield digits("25 Gaussian products, n = 8: first exponent", -0.0651, exponents[0], 4)
    yield digits("25 last exponent", -1.6749, exponents[-1], 4)
    product = layers.repeat(layers.dense(8), 400)

    def measured(key):
        keys = jax.random.split(key, 3)
        params, _ = layers.init(product, (8,), key=keys[0])
        x = jax.random.normal(keys[1], (1, 8))
        return propagation.lyapunov(product, params, x, key=keys[2]).exponents[0]

    sample = over_seeds(measured, 32, 4)
    for index in (0, 7):
        label = f"25 measured, exponent {index + 1}"
        yield sampled(label, float(exponents[index]), sample[:, index])
    largest = theory.spectra.largest_eigenvalue(4)
    yield digits("26 linear Gaussian, L = 4: largest eigenvalue", 12.207, largest, 3)
    q = theory.critical("tanh", 0.05).q
    cases: tuple[tuple[theory.spectra.Weights, float], ...] = (
        ("orthogonal", 6.845),
        ("gaussian", 26.845),
    )
    for weights, expected in cases:
        variance = theory.spectra.spectrum_variance("tanh", q, 20, weights)
        yield digits(f"27 tanh critical, L = 20, {weights}", expected, variance, 3)


def seed_texts() -> Iterator[Row]:
    """The seed texts' numbers: products of weights, slopes of the sigmoid, variances of a sum."""
    for mean, expected, places in ((0.9, 0.1216, 4), (1.2, 38.34, 2)):
        kernel_init = initializers.constant(mean)
        network = layers.mlp(1, 20, "linear", kernel_init=kernel_init)
        params, state = layers.init(network, (1,), key=jax.random.key(0))
        output = layers.apply(network, params, state, jnp.ones((1, 1)))[0][0, 0]
        yield digits(f"mean weight {mean}, 20 linear layers", expected, output, places)
    slope = float(theory.slope_moment("sigmoid", 1e-12)) ** 0.5
    yield digits("sigmoid, ten layers: factor / 1e-7", 9.5, slope**10 * 1e7, 1)
    for variance, expected in ((0.01, 1.0), (0.25, 25.0), (1e-4, 0.01)):
        x = jax.random.normal(jax.random.key(1), (1, 100))
        x = x / jnp.sqrt(jnp.mean(x**2))

        def square(key, variance=variance, x=x):
            return (x @ initializers.normal(variance)(key, (100, 1)))[0, 0] ** 2

        label = f"Var(z), n = 100, variance {variance:g}"
        yield sampled(label, expected, over_seeds(square, 4000, 500))


def weights() -> Iterator[Row]:
    """Rows 22, 29 to 32: initializers."""
    truncated = initializers.variance_scaling(1.0, "fan_in", "truncated")
    kernel = truncated(jax.random.key(3), (100, 4000))
    yield sampled("22 truncated normal: variance times fan-in", 1.0, 100 * np.ravel(kernel) ** 2)
    bound = jnp.max(jnp.abs(kernel)) * 10
    yield digits("22 bound / std of the drawn weights", 2 / 0.879625661, bound, 3)
    block = layers.convolution(8, (3, 3), kernel_init=initializers.delta_orthogonal())
    stack = layers.repeat(block, 20)
    params, state = layers.init(stack, (6, 6, 8), key=jax.random.key(4))
    x = jax.random.normal(jax.random.key(5), (2, 6, 6, 8))
    y, _ = layers.apply(stack, params, state, x)
    ratio = jnp.linalg.norm(y) / jnp.linalg.norm(x)
    yield digits("29 delta-orthogonal, 20 layers: norm out / in", 1.0, ratio, 5)
    fixup = initializers.fixup(16)
    kernel = fixup.inner(jax.random.key(6), (3, 3, 64, 64))
    expected = math.sqrt(2 / (9 * 64)) / 4
    yield sampled("30 Fixup, 16 blocks: variance / expected", 1.0, np.ravel(kernel / expected) ** 2)
    last = fixup.last(jax.random.key(6), (3, 3, 64, 64))
    yield digits("30 Fixup: largest weight of the last", 0.0, jnp.max(jnp.abs(last)), 12)
    kernel = initializers.orthogonal()(jax.random.key(7), (40, 90))
    ratio = jnp.mean(kernel**2) * 40
    yield digits("31 orthogonal 40 to 90: variance times fan-in", 1.0, ratio, 5)
    fan_in = initializers.fans((4, 4, 8, 16), strides=2, transposed=True).fan_in
    yield digits("32 transposed convolution, k = 4, s = 2: fan-in", 8 * 16 / 4, fan_in, 9)


PARTS = (
    critical_lines,
    phases,
    architectures,
    finite_width,
    deep_networks,
    spectra,
    seed_texts,
    weights,
)


def main() -> None:
    """Print the table, and how many rows hold."""
    start = time.perf_counter()
    rows = [row for part in PARTS for row in part()]
    lines = [
        (
            row.label,
            f"{row.expected:.7g}",
            f"{row.result:.7g}",
            f"{row.allowed:.1g}" + (" (3 SE)" if row.simulated else ""),
            "yes" if row.holds else "NO",
        )
        for row in rows
    ]
    lines.insert(0, ("target", "expected", "result", "allowed", "holds"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for label, *numbers in lines:
        cells = (f"{text:>{width}}" for text, width in zip(numbers, widths[1:], strict=True))
        print(f"{label:<{widths[0]}}", *cells, sep="  ")
    held = sum(row.holds for row in rows)
    print(f"\n{held} of {len(rows)} hold, in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
