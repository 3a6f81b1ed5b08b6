"""One question a file; each runs as `python -m experiments.NAME`."""
