"""What was coded last: a file is weighed before it is saved, often several times."""

import hashlib
import threading
from typing import Any

import numpy as np

__all__ = ["Recent", "digest"]


class Recent:
    """Keep values by digest, up to a number of bytes together; the oldest go first."""

    def __init__(self, most: int) -> None:
        """Keep nothing yet, and at most so many bytes."""
        self._most = most
        self._bytes = 0
        self._kept: dict[Any, tuple[Any, int]] = {}
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        """Return what is kept for a key, None if nothing is."""
        return self._kept.get(key, (None, 0))[0]

    def add(self, key: Any, value: Any, size: int) -> None:
        """Keep a value of so many bytes."""
        with self._lock:
            if key not in self._kept and size <= self._most:
                self._kept[key] = value, size
                self._bytes += size
                while self._bytes > self._most:
                    self._bytes -= self._kept.pop(next(iter(self._kept)))[1]


def digest(value: Any) -> bytes:
    """Return a digest of tuples and lists of arrays and of what `repr` tells apart."""
    hashed = hashlib.blake2b(digest_size=20)
    _update(hashed, value)
    return hashed.digest()


def _update(hashed: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        # numpy knows the dtypes of others by their size alone
        dtype = value.dtype.name if value.dtype.kind == "V" else value.dtype.str
        hashed.update(f"[{dtype} {value.shape}".encode())
        hashed.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    elif isinstance(value, tuple | list):
        hashed.update(f"({len(value)}".encode())
        for each in value:
            _update(hashed, each)
    else:
        hashed.update(f"{value!r};".encode())
