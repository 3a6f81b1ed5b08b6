"""One question a file; each runs as `python -m experiments.NAME`."""

import importlib.util
import signal
import sys

# Python looks for the module of `python -m experiments.name`, whose imports take seconds. An
# exception within an extension that is being loaded would crash or be lost, so that Ctrl-C ends the
# process without one until the experiment begins.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

PACKAGES = ("jax", "matplotlib", "sklearn", "tqdm", "tyro", "xarray", "zarr")
if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
    remedy = "run python -m pip install -e '.[experiments]'"
    raise ImportError(f"experiments need {', '.join(missing)}; {remedy} in this repository")
