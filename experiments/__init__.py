"""One question a file; each runs as `python -m experiments.NAME`."""

import signal
import sys

# Python looks for the module of `python -m experiments.name`, whose imports take seconds. An
# exception within an extension that is being loaded would crash or be lost, so that Ctrl-C ends the
# process without one until the experiment begins.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
