"""A cache of coded leaves, keyed by a digest of their content.

A search under a byte budget asks for the size of the file many times before `save` writes it.
Leaves that did not change in between are not coded again.
"""

import hashlib
import threading
from typing import Any

import numpy as np

__all__ = ["DigestCache", "digest"]


class DigestCache:
    """A thread-safe first-in, first-out cache of bounded size."""

    def __init__(self, max_bytes: int) -> None:
        """Create an empty cache of values that take at most `max_bytes` together."""
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: dict[Any, tuple[Any, int]] = {}
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        """Return the value of a key, None if the cache has no entry."""
        return self._entries.get(key, (None, 0))[0]

    def add(self, key: Any, value: Any, size: int) -> None:
        """Add a value of `size` bytes and evict the oldest entries beyond the bound."""
        with self._lock:
            if key not in self._entries and size <= self._max_bytes:
                self._entries[key] = value, size
                self._bytes += size
                while self._bytes > self._max_bytes:
                    self._bytes -= self._entries.pop(next(iter(self._entries)))[1]


def digest(value: Any) -> bytes:
    """Return a 20-byte digest of nested tuples and lists of arrays and scalars.

    Arrays are hashed with dtype and shape; other values by their `repr`.
    """
    state = hashlib.blake2b(digest_size=20)
    _update(state, value)
    return state.digest()


def _update(state: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        # `dtype.str` of the ml_dtypes is "<V1" or "<V2", which several share.
        dtype = value.dtype.name if value.dtype.kind == "V" else value.dtype.str
        state.update(f"[{dtype} {value.shape}".encode())
        state.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    elif isinstance(value, tuple | list):
        state.update(f"({len(value)}".encode())
        for item in value:
            _update(state, item)
    else:
        state.update(f"{value!r};".encode())
