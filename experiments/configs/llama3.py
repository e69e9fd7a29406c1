"""Llama 3 to 4 bits per weight of the whole file, on WikiText-2 or SST-2.

Command: python -m experiments.calibrate --config=experiments/configs/llama3.py:3.2_1b \
    --config.data.directory=DATA --config.model.weights=Llama-3.2-1B --workdir=runs/llama3
    experiments.train also trains. Sizes: 3.2_1b, 3_8b; with a task: 3.2_1b-sst2.
Data: as for qwen2_5.py.
Hardware: one GPU for 1B; eight GPUs (--config.mesh.fsdp=8) to train 8B.
Time: not measured.
Expected: not measured.
"""

from ml_collections import ConfigDict

from experiments.configs import language_models

# width, hidden, layers, heads, key and value heads, factor of the rotary scaling, tied head
_SIZES = {
    "3.2_1b": (2048, 8192, 16, 32, 8, 32.0, True),
    "3_8b": (4096, 14_336, 32, 32, 8, None, False),
}


def get_config(argument: str = "3.2_1b") -> ConfigDict:
    size, task = language_models.chosen(argument, _SIZES)
    width, hidden, layers, heads, key_value_heads, factor, tied = size
    shape = {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": 8192,
        "rope_theta": 500_000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
    }
    if factor is not None:  # Llama 3.1 and later
        shape["max_position_embeddings"] = 131_072
        shape["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return language_models.experiment(shape, task)
