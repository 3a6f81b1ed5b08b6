"""How to check a gradient, and what goes wrong when it is done by the book.

Run `python -m experiments.gradient_check`, or `--help` for its options. Each part is a file:
`steps`, `kinks`, `regularizer`, `dropout` and `training`.
"""
