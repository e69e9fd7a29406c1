"""Norms of the inputs of each weight, for activation-aware saliency."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.calibration.blockwise import Batches
from experiments.calibration.input_moments import input_moments, layers_by_input
from experiments.calibration.stages import outputs, read, stages_of, values
from experiments.trees import map_leaves
from sqs_jax.progress import track


def input_norms(model: nn.Module, variables: Any, batches: Batches) -> Any:
    """Compute root mean squares of the inputs of each weight.

    Memory holds a single stage at a time. The input of an embedding is one-hot: the norm of a row
    is the square root of the frequency of its token. Every count starts at 1, so that no row has a
    norm of 0. Other arrays without a linear layer have norms of 1.

    Args:
      model: Network.
      variables: Variables of the network, on the host or lazy.
      batches: Calibration data.

    Returns:
      Tree of the structure of the params. Leaves are float32 of the shape of the parameter without
      its last axis.
    """
    norms: dict[str, np.ndarray] = {}
    stages, x = stages_of(model, variables), batches
    for stage in track(stages, "norms of inputs"):
        dense = read(variables["params"], stage)
        params = jax.device_put(values(dense))
        for group in layers_by_input(stage.apply, params, x[0]):
            moments = input_moments(stage.apply, group[0], (params, x))
            rms = np.asarray(jnp.sqrt(jnp.diagonal(moments.second)))
            norms |= {f"{stage.scope}{path}/kernel": rms for path in group}
        if stage is not stages[-1]:
            x = outputs(stage, params, x)

    def norms_of(path: str, leaf: Any) -> np.ndarray:
        shape = np.shape(leaf)[:-1]
        if path in norms:
            return norms[path].reshape(shape)
        if path.endswith(("embed_tokens/embedding", "word_embeddings/embedding")):
            tokens = np.concatenate([batch.ravel() for batch in batches])
            counts = np.bincount(tokens, minlength=shape[0]) + 1
            return np.sqrt(counts / counts.sum()).astype(np.float32)
        return np.ones(shape, np.float32)

    return map_leaves(norms_of, variables["params"])
