"""ResNet-32 on CIFAR-10 from pretrained weights (92.63 %), to a file size.

Command: python -m experiments.train --config=experiments/configs/cifar10_resnet32.py \
    --config.data.directory=DATA --config.model.weights=DATA/resnet32-d509ac18.th \
    --workdir=runs/resnet32_24
Data: as for cifar10_resnet20.py. The weights of akamaster/pytorch_resnet_cifar10 are read by
    PyTorch.
Hardware: one GPU.
Time: not measured.
Expected: not measured.
"""

from ml_collections import ConfigDict

from experiments.configs import cifar10_resnet20


def get_config() -> ConfigDict:
    config = cifar10_resnet20.get_config()
    config.model.name = "resnet32"
    config.sqs.target_bytes = 77_360  # a twenty-fourth of 464,154 weights in float32
    return config
