"""Several processes, or the workers of a cluster, for an experiment that has a store."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from experiments._kit.options import Options, option

ADDRESS = re.compile(r"([a-z]+://)?[\w.\-\[\]:]+:\d+")


@dataclass(frozen=True)
class ClusterOptions(Options):
    """Options that say who computes the store; the results are the same."""

    workers: int = option(0, "Processes that share the work; 0 is this one alone.", minimum=0)
    scheduler: str | None = option(
        None, "Address of a scheduler of dask.distributed, as tcp://host:8786; its workers compute."
    )

    def check(self) -> None:
        """Raise ValueError if both are passed, or the address is none."""
        if self.scheduler is not None and not ADDRESS.fullmatch(self.scheduler):
            remedy = "pass one such as tcp://host:8786"
            raise ValueError(f"scheduler must be an address, got {self.scheduler!r}; {remedy}")
        if self.workers and self.scheduler:
            values = f"got {self.workers} and {self.scheduler!r}"
            raise ValueError(f"workers and scheduler must not both be passed, {values}")
        super().check()


CLUSTER_FIELDS = frozenset(("workers", "scheduler"))


@contextlib.contextmanager
def cluster(options: ClusterOptions) -> Iterator[dict[str, Any]]:
    """Options of `jaxgrad.sweeps.run` for the workers that are asked for, as long as they live."""
    if not options.workers and not options.scheduler:
        yield {}
        return
    try:
        import distributed
    except ImportError as error:
        remedy = 'run python -m pip install "jaxgrad[cluster]"'
        raise ImportError(f"workers and scheduler need dask.distributed; {remedy}") from error
    with contextlib.ExitStack() as stack:
        address: Any = options.scheduler
        if options.workers:
            address = stack.enter_context(_local_cluster(options.workers))
        yield {"client": stack.enter_context(distributed.Client(address))}


def _local_cluster(workers: int) -> Any:
    """Start workers on this machine, each with one core, or in turn with one of its GPUs."""
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = sum(device.platform != "cpu" for device in jax.local_devices())
    specification = {}
    for i in range(workers):
        env = {"JAX_NUM_CPU_DEVICES": "1"}
        # This process has a GPU too, so nobody takes all memory at once.
        if gpus:
            env |= {"CUDA_VISIBLE_DEVICES": str(i % gpus), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        how = {"nthreads": 1, "env": env, "dashboard_address": None}
        specification[i] = {"cls": Nanny, "options": how}
    scheduler = {"cls": Scheduler, "options": {"dashboard": False}}
    # The annotation says bool; a number is the lowest level that is shown.
    level: Any = logging.ERROR
    return SpecCluster(scheduler=scheduler, workers=specification, silence_logs=level)
