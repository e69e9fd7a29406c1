"""Partition of a posterior into trainable and fixed arrays, and labels of their roles."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.transform.rules import is_sub_distribution, map_tree

_TWO_PARTS = "combine takes the two parts that one call of partition made."  # error messages

TRAINABLE = ("loc", "gate", "means", "spread", "dense")

_FIELD_LABELS = {
    "loc": "loc",
    "gate_logits": "gate",
    "means": "means",
    "log_scales": "spread",
    "mixture_logits": "spread",
    "kept": "fixed",
    "boundaries": "fixed",
}


def param_labels(posterior: Any) -> Any:
    """Label every array of a posterior by its role, for `optax.partition`.

    Args:
        posterior: Posterior, or the trainable part of one. The tree may contain `CompressedLeaf`s,
            whose codes are fixed.

    Returns:
        Tree of the same structure. The labels are "loc", "gate", "means" (also of codebooks),
        "spread" (scales and mixture weights), "dense" (floating leaves that are not compressed)
        and "fixed" (all other arrays).

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> labels = sqs_jax.param_labels(posterior)["kernel"]
        >>> labels.loc, labels.gate_logits, labels.means, labels.log_scales, labels.kept
        ('loc', 'gate', 'means', 'spread', 'fixed')
    """

    def label(leaf: Any) -> Any:
        if roles := _roles(leaf):
            fields = {name: None if getattr(leaf, name) is None else roles[name] for name in roles}
            return leaf.replace(**fields)
        if isinstance(leaf, CompressedLeaf):
            return CompressedLeaf(
                codes=None if leaf.codes is None else "fixed",
                codebook=None if leaf.codebook is None else "means",
            )
        return "dense" if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else "fixed"

    return jax.tree.map(
        label,
        posterior,
        is_leaf=lambda node: bool(_roles(node)) or isinstance(node, CompressedLeaf),
    )


def _roles(node: Any) -> dict[str, str]:
    """Return the label of each field of a leaf; empty for arrays.

    Leaves of other methods than SQS have an attribute `roles`.
    """
    return _FIELD_LABELS if is_sub_distribution(node) else getattr(node, "roles", {})


def partition(
    posterior: Any, *, train: Iterable[str] = ("loc", "gate", "means", "dense")
) -> tuple[Any, Any]:
    """Split a posterior into trainable and fixed arrays.

    `jax.grad` and optax then see floating arrays only. Fixed arrays have no gradients and no
    optimizer state.

    Args:
        posterior: Posterior, a tree with SubDistributions.
        train: Labels of the trainable arrays (see `param_labels`), among "loc", "gate", "means",
            "spread" and "dense".

    Returns:
        Pair (trainable, fixed) of trees, each with None where the other has the array. `combine`
        is the inverse.

    Raises:
        ValueError: If `train` contains another label.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> trainable, fixed = sqs_jax.partition(posterior, train=["means"])
        >>> trainable["kernel"].means.shape, trainable["kernel"].loc, fixed["kernel"].means
        ((1, 2), None, None)
    """
    train = (train,) if isinstance(train, str) else tuple(train)
    unknown = [label for label in train if label not in TRAINABLE]
    if unknown:
        raise ValueError(f"train has {unknown}; it may hold {list(TRAINABLE)}.")
    labels = param_labels(posterior)
    trainable = jax.tree.map(lambda x, label: x if label in train else None, posterior, labels)
    fixed = jax.tree.map(lambda x, label: None if label in train else x, posterior, labels)
    return trainable, fixed


def combine(trainable: Any, fixed: Any) -> Any:
    """Combine the two parts of a partitioned posterior.

    Args:
        trainable: First part that `partition` returned, also after updates.
        fixed: Second part of the same call.

    Returns:
        Posterior with the arrays of both parts.

    Raises:
        ValueError: If both parts have an array, or a SubDistribution lacks one.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> trainable, fixed = sqs_jax.partition(posterior)
        >>> bool((sqs_jax.combine(trainable, fixed)["kernel"].loc == posterior["kernel"].loc).all())
        True
    """

    def pick(path: str, a: Any, b: Any) -> Any:
        if a is not None and b is not None:
            raise ValueError(f"{path}: both parts have this array. {_TWO_PARTS}")
        return b if a is None else a

    def merge(path: str, a: Any, b: Any) -> Any:
        if not (is_sub_distribution(a) and is_sub_distribution(b)):
            return pick(path, a, b)  # None in both parts is a None of the model
        fields = {name: pick(path, getattr(a, name), getattr(b, name)) for name in _FIELD_LABELS}
        missing = [name for name, array in fields.items() if array is None]
        if missing:
            raise ValueError(f"{path}: neither part has {missing}. {_TWO_PARTS}")
        return a.replace(**fields)

    return map_tree(merge, trainable, fixed, none_is_leaf=True)
