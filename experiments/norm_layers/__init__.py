"""What batch and layer norm do to gradients: at the start, and while a deep network trains."""
