"""Lazy arrays, and names of nested leaves."""

import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.checkpoints import CheckpointError, LazyArray, flat_names
from tests.checkpoints.arrays import array


def test_each_read_is_a_new_one():
    reads = []

    def read():
        reads.append(len(reads))
        return np.full((2, 3), reads[-1], np.float32)

    lazy = LazyArray((2, 3), np.float32, read)
    assert repr(lazy) == "LazyArray(shape=(2, 3), dtype=float32)" and not reads
    assert (lazy.ndim, lazy.size, lazy.nbytes) == (2, 6, 24) and not reads
    assert (np.asarray(lazy) == 0).all() and (np.asarray(lazy) == 1).all()
    assert np.asarray(lazy, np.int32).dtype == np.int32
    assert (jnp.asarray(lazy) == 3).all()
    with pytest.raises(ValueError, match="to read them is to copy"):
        np.array(lazy, copy=False)
    assert reads == [0, 1, 2, 3]


def test_a_copy_is_ones_own():
    x = array("float32")
    x.flags.writeable = False
    lazy = LazyArray.of(x)
    np.array(lazy)[:] = 0
    assert (np.asarray(lazy) == array("float32")).all()


@pytest.mark.parametrize("x", [np.ones(3), np.ones((2, 1), np.float32)])
def test_what_was_not_announced_is_refused(x):
    with pytest.raises(CheckpointError, match=r"announced as float32\[2\] and read as"):
        np.asarray(LazyArray((2,), np.float32, lambda: x))


def test_names_are_paths():
    leaf = CompressedLeaf(np.zeros(3, np.uint8), np.ones((1, 1)))
    tree = {"a": {"b": [1, (2, None)], 3: leaf}, "c.d": 4, "e/f": 5, "none": {}, "g": ()}
    assert flat_names(tree) == {"a/b/0": 1, "a/b/1/0": 2, "a/3": leaf, "c.d": 4, "e/f": 5}
    assert list(flat_names({"b": 1, "a": 2})) == ["b", "a"] and flat_names({}) == {}
    flat = {"a/b": 1, "": 2, "c": 3}
    assert flat_names(flat) == flat


@pytest.mark.parametrize("tree", [{"a/b": 1, "a": {"b": 2}}, {1: 1, "1": 2}, {"a": [1], "a/0": 2}])
def test_two_leaves_of_one_name_are_refused(tree):
    with pytest.raises(CheckpointError, match="two leaves have the name"):
        flat_names(tree)


def test_trees_without_names_are_refused():
    with pytest.raises(CheckpointError, match="bare array"):
        flat_names(np.ones(3))
    tree = {}
    for _ in range(300):
        tree = {"a": tree, "b": 1}
    with pytest.raises(CheckpointError, match="deeper than 200"):
        flat_names(tree)
