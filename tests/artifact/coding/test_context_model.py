"""The context model: shorter for structured codes, never longer, and safe."""

import tracemalloc

import numpy as np
import pytest

from sqs_jax.artifact.coding import context_model, decode, encode, entropy_bits, histogram, stream
from sqs_jax.artifact.coding.frequency_table import read_numbers, write_numbers
from tests.artifact.trees import structured


def quiet_kernels(rows, columns, kernel, last, seed=0):
    """Return codes of a convolution with nearly empty kernels and full kernels."""
    rng = np.random.default_rng(seed)
    keep = rng.choice([0.02, 0.6], (rows * columns, 1))
    codes = rng.integers(1, 5, (rows * columns, kernel * kernel))
    codes[rng.random(codes.shape) >= keep] = 0
    codes = codes.astype(np.uint8)
    if last:
        return codes.T.reshape(kernel, kernel, rows, columns)
    return codes.reshape(rows, columns, kernel, kernel)


def wide(shape, alphabet, seed=0):
    """Return codes of a large alphabet, of which some rows use a small part."""
    rng = np.random.default_rng(seed)
    scale = rng.choice([1 / 40, 1 / 4], (shape[0], *[1] * (len(shape) - 1)))
    codes = alphabet / 2 + rng.normal(size=shape) * scale * alphabet
    return np.clip(codes, 0, alphabet - 1).astype(np.uint16)


# Name: codes, alphabet, form, the most it may take of the order-0 entropy.
STRUCTURED = {
    "rows": (structured((400, 90), axes=(0,)), 5, 64, 0.93),
    "columns": (structured((90, 400), axes=(1,)), 5, 64, 0.93),
    "rows and columns": (structured((300, 200), 16), 17, 64, 0.93),
    "kernels": (quiet_kernels(50, 40, 3, False), 5, 64, 0.9),
    "kernels, last": (quiet_kernels(50, 40, 3, True), 5, 65, 0.9),
    "rows and kernels": (structured((48, 64, 3, 3)), 5, 64, 0.9),
    "rows and kernels, last": (structured((5, 5, 32, 48), axes=(2, 3)), 5, 65, 0.9),
    "steps": (structured((60, 60, 9), axes=(2,)), 5, 64, 0.95),
    "three axes, last": (structured((3, 200, 100), axes=(1, 2)), 5, 65, 0.93),
    "256": (wide((200, 400), 256), 256, 64, 0.97),
    "1024": (wide((300, 500), 1024), 1024, 64, 0.97),
}


@pytest.fixture(scope="module")
def streams():
    return {name: encode(codes, alphabet) for name, (codes, alphabet, *_) in STRUCTURED.items()}


@pytest.mark.parametrize("name", STRUCTURED)
def test_contexts_shorten_structured_codes(name, streams, monkeypatch):
    codes, alphabet, form, share = STRUCTURED[name]
    data = streams[name]
    np.testing.assert_array_equal(decode(data, codes.shape, alphabet, codes.dtype), codes)
    assert data[0] == form
    bound = entropy_bits(histogram(codes.reshape(-1), alphabet)) / 8
    assert len(data) < share * bound
    monkeypatch.setattr(context_model, "fit", lambda *_: None)
    assert bound < len(encode(codes, alphabet))


RNG = np.random.default_rng(0)
PLAIN = {
    "no structure": (RNG.integers(0, 5, (100, 100)).astype(np.uint8), 5),
    "skewed": (RNG.binomial(4, 0.05, (200, 30, 3, 3)).astype(np.uint8), 5),
    "small": (structured((12, 10)), 5),
    "one row": (structured((1, 3000), axes=(1,)), 5),
    "one column": (structured((3000, 1), axes=(0,)), 5),
    "a vector": (structured((3000,), axes=(0,)), 5),
    "one symbol": (np.ones((50, 50), np.uint8), 5),
    "two symbols": (np.eye(60, dtype=np.uint8), 2),
    "too many steps": (structured((20, 20, 65), axes=(0, 1)), 5),
    "64 steps": (structured((64, 10, 12), axes=(0, 1)), 5),
    "above 1024": (wide((100, 400), 1025), 1025),
    "65,536": (wide((100, 400), 65_536), 65_536),
    "nearly packed": (RNG.integers(0, 256, (64, 64)).astype(np.uint8), 256),
    "a scalar's worth": (np.full((1, 1, 1), 3, np.uint8), 5),
}


@pytest.mark.parametrize("name", [*PLAIN, *STRUCTURED])
def test_contexts_never_make_a_stream_longer(name, monkeypatch):
    codes, alphabet = {**PLAIN, **STRUCTURED}[name][:2]
    data = encode(codes, alphabet)
    np.testing.assert_array_equal(decode(data, codes.shape, alphabet, codes.dtype), codes)
    monkeypatch.setattr(context_model, "fit", lambda *_: None)
    plain = encode(codes, alphabet)
    assert len(data) < len(plain) if data[0] in (64, 65) else data == plain
    if alphabet > context_model.MAX_ALPHABET or codes.ndim < 2:
        assert data == plain


def test_views():
    assert (
        context_model.view((5, 6), False) == (5, 6, 1) and context_model.view((5, 6), True) is None
    )
    assert context_model.view((5, 6, 2, 3), False) == (5, 6, 6)
    assert context_model.view((5, 6, 2, 3), True) == (2, 3, 30)
    assert context_model.view((7,), False) is None and context_model.view((), False) is None
    assert (
        context_model.view((2, 2, 65), False) is None
        and context_model.view((65, 2, 2), True) is None
    )
    assert context_model.view((64, 2, 2), True) == (2, 2, 64)


