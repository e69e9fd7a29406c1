"""Batch normalisations as they ship: scale and bias alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import sqs_jax

EPSILON = 1e-5  # flax.linen.BatchNorm's


def fold_statistics(params: Any, model_state: Any) -> tuple[Any, Any]:
    """Move running statistics into scale and bias; what is left of them takes no bytes.

    The network computes the same with the result: scale / sqrt(var + epsilon) as its scale, bias -
    mean * that as its bias, a mean of 0 and a variance of 1 - epsilon, which a file codes as
    constants. Kernels stay as they are: a factor for each channel would undo their K values.

    Args:
      params: dicts of arrays and `CompressedLeaf`.
      model_state: {"batch_stats": dicts with "mean" and "var"}, or anything else, which is left as
        it is.

    Returns:
      (params, model_state).
    """
    if "batch_stats" not in model_state:
        return params, model_state
    flat, stats = flatten_dict(params), flatten_dict(model_state["batch_stats"])
    layers = {path[:-1] for path in stats}
    folded = {}
    for layer in layers:
        mean, variance = (jnp.asarray(stats[*layer, name]) for name in ("mean", "var"))
        # of a layer that does nothing itself, the folded kernel is the factor of each channel
        flat[*layer, "scale"], flat[*layer, "bias"] = sqs_jax.fold_batch_norm(
            jnp.ones_like(mean),
            scale=flat[*layer, "scale"],
            bias=flat[*layer, "bias"],
            mean=mean,
            variance=variance,
            epsilon=EPSILON,
        )
        folded[*layer, "mean"] = _constant(mean, 0.0)
        folded[*layer, "var"] = _constant(mean, 1 - EPSILON)
    return unflatten_dict(flat), {**model_state, "batch_stats": unflatten_dict(folded)}


def _constant(like: jax.Array, value: float) -> sqs_jax.CompressedLeaf:
    codes = np.full(like.shape, int(value != 0), np.uint8)
    return sqs_jax.CompressedLeaf(codes, np.full((1, 1), value, np.float32))
