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
# # Why does my transformer not train? (notebook)
#
# **Goal.** A deep transformer hardly learns. You will find out why before spending hours on learning rates. **At the end**
# the same model learns, with the same optimizer, because its initial weights are scaled as they should be. You need to know
# how a transformer is built. The example needs `python -m pip install "jaxgrad[experiments]"` for the data.
#
# ## 1. A transformer that hardly learns
#
# The model reads images of handwritten digits as eight tokens, one for each row. It has 24 blocks, each with attention and two
# dense layers, and it is post-norm, as the original transformer was: the norm comes *after* each sum. Each matrix has LeCun's
# initialization, which is the default of Flax.

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
from sklearn import datasets

BLOCKS, WIDTH, HEADS = 24, 32, 4
images, labels = datasets.load_digits(return_X_y=True)
images = jnp.asarray(images, jnp.float32).reshape(-1, 8, 8)
images, labels = (images - images.mean()) / images.std(), jnp.asarray(labels)


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def attention(x, p):
    query, key, value = (
        (x @ p[name]).reshape(*x.shape[:2], HEADS, -1) for name in ("query", "key", "value")
    )
    return jax.nn.dot_product_attention(query, key, value).reshape(x.shape) @ p["out"]


def loss(params, images, labels):
    def block(x, p):
        x = norm(x + attention(x, p))
        return norm(x + jax.nn.gelu(x @ p["up"]) @ p["down"]), None

    x = images @ params["embed"] + params["position"]
    x, _ = jax.lax.scan(block, x, params["blocks"])
    logits = x.mean(axis=1) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def init(key):
    keys = iter(jax.random.split(key, 9))
    lecun, stacked = (
        jax.nn.initializers.lecun_normal(),
        jax.nn.initializers.lecun_normal(batch_axis=0),
    )
    shapes = dict.fromkeys(("query", "key", "value", "out"), (WIDTH, WIDTH))
    shapes |= {"up": (WIDTH, 2 * WIDTH), "down": (2 * WIDTH, WIDTH)}
    return {
        "embed": lecun(next(keys), (8, WIDTH)),
        "position": 0.02 * jax.random.normal(next(keys), (8, WIDTH)),
        "blocks": {name: stacked(next(keys), (BLOCKS, *s)) for name, s in shapes.items()},
        "head": lecun(next(keys), (WIDTH, 10)),
    }


optimizer = optax.adam(1e-3)


@jax.jit
def losses(params):
    def step(carry, rows):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, images[rows], labels[rows])
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    rows = jax.random.randint(jax.random.key(1), (150, 64), 0, len(labels))  # 150 batches
    return jax.lax.scan(step, (params, optimizer.init(params)), rows)[1]


def train(params):
    first, *_, last = losses(params).reshape(-1, 10).mean(axis=1)
    print(f"loss {first:.2f} in the first ten steps, {last:.2f} in the last ten")


params = init(jax.random.key(0))
train(params)

# %% [markdown]
# Random guessing gives a loss of log 10, about 2.3. After 150 steps the model has learned little.
#
# ## 2. X-ray it
#
# `xray` takes the loss and its arguments, as `jax.grad` does. The model is not changed. Untrained parameters and a small batch are
# enough:

# %%
import jaxgrad

trace = jaxgrad.xray(loss, params, images[:32], labels[:32])
print(trace.summary.rpartition(" (")[0])  # what is cut off is the line of code

# %% [markdown]
# Read it from the left:
#
# - **branches** is the kind of fault. The signal neither vanishes nor explodes here, because a norm follows each sum. Something
#   else is wrong.
# - **64% of the stream is what each block adds.** Each block leaves only 36 % of the variance that enters it.
# - **what comes before is diluted 1.3e+05 times.** After 24 blocks that adds up: the size of what the image contributes is
#   130,000 times smaller than that of the whole stream. What reaches the last block is made of the random weights of the last
#   few blocks, not of the image.
# - **multiply the branches by 0.13.** Then each block adds little, and all blocks together add about as much as was there. This is
#   an estimate of one factor for both branches of a block; the next step measures one for each.
# - `['blocks']['out']` is the path of a parameter: the matrix `out` at the end of attention, for all 24 blocks. Its variance is the
#   median over the blocks, times fan-in.
#
# The line of code is in the summary, too; it is left out here. `print(trace)` shows the signal and the gradient at each
# operation, and `trace.save_html("page.html")` writes a page with curves.
#
# ## 3. Get the factors
#
# `prescribe` measures the model again with rescaled weights until it has the factors:

# %%
fix = jaxgrad.prescribe(trace)
print(fix)

# %% [markdown]
# Only the two matrices that end a branch are changed. The 24 blocks have two branches each, hence the 48. Attention adds less
# than the dense layers do, so its matrix may stay a little larger: 0.176 instead of 0.147. Each change comes with an initializer
# that you can put into your code. The last two lines are factors of the root mean square; they are level before and after, which is
# why a look at the sizes alone would have shown nothing.
#
# ## 4. Train again
#
# `fix.apply` multiplies the parameters. Optimizer, learning rate and batches are the same as before:

# %%
train(fix.apply(params))

# %% [markdown]
# The model learns. Only the initial scale of two matrices in each block is different.
#
# ## What you have seen
#
# - A model may fail to learn although its signal and its gradient keep their size: its branches may drown what they are added to.
# - `jaxgrad.xray` names the most likely cause in words, before training.
# - `jaxgrad.prescribe` gives the factors, as numbers and as an initializer.
#
# In [a clone of the repository](https://jaxgrad.github.io/jaxgrad/install/#a-clone-for-experiments-and-benchmarks), `python -m experiments.xray_gallery` runs the
# same steps on six models of Flax, Equinox and Haiku with 4, 16 and 64 blocks and several seeds. Next: [measure depth](https://jaxgrad.github.io/jaxgrad/guides/measure_depth/), [theory of attention](https://jaxgrad.github.io/jaxgrad/explanations/attention/), or [in a
# training loop](https://jaxgrad.github.io/jaxgrad/guides/training_loop/).
