"""Handwritten digits, the paper's recipe at the K, sparsity and steps of digits.py.

Command: python -m experiments.train --config=experiments/configs/digits_paper.py \
    --workdir=runs/digits_paper
Hardware: one CPU core.
"""

from ml_collections import ConfigDict

from experiments.configs import base, digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.sqs = base.paper_recipe()
    config.sqs.epochs = digits.get_config().sqs.epochs
    return config
