"""The independent reader, written from the documentation, agrees with `load`."""

import numpy as np
import pytest

from sqs_jax.artifact import (
    CompressedLeaf,
    coding,
    leaf_codecs,
    load,
    read_attachments,
    read_metadata,
    save,
)
from sqs_jax.artifact.dtypes import DTYPES
from tests.artifact import reference_reader as reference
from tests.artifact.forge import assemble
from tests.artifact.trees import compressed, integers, model, structured

TABLES = {"dense table", "sparse table"}
RNG = np.random.default_rng(0)


def leaf(codes, windows=1, stack=()):
    components = -(-max(1, int(codes.max(initial=0))) // windows)
    values = components * windows
    book = np.random.default_rng(1).normal(size=(*stack, windows, components))
    codes = codes.astype(np.uint8 if values <= 255 else np.uint16)
    return CompressedLeaf(codes, book.astype(np.float32))


def big():
    return np.random.default_rng(2).normal(size=(40, 30)).astype(np.float32)


CASES = {
    "model": (model(), TABLES | {"pairs", "one symbol a step"}),
    "structures": (
        [
            {10: np.ones(1), -1: {"é": np.ones(2), "B": np.ones(3), "a": np.ones(4)}, 2: None},
            ([], (), {}, [np.ones((0, 3)), (leaf(np.zeros(0, np.uint8)),)]),
        ],
        set(),
    ),
    "a bare leaf": (np.float16(3), set()),
    "shared": ({"in": big(), "mid": [leaf(structured((80, 80)))] * 2, "out": big()}, set()),
    "convolution": (
        # Rows and columns first, then last, as one library has it and the other.
        [
            leaf(structured((24, 24, 3, 3))),
            leaf(structured((3, 3, 24, 24), axes=(2, 3)), windows=2),
            leaf(np.repeat(np.repeat(structured((40, 40), 9), 3, 1), 2, 0).reshape(80, 40, 3)),
        ],
        {"context, pairs first", "context, pairs last", "dense table"},
    ),
    "matrices": (
        [leaf(structured((120, 90), 9)), leaf(structured((2, 90, 80), axes=(1, 2)), stack=(2,))],
        {"context, pairs first", "context, pairs last"},
    ),
    "repeats": (
        [
            leaf(np.tile(RNG.integers(0, 5, (30, 64)), (4, 1))),
            leaf(np.tile(RNG.integers(0, 700, (30, 64)), (4, 1))),
        ],
        {"lzma"},
    ),
    "packed": (
        [leaf(np.arange(200)), leaf(np.arange(1001) % 7), leaf(np.ones(1, int))],
        {"packed"},
    ),
    "tables": (
        [
            leaf(np.full(100, 60_000)),
            leaf(np.where(RNG.random(4000) < 0.1, RNG.choice(60_000, 4000) // 900 * 900, 0)),
            leaf(np.clip(RNG.normal(128, 20, 3001), 0, 255).astype(int)),
            leaf(RNG.geometric(0.01, 2000)),
            leaf((RNG.random(999) < 0.01).astype(int)),
        ],
        TABLES | {"pairs", "one symbol a step"},
    ),
    "dtypes": (
        {
            name: [np.ones(shape, dtype) for shape in [(), (2, 3), (0, 2)]]
            for name, dtype in DTYPES.items()
        },
        set(),
    ),
    "integers": (integers(), {"integers", "lzma", "packed"}),
    "narrow": ([np.array(x) for x in ([0.5, 448], [1, 2.0**-16], [1 + 2**-10], [2.0**99])], set()),
}


def agree(got, want):
    """Assert that `got` from `load` equals `want` from the reference reader."""
    if isinstance(got, CompressedLeaf):
        assert want[0] == "codebook"
        return agree([got.codes, got.codebook], list(want[1:]))
    assert type(got) is type(want)
    if isinstance(got, dict):
        assert list(got) == list(want)
        got, want = list(got.values()), list(want.values())
    if isinstance(got, list | tuple):
        assert len(got) == len(want) and all(map(agree, got, want))
    elif got is not None:
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert got.tobytes() == want.tobytes()
    return True


def check(path, forms):
    reference.FORMS.clear()
    tree, metadata, attachments = reference.read_file(path.read_bytes())
    assert agree(load(path), tree) and metadata == read_metadata(path)
    assert attachments == read_attachments(path)
    assert forms <= reference.FORMS
    return tree


@pytest.mark.parametrize("name", CASES)
def test_the_reference_reader_agrees_with_load(name, path):
    assert reference.CHUNK == coding.CHUNK
    tree, forms = CASES[name]
    save(path, tree, metadata={"ключ": [1, None]})
    again = check(path, forms)
    data = path.read_bytes()
    save(path, load(path), metadata=read_metadata(path))
    assert path.read_bytes() == data
    save(path, tree, attachments={"é.json": b"{}" * 99, "empty": b"", "all": bytes(range(256))})
    assert len(read_attachments(path)) == 3
    check(path, forms)
    if name == "shared":
        assert again["in"] is again["out"] and again["mid"][0] is again["mid"][1]


@pytest.mark.parametrize("chunk", [64, 80, 512])
@pytest.mark.parametrize("name", ["convolution", "matrices", "packed", "tables"])
def test_the_reference_reader_agrees_on_several_chunks(name, chunk, path, monkeypatch):
    monkeypatch.setattr("sqs_jax.artifact.coding.stream.CHUNK", chunk)
    monkeypatch.setattr(reference, "CHUNK", chunk)
    tree, forms = CASES[name]
    save(path, tree)
    check(path, {"chunks"} if name != "packed" else forms)


def test_the_reference_reader_agrees_on_a_kind_with_parts(path, monkeypatch):
    """Kinds of later versions are readable, as grouped integers with nested leaves."""
    codes = compressed((6, 4))
    values = np.random.default_rng(0).integers(0, 300, (6, 4)).astype(np.uint16)
    scales = np.array([0.5, 2, 3], np.float32)
    streams = [coding.encode(values, 300), coding.encode(codes.codes, 5)]
    inner = ["k", "codebook", [6, 4], "float32", {}, "s", "d"]
    tree = {"a": ["k", "sum", [6, 4], "float32", {"group": 2}, "s", "d", inner], "b": ["r", 0]}
    index = {
        "tree": tree,
        "arrays": [[[3], [1, 4]], ["float64", "float32"], ["float32", "float32"]],
        "symbols": [[[6, 4]] * 2, [300, 5], list(map(len, streams)), [23, 1], [0, 0.5]],
        "metadata": {},
    }
    data = [streams[0], scales.tobytes(), streams[1], codes.codebook.tobytes()]
    path.write_bytes(assemble(index, [b"".join(data)]))

    def together(spec, parts):
        return [spec.kind, list(spec.shape), spec.dtype, spec.attributes, *parts]

    codec = leaf_codecs.LeafCodec(type(None), lambda leaf: None, together, lambda spec: None)
    monkeypatch.setitem(leaf_codecs.CODECS, "sum", codec)
    got, (want, *_) = load(path)["a"], reference.read_file(path.read_bytes())
    assert got[:4] == list(want["a"][:4]) == ["sum", [6, 4], "float32", {"group": 2}]
    assert want["b"] is want["a"]
    np.testing.assert_array_equal(got[4], values)
    np.testing.assert_array_equal(got[5], scales.astype(np.float64), strict=True)
    assert agree(got[4:6], list(want["a"][4:6])) and agree(got[6], ("codebook", *want["a"][6][4:]))
