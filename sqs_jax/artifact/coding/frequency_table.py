"""Frequency tables: the coder's model of the symbols, and its bytes.

A table of `bits` gives every symbol an integer frequency; all of them sum to 2**bits. Its bytes:

    bits                0 to 24
    order + 16 * sparse order: 0 to 15, of the Exp-Golomb codes of frequencies; sparse: 0 or 1
    a bit string        most significant bit first, zero-padded, of Exp-Golomb codes:
                        last, of order 0: the last symbol that is present, 0 if that is symbol 0
                        dense: the frequency of each symbol 1..last
                        sparse: for each present symbol 1..last, the number of absent ones before
                        it, of order 0, and its frequency less 1

Symbol 0 has what the others leave over. The Exp-Golomb code of order k of a number v, with
u = (v >> k) + 1 of n bits, is n - 1 zeros, u in n bits, and the k low bits of v.
"""

from collections.abc import Sequence

import numpy as np

__all__ = [
    "PRECISION",
    "best_table",
    "best_tables",
    "quantize",
    "read_numbers",
    "read_table",
    "write_numbers",
    "write_table",
]

PRECISION = 24
"""The most bits of a table: constriction's fixed-point precision."""
_BATCH = 2048
"""Streams times precisions times symbols that are looked at together."""
_PRECISIONS = 4
"""Precisions that many streams try together."""
_ORDERS = np.arange(16)


def best_table(counts: np.ndarray, most: int = PRECISION) -> tuple[np.ndarray, bytes, float]:
    """Choose how fine a table is: coarse frequencies make it short, fine ones what it codes.

    Args:
        counts: int64 array `[alphabet]`, not all zero.
        most: The most bits it may have.

    Returns:
        The frequencies `[alphabet]`, the table's bytes, and the length of these and of the coded
        symbols together, in bytes.

    Raises:
        ValueError: If more symbols are present than fit a table of `most` bits.
    """
    return best_tables([counts], most)[0]


