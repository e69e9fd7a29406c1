"""Calibration: stages against the whole network, order, resuming, the command."""

from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from experiments.calibrate import calibrate
from experiments.calibration import sensitivity
from experiments.calibration.bit_allocation import allocate
from experiments.calibration.blockwise import examples_of, recode_stages
from experiments.calibration.input_moments import _record, input_moments, layers_by_input
from experiments.calibration.input_norms import input_norms
from experiments.calibration.page import write_calibration
from experiments.calibration.sensitivity import fisher_information
from experiments.calibration.stages import read, stages_of, values
from experiments.data import Dataset
from experiments.importers.huggingface import decoder_config
from experiments.models.decoder import Decoder
from experiments.models.resnet import ResNet
from experiments.trees import flat_leaves
from tests.experiments.language_models import CONFIGS, tokens
from tests.experiments.test_text import STORY, experiment

TOKENS = tokens("llama")


@pytest.fixture(scope="module", params=["llama", "qwen2"])  # tied and not
def network(request: Any) -> tuple[Decoder, Any]:
    model = Decoder(decoder_config(CONFIGS[request.param]))
    drawn = jax.jit(model.init)(jax.random.key(0), TOKENS)
    # far from its start, where all tokens are equally likely
    return model, jax.tree.map(lambda w: np.asarray(w) * (1 if w.ndim == 1 else 8), drawn)


def test_stages_are_the_network(network: tuple[Decoder, Any]) -> None:
    model, variables = network
    x: Any = TOKENS
    for stage in stages_of(model, variables):
        x = stage.apply(values(read(variables["params"], stage)), x)
    np.testing.assert_allclose(x, model.apply(variables, TOKENS), rtol=1e-4, atol=1e-4)
    names = [name for stage in stages_of(model, variables) for name in stage.names]
    assert set(names) == variables["params"].keys()


def test_fisher_information_stage_by_stage(network: tuple[Decoder, Any]) -> None:
    """Against gradients of the whole network, of the same drawn labels."""
    model, variables = network
    dataset = Dataset(TOKENS, np.zeros(TOKENS.shape, np.int32), None, None)
    before = sensitivity._one_batch._cache_size()
    actual = flat_leaves(fisher_information(model, variables, dataset, batch_size=2, seed=3))
    assert model.config.layers > 1
    assert sensitivity._one_batch._cache_size() - before == 3  # first, last, and all the blocks

    def gradient(params: Any, key: jax.Array) -> Any:
        def nll(params: Any) -> jax.Array:
            logits: Any = model.apply({"params": params}, TOKENS[::-1])
            drawn = jax.random.categorical(key, jax.lax.stop_gradient(logits))
            logs = jax.nn.log_softmax(logits)
            return -jnp.sum(jnp.take_along_axis(logs, drawn[..., None], -1)) / drawn.size**0.5

        return jax.tree.map(lambda g: jnp.mean(g**2), jax.grad(nll)(params))

    run = jax.jit(gradient)
    each = [run(variables["params"], jax.random.fold_in(jax.random.key(5), i)) for i in range(16)]
    expected = flat_leaves(jax.tree.map(lambda *xs: np.mean(xs), *each))
    for path, value in expected.items():
        if path != "embed_tokens/embedding":  # shared by two stages of a tied network
            assert 0.4 < actual[path] / value < 2.5, path  # sixteen draws each


def test_layers_of_one_input_are_one_group(network: tuple[Decoder, Any]) -> None:
    model, variables = network
    stage = stages_of(model, variables)[1]
    params, x = values(read(variables["params"], stage)), jnp.ones((1, 4, 48))
    assert layers_by_input(stage.apply, params, x) == [
        ["self_attn/q_proj", "self_attn/k_proj", "self_attn/v_proj"],
        ["self_attn/o_proj"],
        ["mlp/gate_proj", "mlp/up_proj"],
        ["mlp/down_proj"],
    ]


def test_moments_are_those_of_all_batches() -> None:
    model = nn.Dense(3)
    rng = np.random.default_rng(0)
    xs, ys = rng.standard_normal((2, 4, 5, 7, 6), np.float32)
    params = model.init(jax.random.key(0), xs[0])["params"]

    def apply(params: Any, x: jax.Array) -> Any:
        return model.apply({"params": params}, x)

    actual = input_moments(apply, "", (params, list(xs)), (params, list(ys)))
    x, y = (each.reshape(-1, 6) for each in (xs, ys))
    np.testing.assert_allclose(actual.second, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual.cross, x.T @ y / len(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "strides", "padding"), [(3, 1, 1), (3, 2, "SAME"), (1, 2, 0)])
def test_rows_of_a_convolution_times_its_kernel_are_its_outputs(
    size: int, strides: int, padding: Any
) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 3))
    layer = nn.Conv(4, (size, size), strides, padding=padding, use_bias=False)
    params: Any = layer.init(jax.random.key(1), x)["params"]

    def apply(params: Any, x: jax.Array) -> Any:
        return layer.apply({"params": params}, x)

    (call,) = _record(apply, params, x)
    kernel = params["kernel"].reshape(-1, 4)
    outputs = apply(params, x)
    np.testing.assert_allclose(
        (call.rows(call.inputs) @ kernel).reshape(outputs.shape), outputs, rtol=1e-4, atol=1e-5
    )


