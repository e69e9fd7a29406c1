"""Frequency tables: the entropy coder's model of the symbols, and its bytes.

A table of precision `bits` has an integer frequency per symbol. The frequencies sum to 2**bits. The
bytes of a table are:

    bits                0 to 24
    order + 16 * sparse order: 0 to 15, of the Exp-Golomb codes of frequencies; sparse: 0 or 1
    a bit string        most significant bit first, zero-padded, of Exp-Golomb codes:
                        last, of order 0: the last symbol that is present, 0 if that is symbol 0
                        dense: the frequency of each symbol 1..last
                        sparse: for each present symbol 1..last, the number of absent symbols
                        before it, of order 0, and its frequency minus 1

The frequency of symbol 0 is 2**bits minus the sum of the others. The Exp-Golomb code of order k of
a number v, with u = (v >> k) + 1 of n bits, is n - 1 zeros, u in n bits, and the k low bits of v.
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
"""Largest precision of a table, bits: constriction's fixed-point precision."""
_BATCH = 2048
"""Streams times precisions times symbols that one batch of numpy operations handles."""
_BATCH_PRECISIONS = 4
"""Precisions per batch of streams."""
_ORDERS = np.arange(16)


def best_table(counts: np.ndarray, max_bits: int = PRECISION) -> tuple[np.ndarray, bytes, float]:
    """Choose the table that minimizes the bytes of table and coded symbols together.

    A table of low precision is short; one of high precision makes the coded symbols short.

    Args:
        counts: int64 array `[alphabet]`, not all zero.
        max_bits: Largest precision of the table, bits.

    Returns:
        The frequencies `[alphabet]`, the bytes of the table, and the length of table and coded
        symbols together, bytes.

    Raises:
        ValueError: If more symbols are present than fit a table of `max_bits`.
    """
    return best_tables([counts], max_bits)[0]


