"""ResNet-56 on CIFAR-10 from weights of 93.39 %, at the published K = 4 and 50 %.

Command: python -m experiments.train --config=experiments/configs/cifar10_resnet56.py \
    --config.data.directory=DATA --config.model.weights=DATA/cifar10_resnet56.npz \
    --workdir=runs/resnet56
Three seeds: python -m experiments.sweep --config=experiments/configs/cifar10_resnet56.py \
    --config.data.directory=DATA --config.model.weights=DATA/cifar10_resnet56.npz \
    --workdir=runs/resnet56_seeds '--grid=seed=[0,1,2]'
Data: as for cifar10_resnet20.py.
Hardware: one GPU, or one CPU core for a short training.
Time: docs/results.md.
Expected: 3 epochs, 92.28 % in 174,486 bytes; 2 epochs with --config.sqs.target_bytes=174486,
    92.71 %; experiments.calibrate, 92.64 %. Dense: 93.39 % (docs/results.md). Published: 93.53 %,
    dense 94.37 %.
"""

from ml_collections import ConfigDict

from experiments.configs import cifar10_resnet20


def get_config() -> ConfigDict:
    config = cifar10_resnet20.get_config()
    config.model.name = "resnet56"
    config.sqs.target_bytes = 0  # pruning to a sparsity in place of codes at a price
    config.sqs.start = "weights"
    config.sqs.prune_every = 10
    config.sqs.learning_rate.means = 1e-3
    config.sqs.components = 4
    config.sqs.sparsity = 0.5
    return config
