"""Forged indexes with valid checksums: refused by path, in little memory and time."""

import json
import lzma
import struct

import numpy as np
import pytest

from sqs_jax.artifact import (
    CompressedLeaf,
    SqsFile,
    SqsFileError,
    coding,
    inspect,
    load,
    save,
)
from tests.artifact.forge import assemble, forge, parts, put, refuse
from tests.artifact.trees import compressed, same

HUGE = [1 << 62, -1, -(1 << 70), 10**400, 1e9, "9", None, True, [], {}]
# Columns: shape, dtype, stored of arrays; shape, alphabet, bytes, nonzero, excess of symbols.
# Leaf 0 is an array of 5 floats; the first codes are [60, 20, 3, 3], below 5.
LIES = [
    *[put(value, "symbols", 0, 0, 0) for value in (*HUGE, 0, 1 << 47, 1 << 30)],
    *[put(value, "symbols", 1, 0) for value in (*HUGE, 0, 1, 4, 6, 65_536, 65_537, 5.0)],
    *[put(value, "symbols", 2, 0) for value in (*HUGE, 0, 1, 10**6)],
    *[put(value, "symbols", 3, 0) for value in (*HUGE, 60 * 20 * 9 + 1, 0.0)],
    *[put(value, "symbols", 4, 0) for value in ("9", None, True, [], 10**400, -1e9, 1e9, 1 << 60)],
    *[put(value, "arrays", 0, 0, 0) for value in (*HUGE, 0, 1 << 47, 9)],
    *[put(value, "symbols", 0, 0) for value in (None, 3, [], [0] * 100, [1 << 40] * 9, [[1]])],
    *[put(value, "arrays", 0, 0) for value in (None, "3", [0] * 100, [0, *[1 << 40] * 9], {})],
    *[put("nonsense", "symbols", column, 0) for column in range(5)],
    *[put("nonsense", "arrays", column, 0) for column in range(3)],
    *[put(value, "arrays", column, 0) for column in (1, 2) for value in (None, 3, ["int8"])],
    *[put("complex128", "arrays", column, 0) for column in (1, 2)],
    put("float64", "arrays", 2, 0),
    put("int8", "arrays", 1, 0),
    put("object", "arrays", 1, 0),
    *[
        put(value, key)
        for key in ("arrays", "symbols", "tree")
        for value in (None, 3, [], {}, "x", [[]], [[], [], []], [{}] * 3, ["abc"] * 5)
    ],
    *[put(value, "metadata") for value in ([], None, "x")],
    put(["l"], "tree"),
    put([], "tree"),
    put([["d"]], "tree"),
    put(True, "tree"),
    put(["i", [1, 1], "c", "d"], "tree"),
    put(["i", [2, 1], "c", "d"], "tree"),
    put(["i", ["a"], "c"], "tree"),
    put(["i", [True], "c"], "tree"),
    put(["i", [1.0], "c"], "tree"),
    put(["i", [[]], "c"], "tree"),
    put(["i", [1]], "tree"),
    put(["i"], "tree"),
    put(["z", "c"], "tree"),
    put({"params": "e"}, "tree"),
    put("s", "tree", "context"),
    put("d", "tree", "context"),
    put(["k"], "tree", "context"),
    put(["k", "codebook", [60, 20, 3, 3], "float32", {}], "tree", "context"),
    put(["k", "codebook", [60, 20, 3, 3], "float32", {}, "s"], "tree", "context"),
    put(["k", "codebook", [60, 20, 3, 3], "float32", {}, "d", "s"], "tree", "context"),
    put(["k", "codebook", [60, 20, 3, 3], "float32", {}, "c"], "tree", "context"),
    put(["k", "codebook", [60, 20, 3, 4], "float32", {}, "s", "d"], "tree", "context"),
    put(["k", "codebook", [60, 20, 3, 3], "float64", {}, "s", "d"], "tree", "context"),
    put(["k", "codebook", [60, 20, 3, 3], "text", {}, "s", "d"], "tree", "context"),
    put(["k", "codebook", [60, 20, 3, -3], "float32", {}, "s", "d"], "tree", "context"),
    put(["k", "codebook", [60, 20, 3, 3], "float32", [], "s", "d"], "tree", "context"),
    put(["k", "codebook", [60, 20, 3, 3], "float32", {}, "s", ["r", 0]], "tree", "context"),
    put(["k", 3, [60, 20, 3, 3], "float32", {}, "s", "d"], "tree", "context"),
    *[put(["r", n], "tree", "tied", 2) for n in (99, 11, 10, -1, True, 0.0, "0", None, [0])],
    put(["r"], "tree", "tied", 2),
    put(["r", 0, 0], "tree", "tied", 2),
    put(["r", 0], "tree", "batch_stats", 1),  # leaf 0 itself
]


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
def test_false_claims_in_the_index_are_refused(lie, path, saved):
    refuse(path, forge(path, lie), by=(load, inspect))


def test_an_unchanged_forged_file_is_accepted(path, saved):
    index, leaves = parts(path)
    assert index["symbols"][0][0] == [60, 20, 3, 3] and index["symbols"][1][0] == 5
    assert index["tree"]["tied"] == ["l", "d", ["r", 9]] and index["tree"]["context"] == "c"
    assert index["arrays"][0][0] == [5] and len(leaves) == 10
    kind = ["k", "codebook", [60, 20, 3, 3], "float32", {}, "s", "d"]
    for change in (put(kind, "tree", "context"), put(["r", 0], "tree", "tied", 2)):
        path.write_bytes(forge(path, change))
        again = load(path)
        assert same(again["context"], saved[0]["context"])
    assert again["tied"][1] is again["batch_stats"][0]


def test_repeated_names_in_the_index_are_refused(path, saved):
    index, leaves = parts(path)
    text = json.dumps(index)
    for old, new in [
        ('"metadata":', '"metadata": {}, "metadata":'),
        ('{"a": 1}', '{"a": 1, "a": 2}'),
        ('"context":', '"context": null, "context":'),
    ]:
        assert text.count(old) == 1
        refuse(path, assemble(text.replace(old, new).encode(), leaves), "no JSON object")
    index["tree"] = ["i", [1, 1], *index["tree"]["tied"][1:]]
    refuse(path, assemble(index, leaves), "damaged")


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"3", b"{", b'{"tree": NaN,}', b"\xff{}", b"{}x", b"[" * 1_000_000, b"9" * 9999],
    ids=range(9),
)
def test_an_index_that_is_no_object(text, path, saved):
    refuse(path, assemble(text, []), "index is too long or no JSON object")


def test_an_index_that_is_no_lzma(path, saved):
    index, leaves = parts(path)
    text = json.dumps(index).encode()
    packed = lzma.compress(text, lzma.FORMAT_ALONE)
    for wrong in (text, b"", lzma.compress(text), packed + b"x", packed[:-1], packed[:20]):
        refuse(path, assemble(wrong, leaves, packed=True), "index")


# Bombs.


def test_compression_bombs_take_little_memory(path, saved):
    deep = []
    for _ in range(500):
        deep = ["l", deep]
    refuse(path, forge(path, put(deep, "tree")), "deeper|damaged")
    path.write_bytes(saved[1])
    index, leaves = parts(path)
    refuse(path, assemble({**index, "metadata": {"a": "x" * (1 << 23)}}, leaves), "too long")
    # Many leaves below one long name; many names for one leaf.
    long = {"x" * (1 << 21): ["l", *["q"] * 50_000]}
    refuse(path, assemble({**index, "tree": long}, leaves), "paths")
    many = ["l", *["d"] * 20_000]
    refuse(path, assemble({**index, "tree": many}, leaves), "not as long as the tree")
    again = ["l", "d", *[["r", 0]] * 10_000]
    refuse(path, assemble({**index, "tree": again}, leaves), "longer than the tree")
    empty = ["l", *[{}] * 20_000]
    refuse(path, assemble({**index, "tree": empty}, leaves), "longer than the tree")


def test_a_leaf_shared_by_many_paths_is_read_once(path, monkeypatch):
    save(path, [np.arange(2000.0)])
    path.write_bytes(forge(path, put(["l", "d", *[["r", 0]] * 10_000], "tree")))
    read = []
    checked = SqsFile._verified
    monkeypatch.setattr(SqsFile, "_verified", lambda *a: [checked(*a), read.append(a)][0])
    leaves = load(path)
    assert len(leaves) == 10_001 and all(leaf is leaves[0] for leaf in leaves) and len(read) == 1
    assert inspect(path).weights == 2000 and len(read) == 2


def test_an_lzma_header_that_asks_for_memory(path, saved):
    index, leaves = parts(path)
    packed = lzma.compress(json.dumps(index).encode(), lzma.FORMAT_ALONE)
    assert packed[0] == 0x5D and packed[5:13] == b"\xff" * 8
    for dictionary in (1 << 26, 1 << 30, (1 << 32) - 1):
        wrong = packed[:1] + struct.pack("<I", dictionary) + packed[5:]
        refuse(path, assemble(wrong, leaves, packed=True), "index cannot")
    for size in (0, 5, 1 << 40, (1 << 64) - 2):
        wrong = packed[:5] + struct.pack("<Q", size) + packed[13:]
        refuse(path, assemble(wrong, leaves, packed=True), "index")


