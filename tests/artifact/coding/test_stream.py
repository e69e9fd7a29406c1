"""Symbol streams: exact, near the entropy, reproducible, and safe on any bytes."""

import hashlib
import itertools

import numpy as np
import pytest
from loky import get_reusable_executor

from sqs_jax.artifact.coding import CHUNK, decode, encode, encode_all, entropy_bits, histogram
from sqs_jax.artifact.coding.frequency_table import read_numbers, read_table
from tests.artifact.trees import run_python, structured


def pruned(count, sparsity, components, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(1, components + 1, count)
    codes[rng.random(count) < sparsity] = 0
    return codes.astype(np.uint8 if components <= 255 else np.uint16)


def laplace(count, values, seed=0):
    x = np.random.default_rng(seed).laplace(values / 2, values / 20, count)
    return np.clip(np.round(x), 0, values - 1).astype(np.uint16)


def uniform(count, values, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, values, count).astype(dtype)


CASES = {
    "empty": (np.zeros(0, np.uint8), 5),
    "an empty matrix": (np.zeros((3, 0), np.uint8), 5),
    "one element": (np.array([3], np.uint8), 5),
    "a scalar": (np.array(3, np.uint8), 5),
    "one large element": (np.array([65_535], np.uint16), 65_536),
    "one zero": (np.array([0], np.uint16), 1),
    "all zero": (np.zeros((10, 100), np.uint8), 17),
    "all one": (np.ones(1000, np.uint8), 17),
    "all the last": (np.full(1000, 16, np.uint8), 17),
    "all large": (np.full(100_000, 65_535, np.uint16), 65_536),
    "two": (np.array([0, 1], np.uint8), 2),
    "an odd number": (pruned(3001, 0.5, 3), 4),
    "gaps": (np.repeat(np.array([2, 3, 9, 200], np.uint8), [500, 3, 1, 40]), 256),
    "every symbol once": (np.random.default_rng(0).permutation(65_536).astype(np.uint16), 65_536),
    "one in half a million": (np.eye(1, CHUNK, 777, dtype=np.uint8)[0], 2),
    "skewed": (pruned(3000, 0.999, 4), 5),
    "pruned": (pruned(3000, 0.8, 4), 5),
    "dense": (pruned(3000, 0.0, 16), 17),
    "64 symbols": (pruned(5001, 0.0, 64), 65),
    "65 symbols": (pruned(5001, 0.3, 64), 65),
    "uniform": (uniform(4001, 256), 256),
    "wide": (laplace(20_000, 65_536), 65_536),
    "repeats": (np.tile(pruned(6400, 0.3, 4), 3), 5),
    "wide repeats": (np.tile(laplace(6400, 65_536), 3), 65_536),
    "matrix": (structured((120, 90)), 5),
    "convolution": (structured((20, 30, 3, 3), 6), 7),
    "convolution, last": (structured((3, 3, 40, 50), 3, axes=(2, 3)), 4),
    "over several chunks": (pruned(2 * CHUNK + 13, 0.9, 4), 5),
    "single steps over several chunks": (np.minimum(pruned(CHUNK + 7, 0.2, 90), 89), 91),
    "packed over several chunks": (uniform(CHUNK + 13, 8), 8),
    "contexts over several chunks": (structured((1100, CHUNK // 1000)), 5),
}
FORMS = {
    "all zero": {0},
    "uniform": {128 + 8},
    "every symbol once": {128 + 16},
    "packed over several chunks": {128 + 3},
    "matrix": {64},
    "convolution": {64},
    "convolution, last": {65},
    "contexts over several chunks": {64},
    "pruned": set(range(1, 25)),
    "wide": set(range(1, 25)),
}


@pytest.fixture(scope="module")
def streams():
    return {name: encode(*case) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_symbols_are_read_back(name, streams):
    symbols, alphabet = CASES[name]
    for dtype in {symbols.dtype, np.dtype(np.uint16)}:
        again = decode(streams[name], symbols.shape, alphabet, dtype)
        assert again.dtype == dtype and again.flags.writeable and again.flags.c_contiguous
        np.testing.assert_array_equal(again, symbols, strict=dtype == symbols.dtype)


@pytest.mark.parametrize("name", FORMS)
def test_the_form_is_the_shortest(name, streams):
    assert streams[name][0] in FORMS[name]


def test_layout_and_width_of_the_input_do_not_matter():
    symbols = CASES["convolution"][0]
    data = encode(symbols, 7)
    assert encode(np.asfortranarray(symbols), 7) == data
    assert encode(symbols.astype(np.uint32), 7) == data
    assert encode(np.flip(np.flip(symbols, 0).copy(), 0), 7) == data


@pytest.mark.parametrize(
    ("symbols", "alphabet"),
    [
        (pruned(50_000, 0.8, 4), 5),
        (pruned(50_000, 0.5, 16), 17),
        (pruned(50_000, 0.0, 256), 257),
        (pruned(50_000, 0.98, 2), 3),
        (uniform(50_000, 256), 256),
        (uniform(50_000, 257, np.uint16), 257),
        (laplace(50_000, 256), 257),
        (laplace(50_000, 16), 17),
        (pruned(2_000_000, 0.999, 4), 5),
    ],
    ids=range(9),
)
def test_within_two_percent_of_the_entropy(symbols, alphabet):
    bound = entropy_bits(histogram(symbols, alphabet)) / 8
    assert len(encode(symbols, alphabet)) <= 1.02 * bound
    # Without structure, a shape costs nothing either.
    assert len(encode(symbols.reshape(200, -1), alphabet)) <= 1.02 * bound


def test_a_stream_of_few_bits_costs_few_bytes():
    symbols = pruned(50_000, 0.999, 4)
    bound = entropy_bits(histogram(symbols, 5)) / 8
    assert bound < len(encode(symbols, 5)) < bound + 16
    # Absent symbols are free, wherever they lie, and one symbol alone takes no words.
    assert len(encode(np.zeros(CHUNK, np.uint16), 65_536)) == 3
    assert len(encode(np.full((2, CHUNK // 2), 65_535, np.uint16), 65_536)) <= 12
    few = pruned(50_000, 0.5, 1).astype(np.uint16)
    assert len(encode(few, 2)) == len(encode(few, 65_536))
    # Fixed-length codes take over where a table would cost more than it saves.
    assert len(encode(np.arange(200, dtype=np.uint8), 256)) == 201
    assert encode(np.array([3, 0, 1], np.uint8), 256) == bytes([128 + 2, 0b11000100])


def test_entropy_bits_closed_forms():
    assert entropy_bits(np.array([8, 8])) == 16
    assert entropy_bits(np.array([4, 2, 2, 0])) == 12
    assert entropy_bits(np.array([0, 9])) == 0 and entropy_bits(np.zeros(3, int)) == 0


def test_bytes_are_equal_in_another_process():
    code = (
        "import numpy as np, hashlib; from sqs_jax.artifact.coding import encode;"
        "s = np.random.default_rng(5).binomial(40, .2, (400, 250)).astype(np.uint8);"
        "s[::3] //= 4; print(hashlib.sha256(encode(s, 41) + encode(s[0], 41)).hexdigest())"
    )
    run = run_python(code)
    symbols = np.random.default_rng(5).binomial(40, 0.2, (400, 250)).astype(np.uint8)
    symbols[::3] //= 4
    data = encode(symbols, 41) + encode(symbols[0], 41)
    assert data[0] == 64 and run.stdout.strip() == hashlib.sha256(data).hexdigest()


def test_two_processes_give_the_same_bytes_and_values(streams):
    executor = get_reusable_executor(max_workers=2)
    for name in CASES:
        if "several chunks" in name:
            symbols, alphabet = CASES[name]
            assert encode(symbols, alphabet, map=executor.map) == streams[name]
            again = decode(streams[name], symbols.shape, alphabet, symbols.dtype, map=executor.map)
            np.testing.assert_array_equal(again, symbols, strict=True)
    wrong = bytearray(streams["over several chunks"])
    wrong[len(wrong) // 2] ^= 1
    with pytest.raises(ValueError, match="symbol"):
        decode(bytes(wrong), (2 * CHUNK + 13,), 5, np.uint8, map=executor.map)


def chunks_of(data, start, count):
    lengths, at = read_numbers(data, start, count)
    ends = at + np.cumsum([0, *lengths])
    assert ends[-1] == len(data)
    return [data[a:b] for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("name", ["over several chunks", "single steps over several chunks"])
def test_a_chunk_decodes_by_itself(name, streams):
    symbols, alphabet = CASES[name]
    data = streams[name]
    _, end = read_table(data, 0, alphabet)
    starts = range(0, symbols.size, CHUNK)
    chunks = chunks_of(data, end, len(starts))
    for start, words in zip(starts, chunks, strict=True):
        part = symbols[start : start + CHUNK]
        again = decode(data[:end] + words, part.shape, alphabet, part.dtype)
        np.testing.assert_array_equal(again, part)


def test_wrong_chunk_lengths_are_refused(streams):
    (symbols, alphabet), data = CASES["over several chunks"], streams["over several chunks"]
    _, end = read_table(data, 0, alphabet)
    lengths, at = read_numbers(data, end, 3)
    assert at - end == 3 + 3 + 1  # of LEB128
    swapped = data[:end] + data[end + 3 : end + 6] + data[end : end + 3] + data[end + 6 :]
    longer = data[: at - 1] + bytes([data[at - 1] + 1]) + data[at:]
    shorter = bytearray(data)
    shorter[end], shorter[end + 3] = data[end] ^ 1, data[end + 3] ^ 1  # the sum may stay
    assert lengths[0] != lengths[1]
    for wrong in (swapped, longer, bytes(shorter), data[:end] + data[at:], data[:at]):
        with pytest.raises(ValueError):
            decode(wrong, symbols.shape, alphabet, np.uint8)


@pytest.mark.parametrize(
    "symbols",
    [np.array([5], np.uint8), np.array([[1]], np.int8), np.array([1], np.int32), np.array([0.0])],
    ids=str,
)
def test_bad_symbols_are_refused(symbols):
    with pytest.raises(ValueError, match="symbol"):
        encode(symbols, 5)


@pytest.mark.parametrize("alphabet", [0, -1, 65_537])
def test_bad_alphabets_are_refused(alphabet):
    with pytest.raises(ValueError, match="alphabet"):
        encode(np.zeros(3, np.uint8), alphabet)
    with pytest.raises(ValueError, match="alphabet"):
        decode(b"\x81\0", (3,), alphabet, np.uint16)


def test_a_dtype_that_cannot_hold_the_alphabet_is_refused():
    with pytest.raises(ValueError, match="do not fit in uint8"):
        decode(encode(np.arange(256, dtype=np.uint8), 257), (256,), 257, np.uint8)


SMALL = ["all one", "gaps", "pruned", "dense", "uniform", "empty", "an odd number", "65 symbols"]
SMALL += ["matrix", "convolution", "convolution, last"]


@pytest.mark.parametrize("name", SMALL)
def test_left_over_bytes_are_refused(name, streams):
    symbols, alphabet = CASES[name]
    data = streams[name]
    for wrong in (data + b"\0", data + b"\1", data + b"\1\2\3\4\5\6\7\x08", data[:1], b""):
        if wrong != data:
            with pytest.raises(ValueError):
                decode(wrong, symbols.shape, alphabet, symbols.dtype)
    # That the last bytes are missing is seen by the checksums around a stream; here, at times.
    for end in range(len(data) - 8, len(data)) if len(data) > 8 else []:
        try:
            again = decode(data[:end], symbols.shape, alphabet, symbols.dtype)
        except ValueError:
            continue
        assert (again != symbols).any() and again.max() < alphabet


@pytest.mark.parametrize("name", SMALL)
def test_half_of_the_symbols_are_refused(name, streams):
    symbols, alphabet = CASES[name]
    shapes = [(symbols.size // 2,), (symbols.shape[0] // 2, *symbols.shape[1:]), (0, 3)]
    for shape in shapes if symbols.size and name != "all one" else []:
        with pytest.raises(ValueError):
            decode(streams[name], shape, alphabet, symbols.dtype)


@pytest.mark.parametrize("form", [25, 63, 66, 127, 128, 145, 255])
def test_unknown_forms_are_refused(form):
    with pytest.raises(ValueError):
        decode(bytes([form]) + b"\x12" * 20, (2, 5), 17, np.uint8)


def test_packed_codes_outside_of_the_alphabet_and_spare_bits_are_refused():
    with pytest.raises(ValueError, match=r"symbol 7 is outside of 0\.\.4"):
        decode(bytes([128 + 3, 0b00111100]), (2,), 5, np.uint8)
    with pytest.raises(ValueError, match="left over"):
        decode(bytes([128 + 3, 0b00100101]), (2,), 5, np.uint8)


def test_any_bytes_give_symbols_or_a_value_error(streams):
    rng = np.random.default_rng(0)
    names = ("gaps", "pruned", "uniform", "wide", "two", "dense", "matrix", "convolution, last")
    good = 0
    for trial in range(1200):
        alphabet = int(rng.choice([1, 2, 5, 17, 256, 257, 65_536]))
        shape = (int(rng.integers(0, 300)),)
        if trial % 2:
            name = names[trial // 2 % len(names)]
            data, shape, alphabet = bytearray(streams[name]), CASES[name][0].shape, CASES[name][1]
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(0, min(len(data), 40))] = rng.integers(0, 256)
        else:
            data = bytearray(rng.integers(0, 256, rng.integers(0, 60)).astype(np.uint8))
            data[:1] = bytes([int(rng.choice([0, 1, 5, 12, 24, 64, 129, 133, 144]))])
        try:
            out = decode(bytes(data), shape, alphabet, np.uint16)
        except ValueError:
            continue
        good += 1
        assert out.shape == shape and (not out.size or out.max() < alphabet)
    assert good > 50


def test_repeated_rows_use_the_dictionary_coder():
    rows = pruned(64 * 400, 0.4, 4).reshape(400, 64)
    again = np.concatenate([rows, rows[np.random.default_rng(1).integers(0, 400, 400)]])
    again[::50, 3] = 1  # nearly the same is enough
    data = encode(again, 5)
    assert data[0] == 32 and len(data) < 0.7 * entropy_bits(histogram(again.ravel(), 5)) / 8
    assert encode(rows, 5)[0] != 32  # nothing repeats: not tried
    for wrong in (data + b"\0", data[:-1], data[:20]):
        with pytest.raises(ValueError):
            decode(wrong, again.shape, 5, np.uint8)
    with pytest.raises(ValueError, match="end"):
        decode(data, (10, 64), 5, np.uint8)
    with pytest.raises(ValueError, match="outside"):
        decode(data, again.shape, 4, np.uint8)


def test_encode_all_gives_the_bytes_of_encode():
    rng = np.random.default_rng(0)
    streams = []
    for shape in ((16, 16), (3,), (3, 3, 8, 8), (0, 5), (16, 16), (40, 9), (1, 1)):
        for alphabet in (1, 3, 9, 300):
            for _ in range(4):
                shares = rng.dirichlet(np.full(alphabet, 0.5))
                codes = rng.choice(alphabet, shape, p=shares).astype(np.uint16)
                quiet = rng.random((shape[0], *[1] * (len(shape) - 1))) < 0.4
                streams.append((np.where(quiet, 0, codes).astype(np.uint16), alphabet, False))
    together = encode_all(streams)
    assert together == [encode(codes, alphabet) for codes, alphabet, _ in streams]
    assert {data[0] // 32 for data in together if data} >= {0, 2, 4}  # one table, contexts, packed
    for data, (codes, alphabet, _) in zip(together, streams, strict=True):
        np.testing.assert_array_equal(decode(data, codes.shape, alphabet, np.uint16), codes)


def test_a_bad_stream_among_others_is_refused():
    good = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="outside of the alphabet"):
        encode_all([(good, 2, False), (good + 7, 2, False)])
