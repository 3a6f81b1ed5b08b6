"""An atlas of the gradients of JAX's public functions: where they are wrong, NaN or lost.

`calls` has the tables of domains and arguments, `functions` accounts for every public function,
`records` searches one and stores its result, and `page` writes the report.
"""