def test_a_network_with_convolutions_and_batch_statistics(tmp_path: Path) -> None:
    model = ResNet(blocks=(1,), widths=(8,), num_classes=4)
    images = np.random.default_rng(0).standard_normal((48, 8, 8, 3)).astype(np.float32)
    variables = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0), images))
    ones = {"params": jax.tree.map(lambda _: np.float32(1), variables["params"])}
    compressed = sqs_jax.compress_to_budget(
        {"params": variables["params"]}, target_bytes=1_600, sensitivity=ones
    )["params"]
    batches = [images[:16], images[16:32]]
    actual = recode_stages(model, variables, compressed, batches, tmp_path)

    def error(params: Any) -> float:
        given = {**variables, "params": sqs_jax.materialize(params)}
        logits: list[Any] = [model.apply(v, images[32:]) for v in (given, variables)]
        return float(jnp.sum((logits[0] - logits[1]) ** 2))

    assert error(actual) < 0.8 * error(compressed)
    before, after = flat_leaves(compressed), flat_leaves(actual)
    kernels = [p for p, leaf in before.items() if isinstance(leaf, sqs_jax.CompressedLeaf)]
    assert any(before[p].codes.ndim == 4 for p in kernels)
    assert all(not np.array_equal(before[p].codes, after[p].codes) for p in kernels)


def test_outputs_stay_nearer_and_finished_stages_are_kept(tmp_path: Path) -> None:
    model = Decoder(decoder_config(CONFIGS["llama"]))
    variables = jax.tree.map(
        lambda w: np.asarray(w) * (1 if w.ndim == 1 else 8),
        jax.jit(model.init)(jax.random.key(0), TOKENS),
    )
    rng = np.random.default_rng(1)
    batches = [rng.integers(0, 96, (8, 48)).astype(np.int32) for _ in range(3)]
    compressed = sqs_jax.compress_to_budget(
        variables["params"],
        target_bytes=14_000,
        sensitivity=jax.tree.map(lambda _: np.float32(1), variables["params"]),
        rules=[sqs_jax.Rule(pattern=".*(kernel|embedding)")],
    )
    actual = recode_stages(model, variables, compressed, batches, tmp_path)
    run = jax.jit(model.apply)
    expected = run(variables, TOKENS)
    before, after = (
        np.square(run({"params": sqs_jax.materialize(p)}, TOKENS) - expected).mean()
        for p in (compressed, actual)
    )
    assert after < 0.8 * before
    assert sqs_jax.summarize(actual).file_bytes <= 1.01 * sqs_jax.summarize(compressed).file_bytes

    (tmp_path / "002.sqs").unlink()  # as if the run had been stopped there
    (tmp_path / "003.sqs").unlink()
    again = recode_stages(model, variables, compressed, batches, tmp_path)
    chex.assert_trees_all_equal(actual, again)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    config = experiment(tmp_path, "language", "qwen3", num_attention_heads=2, **size)
    config.batch_size, config.calibration.examples = 4, 8
    config.sqs.pattern, config.sqs.target_bytes = ".*(kernel|embedding)", 7_000
    actual = calibrate(config, tmp_path / "run")
    assert actual.keys() == {"dense", "mode"}
    assert 0.97 * 7_000 <= actual["mode"]["bytes"] <= 7_000
    page = write_calibration(tmp_path / "run").read_text()
    for shown in (actual["mode"]["bytes"], actual["dense"]["bytes"]):
        assert f"{shown:,}" in page
    assert f"{actual['mode']['perplexity']:.3f}" in page
    assert page.count("<svg") == page.count("</svg") > 2
    assert "layers_0/<wbr>mlp/<wbr>up_proj/<wbr>kernel" in page
    first = (tmp_path / "run" / "model.sqs").read_bytes()
    (tmp_path / "run" / "model.sqs").unlink()
    calibrate(config, tmp_path / "run")  # resumes after the finished stages
    assert (tmp_path / "run" / "model.sqs").read_bytes() == first


def test_what_cannot_be_calibrated_is_refused(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(STORY)
    config = experiment(tmp_path, "language", "llama")
    with pytest.raises(ValueError, match="target_bytes is 0"):
        calibrate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train = Dataset(TOKENS, TOKENS, None, None)
    config.calibration.examples, config.batch_size = 0, 1
    with pytest.raises(ValueError, match=r"calibration\.examples is 0"):
        examples_of(train, config)
    config.calibration.examples, config.batch_size = 100, 3
    with pytest.raises(ValueError, match="has 2 examples: not one batch"):
        examples_of(train, config)


def test_norms_are_those_of_the_inputs(network: Any) -> None:
    model, variables = network
    actual = input_norms(model, variables, [TOKENS[:1], TOKENS[1:]])
    jax.tree.map(
        lambda norms, leaf: norms.shape == leaf.shape[:-1] or pytest.fail(),
        actual,
        variables["params"],
    )
    params = variables["params"]
    counts = np.bincount(TOKENS.ravel(), minlength=len(params["embed_tokens"]["embedding"])) + 1
    rows = actual["embed_tokens"]["embedding"]
    np.testing.assert_allclose(rows, np.sqrt(counts / counts.sum()), rtol=1e-6)
    x = params["embed_tokens"]["embedding"][TOKENS]
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + model.config.epsilon)
    x = x * params["layers_0"]["input_layernorm"]["scale"]
    norms = actual["layers_0"]["self_attn"]["k_proj"]["kernel"]
    np.testing.assert_allclose(norms, np.sqrt(np.mean(x**2, (0, 1))), rtol=1e-4)
    np.testing.assert_array_equal(actual["norm"]["scale"], np.ones(()))


def test_an_allocation_is_made_once(tmp_path: Path) -> None:
    config = experiment(tmp_path, "language", "llama")
    kernel = np.ones((2, 1), np.float32)
    sqs_jax.save(tmp_path / "allocation.sqs", {"kernel": kernel})
    actual = allocate(None, None, None, config, tmp_path, 0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(actual["kernel"], kernel)
