"""CompressedLeaf and materialize: numpy, JAX and jit agree with the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.artifact import CompressedLeaf, materialize


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def make(shape=(6, 5), stack=(), windows=2, components=3, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    values = windows * components
    codes = rng.integers(0, values + 1, (*stack, *shape))
    codebook = rng.normal(size=(*stack, windows, components)).astype(dtype)
    return CompressedLeaf(codes.astype(np.uint8 if values <= 255 else np.uint16), codebook)


def by_hand(leaf):
    """Compute the weights of a leaf by the definition, in a loop."""
    out = np.zeros(leaf.codes.shape, leaf.codebook.dtype)
    stack = leaf.codebook.ndim - 2
    for index in np.ndindex(leaf.codes.shape):
        if leaf.codes[index]:
            out[index] = leaf.codebook[index[:stack]].ravel()[int(leaf.codes[index]) - 1]
    return out


CASES = [
    make(),
    make(shape=()),
    make(shape=(0, 3)),
    make(stack=(3,), shape=(4, 2)),
    make(stack=(2, 3), shape=(4,)),
    make(stack=(0,), shape=(4,)),
    make(windows=1, components=1),
    make(windows=5, components=51, shape=(40, 40)),
    make(windows=16, components=16, shape=(40, 40)),
    make(windows=257, components=255, shape=(300, 300)),
    make(dtype=jnp.bfloat16),
    make(dtype=np.float16),
]


@pytest.mark.parametrize("leaf", CASES, ids=lambda leaf: f"{leaf.codes.shape}{leaf.codebook.shape}")
def test_numpy_jax_and_jit_agree_with_the_definition(leaf):
    want = by_hand(leaf)
    got = materialize(leaf)
    assert type(got) is np.ndarray
    on_device = jax.tree.map(jnp.asarray, leaf)
    for result in (got, materialize(on_device), jax.jit(materialize)(on_device)):
        assert result.shape == want.shape and result.dtype == want.dtype
        np.testing.assert_array_equal(np.asarray(result), want)
    assert isinstance(materialize(on_device), jax.Array)


def test_a_pruned_weight_is_plus_zero_even_where_the_codebook_is_not_finite():
    leaf = CompressedLeaf(np.zeros((3,), np.uint8), np.array([[np.nan, -np.inf]], np.float32))
    for result in (materialize(leaf), materialize(jax.tree.map(jnp.asarray, leaf))):
        assert np.asarray(result).tobytes() == bytes(12)


def test_other_leaves_are_returned_as_they_are():
    bias, step = np.ones(3), jnp.arange(2)
    tree = {"a": [make(), None], "b": (bias, step), "c": "anything"}
    out = materialize(tree)
    assert out["b"][0] is bias and out["b"][1] is step and out["c"] == "anything"
    assert out["a"][1] is None and out["a"][0].shape == (6, 5)


def test_a_leaf_is_a_pytree_that_maps_and_vmaps():
    leaf = make(stack=(3,), shape=(4, 2))
    assert len(jax.tree.leaves(leaf)) == 2
    on_device = jax.tree.map(jnp.asarray, leaf)
    np.testing.assert_array_equal(jax.vmap(materialize)(on_device), materialize(leaf))
    shape = jax.eval_shape(materialize, on_device)
    assert (shape.shape, shape.dtype) == ((3, 4, 2), np.float32)


def test_the_codebook_gets_the_gradient_of_its_weights():
    leaf = jax.tree.map(jnp.asarray, make(windows=1, components=3, shape=(50,)))
    grad = jax.grad(lambda book: materialize(CompressedLeaf(leaf.codes, book)).sum())(leaf.codebook)
    np.testing.assert_array_equal(grad[0], np.bincount(np.asarray(leaf.codes), minlength=4)[1:])
