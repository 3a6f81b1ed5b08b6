"""jaxgrad."""
