"""Split a posterior in what is trained and what is not, and say which leaf is which."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.transform.rules import is_sub_distribution, map_tree

_TWO_PARTS = "combine takes the two parts that one call of partition made."

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
      posterior: a posterior, or the trainable part of one; `CompressedLeaf`s may be in it, whose
        codes stay as they are.

    Returns:
      The same tree of "loc", "gate", "means" (codebooks too), "spread" (scales and mixture
      weights), "dense" (floating leaves that are not compressed) and "fixed" (the rest).
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
    """Return the labels of a posterior's leaf by field; another method's leaves have `roles`."""
    return _FIELD_LABELS if is_sub_distribution(node) else getattr(node, "roles", {})


def partition(
    posterior: Any, *, train: Iterable[str] = ("loc", "gate", "means", "dense")
) -> tuple[Any, Any]:
    """Split a posterior in (trainable, fixed), each with None where the other has the array.

    `jax.grad` and optax then see floating arrays alone, and what is not trained costs no gradient
    and no optimizer state.

    Args:
      posterior: a posterior.
      train: labels (see `param_labels`) of what is trained, among "loc", "gate", "means",
        "spread" and "dense".

    Returns:
      (trainable, fixed); `combine` puts them together again.

    Raises:
      ValueError: if `train` names anything else.
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
    """Put the two parts that `partition` made together again.

    Raises:
      ValueError: if the two do not come from one posterior.
    """

    def one(path: str, a: Any, b: Any) -> Any:
        if a is not None and b is not None:
            raise ValueError(f"{path}: both parts have this array. {_TWO_PARTS}")
        return b if a is None else a

    def merge(path: str, a: Any, b: Any) -> Any:
        if not (is_sub_distribution(a) and is_sub_distribution(b)):
            return one(path, a, b)  # None in both: the model's own
        fields = {name: one(path, getattr(a, name), getattr(b, name)) for name in _FIELD_LABELS}
        missing = [name for name, array in fields.items() if array is None]
        if missing:
            raise ValueError(f"{path}: neither part has {missing}. {_TWO_PARTS}")
        return a.replace(**fields)

    return map_tree(merge, trainable, fixed, none_is_leaf=True)
