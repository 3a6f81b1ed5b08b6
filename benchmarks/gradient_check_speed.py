"""How long gradient checks of a tanh network take, and whether a planted error is found.

Run `python -m benchmarks.gradient_check_speed`. The network is 64-256-256-10 without biases, 84,480
weights, cross entropy on a batch of 4, in float64; a larger one has 992,000 weights. Each part runs
in a process of its own; imports are not counted, compilation is.

- `check`: `jaxgrad.check_grads`, the first time and again, and on gradients in which one element is
  off by 0.1 % of the leaf's root mean square.
- `large`: the same for the larger network.
- `small`: the same for 10-8-3 with biases, 115 parameters.
- `exhaustive`: `finite_differences.central_difference`, every weight.
- `plain`: the same difference of the ravelled vector, `lax.map(batch_size=256)`.
- `pytorch`: `torch.autograd.gradcheck`, slow mode. Needs PyTorch; without it the line is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIZES, LARGE, BATCH, EPS = (64, 256, 256, 10), (256, 1000, 700, 50), 4, 1e-6
PARTS = ("small", "check", "large", "exhaustive", "plain", "pytorch")


def arrays(sizes: tuple[int, ...]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Weights, inputs and labels."""
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal((a, b)) / np.sqrt(a) for a, b in itertools.pairwise(sizes)]
    return weights, generator.standard_normal((BATCH, sizes[0])), np.arange(BATCH) % sizes[-1]


def loss(weights: Any, x: Any, labels: Any) -> Any:
    """Cross entropy of a tanh network."""
    import jax
    import jax.numpy as jnp

    for w in weights[:-1]:
        x = jnp.tanh(x @ w)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x @ weights[-1]), labels[:, None], 1))


def planted(leaf: int, index: tuple[int, ...], share: float) -> Callable[..., Any]:
    """The loss with one element of its gradient off by a share of the leaf's root mean square."""
    import jax
    import jax.numpy as jnp

    def backward(args, ct):
        gradient, *others = jax.vjp(loss, *args)[1](ct)
        size = jnp.sqrt(jnp.mean(gradient[leaf] ** 2))
        gradient[leaf] = gradient[leaf].at[index].add(share * size)
        return gradient, *others

    rule = jax.custom_vjp(loss)
    rule.defvjp(lambda *args: (loss(*args), args), backward)
    return rule


def check(sizes: tuple[int, ...], trials: int) -> dict[str, Any]:
    """The default check: cold, repeated, and how many planted errors are found."""
    import jax
    import jax.numpy as jnp

    import jaxgrad

    with jax.enable_x64(True):
        weights, x, labels = jax.tree.map(jnp.asarray, arrays(sizes))
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            report = jaxgrad.check_grads(loss, weights, x, labels)
            seconds.append(time.perf_counter() - start)
            assert report.ok, f"\n{report}"
        generator = np.random.default_rng(1)
        found, again = 0, []
        for trial in range(trials):
            leaf = int(generator.integers(len(weights)))
            index = tuple(int(generator.integers(n)) for n in weights[leaf].shape)
            wrong = planted(leaf, index, 1e-3 * (-1) ** trial)
            key = jax.random.key(trial)
            report = jaxgrad.check_grads(wrong, weights, x, labels, key=key)
            start = time.perf_counter()
            report = jaxgrad.check_grads(wrong, weights, x, labels, key=key)
            again.append(time.perf_counter() - start)
            first, second = report.leaves[:2]
            found += (first.path, first.worst_index) == (f"[{leaf}]", index) and second.verdict == (
                "AGREE"
            )
    return {
        "seconds": seconds[0],
        "note": f"repeated {np.median(seconds[1:]):.2f} s, planted error located {found} of "
        f"{trials}, repeated {np.median(again):.2f} s",
    }


def small() -> dict[str, Any]:
    """A small network in float32."""
    import jax
    import jax.numpy as jnp

    import jaxgrad

    def f(p, x):
        h = jnp.tanh(x @ p["w1"] + p["b1"])
        return jnp.mean((h @ p["w2"] + p["b2"]) ** 2)

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "w1": jax.random.normal(keys[0], (10, 8)),
        "b1": jnp.zeros(8),
        "w2": jax.random.normal(keys[1], (8, 3)),
        "b2": jnp.zeros(3),
    }
    x = jax.random.normal(keys[2], (5, 10))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        jaxgrad.check_grads(f, params, x)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds[0], "note": f"repeated {1e3 * np.median(seconds[1:]):.0f} ms"}


def exhaustive(plain: bool) -> dict[str, Any]:
    """Every weight by a central difference."""
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    from jaxgrad.checking import finite_differences

    with jax.enable_x64(True):
        weights, x, labels = jax.tree.map(jnp.asarray, arrays(SIZES))

        def f(weights):
            return loss(weights, x, labels)

        def difference(weights):
            if not plain:
                return finite_differences.central_difference(f, weights, EPS)
            theta, unravel = ravel_pytree(weights)

            def along(i):
                step = jnp.zeros_like(theta).at[i].set(EPS)
                return (f(unravel(theta + step)) - f(unravel(theta - step))) / (2 * EPS)

            return unravel(jax.lax.map(along, jnp.arange(theta.size), batch_size=256))

        start = time.perf_counter()
        numeric = jax.block_until_ready(jax.jit(difference)(weights))
        seconds = time.perf_counter() - start
        error = float(finite_differences.relative_error(numeric, jax.grad(f)(weights)))
    return {"seconds": seconds, "note": f"relative error {error:.0e}"}


def pytorch() -> dict[str, Any]:
    """PyTorch's own check of every weight."""
    import torch  # pyright: ignore[reportMissingImports]

    weights, x, labels = arrays(SIZES)
    tensors = [torch.tensor(w, requires_grad=True) for w in weights]
    x, labels = torch.tensor(x), torch.tensor(labels)

    def f(*weights):
        h = x
        for w in weights[:-1]:
            h = torch.tanh(h @ w)
        return torch.nn.functional.cross_entropy(h @ weights[-1], labels)

    f(*tensors).backward()
    start = time.perf_counter()
    passed = torch.autograd.gradcheck(f, tensors, eps=EPS)
    return {"seconds": time.perf_counter() - start, "note": f"passed: {passed}"}


def run(part: str, trials: int) -> dict[str, Any]:
    """One part, in this process."""
    if part == "small":
        return small()
    if part in ("check", "large"):
        return check(SIZES, trials) if part == "check" else check(LARGE, max(trials // 4, 1))
    if part == "pytorch":
        return pytorch()
    return exhaustive(part == "plain")


def main() -> None:
    """Run the parts in turn and print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--trials", type=int, default=20, help="planted errors")
    parser.add_argument("--part", choices=PARTS, help="run one part alone")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(run(options.part, options.trials)))
        return
    seconds: dict[str, float] = {}
    for part in PARTS:
        if part == "pytorch" and importlib.util.find_spec("torch") is None:
            print("PyTorch is not installed; its line is left out.")
            continue
        command = [sys.executable, "-m", "benchmarks.gradient_check_speed", "--part", part]
        command += ["--trials", str(options.trials)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: the part {part!r} failed:\n{done.stderr}")
        result = json.loads(done.stdout.splitlines()[-1])
        seconds[part] = result["seconds"]
        line = f"{part:12s}{result['seconds']:8.2f} s  {result['note']}"
        if part in ("plain", "pytorch"):
            line += f", {seconds[part] / seconds['exhaustive']:.1f} x as long as exhaustive"
        print(line, flush=True)


if __name__ == "__main__":
    main()
