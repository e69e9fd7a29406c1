"""Files: exact round trips, reproducible bytes, and refusal of unwritable input."""

import base64
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from sqs_jax.artifact import (
    CompressedLeaf,
    inspect,
    load,
    materialize,
    read_metadata,
    save,
    summarize,
)
from sqs_jax.artifact.coding import CHUNK
from sqs_jax.artifact.dtypes import DTYPES
from tests.artifact import reference_reader as reference
from tests.artifact.trees import compressed, model, run_python, same, structured

# What goes in comes out.


def test_round_trip_is_exact_and_saves_again_to_the_same_bytes(path, tmp_path):
    tree = model()
    written = save(path, tree)
    assert written == path.stat().st_size == summarize(tree).file_bytes
    again = load(path)
    assert same(again, tree)
    assert all(type(x) is np.ndarray and x.flags.writeable for x in jax.tree.leaves(again))
    save(tmp_path / "again.sqs", again)
    assert (tmp_path / "again.sqs").read_bytes() == path.read_bytes()
    assert same(materialize(again), materialize(tree))
    assert inspect(path) == summarize(again)


def test_jax_arrays_and_key_order_do_not_change_the_bytes(path):
    def reverse(node):
        return {k: reverse(node[k]) for k in reversed(node)} if isinstance(node, dict) else node

    tree = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, model())
    tree["batch_stats"] = []
    save(path, tree, metadata={"a": 1, "b": 2})
    data = path.read_bytes()
    save(path, reverse(jax.tree.map(jnp.asarray, tree)), metadata={"b": 2, "a": 1})
    assert path.read_bytes() == data


def test_a_fresh_process_loads_the_file_and_writes_the_same_bytes(path, tmp_path):
    save(path, model(), metadata={"run": "é"})
    code = (
        "import sys, numpy as np, jax; from sqs_jax.artifact import *;"
        "t = load(sys.argv[1]); save(sys.argv[2], t, metadata=read_metadata(sys.argv[1]));"
        "print(sum(float(np.abs(x.astype(float)).sum()) for x in jax.tree.leaves(materialize(t))))"
    )
    other = tmp_path / "other.sqs"
    run = run_python(code, path, other)
    leaves = jax.tree.leaves(materialize(model()))
    assert float(run.stdout) == sum(float(np.abs(x.astype(float)).sum()) for x in leaves)
    assert other.read_bytes() == path.read_bytes()


def test_a_file_is_a_safetensors_file_of_byte_streams(path):
    save(path, model())
    entries = safetensors.numpy.load_file(path)
    assert list(entries) == ["data", "index"] or list(entries) == ["index", "data"]
    assert all(entry.dtype == np.uint8 and entry.ndim == 1 for entry in entries.values())
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "sqs", "version": "1.0"}
    assert b"pickle" not in path.read_bytes() and path.read_bytes()[8:9] == b"{"
    save(path, {"none": None})
    assert list(safetensors.numpy.load_file(path)) == ["index"] and load(path) == {"none": None}


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7)], ids=str)
def test_every_dtype_and_shape_of_dense_leaf(name, shape, path):
    raw = np.random.default_rng(0).integers(0, 256, (*shape, DTYPES[name].itemsize), np.uint8)
    if name == "bool":
        raw %= 2
    if "int" in name and name[-1] in "24" and len(name) < 6:  # one small number per byte
        raw %= 2
    if name == "float4_e2m1fn":
        raw %= 16
    leaf = raw.view(DTYPES[name]).reshape(shape)
    save(path, {"x": leaf})
    assert same(load(path), {"x": leaf})
    data = path.read_bytes()
    save(path, load(path))
    assert path.read_bytes() == data
    # Arbitrary bits include NaN payloads; ordinary values travel too, and as JAX arrays.
    if DTYPES[name].itemsize <= 4:
        ones = jnp.ones(shape, name)
        save(path, [ones])
        assert same(load(path), [np.asarray(ones)])


