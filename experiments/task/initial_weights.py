"""Initial weights of an experiment: pretrained, or drawn from the seed."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.importers import import_weights, language_model
from experiments.task.task import Task
from sqs_jax.progress import progress


@progress("reading the weights")
def initial_weights(task: Task, config: Any) -> Any:
    """Open the variables of `config.model.weights`, on the host or lazy.

    Raises:
      FileNotFoundError: The weights are missing.
      ModuleNotFoundError: A package that reads the format is missing.
      ValueError: The weights do not fit the network.
    """
    path, model = Path(config.model.weights), task.model
    example = task.splits.train.inputs(slice(1))
    if config.data.kind == "images" or path.suffix == ".sqs":
        return import_weights(path, model, example)
    init = jax.jit(lambda: model.init(jax.random.key(config.seed), jnp.asarray(example)))
    source = language_model.open_language_model(path)
    return {"params": language_model.weights_of(source, jax.eval_shape(init)["params"], fresh=init)}


def starting_variables(task: Task, config: Any) -> Any:
    """Return the pretrained variables of a config, or draw variables from its seed."""
    if config.model.weights:
        return initial_weights(task, config)
    example = jnp.asarray(task.splits.train.inputs(slice(1)))
    variables = jax.jit(task.model.init)(jax.random.key(config.seed), example)
    return jax.tree.map(np.asarray, variables)
