"""X-rays of deep models of Flax, Equinox and Haiku with default initializers, before and after.

`models` has the models and `measurement` the options and what is measured; `__main__` has the
report, the figure and the command.
"""
