"""Streams of symbols to bytes and back, within a few bytes of the order-0 entropy.

One call codes one tensor. The bytes are

    empty                              no symbols
    [width + 128] packed bits          fixed-length codes, most significant bit first, zero-padded
    [bits] table words                 asymmetric numeral systems (ANS), `bits` in 0..24

whichever is shortest. `table` holds the frequencies of the symbols 1, 2, ... as unsigned LEB128
numbers, the number of which comes first; a 0 says that the next number counts absent symbols to
skip. The frequencies of all symbols sum to 2**bits, so symbol 0 has what the table leaves over.
`bits` itself is chosen per tensor: coarse frequencies make a short table, fine ones short words.

For a reader in another language: scale the frequencies by 2**(24 - bits), so that they sum to
2**24, and decode with the standard range variant of ANS: a 64-bit state that starts at zero and
takes 32-bit little-endian words *from the end* of the stream (two to begin with) whenever it is
below 2**32; then, per symbol, q = state mod 2**24 selects the symbol with
cumulative[s] <= q < cumulative[s + 1], and state = frequency[s] * (state >> 24) + q -
cumulative[s]. Zero bytes at the end of the last word are not stored. After the last symbol the
state is zero and no word is left. Where only one symbol is present there are no words at all.
`tests/artifact/test_entropy.py` has this decoder in a dozen lines of Python.
"""

import math
from collections.abc import Iterator
from typing import Any

import constriction
import numpy as np
from numpy.typing import DTypeLike

# Compiled submodules, which cannot be imported from.
AnsCoder = constriction.stream.stack.AnsCoder
Categorical = constriction.stream.model.Categorical

__all__ = ["decode", "encode", "entropy_bits", "histogram"]

PRECISION = 24
"""constriction's fixed-point precision: its models' frequencies sum to 2**24."""
MAX_ALPHABET = 1 << 16
PACKED = 128
CHUNK = 1 << 20
"""Symbols per call of a vectorised step (a multiple of 8): bounds the memory beside the stream."""


def encode(symbols: np.ndarray, alphabet: int) -> bytes:
    """Code a stream of symbols, in bytes close to its order-0 entropy.

    Args:
        symbols: Unsigned integer array `[N]`, every symbol below `alphabet`.
        alphabet: The number of different symbols there can be, 1 to 65,536.

    Returns:
        The coded stream. It holds neither N nor the alphabet: `decode` must be told both.

    Raises:
        ValueError: If the symbols are not unsigned, not 1-D, or not all below `alphabet`.
    """
    if symbols.ndim != 1 or symbols.dtype.kind != "u":
        raise ValueError(f"symbols must be 1-D and unsigned, not {symbols.ndim}-D {symbols.dtype}")
    counts = histogram(symbols, alphabet)
    if not symbols.size:
        return b""
    frequencies, table, size = _best_table(counts)
    width = max(1, int(np.flatnonzero(counts)[-1]).bit_length())
    if 1 + math.ceil(symbols.size * width / 8) <= size:
        return bytes([PACKED + width]) + b"".join(
            _pack(symbols[part], width) for part in _chunks(symbols.size)
        )
    return table + _encode_ans(symbols, frequencies)


def decode(data: bytes, count: int, alphabet: int, dtype: DTypeLike) -> np.ndarray:
    """Return the symbols that `encode` coded.

    Safe on hostile bytes: ends after `count` symbols, and allocates `count` items of `dtype` and a
    bounded working space. A few bytes can stand for any number of symbols, so whoever takes
    `count` from a stranger has to bound it. A `count` that is too large is not always noticed:
    past its end an ANS stream goes on with the first symbol.

    Args:
        data: What `encode` returned.
        count: N, the number of symbols.
        alphabet: As given to `encode`.
        dtype: An unsigned integer dtype that can hold `alphabet - 1`.

    Returns:
        Array `[count]` of `dtype`, every symbol below `alphabet`.

    Raises:
        ValueError: If `data` is not exactly one stream of `count` such symbols.
    """
    _check_alphabet(alphabet)
    if np.iinfo(dtype).max < alphabet - 1:
        raise ValueError(f"symbols of an alphabet of {alphabet} do not fit in {np.dtype(dtype)}")
    if not count:
        if data:
            raise ValueError(f"{len(data)} bytes are left over after an empty symbol stream")
        return np.zeros(0, dtype)
    if not data:
        raise ValueError(f"the symbol stream is empty, {count} symbols were expected")
    if data[0] > PACKED:
        return _decode_packed(data[1:], data[0] - PACKED, count, alphabet, dtype)
    frequencies, words = _read_table(data, alphabet)
    return _decode_ans(words, frequencies, count, dtype)


