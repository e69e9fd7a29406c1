"""Handwritten digits, our recipe: a ConvNet of 55,018 weights, 81 % sparsity, K = 4.

Command: make demo
Data: 1,797 images of 8x8 pixels, which scikit-learn ships; split 70/30, stratified.
Hardware: one CPU core.
"""

from ml_collections import ConfigDict

from experiments.configs import base


def get_config() -> ConfigDict:
    config = base.experiment()
    config.data.shift = 1
    return config
