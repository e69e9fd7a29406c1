"""Out of memory: the error names a setting that the prediction says would fit."""

import jax
import pytest

from experiments.configs import digits, tinystories_llama
from experiments.cost_model.memory import predict
from experiments.memory import explained, way_out


@pytest.fixture
def config():
    found = tinystories_llama.get_config()
    found.model.shape.num_hidden_layers = 2
    found.batch_size = 8
    return found


def test_a_training_is_told_of_the_first_setting_that_fits(config):
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        now = predict(config, jax.device_count())["training, per device"]
        assert "config.model.remat=True: that should fit" in way_out(config, "training", now - 1)
        config.accumulate, config.model.remat = 4, True
        need = predict(config, jax.device_count())["training, per device"]
        config.accumulate, config.model.remat = 1, False
        said = way_out(config, "training", need)
        assert "config.accumulate=4, config.model.remat=True" in said and f"{need:,}" in said
        assert "config.mesh.fsdp" in way_out(config, "training", 1000)
        config.model.remat = True  # what it has already is no way out
        assert "Try config.accumulate=2: that should fit" in way_out(config, "training", 10**12)


def test_a_calibration_is_told_of_smaller_batches(config):
    config.batch_size = 2
    with jax.numpy_dtype_promotion("standard"):
        need = predict(config, 1)["calibration, one device"]
        config.batch_size = 8
        assert "config.batch_size=2:" in way_out(config, "calibration", need)
        assert "config.data.length" in way_out(config, "calibration", 1000)


def test_an_error_of_the_device_is_explained_and_others_are_not(config):
    with (
        pytest.raises(MemoryError, match=r"is out of memory\. Try config\.batch_size=4, and go"),
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
