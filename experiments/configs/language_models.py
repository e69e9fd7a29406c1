"""What published language models share here: WikiText-2, 4 bits per weight of the whole file."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.configs import base
from experiments.importers.huggingface import decoder_config
from experiments.models.decoder import Decoder

_BITS = 4


def get_config(shape: dict[str, Any]) -> ConfigDict:
    """Return the experiment for a model of this config.json."""
    config = base.experiment()
    config.data.kind = "language"
    config.data.name = "wikitext2"
    config.data.length = 512
    config.model.shape = ConfigDict(shape)
    config.model.dtype = "bfloat16"
    config.batch_size = 4
    config.finetune = False
    config.sqs.pattern = ".*(kernel|embedding)"
    config.sqs.target_bytes = _BITS * count_weights(shape) // 8
    config.sqs.sensitivity = "fisher"
    config.sqs.epochs = 1
    config.sqs.distill_weight = 1.0
    config.sqs.learning_rate.loc = 2e-5
    config.sqs.learning_rate.means = 2e-5
    config.sqs.learning_rate.dense = 2e-5
    config.calibration.examples = 128
    config.evaluation.average_samples = 0
    return config


def count_weights(shape: dict[str, Any]) -> int:
    """Return the number of weights of a model of this config.json."""
    model = Decoder(decoder_config(shape))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))
