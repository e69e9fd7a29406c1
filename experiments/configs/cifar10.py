"""A plain ConvNet on CIFAR-10 through tensorflow-datasets, our recipe.

Data: python -c "import tensorflow_datasets as tfds; \
    tfds.builder('cifar10', file_format='array_record').download_and_prepare()"
    Encoding the images needs tensorflow once; reading them does not.
Command: python -m experiments.train --config=experiments/configs/cifar10.py --workdir=runs/cifar10
Hardware: one GPU.
Time: not measured.
Expected: not measured; a test runs this path on a small prepared dataset.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    config = base.experiment()
    config.data.name = "cifar10"
    config.data.shift = 4
    config.data.flip = True
    config.model.features = (64, 128, 256)
    config.model.hidden = 256
    config.dense.epochs = 40
    config.sqs.epochs = 20
    config.checkpoint_every = 1000
    return config
