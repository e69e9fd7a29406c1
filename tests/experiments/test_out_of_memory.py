"""Tests of out-of-memory errors, which name a setting predicted to fit."""

import jax
import pytest

from experiments.configs import digits, tinystories_llama
from experiments.memory import explained, remedy
from experiments.predict import predict


@pytest.fixture
def config():
    config = tinystories_llama.get_config()
    config.model.shape.num_hidden_layers = 2
    config.batch_size = 8
    return config


def test_the_remedy_of_a_training_is_the_first_setting_that_fits(config):
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        now = predict(config, jax.device_count())["training, per device"]
        assert "config.model.remat=True: that should fit" in remedy(config, "training", now - 1)
        config.accumulate, config.model.remat = 4, True
        need = predict(config, jax.device_count())["training, per device"]
        config.accumulate, config.model.remat = 1, False
        sentence = remedy(config, "training", need)
        assert (
            "config.accumulate=4, config.model.remat=True" in sentence and f"{need:,}" in sentence
        )
        assert "config.mesh.fsdp" in remedy(config, "training", 1000)
        config.model.remat = True  # a remedy must change the config
        assert "Try config.accumulate=2: that should fit" in remedy(config, "training", 10**12)


def test_the_remedy_of_a_calibration_is_a_smaller_batch(config):
    config.batch_size = 2
    with jax.numpy_dtype_promotion("standard"):
        need = predict(config, 1)["calibration, one device"]
        config.batch_size = 8
        assert "config.batch_size=2:" in remedy(config, "calibration", need)
        assert "config.data.length" in remedy(config, "calibration", 1000)


def test_only_out_of_memory_errors_are_explained(config):
    with (
        pytest.raises(MemoryError, match=r"out of memory\. Try config\.batch_size=4, and repeat"),
        explained(config, "calibration"),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explained(config, "training"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
    with (
        pytest.raises(MemoryError, match=r"Try config\.accumulate=2, and"),
        explained(digits.get_config(), "training"),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
