"""Attachments: exact, counted, checked, and readable beside by readers of 1.0."""

import json

import numpy as np
import pytest

from sqs_jax.artifact import (
    SqsFile,
    SqsFileError,
    inspect,
    load,
    read_attachments,
    read_metadata,
    save,
    summarize,
)
from tests.artifact.forge import forge, parts, put, refuse
from tests.artifact.trees import model, same

WORDS = "\n".join(f"##token{i % 977}" for i in range(5000)).encode()
ATTACHMENTS = {"tokenizer.json": WORDS, "config é.json": b'{"layers": 2}', "empty": b""}
TREE = {"kernel": np.ones(3, np.float32), "positions": np.arange(500)}


@pytest.fixture
def attached(path):
    save(path, TREE, metadata={"a": 1}, attachments=ATTACHMENTS)
    return path


def test_attachments_are_read_beside_the_tree(attached):
    assert read_attachments(attached) == ATTACHMENTS
    assert list(read_attachments(attached)) == sorted(ATTACHMENTS)
    assert same(load(attached), TREE) and read_metadata(attached) == {"a": 1}
    with SqsFile(attached) as file:
        assert file.version == (1, 1)
        assert file.attachments == {"config é.json": 13, "empty": 0, "tokenizer.json": len(WORDS)}
        assert [leaf.path for leaf in file.leaves] == ["kernel", "positions"]
        assert file.read_attachment("tokenizer.json") == WORDS
        for name in ("kernel", "", "tokenizer"):
            with pytest.raises(KeyError, match=rf"m\.sqs.*no attachment '{name}'.*config é\.json"):
                file.read_attachment(name)
        with pytest.raises(KeyError, match="no leaf 'empty'"):
            file.read("empty")


def test_a_file_without_attachments_stays_1_0(path):
    tree = {"kernel": np.ones(3, np.float32)}
    save(path, tree)
    data = path.read_bytes()
    for nothing in ({}, None):
        save(path, tree, attachments=nothing)
        assert path.read_bytes() == data and read_attachments(path) == {}
    with SqsFile(path) as file:
        assert file.version == (1, 0) and file.attachments == {}
        with pytest.raises(KeyError, match="there are: none"):
            file.read_attachment("x")


def test_order_and_type_of_bytes_do_not_change_the_file(path):
    save(path, model(), attachments={"a": b"123", "b": b"4"})
    data = path.read_bytes()
    save(path, model(), attachments={"b": bytearray(b"4"), "a": memoryview(b"123")})
    assert path.read_bytes() == data
    save(path, load(path), attachments=read_attachments(path))
    assert path.read_bytes() == data


@pytest.mark.parametrize("tree", [None, {}, [], (), np.ones(2), (np.ones(2), {"x": None}), model()])
def test_any_tree_has_attachments(tree, path):
    save(path, tree, attachments={"x": b"x"})
    assert same(load(path), tree) and read_attachments(path) == {"x": b"x"}
    assert [size.path for size in inspect(path).leaves] == [
        size.path for size in summarize(tree).leaves
    ]


def test_attachments_count_in_the_bytes_of_the_file(attached):
    size = attached.stat().st_size
    report = inspect(attached)
    assert report == summarize(TREE, metadata={"a": 1}, attachments=ATTACHMENTS)
    assert report.file_bytes == size
    entries = {entry.name: entry for entry in report.attachments}
    assert list(entries) == sorted(ATTACHMENTS)
    assert all(entries[name].original_bytes == len(data) for name, data in ATTACHMENTS.items())
    assert entries["empty"].file_bytes == 0
    assert 0 < entries["tokenizer.json"].file_bytes < len(WORDS) / 5  # text repeats
    bare = summarize(TREE, metadata={"a": 1})
    assert report.leaves == bare.leaves and report.original_bytes == bare.original_bytes
    coded = sum(entry.file_bytes for entry in report.attachments)
    assert coded < report.file_bytes - bare.file_bytes < coded + 200
    rows = [line for line in str(report).splitlines() if " attachment " in line]
    assert len(rows) == 3 and f"{entries['tokenizer.json'].file_bytes:,}" in rows[2]
    listed = json.loads(json.dumps(report.as_dict()))["attachments"]
    assert listed[1] == {"name": "empty", "original_bytes": 0, "file_bytes": 0}


NAMES = ["", ".", "..", "a/b", "/", "a\\b", "a\0b", "a\nb", "\x1f", "\x7f", "\x9f", "\ud800"]
NAMES += ["x" * 256, "é" * 128]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_invalid_file_names_are_refused_by_writer_and_reader(name, attached):
    data = attached.read_bytes()
    with pytest.raises(ValueError, match=r"attachment name .* cannot be the name of a file"):
        save(attached, TREE, attachments={name: b"x"})
    assert attached.read_bytes() == data

    def rename(index, leaves):
        index["tree"][2][name] = index["tree"][2].pop("empty")

    refuse(attached, forge(attached, rename), "cannot be the name of a file")


def test_valid_file_names(path):
    names = ["x" * 255, "日" * 85, "...", " ", "a b.json", ".hidden", "C:", "\u202e", "-", "~"]
    attachments = {name: name.encode() for name in names}
    save(path, [], attachments=attachments)
    assert read_attachments(path) == attachments