def test_the_unfolded_size_of_few_bytes_is_bounded(path):
    """A stream of a repeated symbol takes three bytes and can claim any size."""
    save(path, [CompressedLeaf(np.zeros(100, np.uint8), np.ones((1, 4), np.float32))])
    plain = path.read_bytes()
    refuse(path, forge(path, put([1 << 40], "symbols", 0, 0)), "more weights", by=(load, inspect))
    path.write_bytes(plain)
    path.write_bytes(forge(path, put([700, 700], "symbols", 0, 0)))
    assert load(path)[0].codes.shape == (700, 700)
    path.write_bytes(plain)
    index, leaves = parts(path)
    many = {**index, "tree": ["l", *["c"] * 900]}
    many["symbols"] = [[column[0]] * 900 for column in index["symbols"]]
    many["symbols"][0] = [[500, 500]] * 900
    many["arrays"] = [[column[0]] * 900 for column in index["arrays"]]
    refuse(path, assemble(many, leaves * 900), "more weights", by=(load, inspect))


def test_save_and_load_refuse_the_same_files(path, monkeypatch):
    leaf = CompressedLeaf(np.zeros(10_000, np.uint8), np.ones((1, 4), np.float32))
    save(path, [leaf])
    data = path.read_bytes()
    monkeypatch.setattr("sqs_jax.artifact.file.max_unfolded", lambda file_bytes: 9_999)
    monkeypatch.setattr("sqs_jax.artifact.reader.max_unfolded", lambda file_bytes: 9_999)
    with pytest.raises(ValueError, match="more than a reader accepts"):
        save(path, [leaf])
    with pytest.raises(SqsFileError, match="more weights"):
        load(path)
    with pytest.raises(ValueError, match="more than a reader accepts"):
        save(path, {"x" * (1 << 18): [np.zeros(1)] * 129})
    assert path.read_bytes() == data


# Streams.


def first_codes(stream):
    """Return a change that replaces the codes of the first codebook leaf."""

    def change(index, leaves):
        size = index["symbols"][2][0]
        index["symbols"][2][0] = len(stream)
        index["symbols"][4][0] = 8 * len(stream)
        leaves[0] = stream + leaves[0][size:]

    return change


def test_codes_past_the_codebook(path):
    codes = np.random.default_rng(0).integers(0, 5, (30, 10)).astype(np.uint8)
    save(path, [CompressedLeaf(codes, np.ones((1, 4), np.float32))])
    plain = path.read_bytes()
    past = codes.copy()
    past[7, 3] = 5
    for stream in (
        coding.encode(np.where(codes == 4, 77, codes), 256),
        coding.encode(past, 6),
        bytes([128 + 3]) + np.packbits(np.unpackbits(past[..., None], 2)[..., 5:]).tobytes(),
        bytes([128 + 4]) + b"\xff" * 150,
        bytes([128 + 16]) + b"\xff" * 600,
    ):
        path.write_bytes(plain)
        refuse(path, forge(path, first_codes(stream)), r"leaf '0'; the file is dam", by=[load])
        assert inspect(path).weights == 300  # which does not decode


def test_streams_of_another_length(path):
    codes = compressed((40, 30))
    save(path, [codes])
    plain = path.read_bytes()
    longer = coding.encode(np.tile(codes.codes, 2), 5)
    for stream in (longer, longer[:2], b"", bytes([64]), bytes([25]), bytes([128]), bytes(40)):
        path.write_bytes(plain)
        refuse(path, forge(path, first_codes(stream)), by=[load])


def test_bool_bytes_are_checked(path):
    save(path, [np.array([True, False])])
    refuse(
        path, forge(path, lambda index, leaves: leaves.__setitem__(0, b"\2\0")), "bool", by=[load]
    )


# Kinds.


def test_an_unknown_kind_is_refused_when_it_is_read(path, saved):
    tree, _, _ = saved
    new = [
        "k",
        "sparse-2030",
        [60, 20, 3, 3],
        "float32",
        {"a": [1]},
        "s",
        ["k", "x", [], "int8", {}, "d"],
    ]
    path.write_bytes(forge(path, put(new, "tree", "context")))
    with pytest.raises(SqsFileError, match=r"'sparse-2030'.*upgrade.*'context'") as error:
        load(path)
    assert "damaged" not in str(error.value)
    with SqsFile(path) as file:
        assert same(file.read("tied/0"), tree["tied"][0])
        assert same(file.read("params/embed"), tree["params"]["embed"])
        with pytest.raises(SqsFileError, match="sparse-2030"):
            file.read("context")
        assert same(file.read("params/layers"), tree["params"]["layers"])
    report = inspect(path)
    (size,) = [leaf for leaf in report.leaves if leaf.path == "context"]
    assert size.shape == (60, 20, 3, 3) and size.original_bytes == 4 * 60 * 20 * 9