TREES = [
    {},
    [],
    (),
    None,
    np.ones(3),
    compressed((4,)),
    {"a": {}, "b": [], "c": (), "d": None},
    {0: np.ones(1), 10: np.ones(2), 2: np.ones(3), -1: {"x": np.ones(4)}},
    [[np.ones(1)], (np.ones(2), [None, (np.ones(3),)])],
    {"a/b": np.ones(1), "a": {"b": np.ones(2)}, "": np.ones(3), "c": np.ones(4), "d": {"i": "l"}},
    {'é\u4e2d\U0001f600\n\0"\\': np.ones(1), "\ud800": np.ones(2), "i": [np.ones(3)]},
    {"l": [{"0": np.ones(1)}, {0: np.ones(2)}], "t": (compressed((2, 2)),)},
]
TREES[9]["d"] = {"c": compressed((3,)), "d": np.zeros(2)}


@pytest.mark.parametrize("tree", TREES, ids=range(len(TREES)))
def test_every_structure(tree, path):
    save(path, tree)
    assert same(load(path), tree)
    data = path.read_bytes()
    save(path, load(path))
    assert path.read_bytes() == data
    assert [leaf.weights for leaf in inspect(path).leaves] == [
        math.prod(x.shape) for x in jax.tree.leaves(materialize(tree))
    ]


# Dtypes on the disk.


def stored_bytes(tree, **kwargs):
    return summarize(tree, **kwargs).leaves[0].file_bits // 8


def test_values_are_stored_in_the_narrowest_exact_dtype():
    def nbytes(values, dtype=np.float32):
        return stored_bytes([np.asarray(values, dtype)])

    assert nbytes([0, 1, -0.0, 448]) == 4  # float8_e4m3fn
    assert nbytes([1, 2**-16]) == 2  # float8_e5m2
    assert nbytes([1, 1 + 2**-10]) == 4  # float16
    assert nbytes([1, 2.0**100]) == 4  # bfloat16
    assert nbytes([1, 0.1]) == 8
    assert nbytes([1, 0.1], np.float64) == 16
    assert nbytes(np.float32([1, 0.1]), np.float64) == 8
    assert nbytes([1, 2], np.int64) == 16
    assert stored_bytes([CompressedLeaf(np.zeros(3, np.uint8), np.float32([[1, 2]]))]) == 2 + 2


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7F800001, 0xFFC01234, 0x80000000])
def test_nan_payloads_and_the_sign_of_zero_survive(bits, path):
    leaf = np.array([0, bits, 0x3F800000], np.uint32).view(np.float32)
    save(path, [leaf, CompressedLeaf(np.array([1, 2], np.uint8), leaf[None])])
    assert same(load(path), [leaf, CompressedLeaf(np.array([1, 2], np.uint8), leaf[None])])


@pytest.mark.parametrize(
    "dtype", ["float16", jnp.bfloat16, np.float32, "float8_e4m3fn", "float8_e5m2"]
)
def test_dense_dtype_rounds_once_and_for_all(dtype, path):
    rng = np.random.default_rng(0)
    tree = {
        "double": rng.normal(size=999),
        "half": rng.normal(size=9).astype(np.float16),
        "int": np.arange(99, dtype=np.int64),
        "kernel": compressed((20, 20)),
    }
    size = save(path, tree, dense_dtype=dtype)
    again = load(path)
    assert again["double"].dtype == np.float64
    want = tree["double"].astype(np.dtype(dtype)).astype(np.float64)
    np.testing.assert_array_equal(again["double"], want)
    assert same(again["int"], tree["int"]) and same(again["kernel"], tree["kernel"])
    if np.dtype(dtype).itemsize > 1:
        assert same(again["half"], tree["half"])
    data = path.read_bytes()
    assert inspect(path).leaves[0].file_bits == 8 * 999 * np.dtype(dtype).itemsize
    assert save(path, again) == size and path.read_bytes() == data


