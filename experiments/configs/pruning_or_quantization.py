"""Does pruning or quantisation keep more of a tensor at equal size?

Command: python -m experiments.pruning_or_quantization \
    --config=experiments/configs/pruning_or_quantization.py \
    --config.weights=DATA/cifar10_resnet20.npz --workdir=runs/pruning_or_quantization
Data: any checkpoint that `sqs compress` reads; without one, drawn tensors alone.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.count = 100_000  # weights of a drawn tensor
    config.bits = (1, 2, 3, 4, 5, 6, 7, 8)  # per weight
    config.weights = ""  # a checkpoint, whose largest tensors are looked at too
    config.tensors = 4
    return config
