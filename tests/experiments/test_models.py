"""Tests of the ConvNet: its size, and pooling against Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.configs import digits
from experiments.models import build_model
from experiments.models.convnet import halve


def test_the_digits_network_has_the_documented_number_of_weights() -> None:
    model = build_model(digits.get_config().model, num_classes=10)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 55_018


def test_pooling_matches_flax() -> None:
    for shape in ((2, 8, 6, 3), (1, 7, 5, 2)):
        images = jax.random.normal(jax.random.key(0), shape)
        np.testing.assert_array_equal(halve(images), nn.max_pool(images, (2, 2), (2, 2)))