@pytest.mark.parametrize(("dtype", "value"), [("float16", 7e4), ("float8_e4m3fn", 500.0)])
def test_overflow_is_named(dtype, value, path):
    with pytest.raises(ValueError, match=rf"'a/0'.*{value}.*{dtype}"):
        save(path, {"a": [np.array([1, -value, np.inf, np.nan], np.float32)]}, dense_dtype=dtype)
    save(path, [np.float32([np.inf, -np.inf])], dense_dtype="float16")
    assert (load(path)[0] == [np.inf, -np.inf]).all()


@pytest.mark.parametrize("dtype", ["int8", "float64", "nonsense", "complex64", 3])
def test_other_dense_dtypes_are_refused(dtype, path):
    with pytest.raises(ValueError, match=r"dense_dtype.*bfloat16"):
        save(path, [np.ones(3)], dense_dtype=dtype)


# Metadata.


def test_metadata_are_read_back(path):
    metadata = {"accuracy": 0.915, "labels": ["a", None, True], "nested": {"é/\0": 10**30}}
    save(path, model(), metadata=metadata)
    assert read_metadata(path) == metadata and same(load(path), model())
    save(path, model())
    assert read_metadata(path) == {}


@pytest.mark.parametrize(
    "metadata", [{"a": {1}}, {"a": float("nan")}, {1: 2}, {"a": (1,)}, [1], {"a": b"b"}], ids=str
)
def test_metadata_that_json_would_change_is_refused(metadata, path):
    with pytest.raises(TypeError, match="metadata"):
        save(path, {}, metadata=metadata)


def test_metadata_that_is_too_deep_for_a_reader_is_refused(path):
    deep = []
    for _ in range(199):
        deep = [deep]
    save(path, {}, metadata={"a": deep})
    assert read_metadata(path) == {"a": deep}
    for more in (1, 700):
        for _ in range(more):
            deep = {"x": deep}
        with pytest.raises(TypeError, match=r"metadata (is nested deeper|cannot be stored)"):
            save(path, {}, metadata={"a": deep})


def test_an_index_no_reader_would_accept_is_not_written(path):
    with pytest.raises(ValueError, match="index"):
        save(path, {}, metadata={"a": "x" * (1 << 24)})


# Weights of any value, and arrays that are not there yet.


def test_values_that_are_not_finite_are_read_back(path):
    odd = np.float32([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38])
    tree = {
        "dense": odd,
        "double": odd.astype(np.float64),
        "half": np.float16([np.nan, np.inf, 6e-8]),
        "complex": np.array([complex(np.nan, -np.inf), 1j], np.complex64),
        "codes": CompressedLeaf(np.arange(7, dtype=np.uint8), odd[None]),
        "flags": np.array([True, False]),
        "big": np.array([2**63 - 1, -(2**63)]),
        "scalar": np.uint8(7),
        "empty": [np.zeros((0,), bool), np.zeros((3, 0), np.complex128), compressed((0, 4))],
    }
    size = save(path, tree)
    data = path.read_bytes()
    assert same(load(path), tree)
    assert save(path, load(path)) == size and path.read_bytes() == data


