"""Symbol streams: exact, close to the entropy, readable by another program, safe on any bytes."""

import hashlib

import numpy as np
import pytest

from sqs_jax.artifact import entropy
from sqs_jax.artifact.entropy import decode, encode, entropy_bits, histogram
from tests.artifact.trees import run_python


def pruned(count, sparsity, components, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(1, components + 1, count)
    codes[rng.random(count) < sparsity] = 0
    return codes.astype(np.uint8 if components <= 255 else np.uint16)


def laplace(count, values, seed=0):
    x = np.random.default_rng(seed).laplace(values / 2, values / 20, count)
    return np.clip(np.round(x), 0, values - 1).astype(np.uint16)


def reference_decode(data, count, alphabet):
    """The decoder that entropy.py describes, in plain Python integers."""

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    bits, at = data[0], 1
    table, symbol, left = [0] * alphabet, 1, number()
    while left:
        left, value = left - 1, number()
        if value:
            table[symbol], symbol = value, symbol + 1
        else:
            left, symbol = left - 1, symbol + number()
    table[0] = 2**bits - sum(table)
    frequency = [f * 2 ** (24 - bits) for f in table]
    cumulative = np.cumsum([0, *frequency]).tolist()
    words = data[at:] + bytes(-len(data[at:]) % 4)
    words = [int.from_bytes(words[i : i + 4], "little") for i in range(0, len(words), 4)]
    if 2**24 in frequency:
        assert not words
        return [frequency.index(2**24)] * count
    state, out = 0, []
    for _ in range(count + 1):
        while state < 2**32 and words:
            state = state << 32 | words.pop()
        if len(out) == count:
            break
        q = state % 2**24
        symbol = int(np.searchsorted(cumulative, q, side="right")) - 1
        state = frequency[symbol] * (state >> 24) + q - cumulative[symbol]
        out.append(symbol)
    assert state == 0 and not words
    return out


CASES = {
    "empty": (np.zeros(0, np.uint8), 5),
    "one element": (np.array([3], np.uint8), 5),
    "one large element": (np.array([65_535], np.uint16), 65_536),
    "one zero": (np.array([0], np.uint16), 1),
    "all zero": (np.zeros(1000, np.uint8), 17),
    "all one": (np.ones(1000, np.uint8), 17),
    "all the last": (np.full(1000, 16, np.uint8), 17),
    "all large": (np.full(100_000, 65_535, np.uint16), 65_536),
    "two": (np.array([0, 1], np.uint8), 2),
    "gaps": (np.repeat(np.array([2, 3, 9, 200], np.uint8), [500, 3, 1, 40]), 256),
    "every symbol once": (np.random.default_rng(0).permutation(65_536).astype(np.uint16), 65_536),
    "one in a million": (np.eye(1, 1 << 20, 777, dtype=np.uint8)[0], 2),
    "skewed": (pruned(3000, 0.999, 4), 5),
    "pruned": (pruned(3000, 0.8, 4), 5),
    "dense": (pruned(3000, 0.0, 16), 17),
    "uniform": (np.random.default_rng(0).integers(0, 256, 4001).astype(np.uint8), 256),
    "wide": (laplace(20_000, 65_536), 65_536),
    "over several chunks": (pruned((2 << 20) + 13, 0.9, 4), 5),
    "packed over several chunks": (
        np.random.default_rng(0).integers(0, 8, (1 << 20) + 13).astype(np.uint8),
        8,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_symbols_come_back(name):
    symbols, alphabet = CASES[name]
    data = encode(symbols, alphabet)
    again = decode(data, symbols.size, alphabet, symbols.dtype)
    assert again.dtype == symbols.dtype and again.flags.writeable
    np.testing.assert_array_equal(again, symbols)


@pytest.mark.parametrize("name", [name for name in CASES if "chunks" not in name])
def test_another_program_reads_the_streams(name):
    symbols, alphabet = CASES[name]
    data = encode(symbols[:5000], alphabet)
    if data and data[0] < 128:
        assert reference_decode(data, len(symbols[:5000]), alphabet) == symbols[:5000].tolist()


@pytest.mark.parametrize(
    ("symbols", "alphabet"),
    [
        (pruned(50_000, 0.8, 4), 5),
        (pruned(50_000, 0.5, 16), 17),
        (pruned(50_000, 0.0, 256), 257),
        (pruned(50_000, 0.98, 2), 3),
        (np.random.default_rng(0).integers(0, 256, 50_000).astype(np.uint8), 256),
        (np.random.default_rng(0).integers(0, 257, 50_000).astype(np.uint16), 257),
        (laplace(50_000, 256), 257),
        (laplace(50_000, 16), 17),
        (pruned(2_000_000, 0.999, 4), 5),
    ],
)
def test_within_two_percent_of_the_entropy(symbols, alphabet):
    size = len(encode(symbols, alphabet))
    assert size <= 1.02 * entropy_bits(histogram(symbols, alphabet)) / 8


def test_a_stream_of_few_bits_costs_few_bytes():
    symbols = pruned(50_000, 0.999, 4)
    bound = entropy_bits(histogram(symbols, 5)) / 8
    assert bound < len(encode(symbols, 5)) < bound + 16
    # Absent symbols are free, wherever they lie, and one symbol alone takes no words.
    assert len(encode(np.zeros(10**6, np.uint16), 65_536)) == 2
    assert len(encode(np.full(10**6, 65_535, np.uint16), 65_536)) < 8
    few = pruned(50_000, 0.5, 1).astype(np.uint16)
    assert len(encode(few, 2)) == len(encode(few, 65_536))
    # Fixed-length codes take over where a table would cost more than it saves.
    assert len(encode(np.arange(200, dtype=np.uint8), 256)) == 201


@pytest.mark.parametrize("bits", [8, 13, 24])
def test_frequencies_are_exact_and_never_lose_a_symbol(bits):
    counts = np.array([10**11, 0, 1, 1, 7, 0, 10**6])
    frequencies = entropy._quantize(counts, bits)
    assert frequencies.sum() == 2**bits
    assert ((frequencies > 0) == (counts > 0)).all()
    table = entropy._write_table(frequencies, bits)
    again, rest = entropy._read_table(table + b"words", counts.size)
    assert rest == b"words" and (again == frequencies << (24 - bits)).all()


def test_entropy_bits_closed_forms():
    assert entropy_bits(np.array([8, 8])) == 16
    assert entropy_bits(np.array([4, 2, 2, 0])) == 12
    assert entropy_bits(np.array([0, 9])) == 0 and entropy_bits(np.zeros(3, int)) == 0


def test_bytes_are_equal_in_another_process():
    code = (
        "import numpy as np, hashlib; from sqs_jax.artifact.entropy import encode;"
        "s = np.random.default_rng(5).binomial(40, .2, 100_000).astype(np.uint8);"
        "print(hashlib.sha256(encode(s, 41)).hexdigest())"
    )
    run = run_python(code)
    symbols = np.random.default_rng(5).binomial(40, 0.2, 100_000).astype(np.uint8)
    assert run.stdout.strip() == hashlib.sha256(encode(symbols, 41)).hexdigest()


@pytest.mark.parametrize(
    "symbols",
    [np.array([5], np.uint8), np.array([[1]], np.uint8), np.array([1], np.int32), np.array([0.0])],
)
def test_bad_symbols_are_refused(symbols):
    with pytest.raises(ValueError, match="symbol"):
        encode(symbols, 5)


@pytest.mark.parametrize("name", ["all one", "gaps", "pruned", "dense", "uniform", "empty"])
def test_left_over_and_missing_bytes_are_refused(name):
    symbols, alphabet = CASES[name]
    data = encode(symbols, alphabet)
    for wrong in (data + b"\0", data + b"\1", data + b"\1\2\3\4\5\6\7\x08", data[:-1], data[:1]):
        if wrong != data:
            with pytest.raises(ValueError):
                decode(wrong, symbols.size, alphabet, symbols.dtype)


def test_any_bytes_give_symbols_or_a_value_error():
    rng = np.random.default_rng(0)
    valid = [encode(*CASES[name]) for name in ("gaps", "pruned", "uniform", "wide", "two")]
    for trial in range(3000):
        if trial % 2:
            data = bytearray(valid[trial % len(valid)])
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(0, min(len(data), 40))] = rng.integers(0, 256)
        else:
            data = bytearray(rng.integers(0, 256, rng.integers(0, 60)).astype(np.uint8))
            data[:1] = bytes([int(rng.choice([0, 1, 5, 12, 24, 129, 133, 144]))])
        alphabet = int(rng.choice([1, 2, 5, 17, 256, 257, 65_536]))
        count = int(rng.integers(0, 300))
        try:
            out = decode(bytes(data), count, alphabet, np.uint16)
        except ValueError:
            continue
        assert out.shape == (count,) and (not count or out.max() < alphabet)
