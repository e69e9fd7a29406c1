"""Batch normalisations as they ship: statistics of the deployed weights, in scale and bias."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import sqs_jax

EPSILON, MOMENTUM = 1e-5, 0.9  # of the networks' flax.linen.BatchNorm


def estimate_statistics(
    model: nn.Module, params: Any, model_state: Any, batches: Iterable[Any]
) -> Any:
    """Return the model state with batch statistics that are plain means over some batches.

    While training, statistics follow weights that change, and remember some ten batches.

    Args:
      model: the network.
      params: arrays.
      model_state: {"batch_stats": ...}, or anything else, which is returned as it is.
      batches: images [batch, height, width, channels], standardised and augmented as those of the
        training were, whose statistics these replace.

    Raises:
      ValueError: if the statistics were folded into scales and biases before.
    """
    if "batch_stats" not in model_state:
        return model_state
    if _is_folded(model_state["batch_stats"]):
        raise ValueError(
            "The statistics of this network are folded into its scales and biases already: means "
            "are 0 and variances 1 - epsilon. Estimate them before fold_statistics, from dense.sqs "
            "and the compressed params, not from model.sqs."
        )

    @jax.jit
    def of_batch(images: jax.Array) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, model_state["batch_stats"])
        variables = {"params": params, **model_state, "batch_stats": zeros}
        _, moved = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return jax.tree.map(lambda mean: mean / (1 - MOMENTUM), moved["batch_stats"])

    found = [jax.tree.map(np.asarray, of_batch(images)) for images in batches]
    mean = jax.tree.map(lambda *each: np.mean(each, 0, np.float64).astype(np.float32), *found)
    return {**model_state, "batch_stats": mean}


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


def _is_folded(stats: Any) -> bool:
    """Return whether all statistics are what `fold_statistics` leaves."""
    constants = {"mean": np.float32(0), "var": np.float32(1 - EPSILON)}
    flat = flatten_dict(sqs_jax.materialize(stats))
    return all(bool((np.asarray(x) == constants[path[-1]]).all()) for path, x in flat.items())


def _constant(like: jax.Array, value: float) -> sqs_jax.CompressedLeaf:
    codes = np.full(like.shape, int(value != 0), np.uint8)
    return sqs_jax.CompressedLeaf(codes, np.full((1, 1), value, np.float32))
