"""Transforms of a whole model, the only code that walks trees of weights."""

from sqs_jax.transform import saliency
from sqs_jax.transform.averaging import bayesian_average
from sqs_jax.transform.objective import ElboAux, elbo
from sqs_jax.transform.partition import combine, param_labels, partition
from sqs_jax.transform.postprocess import fold_batch_norm, round_to_tolerance
from sqs_jax.transform.pruning import at_price, prune, refit, revive
from sqs_jax.transform.rate import code_length
from sqs_jax.transform.rules import DEFAULT_RULES, Rule
from sqs_jax.transform.sharding import fully_sharded, shardings, state_shardings
from sqs_jax.transform.transform import Transform, spike_slab_gmm

__all__ = [
    "DEFAULT_RULES",
    "ElboAux",
    "Rule",
    "Transform",
    "at_price",
    "bayesian_average",
    "code_length",
    "combine",
    "elbo",
    "fold_batch_norm",
    "fully_sharded",
    "param_labels",
    "partition",
    "prune",
    "refit",
    "revive",
    "round_to_tolerance",
    "saliency",
    "shardings",
    "spike_slab_gmm",
    "state_shardings",
]
