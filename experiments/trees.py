"""Walk posteriors and compressed trees by the paths of their leaves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import sqs_jax


def _is_leaf(node: Any) -> bool:
    return _has_mask(node) or sqs_jax.is_compressed(node)


def _has_mask(node: Any) -> bool:
    """Return whether a node is a leaf with a mask, of our posterior or of a peer's."""
    return isinstance(node, sqs_jax.SubDistribution) or hasattr(type(node), "roles")


def map_leaves(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Map function(path, leaf) over a tree, where a compressed tensor is a leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(_name(path), leaf),
        tree,
        is_leaf=_is_leaf,
    )


def flat_leaves(tree: Any) -> dict[str, Any]:
    """List the leaves of a tree by path, where a compressed tensor is a leaf."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_leaf)
    return {_name(path): leaf for path, leaf in pairs}


def other_collections(variables: Any) -> dict[str, Any]:
    """Return the variables of a network without params: its batch statistics, if any."""
    return {name: value for name, value in variables.items() if name != "params"}


def sub_distributions(posterior: Any) -> dict[str, sqs_jax.SubDistribution]:
    """List the sub-distributions of a posterior by path."""
    leaves = flat_leaves(posterior).items()
    return {path: leaf for path, leaf in leaves if isinstance(leaf, sqs_jax.SubDistribution)}


def sparsity(posterior: Any) -> float:
    """Compute the pruned fraction of the compressed weights; 0 without weights."""
    leaves = flat_leaves(posterior).values()
    kept = [leaf.kept for leaf in leaves if _has_mask(leaf)]
    kept += [leaf.codes > 0 for leaf in leaves if isinstance(leaf, sqs_jax.CompressedLeaf)]
    total = sum(mask.size for mask in kept)
    return 1 - sum(int(jnp.sum(mask)) for mask in kept) / total if total else 0.0


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
