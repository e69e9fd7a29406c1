"""ResNet-18 on CIFAR-100 from scratch, at the published K = 16 and 50 % sparsity.

Command: python -m experiments.train --config=experiments/configs/cifar100_resnet18.py \
    --config.data.directory=DATA --workdir=runs/resnet18
Three seeds: python -m experiments.sweep --config=experiments/configs/cifar100_resnet18.py \
    --config.data.directory=DATA --workdir=runs/resnet18 '--grid=seed=[0,1,2]'
Data: DATA/cifar100.npz, which experiments.prepare writes, or cifar100 of tensorflow-datasets.
Hardware: one GPU.
Time: not measured.
Expected: not measured; published 76.14 %, dense 79.26 %.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    config = base.experiment()
    config.data.name = "cifar100"
    config.data.mean = (0.507, 0.487, 0.441)
    config.data.deviation = (0.267, 0.256, 0.276)
    config.data.shift = 4
    config.data.flip = True
    config.model.name = "resnet18"
    config.model.dtype = "bfloat16"
    config.checkpoint_every = 2000
    config.dense.optimizer = "sgd"
    config.dense.epochs = 200
    config.dense.learning_rate = 0.1
    config.dense.weight_decay = 5e-4
    config.dense.warmup = 0.02
    config.sqs.epochs = 30
    config.sqs.components = 16
    config.sqs.sparsity = 0.5
    config.sqs.warmup = 0.02
    config.sqs.reestimate = 100
    config.sqs.learning_rate.loc = 5e-4
    config.sqs.learning_rate.means = 5e-4
    config.sqs.learning_rate.dense = 5e-4
    return config
