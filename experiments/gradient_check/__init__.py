"""How to check a gradient, and what goes wrong when it is done by the book: five parts."""
