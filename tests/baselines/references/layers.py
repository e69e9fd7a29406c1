"""Seeded layers that the public implementations and the tests compress."""

import numpy as np

OBC_SHAPES = {"wide": (64, 48), "deep": (144, 16)}  # inputs, outputs
SPARSITIES = (0.5, 0.75, 0.9)
BITS = (2, 3, 4)
DAMPING = 0.01
GPTQ_SHAPE = (32, 12)


def layer(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return heavy-tailed weights [I, O] and correlated inputs [1024, I]."""
    rng = np.random.default_rng(shape[0])
    weights = 0.1 * rng.standard_t(4, shape)
    mixed = rng.standard_normal((1024, shape[0])) @ rng.standard_normal((shape[0], shape[0]))
    return weights.astype(np.float32), np.maximum(mixed, 0).astype(np.float32)


def symmetric_layer() -> tuple[np.ndarray, np.ndarray]:
    """Return a layer whose weights span -3.75 to 3.75 in every output.

    Min-max grids of 16 levels and qwix's symmetric 4-bit grids are then the same.
    """
    weights, inputs = layer(GPTQ_SHAPE)
    weights = np.clip(10 * weights, -3.7, 3.7)
    weights[0], weights[1] = -3.75, 3.75
    return weights, inputs
