"""The documentation site; `python -m docs build` builds it."""
