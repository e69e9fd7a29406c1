"""A published Llama of 260,032 weights on TinyStories, to a file size.

Command: python -m experiments.train --config=experiments/configs/stories260k.py \
    --config.data.directory=DATA --config.data.tokenizer=DATA/tok512.bin \
    --config.model.weights=DATA/stories260K.bin --workdir=runs/stories260k
Data: DATA/tinystories_cased_a.txt, any text in the style of TinyStories; stories260K.bin and
    tok512.bin of karpathy/llama2.c.
Hardware: two CPU cores.
Time: docs/results.md.
Expected: perplexity 6.12 at 4 bits per weight of the whole file; experiments.calibrate, 9.18.
    Dense: 8.64, and 5.91 after the same further training (docs/results.md).
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    config = base.language_experiment(rate=1e-3)
    config.data.kind = "language"
    config.data.name = "tinystories_cased_a"
    config.data.length = 256
    config.data.stride = 128
    config.batch_size = 8
    config.finetune = False
    config.sqs.target_bytes = 130_016  # 4 bits per weight, of the whole file
    config.sqs.start = "calibration"
    config.sqs.distill_weight = 0.5  # text and teacher alike
    config.sqs.epochs = 10
    config.sqs.prune_every = 1  # zeros that are decided anew each step may leave at once
    config.sqs.learning_rate.means = 2e-4  # one that moves takes all its weights with it
    return config
