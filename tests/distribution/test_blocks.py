"""Blocks give what the whole gives, in any shape, and hold little at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.distribution import blocks
from sqs_jax.distribution.blocks import over_blocks, whole


@pytest.mark.parametrize(
    "shape",
    [
        (),
        (0,),
        (1,),
        (7, 11),
        (64, 48),
        (3, 5, 7, 9),
        (1, 4096),
        (4096, 1),
        (509, 16),
        (16, 509),
        (8191,),
        (8191, 3),
        (2, 4099),
    ],
)
def test_blocks_give_what_the_whole_gives(shape):
    x, y = (jax.random.normal(jax.random.key(i), shape) for i in range(2))

    def sums(_, x, y):
        return {"sum": x + y, "large": x > y}, [jnp.sum(jnp.abs(x * y))]

    small = partial(over_blocks, size=128)
    got, want = (jax.jit(lambda x, y, f=f: f(sums, x, y))(x, y) for f in (small, whole))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1024, 1024), (3, 3, 512, 512), (1 << 20,), (50_000, 128)])
def test_a_block_is_small(shape):
    axis, number = blocks._split(shape, blocks._SIZE)
    assert shape[axis] % number == 0
    assert np.prod(shape) / number <= 2 * blocks._SIZE


@pytest.mark.parametrize("shape", [(65_537, 4), (65_537,), (32_771, 16), (3, 1 << 19)])
def test_blocks_of_any_length_are_few(shape):
    _, number = blocks._split(shape, blocks._SIZE)
    assert np.prod(shape) / number > blocks._SIZE / 4


@pytest.mark.parametrize("shape", [(1024, 256), (65_537, 4)])
def test_every_block_has_a_number(shape):
    numbers, _ = over_blocks(lambda i, x: (jnp.full(x.shape, i), None), jnp.zeros(shape))
    assert set(np.unique(numbers)) == set(range(len(np.unique(numbers)))) != {0}
