"""What residual sums lack, brought back to the layers that are added to them."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from experiments.calibration import blockwise
from experiments.calibration.blockwise import recode_stages
from experiments.calibration.residual_stream import missing_from, sum_after
from experiments.calibration.stages import stages_of, values
from experiments.importers.huggingface import decoder_config
from experiments.models.decoder import Decoder
from experiments.models.resnet import ResNet
from tests.experiments.language_models import CONFIGS

RNG = np.random.default_rng(0)


class Residual(nn.Module):
    """A sum in which the second layer counts double."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(8, name="first")(x))
        return x + 2 * nn.Dense(4, name="last")(hidden)


class Network(nn.Module):
    """Two residual sums, and a head that multiplies the last sum."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3, name="head")(Residual(name="second")(Residual(name="first")(x)))


def applied(model: nn.Module) -> Any:
    return lambda params, x: model.apply({"params": params}, x)


def test_a_layer_belongs_to_the_widest_sum_that_no_other_layer_multiplies() -> None:
    model, x = Network(), RNG.standard_normal((5, 4), np.float32)
    params = model.init(jax.random.key(0), x)["params"]
    actual = {
        path: sum_after(applied(model), path, params, x)
        for path in ("first/first", "first/last", "second/first", "second/last", "head")
    }
    assert actual == {
        "first/first": None,
        "first/last": "first",
        "second/first": None,
        "second/last": "second",
        "head": "",
    }


def test_a_module_may_have_any_name() -> None:
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.concatenate([x, x + nn.Dense(4, name="last")(x)], axis=-1)

    class Outer(nn.Module):
        name_of_sum: str

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return Wide(name=self.name_of_sum)(x)

    x = RNG.standard_normal((5, 4), np.float32)
    params = Outer("block").init(jax.random.key(0), x)["params"]["block"]
    corrections = []
    for name in ("block", "layer"):
        model, theirs = Outer(name), {name: params}
        ours = jax.tree.map(lambda leaf: 0.9 * leaf, theirs)
        arguments = f"{name}/last", name, (ours, [x]), (theirs, [x])
        corrections.append(missing_from(applied(model), *arguments))
    np.testing.assert_array_equal(*corrections)


def test_a_module_that_another_method_calls_is_no_sum() -> None:
    class Named(nn.Module):
        def setup(self) -> None:
            self.last = nn.Dense(4)

        def summed(self, x: jax.Array) -> jax.Array:
            return x + self.last(x)

    class Caller(nn.Module):
        def setup(self) -> None:
            self.inner, self.head = Named(), nn.Dense(3)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(self.inner.summed(x))

    model, x = Caller(), RNG.standard_normal((5, 4), np.float32)
    params = model.init(jax.random.key(0), x)["params"]
    assert sum_after(applied(model), "inner/last", params, x) is None


def test_of_a_decoder_the_last_layer_makes_the_block_good() -> None:
    model = Decoder(decoder_config(CONFIGS["llama"]))
    tokens = jnp.zeros((1, 4), jnp.int32)
    variables = model.init(jax.random.key(0), tokens)
    stage = stages_of(model, variables)[1]
    params = values({stage.names[0]: variables["params"][stage.names[0]]})
    x = jnp.ones((1, 4, 48))
    names = ("self_attn/v_proj", "self_attn/o_proj", "mlp/up_proj", "mlp/down_proj")
    assert [sum_after(stage.apply, name, params, x) for name in names] == [None, None, None, ""]


def test_what_is_missing_is_the_error_of_the_sum() -> None:
    model = Residual()
    xs, ys = RNG.standard_normal((2, 3, 6, 4), np.float32)
    params = model.init(jax.random.key(0), xs[0])["params"]
    apply = applied(model)
    actual = missing_from(apply, "last", "", (params, list(xs)), (params, list(ys)))
    first = jax.tree.map(np.asarray, params["first"])
    hidden = np.maximum(xs @ first["kernel"] + first["bias"], 0)
    lack = (np.asarray(apply(params, ys)) - np.asarray(apply(params, xs))) / 2
    expected = hidden.reshape(-1, 8).T @ lack.reshape(-1, 4) / lack.reshape(-1, 4).shape[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_output_without_effect_misses_nothing() -> None:
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return x + nn.Dense(4, name="last")(x) * jnp.array([[1.0, 0.0, 1.0, 1.0]])

    xs, ys = RNG.standard_normal((2, 3, 6, 4), np.float32)
    params = Half().init(jax.random.key(0), xs[0])["params"]
    actual = missing_from(applied(Half()), "last", "", (params, list(xs)), (params, list(ys)))
    assert (np.asarray(actual)[:, 1] == 0).all()
    assert np.isfinite(np.asarray(actual)).all()
    assert (np.abs(np.asarray(actual)[:, 0]) > 0).all()


def test_sums_of_a_calibrated_network_are_nearer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ResNet(blocks=(2, 2), widths=(8, 8), num_classes=4)
    images = RNG.standard_normal((64, 8, 8, 3)).astype(np.float32)
    variables = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0), images))
    ones = {"params": jax.tree.map(lambda _: np.float32(1), variables["params"])}
    compressed = sqs_jax.compress_to_budget(
        {"params": variables["params"]}, target_bytes=2_600, sensitivity=ones
    )["params"]
    expected = np.asarray(model.apply(variables, images))

    def error(folder: str) -> float:
        actual = recode_stages(model, variables, compressed, [images], tmp_path / folder)
        outputs = model.apply({**variables, "params": sqs_jax.materialize(actual)}, images)
        return float(np.square(np.asarray(outputs) - expected).sum())

    nearer = error("sums")
    monkeypatch.setattr(blockwise, "sum_after", lambda *_: None)
    assert nearer < error("layers")
