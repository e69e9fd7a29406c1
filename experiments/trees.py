"""Walk posteriors and compressed trees by the paths of their leaves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import sqs_jax


def _whole(node: Any) -> bool:
    return _decided(node) or sqs_jax.is_compressed(node)


def _decided(node: Any) -> bool:
    """Return whether a node is a posterior's leaf, ours or a peer's, which knows what it keeps."""
    return isinstance(node, sqs_jax.SubDistribution) or hasattr(type(node), "roles")


def map_leaves(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Map function(path, leaf) over a tree; what is compressed is one leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(_name(path), leaf),
        tree,
        is_leaf=_whole,
    )


def flat_leaves(tree: Any) -> dict[str, Any]:
    """List the leaves of a tree by their path; what is compressed is one leaf."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_whole)
    return {_name(path): leaf for path, leaf in pairs}


def other_collections(variables: Any) -> dict[str, Any]:
    """Return a network's variables without its params: batch statistics, if it has any."""
    return {name: value for name, value in variables.items() if name != "params"}


def sub_distributions(posterior: Any) -> dict[str, sqs_jax.SubDistribution]:
    """List the compressed leaves of a posterior by their path."""
    leaves = flat_leaves(posterior).items()
    return {path: leaf for path, leaf in leaves if isinstance(leaf, sqs_jax.SubDistribution)}


def sparsity(posterior: Any) -> float:
    """Return the pruned fraction of the compressed weights; 0 without any."""
    leaves = flat_leaves(posterior).values()
    kept = [leaf.kept for leaf in leaves if _decided(leaf)]
    kept += [leaf.codes > 0 for leaf in leaves if isinstance(leaf, sqs_jax.CompressedLeaf)]
    total = sum(mask.size for mask in kept)
    return 1 - sum(int(jnp.sum(mask)) for mask in kept) / total if total else 0.0


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