def histogram(symbols: np.ndarray, alphabet: int) -> np.ndarray:
    """Count each symbol.

    Args:
        symbols: Unsigned integer array `[N]`.
        alphabet: The number of different symbols there can be, 1 to 65,536.

    Returns:
        int64 array `[alphabet]`, which sums to N.

    Raises:
        ValueError: If a symbol is not below `alphabet`.
    """
    _check_alphabet(alphabet)
    if symbols.size and symbols.max() >= alphabet:
        raise ValueError(f"symbol {symbols.max()} is outside of the alphabet 0..{alphabet - 1}")
    counts = np.zeros(alphabet, np.int64)
    for part in _chunks(symbols.size):
        counts += np.bincount(symbols[part], minlength=alphabet)
    return counts


def entropy_bits(counts: np.ndarray) -> float:
    """Return the order-0 entropy N * H of a stream with these symbol counts, in bits."""
    present = counts[counts > 0]
    return float(present @ np.log2(present.sum() / present)) if present.size > 1 else 0.0


def _check_alphabet(alphabet: int) -> None:
    if not 1 <= alphabet <= MAX_ALPHABET:
        raise ValueError(f"the alphabet must have 1 to {MAX_ALPHABET} symbols, not {alphabet}")


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


# The frequency table.


def _best_table(counts: np.ndarray) -> tuple[np.ndarray, bytes, float]:
    """Return the frequencies that make table and words together shortest, and that length."""
    present = np.flatnonzero(counts)
    best: tuple[float, np.ndarray, bytes] | None = None
    for bits in range((present.size - 1).bit_length(), PRECISION + 1):
        frequencies = _quantize(counts, bits)
        table = _write_table(frequencies, bits)
        words = counts[present] @ (bits - np.log2(frequencies[present])) / 8
        if best is None or len(table) + words < best[0]:
            best = (len(table) + words, frequencies << (PRECISION - bits), table)
        if present.size == 1:
            break
    assert best is not None
    return best[1], best[2], best[0]


def _quantize(counts: np.ndarray, bits: int) -> np.ndarray:
    """Scale counts to integers that sum to 2**bits, at least 1 where a symbol is present.

    Each present symbol gets 1 and a share of the rest by largest remainder. Integers only, so the
    result is the same everywhere (and exact in int64 below 2**39 symbols).
    """
    present = np.flatnonzero(counts)
    share, remainder = np.divmod(
        counts[present] * ((1 << bits) - present.size), counts[present].sum()
    )
    left = (1 << bits) - present.size - int(share.sum())
    share[np.argsort(-remainder, kind="stable")[:left]] += 1
    frequencies = np.zeros_like(counts)
    frequencies[present] = 1 + share
    return frequencies


def _write_table(frequencies: np.ndarray, bits: int) -> bytes:
    symbols = np.flatnonzero(frequencies[1:])
    absent = np.diff(symbols, prepend=-1) - 1
    # Three numbers for each symbol, of which the first two are only there after a gap.
    numbers = np.stack([np.zeros_like(absent), absent, frequencies[1:][symbols]], 1)
    used = np.stack([absent > 0, absent > 0, np.ones(absent.shape, bool)], 1)
    numbers = np.append(int(used.sum()), numbers[used])
    septets = numbers[:, None] >> np.arange(0, 28, 7)
    used = (septets > 0) | (np.arange(4) == 0)
    more = np.append(used[:, 1:], np.zeros((len(used), 1), bool), 1)
    return bytes([bits]) + ((septets & 127) | more * 128)[used].astype(np.uint8).tobytes()


def _read_table(data: bytes, alphabet: int) -> tuple[np.ndarray, bytes]:
    """Return the frequencies [alphabet], which sum to 2**24, and what follows the table."""
    bits = data[0]
    if bits > PRECISION:
        raise ValueError(f"unknown coding method {bits} of a symbol stream")
    head, start = _read_numbers(data, 1, 1)
    if head[0] > 3 * alphabet:
        raise ValueError(f"a frequency table of {head[0]} numbers for {alphabet} symbols")
    numbers, end = _read_numbers(data, start, int(head[0]))
    marker = numbers == 0
    skip = np.append(False, marker)[:-1]
    if marker[-1:].any() or (marker & skip).any():
        raise ValueError("the frequency table has a gap of no symbols")
    symbols = np.cumsum(np.where(skip, numbers, ~marker))[~marker & ~skip]
    rest = (1 << bits) - int(numbers[~marker & ~skip].sum())
    if rest < 0 or (symbols.size and symbols[-1] >= alphabet):
        raise ValueError(f"the frequency table does not fit {bits} bits and {alphabet} symbols")
    frequencies = np.zeros(alphabet, np.int64)
    frequencies[symbols] = numbers[~marker & ~skip]
    frequencies[0] = rest
    return frequencies << (PRECISION - bits), data[end:]


