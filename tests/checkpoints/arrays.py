"""Arrays of any dtype and unusual shapes, and a comparison of trees."""

import jax
import numpy as np

from sqs_jax.artifact.dtypes import DTYPES


def array(name, shape=(3, 4), seed=0):
    """Return random values of a dtype."""
    rng = np.random.default_rng(seed)
    return np.asarray((4 * rng.normal(size=shape)).astype(DTYPES[name]))


def state(*names, seed=0):
    """Return arrays of some dtypes, a scalar and an empty array, by PyTorch-like names."""
    tensors = {f"layer{i}.0.{name}": array(name, seed=seed + i) for i, name in enumerate(names)}
    tensors["scalar"] = array(names[0], (), seed)
    tensors["empty"] = array(names[0], (0, 3), seed)
    return tensors


def same(tree, arrays):
    """Return whether two trees have equal structures, shapes, dtypes and bits."""
    assert jax.tree.structure(tree) == jax.tree.structure(arrays)
    for lazy, x in zip(jax.tree.leaves(tree), jax.tree.leaves(arrays), strict=True):
        x = np.asarray(x)
        announced = (lazy.shape, lazy.dtype, lazy.ndim, lazy.size, lazy.nbytes)
        assert announced == (x.shape, x.dtype, x.ndim, x.size, x.nbytes)
        for _ in range(2):  # every call reads anew
            y = np.asarray(lazy)
            assert (y.shape, y.dtype) == (x.shape, x.dtype) and y.tobytes() == x.tobytes()
    return True
