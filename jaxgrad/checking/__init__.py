"""Is a gradient right?"""

from jaxgrad.checking import differences

__all__ = ["differences"]
