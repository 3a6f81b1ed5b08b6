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
# # A map of your own architecture (notebook)
#
# **Goal.** You have a block of your own and a number that you can choose, such as the scale of its branch. You want to know
# for which values the gradient survives, at every depth. **At the end** you have a map of depth against that number, the
# largest value that is safe for each depth, and a formula that explains it. You need to know
# `jax.lax.scan`; the table and the figure need `python -m pip install "jaxgrad[experiments]"`.
#
# ## 1. The model
#
# The block adds a branch of two matrices to its input, times a `scale`. The loss is a random mean of the outputs, so that the
# map shows what the network does rather than what a loss does. Any function from parameters to a number will do, also one
# from Flax, Equinox or Haiku.

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
import numpy as np

WIDTH = 64
keys = jax.random.split(jax.random.key(1))
x, weights = jax.random.normal(keys[0], (16, WIDTH)), jax.random.normal(keys[1], (16, WIDTH))


def loss(params, x):
    def block(h, w):
        branch = jax.nn.relu(h @ w["up"]) @ w["down"]
        return h + params["scale"] * branch, None

    h, _ = jax.lax.scan(block, x, params["blocks"])
    return jnp.mean(weights * h)


def init(key, depth, scale):
    key_up, key_down = jax.random.split(key)
    up = jax.random.normal(key_up, (depth, WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5  # He
    down = jax.random.normal(key_down, (depth, WIDTH, WIDTH)) / WIDTH**0.5  # LeCun
    return {"scale": scale, "blocks": {"up": up, "down": down}}


# %% [markdown]
# ## 2. Measure one network
#
# `inspection.measure_blocks` returns a function that measures the signal and the gradient at each block. It takes the
# arguments of the loss, and it can be compiled and mapped:

# %%
from jaxgrad import inspection

sizes = inspection.measure_blocks(loss, 32)(init(jax.random.key(0), 32, 1.0), x)
change = jnp.exp((sizes.log_gradient[0] - sizes.log_gradient[-1]) / 2)
print(f"32 blocks, scale 1: the gradient at the first block is {change:.0f} times that at the last")

# %% [markdown]
# The numbers are logs of mean *squares*, hence the division by 2.
#
# ## 3. Measure a grid
#
# `sweeps.run` evaluates a pure function of a key and a point in each cell of a grid. `static="depth"` makes the depth a Python
# number, because it decides shapes; each depth is compiled once. The scale is traced, so that all values share that program.

# %%
from jaxgrad import sweeps

DEPTHS, SCALES = (4, 8, 16, 32), np.geomspace(0.05, 2, 16)


def cell(key, point):
    depth = point["depth"]
    params = init(key, depth, point["scale"])
    sizes = inspection.measure_blocks(loss, depth)(params, x)
    profile = jnp.pad(sizes.log_gradient, (0, max(DEPTHS) - depth), constant_values=jnp.nan)
    return {"log_ratio": sizes.log_gradient[0] - sizes.log_gradient[-1], "log_profile": profile}


table = sweeps.run(
    cell,
    axes={"depth": DEPTHS, "scale": SCALES, "seed": range(4)},
    variables={"log_ratio": sweeps.Variable(), "log_profile": sweeps.Variable(("layer",))},
    coords={"layer": range(1, max(DEPTHS) + 1)},
    static="depth",
    key=jax.random.key(0),
)
print(dict(table["log_ratio"].sizes))

# %% [markdown]
# The result is a labelled table (`xarray.Dataset`). With `store="map.zarr"` the sweep is written to disk, and the same call
# continues it if it is interrupted: see [a sweep on a cluster](https://jaxgrad.github.io/jaxgrad/tutorials/cluster_sweep/).
#
# ## 4. Draw the map
#
# `plotting.depth_map` takes such a table. It needs the profile of the deepest network only, and a name for the model:

# %%
from jaxgrad import plotting

profile = table["log_profile"].sel(depth=max(DEPTHS))
named = table.assign(log_profile=profile).expand_dims(activation=["my block"])
figure = plotting.depth_map(named, axis="scale", label="scale of the branches", block="block")
figure.savefig("map.png")
figure

# %% [markdown]
# In a notebook the last line shows the figure. Elsewhere open `map.png`:
#
# ![A map over depth and the scale of the branches: below a border that falls from 1.6 at 4 blocks to 0.4 at 32 blocks the gradient survives, above it explodes; beside it the gradient at each of 32 blocks for five scales, of which the two largest explode](https://jaxgrad.github.io/jaxgrad/figures/own_map.svg)
#
# On the left, the colour of each cell is the change of the gradient from the last to the first block. Below the dashed line it
# survives, and above it explodes. On the right, you see the gradient block by block in the network of 32 blocks, for five
# scales from one end of the grid to the other. At scale 2 its norm grows by more than ten powers of ten. No scale lets the
# gradient vanish, because the sum passes it on, so the map has no other border. [What the maps mean](https://jaxgrad.github.io/jaxgrad/explanations/maps/)
# explains every line that a map can have. For the colours and fonts of this page, draw within
# `with plotting.style.theme("light"):`, or `"dark"`.
#
# ## 5. Read the largest safe scale
#
# A gradient counts as stable if its norm changes by less than a factor of 10 over the whole depth:

# %%
from jaxgrad import regimes

log_ratio = table["log_ratio"].transpose("seed", "scale", "depth").values
regime = np.asarray(regimes.classify(log_ratio, DEPTHS).regime)  # [scale, depth]
for depth, column in zip(DEPTHS, regime.T, strict=True):
    safe = SCALES[column == regimes.Regime.STABLE].max()
    theory = np.sqrt(100 ** (1 / (depth - 1)) - 1)
    print(f"{depth:2d} blocks: up to {safe:.2f} measured, {theory:.2f} predicted")

# %% [markdown]
# The prediction takes one line. A branch with He's and LeCun's variances keeps the size of a gradient, and a sum of independent
# parts adds their squares, so each block multiplies a squared gradient by $1 + \text{scale}^2$. Over $L$ blocks there are
# $L - 1$ steps from the last block to the first, and a factor of 10 in the norm is 100 in the square:
#
# $$(1 + \text{scale}^2)^{L - 1} = 100 .$$
#
# The measured values are the largest ones of a grid of 16, so they lie up to a quarter below.
#
# ## Your own model
#
# Replace `loss` and `init`. A block may be
#
# - an iteration of `jax.lax.scan` or `jax.lax.fori_loop`, or
# - an iteration of a Python loop, such as `for layer in params:` over a list of dictionaries, or `for i in range(depth):` with
#   `params[i]`; the loop may call functions, or modules of Flax, Equinox or Haiku.
#
# Blocks that are written out one below the other, each in lines of its own, and those of `jax.lax.while_loop` are not
# recognised: `measure_blocks` raises an error that says so. The number on the other axis can be anything that `init` takes: a weight
# variance, a gain, a dropout rate.
#
# In a clone of the repository, `experiments.depth_variance.measure_model(init, loss, batch, depths=..., values=...)` does steps 3
# and 4's preparation in one call.
#
# ## What you have seen
#
# - `jaxgrad.inspection.measure_blocks` measures any model, block by block.
# - `jaxgrad.sweeps.run` evaluates it over a grid and returns a labelled table.
# - `jaxgrad.plotting.depth_map` draws it, and `jaxgrad.regimes.classify` decides.
#
# Next: [mean-field theory](https://jaxgrad.github.io/jaxgrad/explanations/mean_field_theory/), [choose an
# initialization](https://jaxgrad.github.io/jaxgrad/guides/choose_initialization/), or [a sweep on a cluster](https://jaxgrad.github.io/jaxgrad/tutorials/cluster_sweep/).
