"""Settings of JAX for all tests, checks of the annotated shapes, and a key for every test."""

import ctypes
import fcntl
import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tests import shape_checks

# Before anything imports the library: xdist's workers and doctest's collection come later.
shape_checks.install("jaxgrad")

# XLA stops the process at a flag that it does not know. Without emitters of fusions it compiles
# twice as fast, and a program in one part instead of 32 saves a fifth: most are small.
FLAGS = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
if jax.__version__.startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
# Bytes of a process above which it drops what it has compiled: the next module needs little of it.
MEMORY = 3 * 2**30
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Nearly all tests compile much and run little.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_configure(config):
    """All processes and the next run share compiled programs, in pytest's own cache."""
    if hasattr(config, "cache"):
        folder = config.cache.mkdir(f"jax_{jax.__version__}")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # Names of programs then do not depend on the folder.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        # Commands of experiments, which are processes of their own, have a cache of theirs.
        os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("experiments"))


def pytest_collection_finish():
    """The garbage collector then leaves modules and tests alone, and runs less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def pytest_xdist_auto_num_workers():
    """One more process than cores: tests also wait for files and for other processes."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.fixture(autouse=True, scope="module")
def programs_are_dropped():
    """Drop compiled programs before they fill the memory of a small machine.

    Each also maps memory, and Linux stops a process that has 65,530 mappings.
    """
    yield
    mappings, pages = Path("/proc/self/maps"), Path("/proc/self/statm")
    if not mappings.exists():
        return
    resident = int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resident > MEMORY or len(mappings.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()
        gc.collect()
        # The C library keeps what is freed, unless it is asked for it.
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the documentation site, which is built once for all processes of a run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    command = [sys.executable, "-m", "docs", "build", "--no-figures", "--site-dir", folder / "site"]
    with (folder / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "site" / "objects.inv").exists():
            root = Path(__file__).parent.parent
            done = subprocess.run(command, cwd=root, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def key():
    return jax.random.key(20260101)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimized():
    """For a test that runs its programs for longer than it compiles them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
