"""A Llama of 6.3 M weights on TinyStories, trained from scratch, to a file size.

Command: python -m experiments.train --config=experiments/configs/tinystories_llama.py \
    --config.data.directory=DATA --workdir=runs/tinystories
    --config.model.weights=runs/tinystories/dense.sqs reuses the dense network for other sizes.
Data: DATA/tinystories_lowercase_4M.txt, 4.2 MB of text; its byte pairs are learned from the text.
Hardware: two CPU cores.
Time: docs/results.md.
Expected: perplexity -0.10, 0.07 and 3.65 % above dense at 4, 3 and 2 bits per weight of the whole
    file (docs/results.md).
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    config = base.language_experiment(rate=3e-4)
    config.data.kind = "language"
    config.data.name = "tinystories_lowercase_4M"
    config.data.length = 256
    config.data.stride = 128
    config.model.shape = ConfigDict(
        {
            "model_type": "llama",
            "vocab_size": 2048,
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
        }
    )
    config.batch_size = 32
    config.checkpoint_every = 100
    config.finetune = False
    config.dense.epochs = 8
    config.dense.learning_rate = 1e-3
    config.dense.weight_decay = 0.1
    config.dense.warmup = 0.05
    config.sqs.target_bytes = 3_164_000  # 4 bits per weight, of the whole file
    config.sqs.start = "calibration"
    config.sqs.epochs = 1
    return config
