"""The mathematics of a tensor's sub-distribution. Arrays in, arrays out."""

from sqs_jax.distribution.codebook import Initialiser
from sqs_jax.distribution.kl import SpikeSlabPrior
from sqs_jax.distribution.soft_weight import EVALUATIONS, Evaluation
from sqs_jax.distribution.sub_distribution import (
    SubDistribution,
    code_lengths,
    codes,
    kls,
    means,
    means_and_kls,
    modes,
    modes_and_kls,
)
from sqs_jax.distribution.windows import Windows

__all__ = [
    "EVALUATIONS",
    "Evaluation",
    "Initialiser",
    "SpikeSlabPrior",
    "SubDistribution",
    "Windows",
    "code_lengths",
    "codes",
    "kls",
    "means",
    "means_and_kls",
    "modes",
    "modes_and_kls",
]
