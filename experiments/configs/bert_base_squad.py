"""BERT-base on SQuAD v1.1, to a tenth of the dense file.

Command: python -m experiments.train --config=experiments/configs/bert_base_squad.py \
    --config.data.directory=DATA --config.model.weights=bert-base-uncased --workdir=runs/bert_squad
Data: SQuAD's own train-v1.1.json and dev-v1.1.json in DATA, or --config.data.name=squad/v1.1 of
    tensorflow-datasets, prepared in DATA. The weights are a folder of Hugging Face, preferably
    fine-tuned on SQuAD.
Hardware: one GPU.
Time: not measured.
Expected: not measured; the paper's F1 falls by 1.66 at a ratio of 32.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    config = base.language_experiment(rate=3e-5)
    config.data.kind = "answers"
    config.data.name = "v1.1"
    config.data.length = 384
    config.data.stride = 128
    config.data.test_split = "validation"  # of tensorflow-datasets
    config.model.shape = ConfigDict(
        {
            "model_type": "bert",
            "vocab_size": 30_522,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "pad_token_id": 0,
        }
    )
    config.model.dtype = "bfloat16"
    config.batch_size = 16
    config.checkpoint_every = 1000
    config.dense.epochs = 2
    config.dense.learning_rate = 3e-5
    config.dense.warmup = 0.1
    config.sqs.target_bytes = 43_500_000
    config.sqs.epochs = 4
    config.sqs.distill_weight = 0.9
    return config
