"""Handwritten digits, our own recipe: a ConvNet of 55,018 weights at 81 % sparsity, K = 4.

Command: make demo
Data: scikit-learn's 1,797 real 8x8 images, which ship with the package; 70/30, stratified.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    config = base.experiment()
    config.data.shift = 1
    return config
