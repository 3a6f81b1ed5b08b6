"""How to search hyper-parameters, and what momentum, annealing and clipping are worth.

Run `python -m experiments.hyperparameters`, or `--help` for its options.
"""
