"""safetensors: agreement with the library in both directions, and false headers."""

import json
import os
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from sqs_jax.checkpoints import CheckpointError, LazyArray, open_checkpoint, write_safetensors
from tests.checkpoints.arrays import array, same, state

DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2"),
    *("float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz"),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("name", DTYPES)
def test_what_the_library_writes_is_read(name, path):
    tensors = state(name, "float32")
    safetensors.numpy.save_file(tensors, path, {"format": "pt", "step": "3"})
    checkpoint = open_checkpoint(path)
    assert same(checkpoint.tree, tensors)
    assert checkpoint.kind == "safetensors" and checkpoint.nbytes == path.stat().st_size
    assert checkpoint.metadata == {"format": "pt", "step": "3"}


def test_what_is_written_the_library_reads(path):
    names = [name for name in DTYPES if not name.startswith("float8")]
    tensors = state(*names)
    lazy = {name: LazyArray.of(tensor) for name, tensor in tensors.items()}
    assert write_safetensors(path, lazy, {"a": "ü"}) == path.stat().st_size
    read = safetensors.numpy.load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].tobytes() == tensor.tobytes()
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"a": "ü"}


def test_round_trip_of_every_dtype_is_aligned_and_the_library_accepts_it(path, tmp_path):
    tensors = state(*DTYPES, "float4_e2m1fn")
    write_safetensors(path, tensors)
    first = open_checkpoint(path)
    assert same(first.tree, {name: tensors[name] for name in first.tree}) and not first.metadata
    again = tmp_path / "again"
    write_safetensors(again, first.tree, first.metadata)
    assert again.read_bytes() == path.read_bytes()
    with safetensors.safe_open(path, "np") as file:
        assert set(file.keys()) == set(tensors)
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    for name, entry in json.loads(path.read_bytes()[8 : 8 + length]).items():
        assert (8 + length + entry["data_offsets"][0]) % tensors[name].dtype.itemsize == 0


def test_order_and_byte_order_in_memory_do_not_matter(path):
    x = array("float32", (4, 6)).T
    write_safetensors(path, {"t": x, "big": x.astype(">f4"), "strided": x[::2]})
    tree = open_checkpoint(path).tree
    assert all(tree[name].dtype == "<f4" for name in tree)
    assert (np.asarray(tree["t"]) == x).all() and (np.asarray(tree["big"]) == x).all()
    assert (np.asarray(tree["strided"]) == x[::2]).all()


def test_nothing_is_a_checkpoint_too(path):
    write_safetensors(path, {})
    assert open_checkpoint(path).tree == {} and safetensors.numpy.load_file(path) == {}


def test_one_tensor_is_in_memory_at_a_time(path, tmp_path):
    count, size = 8, 1 << 20
    tensors = {f"t{i}": np.full(size, i, np.uint8) for i in range(count)}
    write_safetensors(path, tensors)
    del tensors
    tracemalloc.start()
    try:
        write_safetensors(tmp_path / "out", open_checkpoint(path).tree)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def test_a_failure_on_the_way_leaves_no_file_and_the_old_one(path, tmp_path):
    def fail():
        raise CheckpointError("no more")

    tensors = {"a": array("float32"), "b": LazyArray((3,), np.float32, fail)}
    for _ in range(2):
        before = sorted(os.listdir(tmp_path)), path.exists() and path.read_bytes()
        with pytest.raises(CheckpointError, match="no more"):
            write_safetensors(path, tensors)
        assert before == (sorted(os.listdir(tmp_path)), path.exists() and path.read_bytes())
        path.write_bytes(b"old")


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        ({"a": np.ones(2, object)}, None, "'a' is object"),
        ({"a": 1.0}, None, "'a' is float"),
        ({"a": np.ones(2, np.longdouble)}, None, r"'a' is .*, which safetensors.*cast it"),
        ({"__metadata__": np.ones(2)}, None, "rename"),
        ({1: np.ones(2)}, None, "rename"),
        ({"\ud800": np.ones(2)}, None, "Unicode"),
        ({"a": np.ones(2)}, {"step": 1}, "must be strings"),
    ],
)
def test_what_the_format_cannot_hold_is_named(tensors, metadata, says, path, tmp_path):
    with pytest.raises(CheckpointError, match=says) as error:
        write_safetensors(path, tensors, metadata)
    assert str(path) in str(error.value) and os.listdir(tmp_path) == []


def written(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(start=0, end=4, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "length", "says"),
    [
        ({}, 1 << 63, "claims 9223372036854775808 bytes, more than"),
        ({}, 99_999_999, "claims 99999999 bytes of a file of"),
        (b"[1]", None, "no JSON object"),
        (b"{", None, "damaged"),
        (b"{\xff}", None, "damaged"),
        (b'{"a":' + b"[" * 100_000, None, "damaged"),
        (b'{"a":%b,"a":%b}' % (2 * (json.dumps(entry(0, 8, [2])).encode(),)), None, "twice"),
        ({"__metadata__": {"a": 1}}, None, "no object of strings"),
        ({"__metadata__": {"format": "sqs", "version": "1"}}, None, "sqs decompress"),
        ({"a": 1}, None, "described by 1"),
        ({"a": {"dtype": "F32"}}, None, "described by"),
        ({"a": entry(0, 8, [2], "F99")}, None, "F99.*cast it to one of"),
        ({"a": entry(0, 6, [8], "F6_E2M3")}, None, "F6_E2M3.*cast it to one of"),
        ({"a": entry(0, 8, [3])}, None, "does not take bytes 0 to 8"),
        ({"a": entry(0, 8, [-2])}, None, "no shape"),
        ({"a": entry(0, 8, [True, 2])}, None, "no shape"),
        ({"a": entry(0, 8, [1 << 62, 1 << 62])}, None, "no shape"),
        ({"a": entry(0, 0, [0, 1 << 47, 1 << 47])}, None, "too large"),
        ({"a": entry(0, 0, [0] * 65)}, None, "no shape"),
        ({"a": entry(-8, 0, [2])}, None, "'a' overlaps|'a' lies"),
        ({"a": entry(8, 0, [2])}, None, "does not take"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 8)}, None, "'b' overlaps another tensor"),
        ({"a": entry(4, 8)}, None, "'a' lies behind a hole"),
        ({"a": entry(0, 4)}, None, "4 bytes of data, the file has 8"),
        ({"a": entry(0, 1 << 40, [1 << 38])}, None, "the file has 8"),
        ({"a": {**entry(), "data_offsets": [0, 4.0]}}, None, "described by"),
    ],
)
def test_a_lying_header_is_refused_before_memory_is_taken(header, length, says, path):
    written(path, header, bytes(8), length)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=says) as error:
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_file_cut_at_any_byte_is_refused(path):
    safetensors.numpy.save_file(state("float32", "bfloat16"), path)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="copy it again"):
            open_checkpoint(path)


def test_a_bool_that_is_none_is_refused(path):
    written(path, {"a": entry(0, 8, [8], "BOOL")}, b"\0\1\0\1\0\2\0\0")
    with pytest.raises(CheckpointError, match=r"'a'.*other than 0 and 1"):
        np.asarray(open_checkpoint(path).tree["a"])


@pytest.mark.parametrize("change", ["cut", "grown", "replaced", "gone"])
def test_a_file_that_changes_while_it_is_read_is_noticed(change, path, tmp_path):
    safetensors.numpy.save_file(state("float32"), path)
    leaf = open_checkpoint(path).tree["layer0.0.float32"]
    assert np.asarray(leaf).size
    if change == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif change == "grown":
        path.write_bytes(path.read_bytes() + b"\0")
    elif change == "replaced":
        (tmp_path / "new").write_bytes(path.read_bytes())
        os.replace(tmp_path / "new", path)
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"changed since it was opened|cannot be read"):
        np.asarray(leaf)


LACKING = ["int2", "uint2", "int4", "uint4", "complex128", "float4_e2m1fn"]
LACKING += ["float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz"]


@pytest.mark.parametrize("name", LACKING)
def test_what_the_format_lacks_comes_back_by_its_metadata(name, path):
    tensors = {"x": array(name, (3, 5)), "y": array(name, ()), "z": array(name, (0, 2))}
    write_safetensors(path, {**tensors, "plain": array("float32")}, {"format": "pt"})
    checkpoint = open_checkpoint(path)
    assert same({n: checkpoint.tree[n] for n in tensors}, tensors)
    assert checkpoint.metadata == {"format": "pt"}
    with safetensors.safe_open(path, "np") as file:
        recorded = set(json.loads(file.metadata()["sqs_dtypes"]))
    assert recorded == ({"x", "y"} if name == "float4_e2m1fn" else set(tensors))


@pytest.mark.parametrize(
    "says",
    [
        *("[1]", "{", '{"a": 1}', '{"a": "int4"}', '{"b": "int4"}', '{"a": "complex128"}'),
        *('{"a": "float32"}', '{"c": "complex128"}', '"a"', "\ud800"),
    ],
)
def test_metadata_that_lie_about_dtypes_are_refused(says, path):
    header = {"a": entry(), "c": entry(4, 12, [1], "F64"), "__metadata__": {"sqs_dtypes": says}}
    written(path, header, bytes(12))
    with pytest.raises(CheckpointError, match="copy it again"):
        open_checkpoint(path)
