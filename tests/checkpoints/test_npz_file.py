"""npz: files of numpy are read array by array, and nothing is unpickled."""

import io
import os
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from sqs_jax.checkpoints import CheckpointError, open_checkpoint, write_safetensors
from tests.checkpoints.arrays import array, same, state

DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(save, path):
    tensors = {**state(*DTYPES), "params/dense/kernel": array("float32", (400, 300))}
    save(path, **tensors)
    checkpoint = open_checkpoint(path)
    assert same(checkpoint.tree, tensors)
    assert (checkpoint.kind, checkpoint.metadata) == ("npz", {})
    assert checkpoint.nbytes == path.stat().st_size


def test_fortran_order_and_foreign_byte_order(path):
    x = array("float32", (4, 6))
    np.savez(path, f=np.asfortranarray(x), big=x.astype(">f4"), c=x.astype(">c16"))
    tree = open_checkpoint(path).tree
    assert same(tree, {"f": x, "big": x, "c": x.astype(np.complex128)})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_array_is_in_memory_at_a_time(save, path, tmp_path):
    size = 1 << 21
    rng = np.random.default_rng(0)
    save(path, **{f"t{i}": rng.integers(0, 9, size, np.uint8) for i in range(4)})
    tracemalloc.start()
    try:
        write_safetensors(tmp_path / "out", open_checkpoint(path).tree)
        assert tracemalloc.get_traced_memory()[1] < 1.8 * size
    finally:
        tracemalloc.stop()
    assert same(open_checkpoint(tmp_path / "out").tree, dict(np.load(path)))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array([{}, None]), "'a.npy' holds Python objects: a pickle"),
        (np.ones(3, ml_dtypes.bfloat16), r"'a.npy' is raw bytes of dtype \|V2.*bfloat16"),
        (np.zeros(3, [("x", "f4")]), "'a.npy' is .*no tensor"),
        (np.array("text"), "no tensor"),
        (np.array("2020-01-01", "datetime64[D]"), "no tensor"),
        (np.zeros(3, np.longdouble), "no tensor"),
    ],
)
def test_arrays_that_are_no_tensors_are_named(value, says, path):
    np.savez(path, a=value)
    with pytest.raises(CheckpointError, match=says) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)


def npy(x):
    buffer = io.BytesIO()
    np.save(buffer, x)
    return buffer.getvalue()


def zipped(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)


def test_what_is_no_npz_is_named(path):
    good = npy(np.ones(3))
    for members, says in [
        (
            [("archive/data.pkl", b""), ("archive/data/0", b"")],
            "PyTorch.*convert it to safetensors",
        ),
        ([("readme.txt", b"")], "without .npy files"),
        ([("a.npy", good), ("readme.txt", b"")], "'readme.txt' is no .npy file"),
        ([("a.npy", b"hello")], "no .npy header"),
        ([("a.npy", good + b"\0")], "not as long as its shape"),
        ([("a.npy", good[:-1])], "not as long as its shape"),
        ([("a.npy", good.replace(b"(3,)", b"(-3,)"))], "no shape"),
        ([("a.npy", good.replace(b"(3,), }  ", b"(3,)*9**9}"))], "no .npy header"),
        ([("a.npy", good.replace(b"NUMPY\1\0", b"NUMPY\3\0"))], "structured"),
    ]:
        zipped(path, members)
        with pytest.raises(CheckpointError, match=says):
            open_checkpoint(path)
    zipped(path, [("a.npy", good)], zipfile.ZIP_BZIP2)
    with pytest.raises(CheckpointError, match="neither stored nor deflated"):
        open_checkpoint(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(path, [("a.npy", good), ("a.npy", good)])
    with pytest.raises(CheckpointError, match="twice"):
        open_checkpoint(path)
    path.write_bytes(b"no zip at all, but some text")
    with pytest.raises(CheckpointError, match="no zip archive"):
        open_checkpoint(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_anywhere_is_an_error_or_harmless(save, path):
    tensors = {"a": array("float32", (40,)), "b": array("bool", (9,))}
    save(path, **tensors)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(data), 300):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            tree = open_checkpoint(path).tree
            read = {name: np.asarray(leaf) for name, leaf in tree.items()}
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error)
        else:  # in a date or an attribute
            assert read.keys() == tensors.keys()
            assert all(read[name].tobytes() == x.tobytes() for name, x in tensors.items())
    assert refused > 100
    for size in range(1, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_impossible_sizes_take_no_memory(path):
    zipped(path, [("a.npy", npy(np.ones(3)))], zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        size = archive.infolist()[0].file_size
    at = data.rindex(size.to_bytes(4, "little"))
    path.write_bytes(data[:at] + (1 << 31).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(CheckpointError, match="impossible sizes"):
        open_checkpoint(path)


def test_a_file_that_changes_while_it_is_read_is_noticed(path):
    np.savez(path, a=array("float32", (9, 9)))
    leaf = open_checkpoint(path).tree["a"]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        np.asarray(leaf)
