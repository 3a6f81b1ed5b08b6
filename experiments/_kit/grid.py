"""All combinations of values in one compiled program, and several programs in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax


def mapped(function: Callable[..., Any], *values: Any, compiler_options: Any = None) -> Any:
    """Results of a pure function at all combinations of `values`, as NumPy arrays.

    It takes one element of each of `values`, which are arrays, or pytrees of arrays whose first
    axes have one length. Each array of the pytree that it returns has the shape
    `[len(values[0]), len(values[1]), ..., *shape]` in the result.
    """
    for i in reversed(range(len(values))):
        axes = [0 if j == i else None for j in range(len(values))]
        function = jax.vmap(function, axes)
    return jax.device_get(jax.jit(function, compiler_options=compiler_options)(*values))


def in_threads(jobs: Mapping[Any, Callable[[], Any]], progress: Any = None) -> dict[Any, Any]:
    """Results of functions by name, one thread for each core; `progress` is `(done, total)`.

    Most of the time of many experiments is spent compiling, which JAX does in one thread a program.
    Programs with batches of SVDs or other LAPACK calls can wait forever for each other in threads.
    """
    results, wait = {}, True
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        for name, future in futures.items():
            results[name] = future.result()
            if progress is not None:
                progress(len(results), len(jobs))
    except KeyboardInterrupt:
        # A thread cannot be stopped, and may compile for minutes; `interruption` ends the process.
        wait = False
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)
    return results
