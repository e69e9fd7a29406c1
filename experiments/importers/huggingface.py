"""Language models of Hugging Face: what config.json says, and the names of the weights.

A path here is a name there with `weight` called `kernel`, `scale` or `embedding`, numbered blocks
in one part, and without the prefix of all that is not a head; kernels are [inputs, outputs].
"""

import re
from collections.abc import Mapping
from typing import Any

from experiments.models.decoder import DecoderConfig, RopeScaling
from experiments.models.encoder import EncoderConfig

# They stand beside what the prefix names.
HEADS = ("lm_head", "classifier", "qa_outputs")
# What a model of another task may have or lack.
OF_THE_TASK = ("classifier", "qa_outputs", "pooler")
# Not weights, or of heads that models here do not have.
IGNORED = re.compile(r"(cls\.|.*\bposition_ids$|.*rotary_emb\.inv_freq$)")
_DECODERS = ("llama", "qwen2", "qwen3")
_PREFIXES = {"bert": "bert.", **dict.fromkeys(_DECODERS, "model.")}


def prefix_of(config: Mapping[str, Any]) -> str:
    """Return what the names of all weights but a head's begin with.

    Raises:
      ValueError: for an architecture that is not supported.
    """
    kind = config.get("model_type")
    if kind not in _PREFIXES:
        raise ValueError(
            f"config.json: its model_type is {kind!r}; models here are {', '.join(_PREFIXES)}."
        )
    return _PREFIXES[kind]


def path_of(name: str, prefix: str) -> tuple[str, bool]:
    """Return the path of a leaf here, and whether its axes are swapped."""
    *parts, last = re.sub(r"\b(layers?)\.(\d+)\.", r"\1_\2.", name.removeprefix(prefix)).split(".")
    if last in ("gamma", "beta"):  # what the first BERT checkpoints call them
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
    """Return the name of a leaf there, and whether its axes are swapped: `path_of` undone."""
    *parts, last = re.sub(r"\b(layers?)_(\d+)\b", r"\1/\2", path).split("/")
    swapped = last == "kernel"
    last = "weight" if last in ("kernel", "scale", "embedding") else last
    name = ".".join((*parts, last))
    return (name if parts[0] in HEADS else prefix + name), swapped


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Return what config.json says of a Llama or Qwen.

    Raises:
      ValueError: listing all that it asks for and models here have not.
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
    # transformers 5 keeps all of the rotation in one place, older versions in two
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    how = rope.get("rope_type", rope.get("type", "default"))
    scaling = None
    if how == "llama3":
        wanted = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
        missing = [field for field in wanted if field not in rope]
        problems += [f"rope_scaling has no {field}" for field in missing]
        if not missing:
            scaling = RopeScaling(*(rope[field] for field in wanted))
    elif how != "default":
        problems.append(f"rope_scaling is of type {how!r}, not 'llama3'")
    found = DecoderConfig(
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
    return found


def encoder_config(config: Mapping[str, Any], separator: int) -> EncoderConfig:
    """Return what config.json says of a BERT.

    Args:
      config: the file's content.
      separator: the token [SEP], which the tokenizer knows.

    Raises:
      ValueError: listing all that it asks for and models here have not.
    """
    sizes = {
        "vocabulary": "vocab_size",
        "width": "hidden_size",
        "hidden": "intermediate_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "context": "max_position_embeddings",
    }
    problems = [f"{theirs} is missing" for theirs in sizes.values() if config.get(theirs) is None]
    if config.get("hidden_act", "gelu") != "gelu":
        problems.append(f"hidden_act is {config['hidden_act']!r}, not 'gelu'")
    if config.get("position_embedding_type", "absolute") != "absolute":
        problems.append(f"position_embedding_type is {config['position_embedding_type']!r}")
    _refuse(problems)
    return EncoderConfig(
        **{ours: config[theirs] for ours, theirs in sizes.items()},
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
