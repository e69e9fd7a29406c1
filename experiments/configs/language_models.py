"""What published language models share here: the task, and 4 bits per weight of the whole file.

Tasks: "wikitext2", the next token; "sst2", sentences whose label is the word that goes on.
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.configs import base
from experiments.importers.huggingface import decoder_config
from experiments.models.decoder import Decoder

_BITS = 4
_TASKS = {"wikitext2": ("language", 512, "test"), "sst2": ("sentences", 128, "validation")}


def chosen(argument: str, sizes: dict[str, Any]) -> tuple[Any, str]:
    """Return what a config's argument names, SIZE or SIZE-TASK: a size, and the task.

    Raises:
      ValueError: for a size or a task that is not there.
    """
    size, _, task = argument.partition("-")
    task = task or "wikitext2"
    if size not in sizes or task not in _TASKS:
        raise ValueError(
            f"The config's argument is {argument!r}; it must be one of {', '.join(sizes)}, or that "
            f"and one of {', '.join(_TASKS)}: {next(iter(sizes))}-sst2."
        )
    return sizes[size], task


def experiment(shape: dict[str, Any], task: str = "wikitext2") -> ConfigDict:
    """Return the experiment for a model of this config.json."""
    config = base.language_experiment(rate=2e-5)
    config.data.kind, config.data.length, config.data.test_split = _TASKS[task]
    config.data.name = task
    config.model.shape = ConfigDict(shape)
    config.model.dtype = "bfloat16"
    config.batch_size = 8
    config.finetune = False
    config.sqs.target_bytes = _BITS * count_weights(shape) // 8
    config.sqs.epochs = 1
    config.calibration.examples = 128
    return config


def count_weights(shape: dict[str, Any]) -> int:
    """Return the number of weights of a model of this config.json."""
    model = Decoder(decoder_config(shape))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))
