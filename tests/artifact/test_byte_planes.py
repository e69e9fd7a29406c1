"""Byte planes: exact for every integer dtype, and short for regular integers."""

import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.artifact import (
    SqsFile,
    SqsFileError,
    coding,
    inspect,
    leaf_codecs,
    load,
    save,
    summarize,
)
from sqs_jax.artifact.byte_planes import NAMES, from_planes, limits, planes_of
from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.artifact.spec import LeafSpec, SymbolsSpec
from tests.artifact.forge import assemble, forge, put, refuse
from tests.artifact.trees import integers, same


def version(path):
    with SqsFile(path) as file:
        return file.version


def array_of(values, dtype):
    """Return Python integers as an array of any integer dtype, also below a byte."""
    wide = np.array(values, np.uint64 if max(values) > 2**63 - 1 else np.int64)
    return wide.astype(DTYPES[dtype])


@pytest.mark.parametrize("dtype", sorted(NAMES))
def test_planes_are_the_bytes_of_differences_to_the_minimum(dtype):
    low, high = limits(dtype)
    rng = np.random.default_rng(0)
    cases = [[low], [high], [low, high], [high, low, high], [low, low + 1], [high - 1, high]]
    cases += [[int(rng.integers(low, high, endpoint=True, dtype=np.int64)) for _ in range(9)]
              for _ in range(3 if high < 2**63 else 0)]  # fmt: skip
    for values in cases:
        array = array_of(values, dtype).reshape(-1, 1)
        minimum, planes = planes_of(array)
        assert minimum == min(values)
        assert len(planes) == max(1, -(-(max(values) - minimum).bit_length() // 8))
        digits = [
            sum(int(p[i, 0]) << 8 * j for j, p in enumerate(planes)) for i in range(len(array))
        ]
        assert digits == [value - minimum for value in values]
        spec = LeafSpec("integers", array.shape, dtype, {"minimum": minimum}, ())
        again = from_planes(spec, planes)
        assert same(again, array) and again.flags.writeable


def test_limits_are_those_of_numpy():
    for dtype in NAMES - {"bool"}:
        info = jnp.iinfo(DTYPES[dtype])
        assert limits(dtype) == (info.min, info.max)


def test_a_tree_of_integers_comes_back_as_plain_arrays(path):
    tree = integers()
    size = save(path, tree)
    again = load(path)
    assert same(again, tree) and version(path) == (1, 1)
    assert all(type(x) is np.ndarray and x.flags.writeable for x in again.values())
    assert size == summarize(tree).file_bytes and inspect(path) == summarize(again)
    with SqsFile(path) as file:
        assert all(same(file.read(name), tree[name]) for name in tree)
        coded = {leaf.path for leaf in file.leaves if isinstance(leaf.spec, LeafSpec)}
        assert {"positions", "mask", "constant", "extremes", "unsigned", "uint64"} <= coded
    data = path.read_bytes()
    save(path, again)
    assert path.read_bytes() == data
    save(path, {name: jnp.asarray(tree[name]) for name in ("mask", "groups", "int4")})
    assert same(load(path)["int4"], tree["int4"])


@pytest.mark.parametrize(
    ("array", "most"),
    [
        (np.full((1000, 1000), -(2**63)), 5),  # a plane of one symbol
        (np.zeros((), np.int64).repeat(4096), 3),
        (np.arange(512)[None], 270),  # the digits once, and that they come again
        (np.arange(1 << 20), 1200),
        (np.arange(4096, dtype=np.int32) // 128, 80),
        (np.tril(np.ones((1, 1, 2048, 2048), bool)), 3000),
    ],
    ids=range(6),
)
def test_regular_integers_take_few_bytes(array, most, path):
    save(path, [array])
    assert inspect(path).leaves[0].file_bits <= 8 * most
    assert same(load(path), [array])


@pytest.mark.parametrize(
    "tree",
    [
        [np.int64(3), np.zeros(1, np.int32), np.arange(3), np.zeros(64, np.uint8)],
        [np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32).view(np.int32)],
        [np.random.default_rng(0).integers(0, 256, 5_000, np.uint8).reshape(50, 100)],
        [np.zeros((0, 9), np.int64), np.ones(3, bool)],
    ],
    ids=range(4),
)
def test_small_and_random_integers_stay_arrays_of_version_1_0(tree, path):
    save(path, tree)
    assert version(path) == (1, 0) and same(load(path), tree)
    with SqsFile(path) as file:
        assert [leaf.file_bytes for leaf in file.leaves] == [np.asarray(x).nbytes for x in tree]


def test_entropy_and_file_alone_differ_from_a_dense_leaf():
    values = np.repeat([5, 6, 7, 8], 256)
    (leaf,) = summarize([values.astype(np.int16)]).leaves
    assert (leaf.components, leaf.windows, leaf.compressed) == (None, None, False)
    assert (leaf.paper_bits, leaf.kept, leaf.weights) == (0, 1024, 1024)
    assert leaf.fixed_bits == 16 * 1024 and leaf.original_bytes == 2048
    assert leaf.entropy_bits == pytest.approx(2 * 1024, abs=0.051)  # of four symbols alike
    assert leaf.file_bits < leaf.fixed_bits and leaf.sparsity == 0
    (wide,) = summarize([1000 * values]).leaves  # two planes of four and of three symbols or more
    assert wide.entropy_bits >= 2 * 1024
    assert "dense" in str(summarize([values]))


def test_equal_integers_are_coded_and_stored_once(path, monkeypatch):
    coded = []
    encode = coding.encode_all
    monkeypatch.setattr(coding, "encode_all", lambda *a: [coded.extend(a[0]), encode(*a)][1])
    mask = np.tril(np.ones((80, 80), bool))
    save(path, [mask, mask.copy(), mask.astype(np.uint8)])
    assert len(coded) == 2  # a mask and another dtype's
    again = load(path)
    assert again[0] is again[1] and again[0] is not again[2]


def test_integers_never_make_a_file_that_a_reader_refuses(path, monkeypatch):
    """Integers are stored as plain arrays if their planes exceed the reader's bound."""
    tree = [np.zeros(1000, np.int64)]
    for most in (8000, 7999):
        for module in ("file", "reader"):
            name = f"sqs_jax.artifact.{module}.max_unfolded"
            monkeypatch.setattr(name, lambda file_bytes, most=most: most)
        save(path, tree)
        assert same(load(path), tree) and version(path) == ((1, 1) if most == 8000 else (1, 0))


def test_a_reader_without_the_kind_refuses_the_leaf_by_name(path, monkeypatch):
    tree = {"ids": np.arange(500), "kernel": np.ones(3, np.float32)}
    save(path, tree)
    monkeypatch.delitem(leaf_codecs.CODECS, "integers")
    assert inspect(path).leaves[0].original_bytes == 4000
    with SqsFile(path) as file:
        assert same(file.read("kernel"), tree["kernel"])
        with pytest.raises(SqsFileError, match=r"'integers' is not known.*upgrade.*'ids'"):
            file.read("ids")


# Lies.


def node(shape=(100,), dtype="int16", attributes=None, parts=("s", "s")):
    attributes = {"minimum": -5} if attributes is None else attributes
    return ["k", "integers", list(shape), dtype, attributes, *parts]


LIES = [
    *[
        node(attributes=attributes)
        for attributes in [
            {},
            {"minimum": -5, "more": 1},
            {"maximum": 3},
            *[{"minimum": m} for m in (-(2**15) - 1, 2**15, 2**70, True, None, 0.0, "0", [0])],
        ]
    ],
    node(parts=["s"]),  # the table is longer
    node(parts=["s", "s", "s"]),
    node(parts=[]),
    node(parts=["d", "s"]),
    node(parts=["s", "d"]),
    node(parts=["s", "c"]),
    node(parts=["s", ["k", "integers", [100], "int16", {"minimum": 0}, "s"]]),
    *[
        node(dtype=dtype)
        for dtype in ("float32", "complex64", "int8", "bool", "text", "float8_e5m2")
    ],
    *[node(shape=shape) for shape in ((99,), (100, 1), (), (1 << 40,), (-100,))],
]


@pytest.fixture
def two_planes(path):
    """Save the integers -5, 5, ..., 985 as two planes of packed symbols."""
    index = {
        "tree": ["l", node()],
        "arrays": [],
        "symbols": [[[100]] * 2, [256, 4], [101, 101], [99, 50], [0.0, 0.0]],
        "metadata": {},
    }
    planes = [np.arange(100) * 10 % 256, np.arange(100) * 10 // 256]
    raw = [bytes([128 + 8]) + p.astype(np.uint8).tobytes() for p in planes]
    path.write_bytes(assemble(index, [b"".join(raw)]))
    return path


def test_planes_that_another_writer_coded_are_read(two_planes):
    assert same(load(two_planes), [(10 * np.arange(100) - 5).astype(np.int16)])
    largest = node(dtype="uint64", attributes={"minimum": 2**64 - 991})
    two_planes.write_bytes(forge(two_planes, put(largest, "tree", 1)))
    assert load(two_planes)[0][-1] == 2**64 - 1


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
def test_invalid_integer_leaves_are_refused(lie, two_planes):
    refuse(two_planes, forge(two_planes, put(lie, "tree", 1)), by=(load, inspect))


@pytest.mark.parametrize(("column", "value"), [(0, [50]), (0, [100, 1]), (1, 257), (1, 65_536)])
def test_invalid_planes_are_refused(column, value, two_planes):
    refuse(two_planes, forge(two_planes, put(value, "symbols", column, 0)), by=(load, inspect))


@pytest.mark.parametrize(
    ("dtype", "minimum", "largest"),
    [
        ("int16", 2**15 - 990, 2**15),
        ("uint64", 2**64 - 990, 2**64),
        ("int64", 2**63 - 1, 2**63 + 989),
    ],
)
def test_a_value_beyond_the_dtype_is_refused_and_not_wrapped(dtype, minimum, largest, two_planes):
    lie = node(dtype=dtype, attributes={"minimum": minimum})
    data = forge(two_planes, put(lie, "tree", 1))
    refuse(two_planes, data, rf"the value {largest} is beyond the range of {dtype}.*'0'", by=[load])
    assert inspect(two_planes).weights == 100  # which does not decode


@pytest.mark.parametrize("dtype", ["bool", "int2", "uint4", "int8"])
def test_a_value_beyond_a_dtype_below_a_byte_is_refused(dtype, path):
    low, high = limits(dtype)
    spec = LeafSpec("integers", (2,), dtype, {"minimum": low}, (SymbolsSpec((2,), 256, 0, 0, 0.0),))
    planes = [np.array([0, high - low], np.uint8)]
    assert from_planes(spec, planes).astype(int).tolist() == [low, high]
    if high - low < 255:
        with pytest.raises(ValueError, match=f"value {high + 1} is beyond"):
            from_planes(spec, [planes[0] + np.uint8(1)])
    with pytest.raises(ValueError, match=f"value {high + 1} is beyond"):
        from_planes(spec._replace(attributes={"minimum": low + 1}), planes)


def test_planes_count_as_the_bytes_of_the_tensor(two_planes):
    """An int64 counts eight times as much as a symbol towards the unfolded size."""
    plain = two_planes.read_bytes()
    for count, fits in ((1 << 10, True), (1 << 24, False)):
        two_planes.write_bytes(plain)

        def change(index, leaves, count=count):
            index["tree"] = ["l", node((count,), "int64", {"minimum": 0}, ["s"])]
            index["symbols"] = [[[count]], [1], [3], [0], [24.0]]
            leaves[:] = [bytes([0, 0, 128])]

        data = forge(two_planes, change)
        if fits:
            two_planes.write_bytes(data)
            assert same(load(two_planes), [np.zeros(count, np.int64)])
        else:
            refuse(two_planes, data, "more weights", by=(load, inspect))
