"""Handwritten digits, the published recipe at the same K, sparsity and steps as digits.py.

Command: python -m experiments.train --config=experiments/configs/digits_paper.py \
    --workdir=runs/digits_paper
"""

from ml_collections import ConfigDict

from experiments.configs import base, digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.sqs = base.paper_recipe()
    config.sqs.epochs = digits.get_config().sqs.epochs
    return config
