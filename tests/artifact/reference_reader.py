"""A reader of file format 1.1, written from docs/file_format.md without `sqs_jax`.

It shows the steps of a reader in another language, symbol by symbol, and trusts the file
beyond its checksums. `FORMS` collects the forms that were read, for tests of full coverage.
"""

import json
import lzma
import zlib
from bisect import bisect_right
from itertools import accumulate
from math import prod

import ml_dtypes  # noqa: F401 (teaches numpy the names bfloat16, float8_e4m3fn, int4, ...)
import numpy as np

CHUNK = 2**19
LZMA1 = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 22, "lc": 0, "lp": 0, "pb": 0}]
FORMS = set()


class Bytes:
    """A cursor in a byte string, with a position in bits."""

    def __init__(self, data):
        self.data, self.at, self.bit = data, 0, 0

    def take(self, size):
        self.at += size
        assert self.at <= len(self.data)
        return self.data[self.at - size : self.at]

    def number(self):
        (byte,) = self.take(1)
        return byte if byte < 128 else byte - 128 + 128 * self.number()

    def bits(self, count):
        value = 0
        for _ in range(count):
            value = 2 * value + (self.data[self.at] >> 7 - self.bit & 1)
            self.at, self.bit = self.at + (self.bit == 7), (self.bit + 1) % 8
        return value

    def golomb(self, order):
        zeros = 0
        while not self.bits(1):
            zeros += 1
        return (2**zeros + self.bits(zeros) - 1 << order) + self.bits(order)


def read_table(source):
    bits, form = source.take(2)
    order, sparse = form % 16, form // 16
    FORMS.add("sparse table" if sparse else "dense table")
    last, symbol, table = source.golomb(0), 0, {}
    while symbol < last:
        symbol += 1 + (source.golomb(0) if sparse else 0)
        if frequency := source.golomb(order) + sparse:
            table[symbol] = frequency
    source.at, source.bit = source.at + (source.bit > 0), 0
    if rest := 2**bits - sum(table.values()):
        table = {0: rest, **table}
    return bits, list(table), list(table.values())


def scaled(frequencies, bits):
    frequencies = [f << 24 - bits for f in frequencies]  # which sum to 2**24
    return frequencies, [0, *accumulate(frequencies[:-1])]


class Words:
    def __init__(self, data):
        self.state, self.words = 0, np.frombuffer(data + bytes(-len(data) % 4), "<u4").tolist()
        self.refill()

    def refill(self):
        while self.state < 2**32 and self.words:
            self.state = (self.state << 32) + self.words.pop()

    def pop(self, frequencies, sums):
        q = self.state % 2**24
        index = bisect_right(sums, q) - 1
        self.state = frequencies[index] * (self.state >> 24) + q - sums[index]
        self.refill()
        return index


def read_words(source, chunks):
    if chunks == 1:
        return [Words(source.take(len(source.data) - source.at))]
    FORMS.add("chunks")
    return [Words(source.take(n)) for n in [source.number() for _ in range(chunks)]]


def read_symbols(data, shape, alphabet):
    count, source = prod(shape), Bytes(data)
    if not count:
        symbols = []
    elif data[0] > 128:
        FORMS.add("packed")
        width = source.take(1)[0] - 128
        symbols = [source.bits(width) for _ in range(count)]
    elif data[0] <= 24:
        symbols = read_one_table(source, count)
    elif data[0] == 32:
        FORMS.add("lzma")
        wide = "u1" if alphabet <= 256 else "<u2"
        symbols = np.frombuffer(lzma.decompress(data[1:], lzma.FORMAT_RAW, None, LZMA1), wide)
    else:
        symbols = read_context(source, shape, alphabet)
    assert max(symbols, default=0) < alphabet
    return np.array(symbols, np.uint8 if alphabet <= 256 else np.uint16).reshape(shape)