def best_tables(
    counts: Sequence[np.ndarray], max_bits: int = PRECISION
) -> list[tuple[np.ndarray, bytes, float]]:
    """Choose the tables of several streams, see `best_table`.

    For streams of few symbols, numpy's call overhead dominates. Streams in which the same symbols
    are present are therefore handled in one batch.

    Args:
        counts: Counts of each stream, int64 arrays `[alphabet]`.
        max_bits: Largest precision of a table, bits.

    Returns:
        The result of `best_table` for each stream.
    """
    present = [np.flatnonzero(stream) for stream in counts]
    streams_of_symbols: dict[bytes, list[int]] = {}
    for i, symbols in enumerate(present):
        streams_of_symbols.setdefault(symbols.tobytes(), []).append(i)
    tables: dict[int, tuple[np.ndarray, bytes, float]] = {}
    for streams in streams_of_symbols.values():
        symbols = present[streams[0]]
        step = max(1, _BATCH // (_BATCH_PRECISIONS * symbols.size))
        for start in range(0, len(streams), step):
            batch = streams[start : start + step]
            rows = np.stack([counts[i][symbols] for i in batch])
            best = _best_tables_of(symbols, rows, max_bits)
            for i, (frequencies, table, size) in zip(batch, best, strict=True):
                all_frequencies = np.zeros_like(counts[i])
                all_frequencies[symbols] = frequencies
                tables[i] = all_frequencies, table, size
    return [tables[i] for i in range(len(counts))]


def _best_tables_of(
    present: np.ndarray, counts: np.ndarray, max_bits: int
) -> list[tuple[np.ndarray, bytes, float]]:
    """Choose the tables of streams with the same present symbols.

    Precisions are tried in ascending order until the size grows clearly; beyond, it only grows.

    Args:
        present: Present symbols, ascending, `[n]`.
        counts: Counts of these symbols, all above 0, `[T, n]`.
        max_bits: Largest precision of a table, bits.

    Returns:
        Frequencies `[n]`, bytes of the table and total size in bytes, for each stream.
    """
    min_bits = (present.size - 1).bit_length()
    if min_bits > max_bits:
        raise ValueError(f"{present.size} symbols do not fit a table of {max_bits} bits")
    max_bits = min_bits if present.size == 1 else max_bits
    rows, best_sizes = np.arange(len(counts)), np.full(len(counts), np.inf)
    active = np.ones((len(counts), 1), bool)
    frequencies, forms = np.zeros_like(counts), np.zeros((len(counts), 2), np.int64)
    step = max(1, _BATCH // counts.size)
    for start in range(min_bits, max_bits + 1, step):
        precisions = np.arange(start, min(start + step, max_bits + 1))
        candidates = _quantize(counts, precisions)
        table_bytes, orders, sparse = (
            x.reshape(candidates.shape[:2])
            for x in _cheapest(present, candidates.reshape(-1, present.size), int(precisions[-1]))
        )
        lengths = precisions[:, None] - np.log2(candidates)
        sizes = table_bytes + (counts[:, None] * lengths).sum(-1) / 8
        previous = np.concatenate([best_sizes[:, None], sizes[:, :-1]], 1)
        previous = np.minimum.accumulate(previous, 1)
        active = active & np.logical_and.accumulate(sizes <= 1.01 * previous + 8, 1)
        sizes = np.where(active, sizes, np.inf)
        smallest = sizes.argmin(1)
        is_better = sizes[rows, smallest] < best_sizes
        chosen = rows[is_better], smallest[is_better]
        best_sizes[is_better], frequencies[is_better] = sizes[chosen], candidates[chosen]
        forms[is_better] = np.stack([orders[chosen], sparse[chosen]], 1)
        active = active[:, -1:]
        if not active.any():
            break
    return [
        (frequencies[t], _write(present, frequencies[t], *forms[t].tolist()), float(best_sizes[t]))
        for t in rows.tolist()
    ]


def quantize(counts: np.ndarray, bits: int) -> np.ndarray:
    """Scale counts to frequencies that sum to 2**bits, at least 1 if present.

    Each present symbol gets 1 and a share of the rest by largest remainder. The arithmetic is in
    integers, so the result is the same on every platform (exact in int64 below 2**39 symbols).

    Args:
        counts: int64 array `[alphabet]`, not all zero.
        bits: Precision of the table, bits.

    Returns:
        The frequencies, int64 array `[alphabet]`.
    """
    present = np.flatnonzero(counts)
    frequencies = np.zeros_like(counts)
    frequencies[present] = _quantize(counts[None, present], np.array([bits]))[0, 0]
    return frequencies


def _quantize(counts: np.ndarray, precisions: np.ndarray) -> np.ndarray:
    """Quantize counts `[T, n]`, all above 0, at precisions `[P]`, to `[T, P, n]`."""
    symbols = counts.shape[1]
    rest = (1 << precisions.astype(np.int64)) - symbols
    totals = counts.sum(1)[:, None, None]
    share, remainder = np.divmod(counts[:, None] * rest[:, None], totals)
    undistributed = rest - share.sum(-1)
    order = np.argsort(-remainder, axis=-1, kind="stable")
    gets_one_more = np.arange(symbols) < undistributed[..., None]
    np.put_along_axis(share, order, np.take_along_axis(share, order, -1) + gets_one_more, -1)
    return share + 1


def write_table(frequencies: np.ndarray) -> bytes:
    """Return the bytes of a table of frequencies `[alphabet]` that sum to 2**bits."""
    present = np.flatnonzero(frequencies)
    _, orders, sparses = _cheapest(present, frequencies[present][None])
    return _write(present, frequencies[present], int(orders[0]), bool(sparses[0]))


def _write(present: np.ndarray, frequencies: np.ndarray, order: int, sparse: bool) -> bytes:
    """Return the bytes of a table of present symbols with frequencies `[n]`."""
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
    """Return the numbers that a table writes, of symbols after symbol 0.

    Args:
        present: Present symbols, ascending, `[n]`.
        frequencies: Frequencies of these symbols, above 0, `[..., n]`.
        sparse: True for the sparse form, False for the dense form.

    Returns:
        Gaps `[m]`, the number of absent symbols before each entry, and values `[..., m]`, the
        numbers that represent frequencies.
    """
    written = present > 0
    if sparse:
        symbols = present[written]
        return np.diff(symbols, prepend=0) - 1, frequencies[..., written] - 1
    values = np.zeros((*frequencies.shape[:-1], int(present[-1])), np.int64)
    values[..., present[written] - 1] = frequencies[..., written]
    return np.zeros(values.shape[-1], np.int64), values


def _cheapest(
    present: np.ndarray, frequencies: np.ndarray, max_bits: int = PRECISION
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the length, order and form of the shortest table of each row.

    Args:
        present: Present symbols, ascending, `[n]`.
        frequencies: Frequencies of these symbols, above 0, `[rows, n]`.
        max_bits: Bits of the largest frequency, which bounds the useful orders.

    Returns:
        Three arrays `[rows]`: bytes of the table, order, and True for the sparse form.
    """
    zero = np.zeros(1, np.int64)
    last = _golomb_bits(present[-1:], zero)
    lengths = []
    for sparse in (False, True):
        gaps, values = _entries(present, frequencies, sparse)
        fixed = last + (_golomb_bits(gaps, zero) if sparse else 0)
        lengths.append(fixed + _golomb_bits(values, _ORDERS[: max_bits + 2]))
    # Ties go to the lowest order, then to the dense form. A change would change the bytes of files.
    sizes = 2 + (np.stack([bits.min(-1) for bits in lengths]) + 7) // 8
    orders = np.stack([bits.argmin(-1) for bits in lengths])
    sparse = (sizes[1] < sizes[0]) | ((sizes[1] == sizes[0]) & (orders[1] < orders[0]))
    rows = np.arange(len(frequencies))
    form = sparse.astype(np.int64)
    return sizes[form, rows], orders[form, rows], sparse


def _golomb_bits(values: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Return the bits `[..., orders]` of the Exp-Golomb codes of values `[..., n]`."""
    exponents = np.frexp((values[..., None, :] >> orders[:, None]) + 1.0)[1]
    return np.asarray((2 * exponents - 1).sum(-1) + orders * values.shape[-1])


def _golomb(value: int, order: int) -> str:
    head = bin((value >> order) + 1)[2:]
    low = f"{value & ((1 << order) - 1):0{order}b}" if order else ""
    return "0" * (len(head) - 1) + head + low


def read_table(data: bytes, start: int, alphabet: int) -> tuple[np.ndarray, int]:
    """Read a table from untrusted bytes.

    Args:
        data: Bytes with a table in them.
        start: Position of the table in `data`.
        alphabet: Number of different symbols, 1 to 65,536.

    Returns:
        The frequencies, an int64 array `[alphabet]` whose sum is a power of two, and the position
        after the table.

    Raises:
        ValueError: If there is no such table at `start`.
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
    position = 0

    def read_golomb(order: int) -> int:
        nonlocal position
        first_one = text.find("1", position, position + PRECISION + 1)
        end = 2 * first_one - position + 1 + order
        if first_one < 0 or end > len(text):
            raise ValueError("a frequency table is cut short or invalid")
        head, low = text[first_one : end - order], text[end - order : end]
        position = end
        return (int(head, 2) - 1 << order) + int(low or "0", 2)

    last, symbol, total = read_golomb(0), 0, 0
    if last >= alphabet:
        raise ValueError(f"a frequency table of {last} symbols for {alphabet}")
    frequencies = np.zeros(alphabet, np.int64)
    while symbol < last:
        symbol += 1 + (read_golomb(0) if sparse else 0)
        if symbol > last:
            raise ValueError("a frequency table runs past its end")
        frequencies[symbol] = read_golomb(order) + sparse
        total += int(frequencies[symbol])
        if total > 1 << bits:
            raise ValueError(f"a frequency table does not fit {bits} bits")
    if "1" in text[position : position + -position % 8]:
        raise ValueError("bits are left over after a frequency table")
    frequencies[0] = (1 << bits) - total
    if not frequencies[last]:
        raise ValueError("a frequency table ends with an absent symbol")
    return frequencies, start + 2 + (position + 7) // 8


def write_numbers(numbers: np.ndarray | list[int]) -> bytes:
    """Return integers below 2**28 in LEB128.

    A byte has seven bits, the lowest first; its top bit is set if more bytes of the number follow.
    """
    septets = np.asarray(numbers, np.int64)[:, None] >> np.arange(0, 28, 7)
    is_used = (septets > 0) | (np.arange(4) == 0)
    continues = np.append(is_used[:, 1:], np.zeros((len(is_used), 1), bool), 1)
    return ((septets & 127) | continues * 128)[is_used].astype(np.uint8).tobytes()


def read_numbers(data: bytes, start: int, count: int) -> tuple[np.ndarray, int]:
    """Read LEB128 numbers from untrusted bytes.

    Args:
        data: Bytes with numbers in them.
        start: Position of the first number.
        count: Number of numbers.

    Returns:
        The numbers, an int64 array `[count]`, and the position after them.

    Raises:
        ValueError: If there are fewer numbers, or one has more than four bytes.
    """
    if not count:
        return np.zeros(0, np.int64), start
    raw = np.frombuffer(data, np.uint8)[start : start + 4 * count]
    ends = np.flatnonzero(raw < 128)[:count]
    lengths = np.diff(ends, prepend=-1)
    if ends.size < count or (lengths > 4).any():
        raise ValueError("a list of numbers is cut short or invalid")
    starts = ends - lengths + 1
    raw = raw[: ends[-1] + 1].astype(np.int64)
    shifts = 7 * (np.arange(raw.size) - np.repeat(starts, lengths))
    return np.add.reduceat((raw & 127) << shifts, starts), start + int(ends[-1]) + 1
