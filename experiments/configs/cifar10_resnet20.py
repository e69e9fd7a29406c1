"""ResNet-20 on CIFAR-10 from pretrained weights (91.73 %), to a file size.

Command: python -m experiments.train --config=experiments/configs/cifar10_resnet20.py \
    --config.data.directory=DATA --config.model.weights=DATA/cifar10_resnet20.npz \
    --config.sqs.target_bytes=44950 --workdir=runs/resnet20_24
Frontier: python -m experiments.sweep with the same flags, --workdir=runs/frontier,
    '--grid=sqs.target_bytes=[135549,67774,45183,33887]' '--grid=seed=[0,1,2]', and --gpus=0,1,...
Multi-process: calibration is for one process; use --config.sqs.start=weights
    --config.sqs.prune_every=10.
Data: DATA/cifar10.npz, which experiments.prepare writes, or cifar10 of tensorflow-datasets. The
    weights are those of akamaster/pytorch_resnet_cifar10.
Hardware: one GPU, or two CPU cores for a short training.
Time: docs/results.md.
Expected: half an epoch on two CPU cores, seed 0: 91.23 % in 134,181 bytes, 91.03 % in 67,102,
    90.02 % in 44,841, 86.80 % in 33,597. experiments.calibrate in minutes: 91.85 % in 134,828,
    91.24 % in 67,659, 89.64 % in 45,117. Dense: 91.73 % in 1,085,510 (docs/results.md).
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    config = base.experiment()
    config.data.name = "cifar10"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.deviation = (0.229, 0.224, 0.225)
    config.data.shift = 4
    config.data.flip = True
    config.model.name = "resnet20"
    config.calibration.examples = 1024
    config.batch_size = 64  # more steps for the same images, see docs/results.md
    config.sqs.epochs = 30
    config.sqs.target_bytes = 44_950
    config.sqs.start = "calibration"
    config.sqs.prune_every = 1  # codes are cheap to decide, and zeros may leave at once
    config.sqs.rate_weight = 0.05
    config.sqs.reestimate = 100
    config.sqs.distill_weight = 1.0  # the labels add nothing to what the teacher says
    config.sqs.learning_rate.loc = 7e-4
    config.sqs.learning_rate.means = 2e-4  # a level that moves takes all its weights with it
    config.sqs.learning_rate.dense = 1e-3
    return config
