"""Standard dtype promotion, for optax's Adam and Flax's norms in bfloat16."""

import jax
import pytest


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield
