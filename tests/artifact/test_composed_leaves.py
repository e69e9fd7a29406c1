"""Composed leaves: closed forms, files, size figures, and refused parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from sqs_jax import CompressedLeaf, OverlayLeaf, ProductLeaf, ScaledLeaf, TransposedLeaf
from sqs_jax.baselines import round_to_nearest

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((2, 6, 5)).astype(np.float32)
GRID = round_to_nearest.compress({"_": KERNEL}, levels=7)["_"]
BOOK = np.array([[-1, 0.5, 2]], np.float32)


def coded(*shape):
    return CompressedLeaf(RNG.integers(0, 4, shape).astype(np.uint8), BOOK)


SCALES = (0.5 + RNG.random(6)).astype(np.float16)
PLACES = (RNG.random(KERNEL.shape) < 0.2).astype(np.uint8)
VALUES = RNG.standard_normal(int(PLACES.sum())).astype(np.float16)
LEAVES = {
    "scaled": ScaledLeaf(GRID, SCALES),
    "overlay": OverlayLeaf(GRID, PLACES, VALUES),
    "product": ProductLeaf(coded(12, 4), coded(4, 5), (2, 6, 5)),
    "transposed": TransposedLeaf(coded(2, 5, 6)),
    "all": OverlayLeaf(ScaledLeaf(coded(2, 6, 5), SCALES), PLACES, VALUES),
}


def closed_form(leaf):
    if isinstance(leaf, ScaledLeaf):
        return np.einsum("hio,i->hio", closed_form(leaf.leaf), leaf.scales.astype("f8"))
    if isinstance(leaf, OverlayLeaf):
        weights = closed_form(leaf.leaf)
        weights[np.nonzero(leaf.places)] = leaf.values
        return weights
    if isinstance(leaf, ProductLeaf):
        return (closed_form(leaf.left) @ closed_form(leaf.right)).reshape(leaf.shape)
    if isinstance(leaf, TransposedLeaf):
        return np.einsum("hoi->hio", closed_form(leaf.leaf))
    return sqs_jax.materialize(leaf).astype("f8")


@pytest.mark.parametrize("name", LEAVES)
def test_composed_leaves_equal_their_closed_forms(name, tmp_path):
    leaf = LEAVES[name]
    tree = {"kernel": leaf, "bias": np.ones(5, np.float32)}
    dense = sqs_jax.materialize(tree)["kernel"]
    assert dense.shape == KERNEL.shape and dense.dtype == np.float32
    np.testing.assert_allclose(dense, closed_form(leaf), rtol=1e-6, atol=1e-6)
    on_device = jax.jit(sqs_jax.materialize)(jax.tree.map(jnp.asarray, tree))["kernel"]
    np.testing.assert_allclose(on_device, dense, rtol=1e-6, atol=1e-6)
    written = sqs_jax.save(tmp_path / "m.sqs", tree)
    again = sqs_jax.load(tmp_path / "m.sqs")
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for loaded, saved in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(loaded, saved)
        assert loaded.dtype == saved.dtype
    assert sqs_jax.inspect(tmp_path / "m.sqs").file_bytes == written
    assert sqs_jax.summarize(tree).file_bytes == written


def test_bits_are_those_of_the_parts():
    sizes = {name: sqs_jax.summarize({"k": leaf}).leaves[0] for name, leaf in LEAVES.items()}
    grid = sqs_jax.summarize({"k": GRID}).leaves[0]
    assert sizes["scaled"].paper_bits == grid.paper_bits  # published methods fold scales away
    assert sizes["scaled"].fixed_bits == grid.fixed_bits + 16 * SCALES.size
    assert sizes["overlay"].paper_bits == grid.paper_bits + 32 * VALUES.size
    assert sizes["overlay"].entropy_bits > grid.entropy_bits + 16 * VALUES.size
    factors = [
        sqs_jax.summarize({"k": part}).leaves[0]
        for part in (LEAVES["product"].left, LEAVES["product"].right)
    ]
    assert sizes["product"].fixed_bits == sum(factor.fixed_bits for factor in factors)
    assert sizes["product"].weights == KERNEL.size


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("scaled", {"scales": SCALES[:5]}, "one scale per input"),
        ("scaled", {"scales": SCALES.astype(np.int32)}, "it must be floating"),
        ("overlay", {"places": PLACES[:1]}, "must have this shape"),
        ("overlay", {"values": VALUES[1:]}, "marks of up to"),
        ("overlay", {"places": 2 * PLACES}, "place of each value with 1"),
        ("overlay", {"places": PLACES.astype(bool)}, "places are bool, they must be uint8"),
        ("product", {"shape": (3, 4, 6)}, "do not make a tensor"),
        ("product", {"left": coded(12, 0), "right": coded(0, 5)}, "do not make a tensor"),
        ("product", {"right": coded(3, 5)}, "do not make a tensor"),
    ],
)
def test_parts_that_do_not_fit_are_refused(name, changes, message, tmp_path):
    leaf = dataclasses.replace(LEAVES[name], **changes)
    with pytest.raises(ValueError, match=f"'kernel': .*{message}"):
        sqs_jax.save(tmp_path / "x.sqs", {"kernel": leaf})
    assert not (tmp_path / "x.sqs").exists()


def nested(depth):
    leaf = GRID
    for _ in range(depth - 1):
        leaf = ScaledLeaf(leaf, np.ones(6, np.float32))
    return {"kernel": leaf}


def test_leaves_nested_to_the_limit_can_be_loaded(tmp_path):
    sqs_jax.save(tmp_path / "m.sqs", nested(8))
    dense = sqs_jax.materialize(sqs_jax.load(tmp_path / "m.sqs"))["kernel"]
    np.testing.assert_array_equal(dense, sqs_jax.materialize(GRID))
    with pytest.raises(ValueError, match="'kernel': leaves are nested deeper than the 8 levels"):
        sqs_jax.save(tmp_path / "x.sqs", nested(9))


@pytest.mark.parametrize("size", [8, 1 << 15])
def test_a_product_counts_towards_the_unfolded_size(size, tmp_path):
    """Products of arrays count, and products nested in a small product."""
    column, row = np.ones((size, 1), np.float32), np.ones((1, size), np.float32)
    square = ProductLeaf(column, row, (size, size))
    trees = {"square": square, "hidden": ProductLeaf(square, column, (size, 1))}
    for name, leaf in trees.items():
        path = tmp_path / f"{name}.sqs"
        if size == 8:
            sqs_jax.save(path, {"k": leaf})
            dense = sqs_jax.materialize(sqs_jax.load(path))["k"]
            np.testing.assert_array_equal(dense, np.full(leaf.shape, size ** (name == "hidden")))
            continue
        with pytest.raises(ValueError, match=r"codes in a file of .* more than a reader accepts"):
            sqs_jax.save(path, {"k": leaf})


def test_a_reader_refuses_what_a_writer_would(tmp_path, monkeypatch):
    size = 1 << 15
    column, row = np.ones((size, 1), np.float32), np.ones((1, size), np.float32)
    tree = {"k": ProductLeaf(column, row, (size, size))}
    monkeypatch.setattr("sqs_jax.artifact.file.max_unfolded", lambda _: 1 << 40)
    sqs_jax.save(tmp_path / "m.sqs", tree)
    with pytest.raises(sqs_jax.SqsFileError, match="more weights than a file of this size"):
        sqs_jax.load(tmp_path / "m.sqs")


def test_an_overlay_counts_its_places_in_the_writer_too(tmp_path, monkeypatch):
    monkeypatch.setattr("sqs_jax.artifact.file.max_unfolded", lambda _: 2 * KERNEL.size)
    with pytest.raises(ValueError, match="more than a reader accepts"):
        sqs_jax.save(tmp_path / "m.sqs", {"k": LEAVES["overlay"]})  # codes, zeros and places


def test_a_transposed_leaf_needs_version_1_1_and_two_axes(tmp_path):
    grid = sqs_jax.GridLeaf(
        np.ones((6, 8), np.uint8), np.ones((2, 8), np.float32), np.zeros((2, 8), np.uint8), 4
    )
    turned = TransposedLeaf(CompressedLeaf(np.ones((8, 2), np.uint8), BOOK))
    inside = dataclasses.replace(grid, scales=turned)
    for leaf, version in ((grid, b'"1.0"'), (turned, b'"1.1"'), (inside, b'"1.1"')):
        sqs_jax.save(tmp_path / "m.sqs", {"k": leaf})
        assert version in (tmp_path / "m.sqs").read_bytes()[:200]
    flat = TransposedLeaf(CompressedLeaf(np.ones(8, np.uint8), BOOK))
    with pytest.raises(ValueError, match="cannot be transposed; it must have two axes"):
        sqs_jax.save(tmp_path / "m.sqs", {"k": flat})