def best_tables(
    counts: Sequence[np.ndarray], most: int = PRECISION
) -> list[tuple[np.ndarray, bytes, float]]:
    """Choose the tables of several streams, see `best_table`.

    For few symbols nearly all the time is numpy's overhead: streams of which the same symbols are
    present are looked at together.
    """
    present = [np.flatnonzero(stream) for stream in counts]
    alike: dict[bytes, list[int]] = {}
    for i, symbols in enumerate(present):
        alike.setdefault(symbols.tobytes(), []).append(i)
    found: dict[int, tuple[np.ndarray, bytes, float]] = {}
    for numbers in alike.values():
        symbols = present[numbers[0]]
        step = max(1, _BATCH // (_PRECISIONS * symbols.size))
        for start in range(0, len(numbers), step):
            chunk = numbers[start : start + step]
            rows = np.stack([counts[i][symbols] for i in chunk])
            for i, (frequencies, table, size) in zip(
                chunk, _best(symbols, rows, most), strict=True
            ):
                whole = np.zeros_like(counts[i])
                whole[symbols] = frequencies
                found[i] = whole, table, size
    return [found[i] for i in range(len(counts))]


def _best(
    present: np.ndarray, counts: np.ndarray, most: int
) -> list[tuple[np.ndarray, bytes, float]]:
    """Do what `best_table` says for streams with the same symbols, counts and frequencies `[T, n]`.

    Finer tables are tried until they are clearly longer: from there on they only get longer.
    """
    least = (present.size - 1).bit_length()
    if least > most:
        raise ValueError(f"{present.size} symbols do not fit a table of {most} bits")
    most = least if present.size == 1 else most
    every, best = np.arange(len(counts)), np.full(len(counts), np.inf)
    going = np.ones((len(counts), 1), bool)
    frequencies, forms = np.zeros_like(counts), np.zeros((len(counts), 2), np.int64)
    step = max(1, _BATCH // counts.size)
    for start in range(least, most + 1, step):
        precisions = np.arange(start, min(start + step, most + 1))
        tried = _quantize(counts, precisions)
        tables, orders, sparse = (
            x.reshape(tried.shape[:2])
            for x in _cheapest(present, tried.reshape(-1, present.size), int(precisions[-1]))
        )
        lengths = precisions[:, None] - np.log2(tried)
        sizes = tables + (counts[:, None] * lengths).sum(-1) / 8
        before = np.minimum.accumulate(np.concatenate([best[:, None], sizes[:, :-1]], 1), 1)
        going = going & np.logical_and.accumulate(sizes <= 1.01 * before + 8, 1)
        sizes = np.where(going, sizes, np.inf)
        finest = sizes.argmin(1)
        better = sizes[every, finest] < best
        chosen = every[better], finest[better]
        best[better], frequencies[better] = sizes[chosen], tried[chosen]
        forms[better] = np.stack([orders[chosen], sparse[chosen]], 1)
        going = going[:, -1:]
        if not going.any():
            break
    return [
        (frequencies[t], _written(present, frequencies[t], *forms[t].tolist()), float(best[t]))
        for t in every.tolist()
    ]


def quantize(counts: np.ndarray, bits: int) -> np.ndarray:
    """Scale counts to integers that sum to 2**bits, at least 1 where a symbol is present.

    Each present symbol gets 1 and a share of the rest by largest remainder. Integers only, so the
    result is the same everywhere (and exact in int64 below 2**39 symbols).
    """
    present = np.flatnonzero(counts)
    frequencies = np.zeros_like(counts)
    frequencies[present] = _quantize(counts[None, present], np.array([bits]))[0, 0]
    return frequencies


def _quantize(counts: np.ndarray, precisions: np.ndarray) -> np.ndarray:
    """Return `quantize` of counts `[T, n]`, all above 0, for numbers of bits `[P]`, `[T, P, n]`."""
    symbols = counts.shape[1]
    rest = (1 << precisions.astype(np.int64)) - symbols
    totals = counts.sum(1)[:, None, None]
    share, remainder = np.divmod(counts[:, None] * rest[:, None], totals)
    left = rest - share.sum(-1)
    order = np.argsort(-remainder, axis=-1, kind="stable")
    more = np.arange(symbols) < left[..., None]
    np.put_along_axis(share, order, np.take_along_axis(share, order, -1) + more, -1)
    return share + 1


def write_table(frequencies: np.ndarray) -> bytes:
    """Write frequencies `[alphabet]` whose sum is a power of two."""
    present = np.flatnonzero(frequencies)
    _, orders, sparses = _cheapest(present, frequencies[present][None])
    return _written(present, frequencies[present], int(orders[0]), bool(sparses[0]))


def _written(present: np.ndarray, frequencies: np.ndarray, order: int, sparse: bool) -> bytes:
    """Write the frequencies `[n]` of the symbols that are present in a form."""
    bits = int(frequencies.sum()).bit_length() - 1
    gaps, values = _entries(present, frequencies, sparse)
    codes = [_golomb(int(present[-1]), 0)]
    for gap, value in zip(gaps.tolist(), values.tolist(), strict=True):
        codes += [_golomb(gap, 0)] if sparse else []
        codes.append(_golomb(value, order))
    text = "".join(codes)
    text += "0" * (-len(text) % 8)
    return bytes([bits, order + 16 * sparse]) + int(text, 2).to_bytes(len(text) // 8, "big")


def _entries(
    present: np.ndarray, frequencies: np.ndarray, sparse: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the gaps before, and the numbers that stand for, the frequencies that are written.

    Args:
        present: Symbols that occur, ascending, `[n]`.
        frequencies: Theirs, above 0, `[..., n]`.
        sparse: In which of the two forms.
    """
    written = present > 0
    if sparse:
        symbols = present[written]
        return np.diff(symbols, prepend=0) - 1, frequencies[..., written] - 1
    values = np.zeros((*frequencies.shape[:-1], int(present[-1])), np.int64)
    values[..., present[written] - 1] = frequencies[..., written]
    return np.zeros(values.shape[-1], np.int64), values


def _cheapest(
    present: np.ndarray, frequencies: np.ndarray, most: int = PRECISION
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the bytes, the order and the form of the shortest table of each row.

    Args:
        present: Symbols that occur, ascending, `[n]`.
        frequencies: Theirs, above 0, `[rows, n]`.
        most: Bits that no frequency exceeds: a higher order is no shorter than this one.

    Returns:
        Three arrays `[rows]`.
    """
    zero = np.zeros(1, np.int64)
    last = _golomb_bits(present[-1:], zero)
    lengths = []
    for sparse in (False, True):
        gaps, values = _entries(present, frequencies, sparse)
        fixed = last + (_golomb_bits(gaps, zero) if sparse else 0)
        lengths.append(fixed + _golomb_bits(values, _ORDERS[: most + 2]))
    # Of equally short ones the dense form of the lowest order, as ever: files stay the same.
    sizes = 2 + (np.stack([bits.min(-1) for bits in lengths]) + 7) // 8
    orders = np.stack([bits.argmin(-1) for bits in lengths])
    sparse = (sizes[1] < sizes[0]) | ((sizes[1] == sizes[0]) & (orders[1] < orders[0]))
    rows = np.arange(len(frequencies))
    form = sparse.astype(np.int64)
    return sizes[form, rows], orders[form, rows], sparse


def _golomb_bits(values: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Return the length of the Exp-Golomb codes of numbers `[..., n]`, `[..., orders]`."""
    exponents = np.frexp((values[..., None, :] >> orders[:, None]) + 1.0)[1]
    return np.asarray((2 * exponents - 1).sum(-1) + orders * values.shape[-1])


def _golomb(value: int, order: int) -> str:
    head = bin((value >> order) + 1)[2:]
    low = f"{value & ((1 << order) - 1):0{order}b}" if order else ""
    return "0" * (len(head) - 1) + head + low


def read_table(data: bytes, start: int, alphabet: int) -> tuple[np.ndarray, int]:
    """Read a table.

    Args:
        data: Bytes that are not to be trusted.
        start: Where in them the table begins.
        alphabet: The number of different symbols there can be.

    Returns:
        The frequencies, int64 array `[alphabet]` whose sum is a power of two, and where the table
        ends.

    Raises:
        ValueError: If this is no such table.
    """
    if len(data) < start + 3:
        raise ValueError("a frequency table is cut short")
    bits, form = data[start], data[start + 1]
    if bits > PRECISION or form > 31:
        raise ValueError(f"unknown form {form} of a frequency table of {bits} bits")
    order, sparse = form % 16, form >= 16
    # A code has at most 2 * 25 + 15 bits, and a symbol at most two codes.
    raw = np.frombuffer(data, np.uint8)[start + 2 : start + 2 + 17 * (alphabet + 1)]
    text = (np.unpackbits(raw) + ord("0")).tobytes().decode()
    at = 0

    def number(order: int) -> int:
        nonlocal at
        one = text.find("1", at, at + PRECISION + 1)
        end = 2 * one - at + 1 + order
        if one < 0 or end > len(text):
            raise ValueError("a frequency table is cut short or none")
        head, low = text[one : end - order], text[end - order : end]
        at = end
        return (int(head, 2) - 1 << order) + int(low or "0", 2)

    last, symbol, total = number(0), 0, 0
    if last >= alphabet:
        raise ValueError(f"a frequency table of {last} symbols for {alphabet}")
    frequencies = np.zeros(alphabet, np.int64)
    while symbol < last:
        symbol += 1 + (number(0) if sparse else 0)
        if symbol > last:
            raise ValueError("a frequency table runs past its end")
        frequencies[symbol] = number(order) + sparse
        total += int(frequencies[symbol])
        if total > 1 << bits:
            raise ValueError(f"a frequency table does not fit {bits} bits")
    if "1" in text[at : at + -at % 8]:
        raise ValueError("bits are left over after a frequency table")
    frequencies[0] = (1 << bits) - total
    if not frequencies[last]:
        raise ValueError("a frequency table ends with an absent symbol")
    return frequencies, start + 2 + (at + 7) // 8


def write_numbers(numbers: np.ndarray | list[int]) -> bytes:
    """Write integers below 2**28 as LEB128: seven bits a byte, lowest first, top bit = more."""
    septets = np.asarray(numbers, np.int64)[:, None] >> np.arange(0, 28, 7)
    used = (septets > 0) | (np.arange(4) == 0)
    more = np.append(used[:, 1:], np.zeros((len(used), 1), bool), 1)
    return ((septets & 127) | more * 128)[used].astype(np.uint8).tobytes()


def read_numbers(data: bytes, start: int, count: int) -> tuple[np.ndarray, int]:
    """Return `count` LEB128 numbers that start at `start`, and where they end.

    Raises:
        ValueError: If there are not as many.
    """
    if not count:
        return np.zeros(0, np.int64), start
    raw = np.frombuffer(data, np.uint8)[start : start + 4 * count]
    ends = np.flatnonzero(raw < 128)[:count]
    lengths = np.diff(ends, prepend=-1)
    if ends.size < count or (lengths > 4).any():
        raise ValueError("a list of numbers is cut short or none")
    starts = ends - lengths + 1
    raw = raw[: ends[-1] + 1].astype(np.int64)
    shifts = 7 * (np.arange(raw.size) - np.repeat(starts, lengths))
    return np.add.reduceat((raw & 127) << shifts, starts), start + int(ends[-1]) + 1
