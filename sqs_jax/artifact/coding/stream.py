"""Symbol streams: codes of a tensor as bytes, at the order-0 entropy or below.

A stream has the shortest of these forms, which its first byte states:

    (no bytes)     no codes
    128 + width    fixed-length codes of `width` bits, most significant bit first, zero-padded
    0..24          ANS with one table; the byte is the first of the table, its precision in bits
    32             LZMA, for long repeats
    64, 65         ANS with a table per context; the steps are the trailing or leading axes

ANS streams are split into chunks of `CHUNK` codes. Chunks are decoded independently, so that
several processes can share the work, with an executor's `map`.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from sqs_jax.artifact.coding import ans, context_model, dictionary_coder
from sqs_jax.artifact.coding.frequency_table import (
    PRECISION,
    best_table,
    best_tables,
    read_numbers,
    read_table,
    write_numbers,
    write_table,
)

__all__ = ["CHUNK", "decode", "encode", "encode_all", "entropy_bits", "histogram", "repetitive"]

MAX_ALPHABET = 1 << 16
# First bytes of the forms.
PACKED = 128
LZMA = 32
CONTEXT = 64
CHUNK = 1 << 19
"""Codes per chunk of a stream, a multiple of 8; also bounds the working memory."""
_SAMPLES, _SAMPLE_SIZE = 4, 1 << 14

Map = Callable[..., Any]


def encode(codes: np.ndarray, alphabet: int, *, text: bool = False, map: Map = map) -> bytes:
    """Code the codes of a tensor at about their order-0 entropy or below.

    Args:
        codes: Unsigned integer array of any shape, every code below `alphabet`.
        alphabet: Number of different codes, 1 to 65,536.
        text: True to try the dictionary coder even if no long blocks repeat.
        map: Function like `map` that codes chunks in order, such as an executor's.

    Returns:
        The stream. It contains neither shape nor alphabet, which `decode` needs.

    Raises:
        ValueError: If the codes are not unsigned, or not all below `alphabet`.
    """
    return encode_all([(codes, alphabet, text)], map)[0]


def encode_all(streams: Sequence[tuple[np.ndarray, int, bool]], map: Map = map) -> list[bytes]:
    """Code the codes of many tensors, to the same bytes as `encode`.

    For small tensors this takes less time than `encode`.

    Args:
        streams: Arguments codes, alphabet and text of `encode` for each tensor.
        map: Function like `map`, as for `encode`.

    Returns:
        The stream of each tensor.

    Raises:
        ValueError: As `encode`.
    """
    for codes, _, _ in streams:
        if codes.dtype.kind != "u":
            raise ValueError(f"symbols must be unsigned integers, not {codes.dtype}")
    counts = [histogram(codes.reshape(-1), alphabet) for codes, alphabet, _ in streams]
    nonempty = [i for i, (codes, _, _) in enumerate(streams) if codes.size]
    nonempty_counts = [counts[i] for i in nonempty]
    try_contexts = context_model.worth_fitting([streams[i][0] for i in nonempty], nonempty_counts)
    data = [b""] * len(streams)
    for i, table, try_context in zip(
        nonempty, best_tables(nonempty_counts), try_contexts, strict=True
    ):
        codes, _, text = streams[i]
        data[i] = _encode(codes, text, counts[i], table, try_context, map)
    return data


def _encode(
    codes: np.ndarray,
    text: bool,
    counts: np.ndarray,
    one_table: tuple[np.ndarray, bytes, float],
    try_contexts: bool,
    map: Map,
) -> bytes:
    """Code a non-empty stream.

    Args:
        codes: Codes of the tensor.
        text: True to try the dictionary coder even if no long blocks repeat.
        counts: Count of each symbol, int64 array `[alphabet]`.
        one_table: Result of `best_table` for `counts`.
        try_contexts: False if a context model cannot be shorter than one table.
        map: Function like `map`, as for `encode`.
    """
    flat = codes.reshape(-1)
    frequencies, table, size = one_table
    if table[0] > PRECISION // 2 and np.count_nonzero(counts) <= ans.MAX_PAIRED_SYMBOLS:
        # A table of this precision can code symbols in pairs, in half the steps.
        coarse = best_table(counts, PRECISION // 2)
        if coarse[2] <= 1.0005 * size:
            frequencies, table, size = coarse
    present = np.flatnonzero(counts)
    width = max(1, int(present[-1]).bit_length())
    packed_size = 1 + math.ceil(flat.size * width / 8)
    data = None  # shortest stream of the forms that are coded to learn their length
    shortest = min(size, packed_size)
    if (
        try_contexts
        and present.size > 1
        and (fitted := context_model.fit(codes, counts)) is not None
    ):
        model, word_bytes = fitted
        header = _write_context(model)
        if len(header) + word_bytes < shortest:
            data = _encode_contexts(header, model, codes, map)
    if text or dictionary_coder.has_repeats(flat):
        shortest = min(shortest, len(data)) if data else shortest
        lzma_data = bytes([LZMA]) + dictionary_coder.encode(flat, counts.size)
        data = lzma_data if len(lzma_data) < shortest else data
    if data is not None and len(data) < min(size, packed_size):
        return data
    if packed_size <= size:
        return bytes([PACKED + width]) + b"".join(_pack(part, width) for part in _chunks(flat))
    starts = range(0, flat.size, CHUNK)
    jobs = [flat[start : start + CHUNK] for start in starts], [frequencies] * len(starts)
    return table + _join(list(map(_encode_static, *jobs)))


def decode(
    data: bytes, shape: tuple[int, ...], alphabet: int, dtype: DTypeLike, *, map: Map = map
) -> np.ndarray:
    """Decode a stream that `encode` coded.

    Untrusted bytes are safe: decoding ends after the codes of `shape`, and allocates these and a
    bounded working space. A few bytes can stand for any number of codes, so callers have to bound
    an untrusted `shape`. A wrong shape or missing bytes are not always detected, because past its
    end an ANS stream yields the first present code. The checksums of a file detect both.

    Args:
        data: Stream from `encode`.
        shape: Shape of the codes.
        alphabet: Number of different codes that was passed to `encode`.
        dtype: Unsigned integer dtype that represents `alphabet - 1`.
        map: Function like `map` that decodes chunks, as for `encode`.

    Returns:
        Array of this shape and dtype, every code below `alphabet`.

    Raises:
        ValueError: If `data` is not exactly one stream of such codes.
    """
    _check_alphabet(alphabet)
    count = math.prod(shape)
    if np.iinfo(dtype).max < alphabet - 1:
        raise ValueError(f"symbols of an alphabet of {alphabet} do not fit in {np.dtype(dtype)}")
    if not count:
        if data:
            raise ValueError(f"{len(data)} bytes are left over after an empty symbol stream")
        return np.zeros(shape, dtype)
    if not data:
        raise ValueError(f"the symbol stream is empty, {count} symbols were expected")
    if data[0] > PACKED:
        flat = _decode_packed(data[1:], data[0] - PACKED, count, alphabet, dtype)
    elif data[0] <= PRECISION:
        frequencies, end = read_table(data, 0, alphabet)
        sizes = [part.size for part in _chunks(np.empty(count, np.void))]
        words = _split(data, end, len(sizes))
        constants = [frequencies] * len(sizes), [np.dtype(dtype)] * len(sizes)
        flat = _concatenate(count, dtype, map(_decode_static, words, sizes, *constants))
    elif data[0] == LZMA:
        flat = dictionary_coder.decode(data[1:], count, alphabet, dtype)
    elif data[0] - CONTEXT in (0, 1):
        return _decode_contexts(data, shape, alphabet, dtype, map)
    else:
        raise ValueError(f"unknown coding method {data[0]} of a symbol stream")
    return flat.reshape(shape)


def repetitive(symbols: np.ndarray) -> bool:
    """Return whether the dictionary coder is likely to beat an entropy coder.

    Args:
        symbols: uint8 array of any shape.

    Returns:
        True up to 64 KiB, for which the dictionary coder takes 20 ms. For more, True if it codes
        four samples of 16 KiB below their order-0 entropy.
    """
    flat = symbols.reshape(-1)
    if flat.size <= _SAMPLES * _SAMPLE_SIZE:
        return True
    starts = np.linspace(0, flat.size - _SAMPLE_SIZE, _SAMPLES).astype(np.int64)
    sample = np.concatenate([flat[start : start + _SAMPLE_SIZE] for start in starts.tolist()])
    return 8 * len(dictionary_coder.encode(sample, 256, preset=1)) < entropy_bits(
        histogram(sample, 256)
    )


def histogram(symbols: np.ndarray, alphabet: int) -> np.ndarray:
    """Count each symbol of a stream.

    Args:
        symbols: Unsigned integer array `[N]`.
        alphabet: Number of different symbols, 1 to 65,536.

    Returns:
        int64 array `[alphabet]`, which sums to N.

    Raises:
        ValueError: If a symbol is not below `alphabet`.
    """
    _check_alphabet(alphabet)
    if symbols.size and symbols.max() >= alphabet:
        raise ValueError(f"symbol {symbols.max()} is outside of the alphabet 0..{alphabet - 1}")
    counts = np.zeros(alphabet, np.int64)
    for part in _chunks(symbols):
        counts += np.bincount(part, minlength=alphabet)
    return counts


def entropy_bits(counts: np.ndarray) -> float:
    """Return the order-0 entropy N * H of symbol counts `[alphabet]`, bits."""
    present = counts[counts > 0]
    return float(present @ np.log2(present.sum() / present)) if present.size > 1 else 0.0


def _check_alphabet(alphabet: int) -> None:
    if not 1 <= alphabet <= MAX_ALPHABET:
        raise ValueError(f"the alphabet must have 1 to {MAX_ALPHABET} symbols, not {alphabet}")


def _chunks(flat: np.ndarray) -> Iterator[np.ndarray]:
    return (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))


# Chunks of ANS words. Their lengths precede them, unless there is a single chunk.


def _join(chunks: list[bytes]) -> bytes:
    lengths = write_numbers([len(words) for words in chunks]) if len(chunks) > 1 else b""
    return lengths + b"".join(chunks)


def _split(data: bytes, start: int, count: int) -> list[bytes]:
    if count == 1:
        return [data[start:]]
    lengths, start = read_numbers(data, start, count)
    ends = list(itertools.accumulate(lengths.tolist(), initial=start))
    if ends[-1] != len(data):
        raise ValueError(f"the chunks of a symbol stream claim {ends[-1]} bytes of {len(data)}")
    return [data[a:b] for a, b in itertools.pairwise(ends)]


def _concatenate(count: int, dtype: DTypeLike, parts: Iterator[np.ndarray]) -> np.ndarray:
    out, end = np.empty(count, dtype), 0
    for part in parts:
        out[end : end + part.size] = part.reshape(-1)
        end += part.size
    return out


# One table.


def _encode_static(symbols: np.ndarray, frequencies: np.ndarray) -> bytes:
    coder = ans.AnsCoder()
    ans.Model(frequencies, paired=True).encode(coder, symbols)
    return ans.words_of(coder)


def _decode_static(words: bytes, count: int, frequencies: np.ndarray, dtype: Any) -> np.ndarray:
    coder, out = ans.coder_of(words), np.empty(count, dtype)
    ans.Model(frequencies, paired=True).decode(coder, out)
    if not coder.is_empty():
        raise ValueError("a symbol stream does not end where its symbols do")
    return out


# A table per context. Chunks are ranges of pairs, so that a code and its past share a chunk.


def _pairs_per_chunk(steps: int) -> int:
    return CHUNK // steps


def _encode_contexts(
    header: bytes, model: context_model.Context, codes: np.ndarray, map: Map
) -> bytes:
    shape = context_model.view(codes.shape, model.leading)
    assert shape is not None  # a model exists only for a valid view
    viewed = codes.reshape(shape[2], -1).T if model.leading else codes.reshape(-1, shape[2])
    step = _pairs_per_chunk(shape[2])
    starts = range(0, len(viewed), step)
    parts = [viewed[start : start + step] for start in starts]
    return header + _join(list(map(_encode_chunk, [model] * len(parts), parts, starts)))


def _encode_chunk(model: context_model.Context, codes: np.ndarray, start: int) -> bytes:
    return model.encode(codes, start)


def _decode_contexts(
    data: bytes, shape: tuple[int, ...], alphabet: int, dtype: DTypeLike, map: Map
) -> np.ndarray:
    leading = data[0] == CONTEXT + 1
    viewed = context_model.view(shape, leading)
    if viewed is None or alphabet > context_model.MAX_ALPHABET:
        raise ValueError(f"codes of shape {shape} and {alphabet} values have no such contexts")
    model, end = _read_context(data, viewed, alphabet)
    rows, columns, steps = viewed
    step = _pairs_per_chunk(steps)
    starts = range(0, rows * columns, step)
    sizes = [min(step, rows * columns - start) for start in starts]
    words = _split(data, end, len(starts))
    constants = [model] * len(starts), [steps] * len(starts), [np.dtype(dtype)] * len(starts)
    flat = _concatenate(
        rows * columns * steps, dtype, map(_decode_chunk, words, starts, sizes, *constants)
    )
    pairs = flat.reshape(rows * columns, steps)
    return np.ascontiguousarray(pairs.T if leading else pairs).reshape(shape)


def _decode_chunk(
    words: bytes, start: int, size: int, model: context_model.Context, steps: int, dtype: Any
) -> np.ndarray:
    out = np.empty((size, steps), dtype)
    model.decode(words, start, out)
    return out


def _write_context(model: context_model.Context) -> bytes:
    """Return the bytes of a context model: numbers, five short streams, and tables.

    docs/file_format.md specifies them.
    """
    lists = [
        *((level, context_model.MAX_LEVEL) for level in model.levels),
        (model.activity, context_model.MAX_ACTIVITY),
        (model.table_of, len(model.tables)),
    ]
    # A stream of zeros is left out, with a length of 0.
    streams = [encode(x.astype(np.uint16), size) if x.any() else b"" for x, size in lists]
    numbers = [model.bias + context_model.MAX_LEVEL, model.low, model.width, len(model.tables)]
    head = write_numbers([*numbers, *map(len, streams)])
    tables = [write_table(frequencies) for frequencies in model.tables]
    return bytes([CONTEXT + model.leading]) + head + b"".join(streams) + b"".join(tables)


def _read_context(
    data: bytes, viewed: tuple[int, int, int], alphabet: int
) -> tuple[context_model.Context, int]:
    """Read a context model from an untrusted stream.

    Args:
        data: Stream, with the byte of its form.
        viewed: View A, B, P of the codes.
        alphabet: Number of different codes.

    Returns:
        The model, and the position after it.

    Raises:
        ValueError: If there is no such model.
    """
    numbers, end = read_numbers(data, 1, 9)
    bias, low, width, tables, *lengths = numbers.tolist()
    if not (1 <= tables <= context_model.CONTEXTS and width):
        raise ValueError(f"a context model of {tables} tables, width {width}")
    if sum(lengths) > len(data) - end:
        raise ValueError("a context model is cut short")
    counts = [*viewed, alphabet, context_model.CONTEXTS]
    sizes = [*[context_model.MAX_LEVEL] * 3, context_model.MAX_ACTIVITY, tables]
    # Levels have the length of the view's axes, which the shape of the tensor bounds.
    lists = [np.zeros(count, np.uint8) for count in counts]
    for i, (length, size) in enumerate(zip(lengths, sizes, strict=True)):
        if length:
            lists[i][:] = decode(data[end : end + length], (counts[i],), size, np.uint8)
        end += length
    frequencies = []
    for _ in range(tables):
        table, end = read_table(data, end, alphabet)
        frequencies.append(table)
    *levels, activity, table_of = lists
    model = context_model.Context(
        leading=data[0] == CONTEXT + 1,
        levels=tuple(levels),
        bias=bias - context_model.MAX_LEVEL,
        low=low,
        width=width,
        activity=activity,
        table_of=table_of,
        tables=frequencies,
    )
    return model, end


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
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        octets = raw[start * width // 8 :][: math.ceil(size * width / 8)]
        symbols = np.unpackbits(octets, count=size * width).reshape(size, width) @ weights
        if symbols.max() >= alphabet:
            raise ValueError(f"symbol {symbols.max()} is outside of 0..{alphabet - 1}")
        out[start : start + size] = symbols
    return out