@pytest.mark.parametrize(
    ("attachments", "says"),
    [
        ({"x": "text"}, r"'x' is a str, not bytes; encode text"),
        ({"x": 3}, "int, not bytes"),
        ({"x": None}, "NoneType, not bytes"),
        ({3: b""}, "name 3 is no str"),
        ([("x", b"")], "a list; give a dict"),
        (b"x", "a bytes; give a dict"),
    ],
    ids=range(6),
)
def test_attachments_must_be_a_mapping_of_bytes(attachments, says, path):
    with pytest.raises(TypeError, match=says):
        save(path, TREE, attachments=attachments)
    with pytest.raises(TypeError, match=says):
        summarize(TREE, attachments=attachments)


def test_attachments_count_towards_the_unfolded_size(path, monkeypatch):
    zeros = bytes(100_000)
    save(path, {}, attachments={"zeros": zeros})
    assert read_attachments(path) == {"zeros": zeros} and path.stat().st_size < 400
    monkeypatch.setattr("sqs_jax.artifact.file.max_unfolded", lambda _: len(zeros) - 1)
    monkeypatch.setattr("sqs_jax.artifact.reader.max_unfolded", lambda _: len(zeros) - 1)
    refuse(path, path.read_bytes(), "more weights", by=(load, inspect, read_attachments))
    with pytest.raises(ValueError, match="attachments of one byte repeated"):
        save(path, {}, attachments={"zeros": zeros})


def test_damage_is_noticed_when_the_attachment_is_read(attached):
    with SqsFile(attached) as file:
        at = file._attachments["tokenizer.json"].offset
    data = bytearray(attached.read_bytes())
    data[at + 5] ^= 1
    attached.write_bytes(data)
    for read in (read_attachments, inspect):
        with pytest.raises(SqsFileError, match=r"checksum.*attachment 'tokenizer\.json'"):
            read(attached)
    assert same(load(attached), TREE)
    with SqsFile(attached) as file:
        assert file.read_attachment("config é.json") == ATTACHMENTS["config é.json"]


def test_a_reader_of_1_0_sees_a_pair_and_refuses_the_second_half_by_kind(attached):
    """A reader of 1.0 ignores the key `attachments` and does not know the kind."""

    def of_1_0(index, leaves):
        del index["attachments"]
        for node in index["tree"][2].values():
            node[1] = "attachment-"

    attached.write_bytes(forge(attached, of_1_0))
    assert len(inspect(attached).leaves) == 5
    with SqsFile(attached) as file:
        assert same(file.read("0/kernel"), TREE["kernel"])
        with pytest.raises(SqsFileError, match=r"'attachment-' is not known.*'1/empty'"):
            file.read("1/empty")


NODE = ["k", "attachment", [0], "uint8", {}, "s"]
LIES = [
    *[put(value, "attachments") for value in (False, 1, None, "true", {}, [True])],
    lambda index, leaves: index.pop("attachments"),  # then they are leaves of the tree
    lambda index, leaves: index.update(tree=index["tree"][1]),
    put("l", "tree", 0),
    put([NODE], "tree", 2),
    put({}, "tree", 2),
    put("s", "tree", 2, "empty"),
    put("d", "tree", 2, "empty"),
    put(None, "tree", 2, "empty"),
    put({"deeper": NODE}, "tree", 2, "empty"),
    put(["r", 0], "tree", 2, "empty"),
    put(["r", 2], "tree", 2, "empty"),
    put(["k", "integers", [0], "uint8", {"minimum": 0}, "s"], "tree", 2, "empty"),
    put(["k", "unknown", [0], "uint8", {}, "s"], "tree", 2, "empty"),
    put(["k", "attachment", [0], "int8", {}, "s"], "tree", 2, "empty"),
    put(["k", "attachment", [0, 1], "uint8", {}, "s"], "tree", 2, "empty"),
    put(["k", "attachment", [1], "uint8", {}, "s"], "tree", 2, "empty"),
    put(["k", "attachment", [0], "uint8", {"a": 1}, "s"], "tree", 2, "empty"),
    put(["k", "attachment", [0], "uint8", {}], "tree", 2, "empty"),
    put(["k", "attachment", [0], "uint8", {}, "s", "s"], "tree", 2, "empty"),
    put(["k", "attachment", [0], "uint8", {}, "d"], "tree", 2, "empty"),
    put(NODE, "tree", 1, "kernel"),
    put(["k", "attachment", [500], "uint8", {}, "s"], "tree", 1, "positions"),
    put(255, "symbols", 1, 3),
    put(257, "symbols", 1, 3),
    put([1], "symbols", 0, 3),
]


def test_an_unchanged_forged_file_is_accepted(attached):
    attached.write_bytes(forge(attached, lambda index, leaves: None))
    assert same(load(attached), TREE) and read_attachments(attached) == ATTACHMENTS

    def rename(index, leaves):
        index["tree"][2]["f"] = index["tree"][2].pop("empty")

    attached.write_bytes(forge(attached, rename))
    assert read_attachments(attached)["f"] == b""


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
def test_false_claims_in_the_index_are_refused(lie, attached):
    index, _ = parts(attached)
    assert index["symbols"][0][3] == [0]  # two planes, then attachments by name
    refuse(attached, forge(attached, lie), by=(load, inspect, read_attachments))
