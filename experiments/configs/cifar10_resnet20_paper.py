"""ResNet-20 on CIFAR-10, the paper's recipe, from the weights of cifar10_resnet20.py.

Command: python -m experiments.train --config=experiments/configs/cifar10_resnet20_paper.py \
    --config.data.directory=DATA --config.model.weights=DATA/cifar10_resnet20.npz \
    --workdir=runs/resnet20_paper
Hardware: one GPU, or one CPU core for a short training.
Time: docs/results.md.
Expected: 3 epochs with --config.sqs.sparsity=0.5, seed 0: 89.82 % in 96,315 bytes (K = 16), 83.71 %
    in 66,233 (--config.sqs.components=4). Dense: 91.73 % (docs/lab_notebook.md).
"""

from ml_collections import ConfigDict

from experiments.configs import base, cifar10_resnet20


def get_config() -> ConfigDict:
    config = cifar10_resnet20.get_config()
    config.batch_size = 128
    config.sqs = base.paper_recipe()
    config.sqs.reestimate = cifar10_resnet20.get_config().sqs.reestimate
    config.sqs.epochs = cifar10_resnet20.get_config().sqs.epochs
    return config
