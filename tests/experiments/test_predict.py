"""Published shapes, abstractly: their numbers of weights, and what they take on devices."""

from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.configs import tinystories_llama
from experiments.importers.huggingface import decoder_config
from experiments.models.decoder import Decoder
from experiments.predict import _costs, _shapes, predict, predict_seconds
from experiments.training.phases import phases
from experiments.training.step import init_state

CONFIGS = Path(tinystories_llama.__file__).parent
OTHERS = ("consistency", "pruning_or_quantization")  # which train nothing that is deployed


def load(name: str, *argument: str) -> Any:
    return import_module(f"experiments.configs.{name}").get_config(*argument)


@pytest.mark.parametrize(
    ("name", "argument", "weights"),
    [
        ("qwen2_5", ("0.5b",), 494_032_768),
        ("qwen2_5", ("1.5b-sst2",), 1_543_714_304),
        ("llama3", ("3.2_1b-sst2",), 1_235_814_400),
        ("llama3", ("3_8b",), 8_030_261_248),
        ("bert_base_squad", (), 108_893_186),  # without the pooler, which answers do not need
        ("cifar10_resnet20", (), 269_722 + 1_376),  # and two statistics a channel of every norm
        ("cifar10_resnet32", (), 464_154 + 2_272),
        ("cifar100_resnet50", (), 23_705_252 + 53_120),
    ],
)
def test_published_models(name: str, argument: tuple[str, ...], weights: int) -> None:
    config = load(name, *argument)
    config.batch_size = 8
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        one = predict(config, 1)
        config.mesh.fsdp = 8
        eight = predict(config, 8)
    assert one["weights"] == eight["weights"] == weights
    if argument:
        assert one["compressed file"] == weights // 2
    assert one["training, per device"] > 20 * weights  # posterior, moments, gradient, teacher
    assert eight["training, per device"] < one["training, per device"] / 5
    assert one["calibration, one device"] < one["training, per device"]


def test_the_state_is_counted_as_it_is() -> None:
    config = tinystories_llama.get_config()
    config.model.shape.num_hidden_layers = 1
    config.model.shape.vocab_size = 512
    phase = phases(config, config.batch_size)[-1]
    config.batch_size, config.data.length = 2, 1  # next to no activations
    model = Decoder(decoder_config(config.model.shape.to_dict()))
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8), np.int32))
    with jax.numpy_dtype_promotion("standard"):
        state = init_state(phase, variables)
        found = predict(config, 1)["training, per device"]
    held, weights = (sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (state, variables))
    assert 0 <= found - held - 2 * weights < 0.3 * weights  # gradient and teacher; activations


def test_parts_of_a_batch_and_blocks_computed_again_take_less() -> None:
    config = load("qwen2_5", "0.5b")
    config.batch_size = 8

    def activations(accumulate: int, remat: bool) -> int:
        config.accumulate, config.model.remat = accumulate, remat
        with jax.numpy_dtype_promotion("standard"):
            return predict(config, 1)["training, per device"]

    config.data.length = 8
    least = activations(8, True)
    config.data.length = 512
    whole, parts, again = (
        activations(*each) - least for each in ((1, False), (4, False), (1, True))
    )
    assert parts == pytest.approx(whole / 4, rel=0.1)  # angles are of no example
    assert again < whole / 5


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py")))
def test_every_training_of_images_is_predicted(name: str) -> None:
    """Of language models those above and below; others get their shape from their weights."""
    module = import_module(f"experiments.configs.{name}")
    if name in OTHERS or not hasattr(module, "get_config"):
        return
    config = module.get_config()
    if config.data.kind != "images":
        if config.model.shape:
            return
        with pytest.raises(ValueError, match=r"model\.shape is empty.*config\.model\.weights"):
            predict(config, 1)
        return
    with jax.numpy_dtype_promotion("standard"):
        found = predict(config, 1)
    assert 0 < found["compressed file"] < found["dense file"] / 4


def test_a_file_of_independent_codes() -> None:
    """Half zeros and four levels: two bits a kernel's weight; biases in float16."""
    config = load("digits")
    config.sqs.sparsity, config.sqs.components = 0.5, 4
    with jax.numpy_dtype_promotion("standard"):
        found = predict(config, 1)
    kernels, biases = 54_864, 154
    assert found["weights"] == kernels + biases
    assert found["compressed file"] == kernels * 2 // 8 + 2 * biases


def test_convolutions_are_counted() -> None:
    """ResNet-20: 40.8 M multiplications an image, nearly all of them convolutions."""
    config = load("cifar10_resnet20")
    model, variables, examples = _shapes(config)
    (stage,) = _costs(model, variables, examples)
    stem, stages = 27 * 16 * 32**2, 0
    moments = 27**2 * 32**2
    for number, (width, side) in enumerate(((16, 32), (32, 16), (64, 8))):
        seen = 9 * width
        first = seen if number == 0 else seen // 2
        stages += (5 * seen + first) * width * side**2
        moments += (5 * seen**2 + first**2) * side**2
    assert stage.products == config.batch_size * (stem + stages + 640)
    assert stage.moments == config.batch_size * moments


def test_what_cannot_be_predicted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--devices=3 must be a multiple of config\.mesh\.fsdp"):
        predict(load("qwen2_5"), 3)
    with pytest.raises(ValueError, match=r"argument is '7b'; it must be one of 0\.5b, 1\.5b"):
        load("qwen2_5", "7b")


def test_seconds_follow_from_what_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = 1e10
    monkeypatch.setattr("experiments.predict.products_per_second", lambda: rate)
    config = tinystories_llama.get_config()
    one = predict_seconds(config)
    weights = 6_328_576
    tokens = config.batch_size * config.data.length
    least = 2 * 4 * tokens * weights / rate  # every weight once a token, or nearly: norms
    attention = 2 * 4 * 8 * 2 * tokens * config.data.length * 256 / rate  # scores and values
    posterior = 1e-7 * weights
    assert one["training step"] == pytest.approx(least + attention + posterior, rel=0.01)
    config.batch_size *= 2
    two = predict_seconds(config)
    assert two["training step"] - posterior == pytest.approx(2 * (one["training step"] - posterior))
    config.batch_size, config.calibration.examples = 32, 2 * config.calibration.examples
    more = predict_seconds(config)["calibration"]
    assert 1.1 * one["calibration"] < more < 2 * one["calibration"]