def read_one_table(source, count):
    bits, present, frequencies = read_table(source)
    pairs = bits <= 12 and 1 < len(present) <= 64
    FORMS.add("pairs" if pairs else "one symbol a step")
    if pairs:
        bits, frequencies = 2 * bits, [f * g for f in frequencies for g in frequencies]
    steps = [(s, t) for s in present for t in present] if pairs else [(s,) for s in present]
    model, symbols = scaled(frequencies, bits), []
    for words in read_words(source, -(-count // CHUNK)):
        end = min(len(symbols) + CHUNK, count)
        while len(symbols) < end:
            symbols += steps[words.pop(*model)]
        assert words.state == 0 and (len(symbols) == end or symbols.pop() == present[0])
    return symbols


def read_context(source, shape, alphabet):
    last = source.take(1)[0] == 65
    FORMS.add("context, pairs last" if last else "context, pairs first")
    rows, columns = shape[-2:] if last else shape[:2]
    steps = prod(shape) // (rows * columns)
    bias, low, width, tables, *sizes = [source.number() for _ in range(9)]
    lists = [(rows, 32), (columns, 32), (steps, 32), (alphabet, 16), (128, tables)]
    row, column, step, activity, table_of = (
        read_symbols(source.take(size), [count], below).tolist() if size else [0] * count
        for size, (count, below) in zip(sizes, lists, strict=True)
    )
    read = [read_table(source) for _ in range(tables)]
    models = [scaled(frequencies, bits) for bits, _, frequencies in read]
    symbols = np.zeros((rows * columns, steps), int)
    per_chunk = CHUNK // steps
    for chunk, words in enumerate(read_words(source, -(-rows * columns // per_chunk))):
        pairs = range(chunk * per_chunk, min((chunk + 1) * per_chunk, rows * columns))
        active = dict.fromkeys(pairs, 0)
        for p in range(steps):
            use = {}
            for i in pairs:
                score = row[i // columns] + column[i % columns] + step[p] - (bias - 32)
                past = 1 + min(max((16 * active[i] // p - low) // width, 0), 6) if p else 0
                use[i] = table_of[8 * min(max(score, 0), 15) + past]
            for i in sorted(pairs, key=use.get):  # stable
                symbols[i, p] = read[use[i]][1][words.pop(*models[use[i]])]
                active[i] += activity[symbols[i, p]]
        assert words.state == 0
    return (symbols.T if last else symbols).ravel().tolist()


def read_integers(shape, dtype, minimum, planes):
    """Sum byte planes in Python integers, which are exact for every dtype."""
    FORMS.add("integers")
    array = np.full(prod(shape), minimum, object)
    for j, plane in enumerate(planes):
        array += plane.ravel().astype(object) * 256**j
    return array.astype(dtype).reshape(shape)


def read_file(file):
    """Return the tree, the metadata and the attachments.

    Leaves of a kind other than `integers` come as tuples, the kind first.
    """
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    assert header.pop("__metadata__")["format"] == "sqs"
    end = start + header["index"]["data_offsets"][1]
    packed, data = file[start : end - 4], Bytes(file[end:])
    assert zlib.crc32(packed).to_bytes(4, "little") == file[end - 4 : end]
    index = json.loads(lzma.decompress(packed, lzma.FORMAT_ALONE))
    arrays, symbols = (zip(*index[name], strict=True) for name in ("arrays", "symbols"))
    leaves = []

    def part(node):
        if node == "d":
            shape, dtype, stored = next(arrays)
            raw = data.take(prod(shape) * np.dtype(stored).itemsize)
            return np.frombuffer(raw, stored).reshape(shape).astype(dtype)
        if node == "s":
            shape, alphabet, size, *_ = next(symbols)
            return read_symbols(data.take(size), shape, alphabet)
        if node == "c":
            return "codebook", part("s"), part("d")
        if node[1] == "integers":
            planes = map(part, node[5:])
            return read_integers(node[2], node[3], node[4]["minimum"], planes)
        if node[1] == "attachment":
            return part(node[5]).tobytes()
        return *node[1:5], *map(part, node[5:])

    def walk(node):
        if node is None or isinstance(node, dict):
            return node and {key: walk(node[key]) for key in sorted(node)}
        if node[0] == "i":
            return dict(zip(node[1], map(walk, node[2:]), strict=True))
        if node[0] in ("l", "t"):
            return (list if node[0] == "l" else tuple)(map(walk, node[1:]))
        if node[0] == "r":
            leaves.append(leaves[node[1]])
        else:
            start = data.at
            leaves.append(part(node))
            assert zlib.crc32(data.data[start : data.at]).to_bytes(4, "little") == data.take(4)
        return leaves[-1]

    tree = walk(index["tree"])
    assert data.at == len(data.data) and next(arrays, None) is next(symbols, None) is None
    tree, attachments = tree if index.get("attachments") else (tree, {})
    return tree, index["metadata"], attachments
