# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Find a wrong rule (notebook)
#
# **Goal.** A model has a derivative rule that somebody wrote by hand, and its gradient is wrong. You will find out that it
# is wrong, where, and why. **At the end** you have mended the rule and have a test that fails if it breaks again. You need to know
# `jax.grad`.
#
# ## 1. A model that seems to train
#
# The model has three residual blocks. Each normalizes its input with `rms_norm`, which has a hand-written derivative rule.
# Such rules save memory, and they are easy to get wrong. The data are random.

# %%
# Where jaxgrad is not installed, as in Colab, this installs it.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jaxgrad") is None:
    command = [sys.executable, "-m", "pip", "install", "-q", "jaxgrad[experiments]"]
    subprocess.run(command, check=True)

# %%
import jax
import jax.numpy as jnp
import optax


@jax.custom_vjp
def rms_norm(x, gain):
    return gain * x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))


def forward(x, gain):
    return rms_norm(x, gain), (x, gain)


def backward(saved, ct):
    x, gain = saved
    size = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))
    normed = x / size
    weighted = ct * gain
    along = jnp.sum(weighted * normed, axis=-1, keepdims=True)
    return (weighted - normed * along) / size, jnp.sum(ct * normed, axis=0)


rms_norm.defvjp(forward, backward)


def loss(params, x, y):
    for block in params["blocks"]:
        x = x + jnp.tanh(rms_norm(x, block["gain"]) @ block["w"])
    return jnp.mean((x @ params["out"] - y) ** 2)


*keys, key_out, key_x = jax.random.split(jax.random.key(0), 5)
blocks = [{"gain": jnp.ones(8), "w": jax.random.normal(key, (8, 8)) / 8**0.5} for key in keys]
params = {"blocks": blocks, "out": jax.random.normal(key_out, (8,)) / 8**0.5}
x = jax.random.normal(key_x, (16, 8))
y = jnp.sin(x[:, 0])


def train(params, steps=100):
    optimizer = optax.adam(0.003)

    @jax.jit
    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, x, y)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    _, values = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return values


values = train(params)
print(f"loss at the start {values[0]:.3f}, after 100 steps {values[-1]:.3f}")

# %% [markdown]
# The loss falls, and nothing looks wrong. A wrong gradient that points roughly downhill still trains the model, only worse. So
# training is not a test of a gradient.
#
# ## 2. Which leaf is wrong?
#
# `check_grads` takes the arguments that you would pass to `jax.grad(loss)`:

# %%
import jaxgrad

print(jaxgrad.check_grads(loss, params, x, y))

# %% [markdown]
# Read the table:
#
# - `['out']` and the weights of the last block, `['blocks'][2]`, are right. The column *visible error* says how small an
#   error of one element the check would have seen, in units of the gradient.
# - All weights of the first two blocks are wrong.
#
# What does that tell you? The gradient is computed from the last block to the first. The last block receives the right cotangent and
# computes the right gradient of its own weights. So the cotangent that it passes *back* to the blocks before it must be wrong.
#
# ## 3. Which rule is wrong?
#
# `audit` opens the program, finds each derivative rule that it uses, and checks it by itself at the inputs that it gets
# there:

# %%
audit = jaxgrad.audit(loss, params, x, y)
for row in audit.rules:
    print(f"{row.argument}: {row.verdict}")
for row in audit.wrong:
    print(f"{row.words}: {row.rule.rpartition('/')[2]}")

# %% [markdown]
# The rule is right for `gain` and wrong for `x`. The last line also shows where the rule begins; `print(audit)` has more.
#
# ## 4. Mend it
#
# The derivative of `x / size` with respect to `x` has two parts. The second one removes the component along `x`, and it needs the
# *mean* of `weighted * normed`, because `size` is a root *mean* square. The rule took the sum. This is the right one:


# %%
def backward(saved, ct):
    x, gain = saved
    size = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))
    normed = x / size
    weighted = ct * gain
    along = jnp.mean(weighted * normed, axis=-1, keepdims=True)
    return (weighted - normed * along) / size, jnp.sum(ct * normed, axis=0)


rms_norm.defvjp(forward, backward)

print(jaxgrad.check_grads(loss, params, x, y).verdict)
values = train(params)
print(f"loss at the start {values[0]:.3f}, after 100 steps {values[-1]:.3f}")

# %% [markdown]
# ## 5. Keep it right
#
# Put the check into your test suite. This raises an `AssertionError` with the report if the gradient is wrong:

# %%
from jaxgrad.testing import assert_grads


def test_rms_norm():
    assert_grads(rms_norm, jnp.ones((2, 4)) + jnp.arange(4.0), jnp.ones(4), argnums=(0, 1))


test_rms_norm()

# %% [markdown]
# ## What you have seen
#
# - A falling loss does not show that a gradient is right.
# - `jaxgrad.check_grads` says which leaves are wrong, and their paths say in which blocks.
# - `jaxgrad.audit` says which rule is wrong, and for which argument.
# - `jaxgrad.testing.assert_grads` in a test keeps it right.
#
# Next: [check gradients in pytest](https://jaxgrad.github.io/jaxgrad/guides/pytest/), [all kinds of checks](https://jaxgrad.github.io/jaxgrad/guides/check_gradients/), or [how a numeric
# derivative gets its error bar](https://jaxgrad.github.io/jaxgrad/explanations/error_bars/).
