"""Tests of decoders and encoders against transformers, and of their importers."""

import json
import struct
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments.importers import huggingface
from experiments.importers.language_model import (
    open_language_model,
    read_tokenizer,
    weights_of,
    write_language_model,
)
from experiments.models.decoder import Decoder
from experiments.models.encoder import Encoder
from tests.conftest import REAL_DATA
from tests.experiments.language_models import CONFIGS, SEPARATOR, tokens, weights, write_folder

REFERENCE = json.loads((Path(__file__).parent / "references/logits.json").read_text())


def network(kind: str) -> Any:
    config = CONFIGS[kind]
    if not kind.startswith("bert"):
        return Decoder(huggingface.decoder_config(config))
    classes = config.get("num_labels")
    return Encoder(huggingface.encoder_config(config, SEPARATOR), classes)


def read(folder: Path, kind: str) -> tuple[Any, Any]:
    model = network(kind)
    example = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    abstract = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    lazy = weights_of(open_language_model(folder), abstract)
    return model, {"params": jax.tree.map(np.asarray, lazy)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_match_transformers(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path, kind)
    model, variables = read(tmp_path, kind)
    logits = np.asarray(jax.jit(model.apply)(variables, jnp.asarray(tokens(kind))))
    expected = np.asarray(REFERENCE[kind], np.float32)
    if kind == "bert_answers":  # the logits of padding are masked
        real = np.broadcast_to(tokens(kind)[:, None] != 0, logits.shape)
        assert (logits[~real] < -1e8).all()
        logits, expected = logits[real], expected.reshape(real.shape)[real]
    elif not kind.startswith("bert"):
        logits = logits[:, -4:]
    np.testing.assert_allclose(logits.ravel(), expected.ravel(), atol=1e-4)
    assert np.ptp(expected) > 0.5  # the logits are not trivial


def test_cached_logits_match_the_whole_sequence(tmp_path: Path) -> None:
    write_folder(tmp_path, "llama")
    model, variables = read(tmp_path, "llama")
    ids = jnp.asarray(tokens("llama"))
    whole = model.apply(variables, ids)
    step = jax.jit(lambda v, ids: model.apply(v, ids, mutable="cache"))
    logits, cache = step(variables, ids[:, :40])
    parts = [logits]
    for i in range(40, 48):
        logits, cache = step({**variables, **cache}, ids[:, i : i + 1])
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_export_restores_names_and_axes(tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path / "there", kind)
    _, variables = read(tmp_path / "there", kind)
    (tmp_path / "tokenizer.json").write_text("{}")
    write_language_model(
        tmp_path / "back", CONFIGS[kind], variables["params"], tmp_path / "tokenizer.json"
    )
    tensors = load_file(tmp_path / "back" / "model.safetensors")
    assert tensors.keys() == weights(kind).keys()
    for name, array in weights(kind).items():
        np.testing.assert_array_equal(tensors[name], array)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == CONFIGS[kind]
    assert (tmp_path / "back" / "tokenizer.json").read_text() == "{}"


def test_large_models_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.importers.language_model._SHARD_BYTES", 40_000)
    write_folder(tmp_path / "there", "qwen2")
    _, variables = read(tmp_path / "there", "qwen2")
    (tmp_path / "tokenizer.json").write_text("{}")
    params = variables["params"]
    write_language_model(tmp_path / "back", CONFIGS["qwen2"], params, tmp_path / "tokenizer.json")
    assert len(list((tmp_path / "back").glob("model-*-of-*.safetensors"))) > 2
    _, again = read(tmp_path / "back", "qwen2")
    chex.assert_trees_all_equal(again, variables)


def test_the_error_lists_all_mismatches(tmp_path: Path) -> None:
    write_folder(tmp_path, "llama")
    tensors = weights("llama")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((3, 3), np.float32)
    tensors["model.layers.9.mlp.up_proj.weight"] = np.zeros((3, 3), np.float32)
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((80, 48), np.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="in 4 places") as error:
        read(tmp_path, "llama")
    message = str(error.value)
    assert "model.norm.weight (48,) is missing" in message
    assert "model.layers.0.self_attn.q_proj.weight: as layers_0/self_attn/q_proj/kernel" in message
    assert "model.layers.9.mlp.up_proj.weight (3, 3): the network has no such weights" in message
    assert "its dtype is int8" in message


def test_values_that_are_not_finite_are_refused_on_reading(tmp_path: Path) -> None:
    write_folder(tmp_path, "qwen3")
    tensors = weights("qwen3")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight: 1 of 3840 values"):
        read(tmp_path, "qwen3")


def test_a_tied_head_and_a_head_of_another_task_are_left_out(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path, "llama")
    tensors = weights("llama")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    _, variables = read(tmp_path, "llama")
    assert "lm_head" not in variables["params"]
    write_folder(tmp_path / "bert", "bert_classifier")
    source = open_language_model(tmp_path / "bert")
    model = network("bert_answers")
    init = lambda: model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))  # noqa: E731
    params = weights_of(source, jax.eval_shape(init)["params"], fresh=init)
    assert "pooler" not in params and params["qa_outputs"]["kernel"].shape == (48, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'; models here are bert, llama"),
        ({"hidden_act": "relu", "mlp_bias": True}, "hidden_act is 'relu'.*\n.*mlp_bias is true"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "of type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "has no low_freq_factor"),
        ({"num_attention_heads": 5}, "5 heads cannot share 2"),
    ],
)
def test_an_unsupported_architecture_is_refused(change: dict[str, Any], message: str) -> None:
    config = CONFIGS["llama"] | change
    with pytest.raises(ValueError, match=message):
        huggingface.prefix_of(config)
        huggingface.decoder_config(config)


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a folder of Hugging Face"):
        open_language_model(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        open_language_model(tmp_path)
    write_folder(tmp_path, "qwen2")
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.safetensors: missing"):
        open_language_model(tmp_path)


def test_a_file_that_is_no_llama2c_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"1234")
    with pytest.raises(ValueError, match="4 bytes are no"):
        open_language_model(path)
    path.write_bytes(struct.pack("<7i", 64, 172, 5, 8, 3, 512, 512) + b"0" * 64)
    with pytest.raises(ValueError, match="which is no llama2"):
        open_language_model(path)
    path.write_bytes(struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512) + b"0" * 64)
    with pytest.raises(ValueError, match="its header asks for 1056540: copy it again"):
        open_language_model(path)


@pytest.mark.real_data
def test_a_real_llama_continues_a_story_greedily() -> None:
    source = open_language_model(REAL_DATA / "stories260K.bin")
    tokenizer = read_tokenizer(REAL_DATA / "tok512.bin")
    model = Decoder(huggingface.decoder_config(source.config))
    example = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    abstract = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    variables: Any = {"params": jax.tree.map(np.asarray, weights_of(source, abstract))}
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 260_032
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in"
    ids = tokenizer.encode(story).ids
    assert tokenizer.decode(ids) == story and ids[0] == 1
    best = model.apply(variables, jnp.asarray([ids]))[0].argmax(-1)
    start = len(tokenizer.encode("Once upon a time").ids)
    assert best[start - 1 : -1].tolist() == ids[start:]
    assert tokenizer.decode(tokenizer.encode("naïve ☃ 5!").ids) == "naïve ☃ 5!"
