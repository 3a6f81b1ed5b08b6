"""A training run misbehaves: does the diagnosis of its records name the cause, and at what cost?

Run `python -m experiments.diagnosis`, or `--help` for its options.
"""
