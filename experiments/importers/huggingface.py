"""Architectures and parameter names of Hugging Face's language models.

A parameter's path differs from Hugging Face's name in four points. `weight` is called `kernel`,
`scale` or `embedding`; a block and its number are one part of the path; the prefix of the body is
left out; and kernels are transposed to [inputs, outputs].
"""

import re
from collections.abc import Mapping
from typing import Any

from experiments.models.decoder import DecoderConfig, RopeScaling
from experiments.models.encoder import EncoderConfig

# Names of heads have no prefix.
HEADS = ("lm_head", "classifier", "qa_outputs")
# A checkpoint may lack these parts, or have them for another task.
TASK_PARTS = ("classifier", "qa_outputs", "pooler")
# Tensors that are not weights, or belong to heads that the networks here do not have.
IGNORED = re.compile(r"(cls\.|.*\bposition_ids$|.*rotary_emb\.inv_freq$)")
_DECODERS = ("llama", "qwen2", "qwen3")
_PREFIXES = {"bert": "bert.", **dict.fromkeys(_DECODERS, "model.")}


def prefix_of(config: Mapping[str, Any]) -> str:
    """Return the prefix of Hugging Face's names of all weights outside the heads.

    Args:
      config: Content of config.json.

    Raises:
      ValueError: If the architecture is not supported.
    """
    kind = config.get("model_type")
    if kind not in _PREFIXES:
        raise ValueError(
            f"config.json: its model_type is {kind!r}; models here are {', '.join(_PREFIXES)}."
        )
    return _PREFIXES[kind]


def path_of(name: str, prefix: str) -> tuple[str, bool]:
    """Convert Hugging Face's name to (path, whether to transpose).

    Args:
      name: Name of a tensor in the checkpoint.
      prefix: Prefix of `prefix_of`.
    """
    *parts, last = re.sub(r"\b(layers?)\.(\d+)\.", r"\1_\2.", name.removeprefix(prefix)).split(".")
    if last in ("gamma", "beta"):  # names in the first BERT checkpoints
        last = {"gamma": "weight", "beta": "bias"}[last]
    owner = parts[-1] if parts else ""
    swapped = False
    if last == "weight" and "norm" in owner.lower():
        last = "scale"
    elif last == "weight" and "embed" in owner:
        last = "embedding"
    elif last == "weight":
        last, swapped = "kernel", True
    return "/".join((*parts, last)), swapped


def name_of(path: str, prefix: str) -> tuple[str, bool]:
    """Convert a path to (Hugging Face's name, whether to transpose); inverts `path_of`.

    Args:
      path: Path of a parameter.
      prefix: Prefix of `prefix_of`.
    """
    *parts, last = re.sub(r"\b(layers?)_(\d+)\b", r"\1/\2", path).split("/")
    swapped = last == "kernel"
    last = "weight" if last in ("kernel", "scale", "embedding") else last
    name = ".".join((*parts, last))
    return (name if parts[0] in HEADS else prefix + name), swapped


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Convert the config.json of a Llama or Qwen.

    Args:
      config: Content of config.json.

    Raises:
      ValueError: If config.json lacks fields or needs features that `Decoder` does not have; the
        message lists all.
    """
    kind = config["model_type"]
    problems = []

    def need(field: str) -> Any:
        if config.get(field) is None:
            problems.append(f"{field} is missing")
            return 1
        return config[field]

    width, heads, layers = (
        need(field) for field in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    key_value_heads = config.get("num_key_value_heads") or heads
    if heads % key_value_heads:
        problems.append(f"{heads} heads cannot share {key_value_heads} heads of keys and values")
    if config.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act is {config['hidden_act']!r}, not 'silu'")
    if config.get("mlp_bias"):
        problems.append("mlp_bias is true")
    if config.get("attention_bias") and kind != "qwen2":
        problems.append("attention_bias is true")
    if config.get("use_sliding_window") and config.get("max_window_layers", 0) < layers:
        problems.append("use_sliding_window is true")
    # transformers 5 has rope_parameters, which include theta; older versions have rope_scaling.
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    scaling = None
    if rope_type == "llama3":
        fields = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
        missing = [field for field in fields if field not in rope]
        problems += [f"rope_scaling has no {field}" for field in missing]
        if not missing:
            scaling = RopeScaling(*(rope[field] for field in fields))
    elif rope_type != "default":
        problems.append(f"rope_scaling is of type {rope_type!r}, not 'llama3'")
    architecture = DecoderConfig(
        vocabulary=need("vocab_size"),
        width=width,
        hidden=need("intermediate_size"),
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        head_width=config.get("head_dim") or width // heads,
        context=need("max_position_embeddings"),
        theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        rope_scaling=scaling,
        epsilon=config.get("rms_norm_eps", 1e-6),
        tied=bool(config.get("tie_word_embeddings", False)),
        query_bias=kind == "qwen2",
        query_norm=kind == "qwen3",
    )
    _refuse(problems)
    return architecture


def encoder_config(config: Mapping[str, Any], separator: int) -> EncoderConfig:
    """Convert the config.json of a BERT.

    Args:
      config: Content of config.json.
      separator: Id of the token [SEP], from the tokenizer.

    Raises:
      ValueError: If config.json lacks fields or needs features that `Encoder` does not have; the
        message lists all.
    """
    sizes = {
        "vocabulary": "vocab_size",
        "width": "hidden_size",
        "hidden": "intermediate_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "context": "max_position_embeddings",
    }
    problems = [f"{name} is missing" for name in sizes.values() if config.get(name) is None]
    if config.get("hidden_act", "gelu") != "gelu":
        problems.append(f"hidden_act is {config['hidden_act']!r}, not 'gelu'")
    if config.get("position_embedding_type", "absolute") != "absolute":
        problems.append(f"position_embedding_type is {config['position_embedding_type']!r}")
    _refuse(problems)
    return EncoderConfig(
        **{field: config[name] for field, name in sizes.items()},
        segments=config.get("type_vocab_size", 2),
        epsilon=config.get("layer_norm_eps", 1e-12),
        dropout=config.get("hidden_dropout_prob", 0.1),
        padding=config.get("pad_token_id") or 0,
        separator=separator,
    )


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError(
            "config.json asks for what models here have not:\n  " + "\n  ".join(problems)
        )