@pytest.mark.parametrize("name", ["rows", "kernels", "kernels, last"])
@pytest.mark.parametrize("chunk", [72, 1000, 3600])
def test_a_chunk_decodes_by_itself(name, chunk, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", chunk)
    codes, alphabet, form, _ = STRUCTURED[name]
    data = encode(codes, alphabet)
    if data[0] != form:  # so short a chunk that its words' ends outweigh the gain
        assert chunk == 72
        return
    np.testing.assert_array_equal(decode(data, codes.shape, alphabet, np.uint8), codes)
    rows, columns, steps = context_model.view(codes.shape, form == 65)
    pairs = codes.reshape(steps, -1).T if form == 65 else codes.reshape(-1, steps)
    model, end = stream._read_context(data, (rows, columns, steps), alphabet)
    starts = range(0, len(pairs), chunk // steps)
    words = stream._split(data, end, len(starts))
    for i in np.random.default_rng(0).permutation(len(starts))[:5]:
        part = pairs[starts[i] : starts[i] + chunk // steps]
        out = np.empty(part.shape, np.uint8)
        model.decode(words[i], starts[i], out)
        np.testing.assert_array_equal(out, part)


def test_any_bytes_give_symbols_or_a_value_error(streams):
    rng = np.random.default_rng(0)
    names = ["rows", "kernels", "kernels, last", "256"]
    good = 0
    for trial in range(300):
        name = names[trial % len(names)]
        codes, alphabet, *_ = STRUCTURED[name]
        data = bytearray(streams[name])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(0, 300 if trial % 3 else len(data))] = rng.integers(0, 256)
        try:
            out = decode(bytes(data), codes.shape, alphabet, codes.dtype)
        except ValueError:
            continue
        good += 1
        assert out.max() < alphabet
    assert good > 10


def forged(numbers, lists=b"", tables=b"\0\0\x80", form=64):
    return bytes([form]) + write_numbers(numbers) + lists + tables


@pytest.mark.parametrize(
    ("data", "shape", "says"),
    [
        (forged([32, 0, 1, 1, 0, 0, 0, 0, 0]), (4, 4), None),
        (forged([32, 0, 1, 1, 0, 0, 0, 0, 0]), (16,), "no such contexts"),
        (forged([32, 0, 1, 1, 0, 0, 0, 0, 0], form=65), (4, 4), "no such contexts"),
        (forged([32, 0, 1, 1, 0, 0, 0, 0, 0]), (2, 2, 65), "no such contexts"),
        (forged([32, 0, 1, 0, 0, 0, 0, 0, 0]), (4, 4), "0 tables"),
        (forged([32, 0, 1, 129, 0, 0, 0, 0, 0]), (4, 4), "129 tables"),
        (forged([32, 0, 0, 1, 0, 0, 0, 0, 0]), (4, 4), "width 0"),
        (forged([32, 0, 1, 1, 9, 0, 0, 0, 0]), (4, 4), "cut short"),
        (forged([32, 0, 1, 1, 2**28 - 1, 0, 0, 0, 0]), (4, 4), "cut short"),
        (forged([32, 0, 1, 2, 0, 0, 0, 0, 0]), (4, 4), "cut short"),
        (forged([32, 0, 1, 1, 0, 0, 0, 0, 0], tables=b""), (4, 4), "cut short"),
        # Levels of 32, an activity of 16, a table that there is not.
        (forged([32, 0, 1, 1, 4, 0, 0, 0, 0], b"\x86\x80\0\0"), (4, 4), r"symbol 32 .*0\.\.31"),
        (forged([32, 0, 1, 1, 0, 0, 0, 5, 0], b"\x85\x80\0\0\0"), (4, 4), r"16 .*0\.\.15"),
        (forged([32, 0, 1, 1, 0, 0, 0, 0, 17], b"\x81" + b"\x80" * 16), (4, 4), r"1 .*0\.\.0"),
        (bytes([64]) + b"\xff" * 40, (4, 4), "numbers"),
        (bytes([64]), (4, 4), "numbers"),
        # Huge numbers are only numbers.
        (forged([2**28 - 1, 2**28 - 1, 2**28 - 1, 1, 0, 0, 0, 0, 0]), (4, 4, 3), None),
    ],
    ids=range(17),
)
def test_forged_context_models(data, shape, says):
    if says is None:
        assert not decode(data, shape, 5, np.uint8).any()
        return
    with pytest.raises(ValueError, match=says):
        decode(data, shape, 5, np.uint8)


def test_memory_is_that_of_the_codes():
    """The model of a single column has a level per code, and bounded memory."""
    count = 1 << 22
    data = forged([32, 0, 1, 1, 0, 0, 0, 0, 0])
    lengths = b"\0" * -(-count // stream.CHUNK)
    for shape in [(count, 1), (1, count), (count // 4, 4)]:
        tracemalloc.start()
        assert decode(data + lengths, shape, 5, np.uint8).shape == shape
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * count + 64 * stream.CHUNK


def test_writing_a_model_inverts_reading(streams):
    codes, alphabet, *_ = STRUCTURED["kernels"]
    viewed = context_model.view(codes.shape, False)
    model, end = stream._read_context(streams["kernels"], viewed, alphabet)
    assert stream._write_context(model) == streams["kernels"][:end]
    numbers, _ = read_numbers(streams["kernels"], 1, 9)
    assert numbers[3] == len(model.tables) > 1
    assert max(map(np.max, model.levels)) < context_model.MAX_LEVEL
