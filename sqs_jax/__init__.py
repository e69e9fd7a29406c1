"""Make neural networks small: prune and quantise by sparse quantised sub-distributions, in JAX."""

from sqs_jax.artifact import (
    CompressedLeaf,
    SizeReport,
    SqsFileError,
    inspect,
    load,
    materialize,
    save,
    summarize,
)
from sqs_jax.distribution import SpikeSlabPrior, SubDistribution, Windows
from sqs_jax.transform import (
    DEFAULT_RULES,
    ElboAux,
    Rule,
    Transform,
    bayesian_average,
    combine,
    elbo,
    param_labels,
    partition,
    prune,
    refit,
    revive,
    saliency,
    spike_slab_gmm,
)

__all__ = [
    "DEFAULT_RULES",
    "CompressedLeaf",
    "ElboAux",
    "Rule",
    "SizeReport",
    "SpikeSlabPrior",
    "SqsFileError",
    "SubDistribution",
    "Transform",
    "Windows",
    "bayesian_average",
    "combine",
    "elbo",
    "inspect",
    "load",
    "materialize",
    "param_labels",
    "partition",
    "prune",
    "refit",
    "revive",
    "saliency",
    "save",
    "spike_slab_gmm",
    "summarize",
]
__version__ = "0.1.0"
