"""Arrays of any dtype and odd shapes, and their comparison, for the tests of this folder."""

import jax
import numpy as np

from sqs_jax.artifact.dtypes import DTYPES


def array(name, shape=(3, 4), seed=0):
    """Random values of a dtype, given by its name."""
    rng = np.random.default_rng(seed)
    return np.asarray((4 * rng.normal(size=shape)).astype(DTYPES[name]))


def state(*names, seed=0):
    """Arrays of these dtypes, one of shape (), and an empty one; names as PyTorch gives them."""
    tensors = {f"layer{i}.0.{name}": array(name, seed=seed + i) for i, name in enumerate(names)}
    tensors["scalar"] = array(names[0], (), seed)
    tensors["empty"] = array(names[0], (0, 3), seed)
    return tensors


def same(tree, arrays):
    """Whether two trees have the same structure, shapes, dtypes and bits; lazy arrays are read."""
    assert jax.tree.structure(tree) == jax.tree.structure(arrays)
    for lazy, x in zip(jax.tree.leaves(tree), jax.tree.leaves(arrays), strict=True):
        x = np.asarray(x)
        announced = (lazy.shape, lazy.dtype, lazy.ndim, lazy.size, lazy.nbytes)
        assert announced == (x.shape, x.dtype, x.ndim, x.size, x.nbytes)
        for _ in range(2):  # each time anew
            y = np.asarray(lazy)
            assert (y.shape, y.dtype) == (x.shape, x.dtype) and y.tobytes() == x.tobytes()
    return True