def _read_numbers(data: bytes, start: int, count: int) -> tuple[np.ndarray, int]:
    """Return `count` LEB128 numbers that start at `start`, and where they end."""
    raw = np.frombuffer(data, np.uint8, min(len(data) - start, 4 * count), start)
    ends = np.flatnonzero(raw < 128)[:count]
    lengths = np.diff(ends, prepend=-1)
    if ends.size < count or (lengths > 4).any():
        raise ValueError("the frequency table is cut short or not a table")
    if not count:
        return np.zeros(0, np.int64), start
    starts = ends - lengths + 1
    raw = raw[: ends[-1] + 1].astype(np.int64)
    shifts = 7 * (np.arange(raw.size) - np.repeat(starts, lengths))
    return np.add.reduceat((raw & 127) << shifts, starts), start + int(ends[-1]) + 1


# Asymmetric numeral systems.


def _model(frequencies: np.ndarray) -> Any:
    """Return the model whose fixed-point frequencies are exactly these, [n], n >= 2.

    Without `perfect`, constriction gives each of n symbols 1 of 2**24 and divides the rest in
    proportion to the probabilities, rounding down. Handing it frequency - 1, which sum to
    2**24 - n, makes the scale exactly 1, and integers below 2**24 are exact in any float: nothing
    is rounded, so nothing depends on the platform's arithmetic or on constriction's search.
    """
    return Categorical((frequencies - 1).astype(np.float64), lazy=False, perfect=False)


def _encode_ans(symbols: np.ndarray, frequencies: np.ndarray) -> bytes:
    present = np.flatnonzero(frequencies)
    if present.size == 1:
        return b""
    model, coder = _model(frequencies[present]), AnsCoder()
    rank = np.zeros(frequencies.size, np.int32)
    rank[present] = np.arange(present.size)
    # ANS is a stack: what is coded last is decoded first.
    for part in reversed(list(_chunks(symbols.size))):
        coder.encode_reverse(rank[symbols[part]], model)
    return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


def _decode_ans(words: bytes, frequencies: np.ndarray, count: int, dtype: DTypeLike) -> np.ndarray:
    present = np.flatnonzero(frequencies)
    if words and (present.size == 1 or words[-1] == 0):
        raise ValueError("bytes are left over after a symbol stream")
    out = np.zeros(count, dtype)
    if present.size == 1:
        if present[0]:
            out[:] = present[0]
        return out
    coder = AnsCoder(np.frombuffer(words + b"\0" * (-len(words) % 4), "<u4").astype(np.uint32))
    model, symbols = _model(frequencies[present]), present.astype(dtype)
    for part in _chunks(count):
        out[part] = symbols[coder.decode(model, part.stop - part.start)]
    if not coder.is_empty():
        raise ValueError("a symbol stream does not end where its symbols do")
    return out


# Fixed-length codes.


def _pack(symbols: np.ndarray, width: int) -> bytes:
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint16)
    return np.packbits(((symbols[:, None] >> shifts) & 1).astype(np.uint8)).tobytes()


def _decode_packed(
    data: bytes, width: int, count: int, alphabet: int, dtype: DTypeLike
) -> np.ndarray:
    if width > 16 or len(data) != math.ceil(count * width / 8):
        raise ValueError(f"{len(data)} bytes do not hold {count} symbols of {width} bits")
    if data[-1] & ((1 << (-count * width % 8)) - 1):
        raise ValueError("bits are left over after a packed symbol stream")
    raw = np.frombuffer(data, np.uint8)
    weights = 1 << np.arange(width - 1, -1, -1, dtype=np.uint32)
    out = np.zeros(count, dtype)
    for part in _chunks(count):
        size = part.stop - part.start
        octets = raw[part.start * width // 8 :][: math.ceil(size * width / 8)]
        symbols = np.unpackbits(octets, count=size * width).reshape(size, width) @ weights
        if symbols.max() >= alphabet:
            raise ValueError(f"symbol {symbols.max()} is outside of 0..{alphabet - 1}")
        out[part] = symbols
    return out
