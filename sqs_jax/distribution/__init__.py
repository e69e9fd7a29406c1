"""One tensor: the mathematics of its sub-distribution. Arrays in, arrays out."""

from sqs_jax.distribution.codebook import Initialiser
from sqs_jax.distribution.expectation import EVALUATIONS, Evaluation
from sqs_jax.distribution.kl import SpikeSlabPrior
from sqs_jax.distribution.sub_distribution import SubDistribution
from sqs_jax.distribution.windows import Windows

__all__ = [
    "EVALUATIONS",
    "Evaluation",
    "Initialiser",
    "SpikeSlabPrior",
    "SubDistribution",
    "Windows",
]
