"""Qwen2.5 to 4 bits per weight of the whole file, on WikiText-2 or SST-2.

Command: python -m experiments.calibrate --config=experiments/configs/qwen2_5.py:0.5b \
    --config.data.directory=DATA --config.model.weights=Qwen2.5-0.5B --workdir=runs/qwen2_5
    experiments.train also trains. Sizes: 0.5b, 1.5b; with a task: 0.5b-sst2.
Data: wikitext2_train.txt and wikitext2_test.txt, or sst2_train.tsv and sst2_dev.tsv, in DATA. The
    weights are a folder of Hugging Face.
Hardware: one GPU.
Time: not measured.
Expected: not measured.
"""

from ml_collections import ConfigDict

from experiments.configs import language_models

_SIZES = {
    "0.5b": (896, 4864, 24, 14, 2),
    "1.5b": (1536, 8960, 28, 12, 2),
}


def get_config(argument: str = "0.5b") -> ConfigDict:
    size, task = language_models.chosen(argument, _SIZES)
    width, hidden, layers, heads, key_value_heads = size
    return language_models.experiment(
        {
            "model_type": "qwen2",
            "vocab_size": 151_936,
            "hidden_size": width,
            "intermediate_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "max_position_embeddings": 32_768,
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
        task,
    )
