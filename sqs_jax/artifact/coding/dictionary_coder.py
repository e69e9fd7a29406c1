"""Dictionary coding with LZMA, for codes with long repeats.

The embedding rows of tokens that never occurred in training are equal, for example. A dictionary
coder takes a few bits for a repeated sequence, whatever its entropy. It is slow, and longer than an
entropy coder for other codes, so it is tried only where blocks repeat.
"""

import functools
import lzma

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["decode", "encode", "has_repeats"]

_FILTER = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 22, "lc": 0, "lp": 0, "pb": 0}
_BLOCK = 32
_MIN_NONZERO = 4  # blocks of mostly zeros repeat in any pruned tensor, and do not count
_MIN_REPEATED = 0.05


def has_repeats(flat: np.ndarray) -> bool:
    """Return whether more than a twentieth of the blocks of codes `[N]` are repeated."""
    blocks = flat[: flat.size - flat.size % _BLOCK].reshape(-1, _BLOCK)
    blocks = blocks[np.count_nonzero(blocks, axis=1) >= _MIN_NONZERO]
    words = np.ascontiguousarray(blocks).view(np.uint64)
    if not words.size:
        return False
    # The hash is a sum with odd factors modulo 2**64. Sorting hashes is many times as fast as
    # np.unique of the blocks.
    hashes = np.sort(words @ _odd_factors(words.shape[1]))
    distinct = 1 + np.count_nonzero(hashes[1:] != hashes[:-1])
    return bool(distinct < (1 - _MIN_REPEATED) * hashes.size)


@functools.cache
def _odd_factors(count: int) -> np.ndarray:
    return 2 * np.random.default_rng(0).integers(1 << 63, size=count, dtype=np.uint64) + 1


def encode(flat: np.ndarray, alphabet: int, preset: int = 9 | lzma.PRESET_EXTREME) -> bytes:
    """Code symbols `[N]` below `alphabet` as a raw LZMA1 stream with its end marker."""
    coder = {**_FILTER, "preset": preset}
    data = flat.astype(_stored(alphabet), copy=False).tobytes()
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[coder])


def decode(data: bytes, count: int, alphabet: int, dtype: DTypeLike) -> np.ndarray:
    """Decode a stream that `encode` coded.

    Args:
        data: Bytes of the stream.
        count: Number of symbols.
        alphabet: Number of different symbols, 1 to 65,536.
        dtype: Unsigned dtype of the result.

    Returns:
        The symbols, an array `[count]`.

    Raises:
        ValueError: If the stream does not have exactly `count` symbols, all below `alphabet`.
    """
    stored = _stored(alphabet)
    unzip = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_FILTER])
    try:
        raw = unzip.decompress(data, count * stored.itemsize)
        rest = b"" if unzip.eof else unzip.decompress(b"", 1)  # reads the end marker
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"a symbol stream is no LZMA stream ({error})") from error
    complete = len(raw) == count * stored.itemsize and not rest and not unzip.unused_data
    if not (complete and unzip.eof):
        raise ValueError("a symbol stream does not end where its symbols do")
    symbols = np.frombuffer(raw, stored).astype(dtype)
    if symbols.max() >= alphabet:
        raise ValueError(f"symbol {symbols.max()} is outside of 0..{alphabet - 1}")
    return symbols


def _stored(alphabet: int) -> np.dtype:
    return np.dtype("u1" if alphabet <= 256 else "<u2")
