"""What does each way to regularize do to dev error, how far from train error, and to weights?

Run `python -m experiments.regularization`, or `--help` for its options.
"""
