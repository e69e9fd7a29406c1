"""How large the inputs of each weight are: what activation-aware saliency asks for."""

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
    """Return root mean squares of the inputs of each weight, a stage in memory.

    The input of an embedding is 1 for a token and 0 for the others: its rows have the square root
    of how often their tokens come; each is counted once more than it is seen, so that none is worth
    nothing. Other arrays whose inputs are unknown have ones.

    Args:
      model, variables: the network, its weights on the host or still in their files.
      batches: of examples.

    Returns:
      A tree as the params, of float32 arrays of their shapes but for the last axis.
    """
    norms: dict[str, np.ndarray] = {}
    stages, x = stages_of(model, variables), batches
    for stage in track(stages, "norms of inputs"):
        dense = read(variables["params"], stage)
        its = jax.device_put(values(dense))
        for group in layers_by_input(stage.apply, its, x[0]):
            moments = input_moments(stage.apply, group[0], (its, x))
            found = np.asarray(jnp.sqrt(jnp.diagonal(moments.second)))
            norms |= {f"{stage.scope}{path}/kernel": found for path in group}
        if stage is not stages[-1]:
            x = outputs(stage, its, x)

    def of(path: str, leaf: Any) -> np.ndarray:
        shape = np.shape(leaf)[:-1]
        if path in norms:
            return norms[path].reshape(shape)
        if path.endswith(("embed_tokens/embedding", "word_embeddings/embedding")):
            seen = np.concatenate([each.ravel() for each in batches])
            counts = np.bincount(seen, minlength=shape[0]) + 1
            return np.sqrt(counts / counts.sum()).astype(np.float32)
        return np.ones(shape, np.float32)

    return map_leaves(of, variables["params"])
