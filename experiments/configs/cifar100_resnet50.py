"""ResNet-50 on CIFAR-100 from scratch, at the published K = 16.

Command: python -m experiments.train --config=experiments/configs/cifar100_resnet50.py \
    --config.data.directory=DATA --workdir=runs/resnet50
Several K: python -m experiments.sweep --config=experiments/configs/cifar100_resnet50.py \
    --config.data.directory=DATA --workdir=runs/resnet50 '--grid=sqs.components=[8,10,12,14,16]' \
    --config.sqs.sparsity=0
Data: as for cifar100_resnet18.py.
Hardware: one GPU.
Time: not measured.
Expected: not measured; published for these K, averaged over draws and without pruning: 80.01,
    80.35, 80.52, 80.61 and 80.73 %, dense 80.93 %.
"""

from ml_collections import ConfigDict

from experiments.configs import cifar100_resnet18


def get_config() -> ConfigDict:
    config = cifar100_resnet18.get_config()
    config.model.name = "resnet50"
    return config
