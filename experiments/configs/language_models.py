"""Published language models: tasks, and 4 bits per weight of the whole file.

Tasks: "wikitext2", the next token of a text; "sst2", the label of a sentence as its next word.
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
    """Parse the argument of a config, SIZE or SIZE-TASK.

    Args:
      argument: Text after the colon of --config.
      sizes: Description of each size by name.

    Returns:
      The description of the size, and the name of the task.

    Raises:
      ValueError: The size or the task is unknown.
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
    """Make the experiment of a model.

    Args:
      shape: Fields of config.json of the model.
      task: "wikitext2" or "sst2".
    """
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
    """Count the weights of a model from the fields of its config.json."""
    model = Decoder(decoder_config(shape))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))
