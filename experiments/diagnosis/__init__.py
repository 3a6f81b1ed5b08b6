"""Does the diagnosis of a training run name the planted fault, and what do its records cost?

Run `python -m experiments.diagnosis`, or `--help` for its options.
"""
