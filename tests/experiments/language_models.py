"""Small language models of every architecture with random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np

SHARED = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": SHARED
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "rope_scaling": LLAMA3_ROPE,
        "tie_word_embeddings": True,
    },
    "qwen2": SHARED
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    },
    "qwen3": SHARED
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
    },
    "bert_classifier": SHARED
    | {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "type_vocab_size": 2,
        "num_labels": 3,
        "pad_token_id": 0,
    },
    "bert_answers": SHARED
    | {
        "architectures": ["BertForQuestionAnswering"],
        "model_type": "bert",
        "type_vocab_size": 2,
        "pad_token_id": 0,
    },
}
SEPARATOR = 3  # [SEP], as a tokenizer would say


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """List the tensors of a model by Hugging Face's names."""
    config = CONFIGS[kind]
    width, hidden = config["hidden_size"], config["intermediate_size"]
    linear: dict[str, tuple[int, ...]] = {}
    bert = config["model_type"] == "bert"
    prefix = "bert.encoder.layer" if bert else "model.layers"
    heads = config["num_attention_heads"]
    head_width = config.get("head_dim", width // heads)
    wide, narrow = heads * head_width, config.get("num_key_value_heads", 1) * head_width

    def dense(name: str, inputs: int, outputs: int, bias: bool) -> None:
        linear[f"{name}.weight"] = (outputs, inputs)
        if bias:
            linear[f"{name}.bias"] = (outputs,)

    def norm(name: str) -> None:
        for last in ("weight", "bias") if bert else ("weight",):
            linear[f"{name}.{last}"] = (width,)

    if bert:
        table = {"word": config["vocab_size"], "position": 64, "token_type": 2}
        for name, count in table.items():
            linear[f"bert.embeddings.{name}_embeddings.weight"] = (count, width)
        norm("bert.embeddings.LayerNorm")
    else:
        linear["model.embed_tokens.weight"] = (config["vocab_size"], width)
        norm("model.norm")
    for i in range(config["num_hidden_layers"]):
        block = f"{prefix}.{i}"
        if bert:
            for name in ("query", "key", "value"):
                dense(f"{block}.attention.self.{name}", width, width, True)
            dense(f"{block}.attention.output.dense", width, width, True)
            dense(f"{block}.intermediate.dense", width, hidden, True)
            dense(f"{block}.output.dense", hidden, width, True)
            norm(f"{block}.attention.output.LayerNorm")
            norm(f"{block}.output.LayerNorm")
            continue
        biases = config["model_type"] == "qwen2"
        dense(f"{block}.self_attn.q_proj", width, wide, biases)
        dense(f"{block}.self_attn.k_proj", width, narrow, biases)
        dense(f"{block}.self_attn.v_proj", width, narrow, biases)
        dense(f"{block}.self_attn.o_proj", wide, width, False)
        dense(f"{block}.mlp.gate_proj", width, hidden, False)
        dense(f"{block}.mlp.up_proj", width, hidden, False)
        dense(f"{block}.mlp.down_proj", hidden, width, False)
        norm(f"{block}.input_layernorm")
        norm(f"{block}.post_attention_layernorm")
        if config["model_type"] == "qwen3":
            for name in ("q_norm", "k_norm"):
                linear[f"{block}.self_attn.{name}.weight"] = (head_width,)
    if not bert and not config["tie_word_embeddings"]:
        dense("lm_head", width, config["vocab_size"], False)
    if kind == "bert_classifier":
        dense("bert.pooler.dense", width, width, True)
        dense("classifier", width, config["num_labels"], True)
    if kind == "bert_answers":
        dense("qa_outputs", width, 2, True)
    return linear


def weights(kind: str) -> dict[str, np.ndarray]:
    """Draw the tensors of a model; gains are near 1, all else has a deviation of 0.15."""
    tensors = {}
    for seed, (name, shape) in enumerate(sorted(shapes(kind).items())):
        draw = 0.15 * np.random.default_rng(seed).standard_normal(shape, np.float32)
        gain = "norm" in name.lower() and name.endswith("weight")
        tensors[name] = draw + np.float32(gain)
    return tensors


def tokens(kind: str) -> np.ndarray:
    """Draw tokens int32 [2, 48]; BERT's have two segments and padding."""
    drawn = np.random.default_rng(7).integers(4, 96, (2, 48)).astype(np.int32)
    if kind.startswith("bert"):
        drawn[:, [10, 40]] = SEPARATOR
        drawn[:, 41:] = 0
        drawn[1, 30] = SEPARATOR
        drawn[1, 31:] = 0
    return drawn


def write_folder(folder: Path, kind: str) -> None:
    """Write a model as Hugging Face would."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind]))
    save_file(weights(kind), folder / "model.safetensors", metadata={"format": "pt"})
