"""Damaged files, lying files, and files of other formats: refused by name, in bounded memory."""

import io
import json
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy

from sqs_jax.artifact import CompressedLeaf, SqsFileError, inspect, load, save
from sqs_jax.artifact import container as box
from tests.artifact.trees import model, same


def refuse(path, data, says=None):
    path.write_bytes(data)
    for read in (load, inspect):
        with pytest.raises(SqsFileError, match=says) as error:
            read(path)
        assert str(path) in str(error.value)


def test_cut_short_at_any_byte(path):
    save(path, model())
    data = path.read_bytes()
    cuts = np.random.default_rng(0).integers(400, len(data), 100)
    for cut in [*range(400), *cuts.tolist(), len(data) - 1]:
        path.write_bytes(data[:cut])
        with pytest.raises(SqsFileError, match=r"m\.sqs"):
            load(path)
    refuse(path, data + b"\0")
    refuse(path, b"", "empty")


def test_a_flipped_bit_is_noticed(path):
    save(path, model(), metadata={"a": 1})
    data, tree = path.read_bytes(), load(path)
    rng = np.random.default_rng(0)
    bits = [*range(0, 8 * 420, 3), *rng.integers(0, 8 * len(data), 1000).tolist()]
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            again = load(path)
        except SqsFileError:
            continue
        assert same(again, tree)


def zipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a", "b")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (safetensors.numpy.save({"w": np.ones(3)}), "safetensors"),
        (safetensors.numpy.save({"w": np.ones(3)}, {"format": "pt"}), "safetensors"),
        (zipped(), "zip"),
        (bytes.fromhex("80049507000000000000007d948c016194") + b"." * 99, "pickle"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}", "numpy"),
        (b"hello, world, this is some text\n" * 9, "neither"),
        (bytes(1000), "neither"),
        (b"\xff" * 1000, "neither"),
        (b"\x10" + bytes(7) + b"[" * 16, "neither"),
    ],
)
def test_other_formats_are_named(data, says, path):
    refuse(path, data, says)


def test_a_missing_file_and_a_folder_stay_themselves(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.sqs")
    with pytest.raises(IsADirectoryError):
        inspect(tmp_path)


@pytest.mark.parametrize(
    ("version", "says"), [("2", "upgrade"), ("900", "upgrade"), ("x", "number"), ("0", "number")]
)
def test_other_versions(version, says, path):
    save(path, model())
    entries = safetensors.numpy.load_file(path)
    refuse(path, safetensors.numpy.save(entries, {"format": "sqs", "version": version}), says)


def forge(path, change):
    """Rewrite the file with a doctored index or streams, checksums and all."""
    streams = {k: bytes(v) for k, v in box.read_container(path.read_bytes()).items()}
    index = box.read_index(streams["index"])
    change(index, streams)
    index.setdefault("crc32", [zlib.crc32(streams[k]) for k in ("codes", "codebooks", "dense")])
    streams["index"] = zlib.compress(json.dumps(index).encode())
    return box.write_container(streams)


def put(value, *keys):
    def change(index, streams):
        index.pop("crc32")
        node = index
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change


HUGE = [1 << 62, -1, -(1 << 70), 10**400, 1e9, "9", None, True, [], {}]
# The columns of the index: shape, codebook, dtype, stored, bytes for compressed leaves;
# shape, dtype, stored for dense ones.
LIES = [
    *[put(value, "compressed", 4, 0) for value in (*HUGE, 0, 1, 10**6)],
    *[put(value, "compressed", 0, 0, 0) for value in (*HUGE, 0, 1 << 47, 1 << 30)],
    *[put(value, "compressed", 1, 0, 1) for value in (*HUGE, 0, 3, 70_000)],
    *[put(value, "dense", 0, 0, 0) for value in (*HUGE, 0, 1 << 47, 9)],
    *[put(value, "compressed", 0, 0) for value in (None, 3, [], [0] * 100, [1 << 40] * 9)],
    *[put(value, "dense", 0, 0) for value in (None, "3", [0] * 100, [0, *[1 << 40] * 9])],
    *[put("nonsense", "compressed", column, 0) for column in range(5)],
    *[put("nonsense", "dense", column, 0) for column in range(3)],
    *[put("int64", "compressed", column, 0) for column in (2, 3)],
    *[put("complex128", "dense", column, 0) for column in (1, 2)],
    put("float64", "dense", 2, 0),
    put("object", "dense", 1, 0),
    *[
        put(value, key)
        for key in ("compressed", "dense", "tree")
        for value in (None, 3, [], {}, "x")
    ],
    put([], "metadata"),
    put(None, "crc32"),
    put([0, 0, 0], "crc32"),
    put(["l"], "tree"),
    put(["i", [1, 1], "c", "d"], "tree"),
    put(["i", ["a"], "c"], "tree"),
    put(["i", [[]], "c"], "tree"),
    put(["z", "c"], "tree"),
    put({"params": "e"}, "tree"),
]


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
def test_a_lying_index(lie, path):
    save(path, model())
    refuse(path, forge(path, lie))


def test_forging_by_itself_is_not_what_is_refused(path):
    save(path, model())
    path.write_bytes(forge(path, lambda index, streams: None))
    assert same(load(path), model())


def test_bombs_stay_small(path):
    deep = []
    for _ in range(500):
        deep = ["l", deep]
    save(path, model())
    refuse(path, forge(path, put(deep, "tree")), "deeper")
    refuse(path, forge(path, put("x" * (1 << 26), "metadata", "a")), "index")
    streams = box.read_container(path.read_bytes())
    nested = zlib.compress(b"[" * 1_000_000)
    refuse(path, box.write_container({**streams, "index": nested}), "index")
    refuse(path, box.write_container({**streams, "index": streams["index"][:-1]}), "index")
    refuse(path, box.write_container({**streams, "index": bytes(streams["index"]) + b"x"}), "index")
    # A one-symbol stream of two bytes can claim any size; only so much is believed.
    save(path, [CompressedLeaf(np.zeros(100, np.uint8), np.ones((1, 4), np.float32))])
    refuse(path, forge(path, put([1 << 40], "compressed", 0, 0)), "more weights")
    path.write_bytes(forge(path, put([1000, 1000], "compressed", 0, 0)))
    assert load(path)[0].codes.shape == (1000, 1000)


def test_save_refuses_what_load_would(path, monkeypatch):
    leaf = CompressedLeaf(np.zeros(10_000, np.uint8), np.ones((1, 4), np.float32))
    save(path, [leaf])
    monkeypatch.setattr("sqs_jax.artifact.file._most_codes", lambda file_bytes: 9_999)
    with pytest.raises(ValueError, match="more than a reader accepts"):
        save(path, [leaf])
    with pytest.raises(SqsFileError, match="more weights"):
        load(path)


def test_bool_bytes_are_checked(path):
    def change(index, streams):
        index.pop("crc32")
        streams["dense"] = b"\2" + streams["dense"][1:]

    save(path, [np.array([True, False])])
    refuse(path, forge(path, change), "bool")
