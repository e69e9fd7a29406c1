"""Codes that repeat earlier ones at length, as the rows of tokens that were never trained do: LZMA.

Where the same stretch of codes comes again, a dictionary coder says so in a few bits, whatever its
entropy. It is slow, and elsewhere longer than an entropy coder: only tried where blocks repeat.
"""

import functools
import lzma

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["decode", "encode", "repeats"]

_FILTER = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 22, "lc": 0, "lp": 0, "pb": 0}
_BLOCK = 32
_BUSY = 4  # zeros repeat in any pruned tensor: only blocks with so many other codes tell
_SHARE = 0.05


def repeats(flat: np.ndarray) -> bool:
    """Whether more than a twentieth of the blocks of codes `[N]` has been there before."""
    blocks = flat[: flat.size - flat.size % _BLOCK].reshape(-1, _BLOCK)
    busy = blocks[np.count_nonzero(blocks, axis=1) >= _BUSY]
    words = np.ascontiguousarray(busy).view(np.uint64)
    if not words.size:
        return False
    # A sum with odd factors, modulo 2**64: equal blocks for sure, others hardly ever.
    hashes = np.sort(words @ _odd_factors(words.shape[1]))  # many times as fast as np.unique
    distinct = 1 + np.count_nonzero(hashes[1:] != hashes[:-1])
    return bool(distinct < (1 - _SHARE) * hashes.size)


@functools.cache
def _odd_factors(count: int) -> np.ndarray:
    return 2 * np.random.default_rng(0).integers(1 << 63, size=count, dtype=np.uint64) + 1


def encode(flat: np.ndarray, alphabet: int, preset: int = 9 | lzma.PRESET_EXTREME) -> bytes:
    """Code symbols `[N]` below `alphabet` as a raw LZMA1 stream with its end marker."""
    coder = {**_FILTER, "preset": preset}
    data = flat.astype(_stored(alphabet), copy=False).tobytes()
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[coder])


def decode(data: bytes, count: int, alphabet: int, dtype: DTypeLike) -> np.ndarray:
    """Return the `count` symbols of a stream.

    Raises:
        ValueError: If the stream is not exactly one of so many symbols below `alphabet`.
    """
    stored = _stored(alphabet)
    unzip = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_FILTER])
    try:
        raw = unzip.decompress(data, count * stored.itemsize)
        rest = b"" if unzip.eof else unzip.decompress(b"", 1)  # reads the end marker
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"a symbol stream is no LZMA stream ({error})") from error
    whole = len(raw) == count * stored.itemsize and not rest and not unzip.unused_data
    if not (whole and unzip.eof):
        raise ValueError("a symbol stream does not end where its symbols do")
    symbols = np.frombuffer(raw, stored).astype(dtype)
    if symbols.max() >= alphabet:
        raise ValueError(f"symbol {symbols.max()} is outside of 0..{alphabet - 1}")
    return symbols


def _stored(alphabet: int) -> np.dtype:
    return np.dtype("u1" if alphabet <= 256 else "<u2")
