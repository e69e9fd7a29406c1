"""Helpers: trees of every form of leaf, their comparison, and a fresh process."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import CompressedLeaf


def compressed(shape, components=4, windows=1, stack=(), sparsity=0.8, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    values = windows * components
    codes = rng.integers(1, values + 1, (*stack, *shape))
    codes = np.where(rng.random(codes.shape) < sparsity, 0, codes)
    book = rng.normal(size=(*stack, windows, components)).astype(dtype)
    return CompressedLeaf(codes.astype(np.uint8 if values <= 255 else np.uint16), book)


def model(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "params": {
            "conv": {"kernel": compressed((3, 3, 4, 8)), "bias": np.zeros(8, np.float32)},
            "dense": {"kernel": compressed((40, 30), 16, 3), "bias": rng.normal(size=30)},
            "embed": compressed((50, 8), 200, 2, dtype=jnp.bfloat16),
            "layers": compressed((6, 5), stack=(3,)),
        },
        "batch_stats": [rng.normal(size=5).astype(np.float32), (np.arange(3), None, {})],
    }


def same(a, b):
    """Assert that trees are equal: structure, shapes, dtypes and every bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.shape, x.dtype) == (y.shape, y.dtype) and x.tobytes() == y.tobytes()
    return True


def run_python(code, *args, check=True):
    """Run code in a fresh process that sees this checkout."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        check=check,
        cwd=Path(__file__).resolve().parents[2],
    )


def structured(shape, components=4, axes=(0, 1), seed=0):
    """Return codes whose sparsity differs by row and column."""
    rng = np.random.default_rng(seed)
    keep = np.ones(shape)
    for axis in axes:
        share = rng.random(shape[axis]) ** 2
        keep *= share.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    codes = np.where(rng.random(shape) < keep, rng.integers(1, components + 1, shape), 0)
    return codes.astype(np.uint8 if components <= 255 else np.uint16)


def integers(seed=0):
    """Return integer tensors that become byte planes: every dtype, masks, positions."""
    rng = np.random.default_rng(seed)
    tree = {
        "positions": np.arange(512)[None],
        "mask": np.tril(np.ones((1, 1, 60, 60), bool)),
        "groups": np.repeat(np.arange(32, dtype=np.int32), 16),
        "tokens": rng.integers(0, 50_257, (64, 3)),
        "constant": np.full(40, -(2**63)),
        "extremes": np.tile(np.array([-(2**63), 2**63 - 1]), 40),
        "unsigned": np.tile(np.array([0, 2**64 - 1], np.uint64), 40),
        "wrong way": np.arange(3000, 0, -1, dtype=np.uint32).reshape(30, 100).T,
    }
    for bits in (2, 4, 8, 16, 32, 64):
        low = rng.integers(-2, 2, 300)
        tree[f"int{bits}"] = low.astype(f"int{bits}")
        tree[f"uint{bits}"] = (low + 2).astype(f"uint{bits}")
    return tree
