"""The streams that were coded last: a file is weighed before it is saved, often several times."""

import hashlib
import threading

import numpy as np

__all__ = ["Recent", "digest"]


class Recent:
    """Keep streams by the digest of their codes, up to a number of bytes; the oldest go first."""

    def __init__(self, most: int) -> None:
        """Keep nothing yet, and at most so many bytes."""
        self._most = most
        self._bytes = 0
        self._streams: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        """Return the stream of this digest, None if it is not kept."""
        return self._streams.get(key)

    def add(self, key: bytes, stream: bytes) -> None:
        """Keep a stream."""
        with self._lock:
            if key not in self._streams and len(stream) <= self._most:
                self._streams[key] = stream
                self._bytes += len(stream)
                while self._bytes > self._most:
                    self._bytes -= len(self._streams.pop(next(iter(self._streams))))


def digest(codes: np.ndarray, alphabet: int, text: bool) -> bytes:
    """Return a digest of all that a stream depends on."""
    about = f"{codes.shape} {codes.dtype.str} {alphabet} {text} "
    hashed = hashlib.blake2b(about.encode(), digest_size=20)
    hashed.update(np.ascontiguousarray(codes).reshape(-1).view(np.uint8).data)
    return hashed.digest()
