"""A BERT of bert-tiny's shape (4.4 M weights) on SST-2, from scratch, to a file size.

Command: python -m experiments.train --config=experiments/configs/sst2_bert_tiny.py \
    --config.data.directory=DATA --config.data.tokenizer=DATA/bert_base_uncased_vocab.txt \
    --workdir=runs/bert_tiny
Data: sst2_train.tsv and sst2_dev.tsv of GLUE in DATA, and a WordPiece vocabulary.
Hardware: one CPU core.
Time: docs/results.md.
Expected: three dense epochs and two of compression: 79.70 % in a tenth of the bytes, 79.93 % in a
    twentieth. Dense: 80.28 % (docs/results.md).
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    config = base.language_experiment(rate=2e-4)
    config.data.kind = "sentences"
    config.data.name = "sst2"
    config.data.length = 64
    config.data.test_split = "validation"  # of tensorflow-datasets
    config.model.shape = ConfigDict(
        {
            "model_type": "bert",
            "vocab_size": 30522,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "pad_token_id": 0,
        }
    )
    config.batch_size = 64
    config.checkpoint_every = 2000
    config.dense.epochs = 4
    config.dense.learning_rate = 5e-4
    config.dense.weight_decay = 0.1
    config.dense.warmup = 0.1
    config.sqs.target_bytes = 1_754_000  # a tenth of the dense file
    config.sqs.epochs = 4
    config.sqs.distill_weight = 0.9
    return config
