"""Bayesian compression of neural networks by sparse quantized sub-distributions.

Pruning and quantization are one variational problem: a posterior over weights whose deployed
values are few levels, and zero. See docs/math.md for the method, docs/architecture.md for the code.
"""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from sqs_jax.artifact import (
    CompressedLeaf,
    GridLeaf,
    OverlayLeaf,
    ProductLeaf,
    ScaledLeaf,
    SizeReport,
    SqsFile,
    SqsFileError,
    TransposedLeaf,
    inspect,
    is_compressed,
    load,
    materialize,
    read_attachments,
    read_metadata,
    save,
    summarize,
)
from sqs_jax.budget import BudgetError, compress_to_budget, predicted_loss, rules_for
from sqs_jax.calibration import InputMoments, recode
from sqs_jax.distribution import SpikeSlabPrior, SubDistribution, Windows
from sqs_jax.transform import (
    DEFAULT_RULES,
    ElboAux,
    Rule,
    Transform,
    at_price,
    bayesian_average,
    code_length,
    combine,
    elbo,
    fold_batch_norm,
    fully_sharded,
    param_labels,
    partition,
    prune,
    refit,
    revive,
    round_to_tolerance,
    saliency,
    shardings,
    spike_slab_gmm,
    state_shardings,
)

__all__ = [
    "DEFAULT_RULES",
    "BudgetError",
    "CompressedLeaf",
    "ElboAux",
    "GridLeaf",
    "InputMoments",
    "OverlayLeaf",
    "ProductLeaf",
    "Rule",
    "ScaledLeaf",
    "SizeReport",
    "SpikeSlabPrior",
    "SqsFile",
    "SqsFileError",
    "SubDistribution",
    "Transform",
    "TransposedLeaf",
    "Windows",
    "at_price",
    "bayesian_average",
    "code_length",
    "combine",
    "compress_to_budget",
    "elbo",
    "fold_batch_norm",
    "fully_sharded",
    "inspect",
    "is_compressed",
    "load",
    "materialize",
    "param_labels",
    "partition",
    "predicted_loss",
    "prune",
    "read_attachments",
    "read_metadata",
    "recode",
    "refit",
    "revive",
    "round_to_tolerance",
    "rules_for",
    "saliency",
    "save",
    "shardings",
    "spike_slab_gmm",
    "state_shardings",
    "summarize",
]

try:
    __version__ = _version("sqs_jax")
except _PackageNotFoundError:  # imported from a checkout that is not installed
    __version__ = "0.0.0+not.installed"
