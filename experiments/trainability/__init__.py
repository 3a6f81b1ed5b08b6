"""Which networks can be trained, over depth and weight variance, and did theory predict it?

Run `python -m experiments.trainability`, or `--help` for its options. The command continues a run
that was stopped.
"""
