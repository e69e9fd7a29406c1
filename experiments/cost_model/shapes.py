"""Shapes of a network, its variables and its examples, from a config."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments import data
from experiments.importers.huggingface import decoder_config, encoder_config
from experiments.models import build_model
from experiments.models.decoder import Decoder
from experiments.models.encoder import Encoder

_SEPARATOR = 102  # token between the two segments of a BERT; shapes do not depend on its value
_IMAGES = {  # by name of the dataset: shape of an image, number of classes
    "digits": ((8, 8, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
}


def network_shapes(config: Any) -> tuple[Any, Any, jax.ShapeDtypeStruct]:
    """Return the network, and the shapes of its variables and of a batch.

    Args:
      config: Config of the experiment, `described`.

    Raises:
      ValueError: A language model has no shape.
    """
    model: Any
    if config.data.kind == "images":
        shape, classes = _image(config)
        model = build_model(config.model, classes)
        examples = jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.float32)
    else:
        model = _language_model(config)
        examples = jax.ShapeDtypeStruct((config.batch_size, config.data.length), jnp.int32)
    return model, jax.eval_shape(model.init, jax.random.key(0), examples), examples


def _image(config: Any) -> tuple[tuple[int, ...], int]:
    """Return the shape of an image and the number of classes."""
    if config.data.name in _IMAGES:
        return _IMAGES[config.data.name]
    splits = data.load(config.data, config.seed)
    return splits.train.examples.shape[1:], splits.num_classes


def _language_model(config: Any) -> Any:
    shape = config.model.shape.to_dict()
    if not shape:
        raise ValueError(
            "config.model.shape is empty; give the fields of a config.json, or the weights that "
            "have them as config.model.weights."
        )
    dtype = jnp.dtype(config.model.dtype)
    if shape["model_type"] == "bert":
        classes = None if config.data.kind == "answers" else 2
        return Encoder(encoder_config(shape, _SEPARATOR), classes, dtype=dtype)
    return Decoder(decoder_config(shape), dtype=dtype)