class Lazy:
    """An array-like that counts how often `__array__` reads the array."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.reads = array, array.shape, array.dtype, 0

    def __array__(self, dtype=None, copy=None):
        self.reads += 1
        return np.asarray(self.array, dtype)


def test_arrays_that_are_read_lazily_can_be_saved(path):
    arrays = [np.arange(6.0).reshape(2, 3), np.float32(2), np.zeros(0, np.int8)]
    lazy = [Lazy(np.asarray(array)) for array in arrays]
    codes = compressed((9, 9))
    save(path, [*lazy, CompressedLeaf(Lazy(codes.codes), Lazy(codes.codebook))])
    assert same(load(path), [*arrays, codes]) and all(array.reads == 1 for array in lazy)
    data = path.read_bytes()
    save(path, [*arrays, codes])
    assert path.read_bytes() == data
    with pytest.raises(TypeError, match=r"'0'.*dtype"):
        save(path, [Lazy(np.array(["text"]))])


def test_two_processes_write_the_same_bytes_as_one(path):
    leaves = [structured((800, CHUNK // 700)), structured((CHUNK // 500, 900), 90, axes=(1,))]
    book = np.random.default_rng(0).normal(size=(1, 90)).astype(np.float32)
    tree = [CompressedLeaf(leaves[0], book[:, :4]), CompressedLeaf(leaves[1], book)]
    size = save(path, tree, workers=2)
    data = path.read_bytes()
    assert same(load(path, workers=2), tree)
    assert save(path, tree) == size and path.read_bytes() == data
    for workers in (0, -1, True, "2", 2.0, None):
        for call in (lambda w: save(path, tree, workers=w), lambda w: load(path, workers=w)):
            with pytest.raises(ValueError, match=r"workers.*int >= 1"):
                call(workers)
    assert path.read_bytes() == data


# Size beside the streams.


@pytest.mark.parametrize(("layers", "today"), [(4, 459), (26, 888)])
def test_header_and_index_are_small(layers, today):
    tree = {}
    for i in range(layers):
        norm = {k: np.full(16, 0.1 + i, np.float32) for k in ("scale", "bias")}
        tree[f"Conv_{i}"] = {"kernel": compressed((3, 3, 16, 16), seed=i)}
        tree[f"BatchNorm_{i}"] = norm if i % 2 else {"scale": norm["scale"]}
    report = summarize({"params": tree, "batch_stats": {}})
    assert len(report.leaves) == 5 * layers // 2
    beside = report.file_bytes - sum(leaf.file_bits for leaf in report.leaves) // 8
    assert beside < 1.05 * today  # bytes, checksums included; liblzma may change a little


# Written as a whole or not at all.


def test_a_full_disk_leaves_the_old_file(path, tmp_path):
    save(path, model())
    old = path.read_bytes()
    code = (
        "import resource, sys, numpy as np; from sqs_jax.artifact import save;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "save(sys.argv[1], {'x': np.random.default_rng(0).normal(size=10_000)})"
    )
    run = run_python(code, path, check=False)
    assert run.returncode == 1 and "OSError" in run.stderr and str(path) in run.stderr
    assert "untouched" in run.stderr
    assert os.listdir(tmp_path) == ["m.sqs"] and path.read_bytes() == old


def test_a_failure_before_the_rename_leaves_nothing(path, tmp_path, monkeypatch):
    save(path, model())
    old = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                save(path, [np.ones(3)])
        assert os.listdir(tmp_path) == ["m.sqs"] and path.read_bytes() == old


def test_errors_name_why_a_file_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"create it first.*no/such/m.sqs"):
        save(tmp_path / "no" / "such" / "m.sqs", {})
    with pytest.raises(IsADirectoryError, match="folder"):
        save(tmp_path, {})
    assert os.listdir(tmp_path) == []


def test_a_link_is_followed_and_permissions_are_those_of_a_new_file(tmp_path):
    (tmp_path / "real").mkdir()
    target, link, plain = tmp_path / "real" / "m.sqs", tmp_path / "link.sqs", tmp_path / "plain"
    target.write_bytes(b"old")
    link.symlink_to(target)
    plain.write_bytes(b"")
    save(str(link), [np.ones(3)])
    assert link.is_symlink() and same(load(target), [np.ones(3)])
    assert target.stat().st_mode == plain.stat().st_mode


# The format stays.


def test_a_file_of_version_1_0_stays_readable(path):
    path.write_bytes(base64.b64decode(VERSION_1_0))
    again = load(path)
    assert same(again, golden()) and again["tied"][0] is again["tied"][1]
    assert read_metadata(path) == {"made": "by version 1.0"}
    reference.FORMS.clear()
    reference.read_file(path.read_bytes())
    assert {"context, pairs first", "pairs", "packed"} <= reference.FORMS  # no form was lost
    assert inspect(path).leaves[0].weights == 600


def golden():
    """Return leaves of each form: a table, a shared context model, packed; stacked."""
    i, j = np.ogrid[:40, :30]
    quiet = ((7 * i * i + 3 * j * j) % 31 % 5 * (i % 3 == 0)).astype(np.uint8)
    tied = CompressedLeaf(quiet, np.float32([[0.1, -0.1, 0.3, 9]]))
    stacked_codes = (np.arange(600) ** 2 % 997 // 400).astype(np.uint8).reshape(2, 10, 30)
    stacked = CompressedLeaf(stacked_codes, np.float32([[[1.5], [-2]], [[0.25], [np.inf]]]))
    packed = CompressedLeaf(np.arange(8, dtype=np.uint8), np.float64([[1, 2, 3, 4], [5, 6, 7, 8]]))
    dense = [np.arange(4, dtype=np.int16), np.float64(0.5), np.zeros((0, 2), jnp.bfloat16)]
    return {
        "once": stacked,
        "packed": packed,
        "rest": dense,
        "tied": [tied, tied],
        "to": {1: (None,)},
    }


VERSION_1_0 = """
sAAAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJmb3JtYXQiOiJzcXMiLCJ2ZXJzaW9uIjoiMS4wIn0sImluZGV4Ijp7ImR0eXBlIjoi
VTgiLCJzaGFwZSI6WzI2M10sImRhdGFfb2Zmc2V0cyI6WzAsMjYzXX0sImRhdGEiOnsiZHR5cGUiOiJVOCIsInNoYXBlIjpbMzY1
XSwiZGF0YV9vZmZzZXRzIjpbMjYzLDYyOF19fSAgICAgIAEAAEAA//////////8APYjLxU8elIsMi7tDr/iOObEhsmXOjHj0mND4
31+Luwt4PmH2zYZ2BpsVtl+RinVANrAOK0MpCJcLO4mOsQ6Cpzy8CjSPyxeHcfFLyZNrqVJ7s4ypEJGbsQoFwTg1WOcw0piIU5Ei
uFTTbvNoRJZYhb+0i2IrhDMWz4ibh8kf1dZ08fpBX9A0D9ylnNUPbZTXPQ4PTCgVHfpepnkFt8bGfJTRLPR+OVD45AH4CaF+u72s
cbkYgY0XOrG/hZUeYPZ9QYpvJOXQ6wToZ9vf1XuWq4/CVY3bLsiLEpIlDkNb5qzU2XeULTxs9Fb5A99oPNce2/tWDQLcNwcOBgRq
egDADPB0L7FjF2O4TVZr+4QIeve22+Or0J0tC5Q6ZbR0Wsj0kmAOhIHnUfJ1HDxtestfZP8TzYHBds1ystlq1NrXadUaChJ2vOP7
NH/wgU5V4+9sWGlpGPgbPQcI8Vef6PbY3xMr0JpBjaP4t1ElKnSLqihqIj7ANHya2O0kgwU5dzhAREhKTE5QEkkuewAAAQACAAMA
hJdaLzAh39v0AAAAAEAZABQCDggAAw4CAD+kAABAeHhY2IPDAgMDXgAA/LEDgx/+BgJNAHD9mi+bdTZTBVEAAIAEEC3d2AAA0Mrn
sfgnVtS9kEb22M8rX4tcoDS00KXkBuX9acR0Wm22rTFFKZB7zcX71nsZLlMEwThnbD5jRNSitgyCU9igopPRzSWqpo3rdgSiytXK
c27Xnlt+mmiVs59xtdq+Dk+XdDznpn3Qa/DJz963nuwhMaYMvHQ3NuBQzczMPc3MzL2amZk+AAAQQRs54ps=
"""


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "m.sqs"
    save(path, {"a": np.ones(3, np.float32)})
    path.chmod(0o600)
    save(path, {"a": np.zeros(3, np.float32)})
    assert path.stat().st_mode & 0o777 == 0o600


def test_long_names_of_wide_characters_are_names(tmp_path):
    path = tmp_path / ("日" * 83)
    save(path, {"a": np.ones(3, np.float32)})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
