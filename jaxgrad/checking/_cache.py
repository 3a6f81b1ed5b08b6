"""The compile cache: what one check of a function compiled, the next check of it reuses."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

FUNCTIONS = 64
"""For this many functions, the most recently used ones, compiled programs are stored."""


def reuse(key: Hashable, build: Callable[[], T]) -> T:
    """Return `build()`, or what an earlier call with an equal key has built.

    Args:
      key: everything that the result depends on, compared by equality. A key that cannot be hashed
        is never looked up again, so its result is not stored.
      build: called without arguments.
    """
    try:
        stored = _stored(key)
    except TypeError:  # the key cannot be hashed
        return build()
    if not stored:
        stored.append(build())
    return stored[0]


@functools.lru_cache(maxsize=FUNCTIONS)
def _stored(key: Hashable) -> list[Any]:
    """Return the list that holds the result for `key`, empty at the first call."""
    # The only state in this package: `lru_cache` remembers the lists, `reuse` fills them.
    return []
