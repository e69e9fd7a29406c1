"""Skeletons: the structure of a tree as JSON, without pickle.

A skeleton is a tree with a short node in place of each leaf:

    {"key": skeleton, ...}                 dict with str keys
    ["i", [key, ...], skeleton, ...]       dict with int keys
    ["l", skeleton, ...]                   list
    ["t", skeleton, ...]                   tuple
    null                                   None
    "d", "c", ["k", ...]                   a leaf, see spec.py
    ["r", n]                               a leaf that shares the values of leaf number n

Keys are sorted, as `jax.tree` sorts them, so equal trees have equal skeletons.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from sqs_jax.artifact.leaves import LEAVES

__all__ = ["MAX_PATHS", "flatten", "leaf_nodes", "unflatten"]

MAX_DEPTH = 200
"""Largest depth of a tree: far beyond any model, and far below Python's recursion limit."""
MAX_PATHS = 1 << 25
"""Largest number of characters of all paths together. Without this bound, one long key above many
leaves would let a small file claim any amount of memory."""


def flatten(tree: Any, describe: Callable[[str, Any], Any]) -> Any:
    """Return the skeleton of a tree.

    Args:
        tree: dicts (str keys or int keys), lists, tuples and None around compressed leaves, numpy
            arrays and scalars, JAX arrays, and array-likes with shape, dtype and `__array__`.
        describe: Function from path and leaf to the node of the leaf in the skeleton, called in the
            order of `jax.tree`. A path is the keys joined by "/".

    Returns:
        The skeleton, JSON values.

    Raises:
        TypeError: If the tree has any other node; the message has its path and a remedy.
        ValueError: If the tree is deeper than 200.
    """

    def visit(node: Any, path: tuple[str, ...]) -> Any:
        joined = "/".join(path)
        if len(path) > MAX_DEPTH:
            raise ValueError(f"{joined[:80]!r}...: the tree is deeper than {MAX_DEPTH}")
        if node is None:
            return None
        if isinstance(node, LEAVES) or is_array(node):
            return describe(joined, node)
        if type(node) is list or type(node) is tuple:
            tag = "l" if type(node) is list else "t"
            return [tag, *(visit(child, (*path, str(i))) for i, child in enumerate(node))]
        if type(node) is not dict:
            raise TypeError(f"{joined or '(root)'!r}: {_refusal(node)}")
        if not all(type(key) is str for key in node) and not all(type(key) is int for key in node):
            bad_key = next(key for key in node if type(key) is not str)
            kind = type(bad_key).__name__
            raise TypeError(
                f"{joined or '(root)'!r}: the dict key {bad_key!r} is of type {kind}; "
                "a file stores dicts whose keys are all str or all int, so rename the keys"
            )
        children = {key: visit(node[key], (*path, str(key))) for key in sorted(node)}
        if children and type(next(iter(children))) is int:
            return ["i", list(children), *children.values()]
        return children

    return visit(tree, ())


def is_array(node: Any) -> bool:
    """Return whether a node is an array or array-like (a tensor read lazily)."""
    lazy = all(hasattr(node, name) for name in ("shape", "dtype", "__array__"))
    return lazy or isinstance(node, np.ndarray | np.generic | jax.Array)


def leaf_nodes(skeleton: Any) -> list[tuple[str, Any]]:
    """Check the containers of a skeleton from a file, and list its leaves.

    Args:
        skeleton: Untrusted JSON.

    Returns:
        (path, node) of each leaf, in order. The nodes of the leaves are not checked.

    Raises:
        ValueError: If `skeleton` is not the skeleton of a tree.
    """
    leaves: list[tuple[str, Any]] = []
    characters = 0

    def visit(node: Any, path: tuple[str, ...]) -> None:
        nonlocal characters
        if len(path) > MAX_DEPTH:
            raise ValueError(f"the tree in the index is deeper than {MAX_DEPTH}")
        if _is_leaf(node):
            leaves.append(("/".join(path), node))
            characters += len(leaves[-1][0])
            if characters > MAX_PATHS:
                raise ValueError(f"the paths of the leaves are longer than {MAX_PATHS} together")
        elif node is not None:
            for key, child in _children(node):
                visit(child, (*path, str(key)))

    visit(skeleton, ())
    return leaves


def unflatten(skeleton: Any, leaves: Iterator[Any]) -> Any:
    """Rebuild a tree from its skeleton.

    Args:
        skeleton: Skeleton, which `leaf_nodes` has checked.
        leaves: Leaves of the tree, in order.

    Returns:
        The tree.
    """
    if skeleton is None:
        return None
    if _is_leaf(skeleton):
        return next(leaves)
    items = [(key, unflatten(child, leaves)) for key, child in _children(skeleton)]
    if isinstance(skeleton, dict) or skeleton[0] == "i":
        return dict(items)
    values = [value for _, value in items]
    return values if skeleton[0] == "l" else tuple(values)


def _is_leaf(node: Any) -> bool:
    return isinstance(node, str) or (isinstance(node, list) and node[:1] in (["k"], ["r"]))


def _children(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, dict):
        # Another writer may not sort keys; leaves are in the order of `jax.tree` all the same.
        return sorted(node.items(), key=lambda item: item[0])
    match node:
        case ["i", [*keys], *values] if len(set(map(repr, keys))) == len(keys) == len(values):
            if all(type(key) is int for key in keys) and keys == sorted(keys):
                return list(zip(keys, values, strict=True))
        case ["l" | "t", *values]:
            return list(enumerate(values))
    raise ValueError("the tree in the index is damaged")


def _refusal(node: Any) -> str:
    """Return why a file cannot store a node, and the remedy, for messages."""
    name = f"{type(node).__module__}.{type(node).__qualname__}"
    if isinstance(node, str):
        return (
            f"the text {node!r:.50} cannot be stored; keep it in the metadata, save(..., metadata=)"
        )
    if isinstance(node, bytes | bytearray | memoryview):
        return f"a {name} cannot be stored; keep it as an attachment, save(..., attachments=)"
    if isinstance(node, jax.ShapeDtypeStruct):
        return (
            f"{node} describes an array and has no values; store an array, such as "
            "jnp.zeros(x.shape, x.dtype), or the checkpoint that it describes"
        )
    if isinstance(node, bool | int | float | complex):
        return f"{node!r} is a Python number; store it as an array, np.asarray({node!r})"
    if isinstance(node, dict):
        return f"a {name} cannot be stored; convert it to dict, e.g. dict(x)"
    if hasattr(node, "gate_logits"):
        return f"a {name} is a posterior's leaf; save transform.compress(posterior)"
    if hasattr(node, "_asdict"):
        return f"the namedtuple {name} cannot be stored; convert it to dict, x._asdict()"
    if hasattr(node, "unfreeze"):
        return f"a {name} cannot be stored; convert it to dict, x.unfreeze()"
    if not jax.tree_util.all_leaves([node]):  # a module, a train state, a registered class
        return (
            f"a {name} cannot be stored, but its arrays can, in dict, list, tuple and None; "
            "convert it, e.g. dict(enumerate(jax.tree.leaves(x))) or a dict of its fields"
        )
    if callable(node):
        return (
            f"the function {getattr(node, '__qualname__', name)} cannot be stored, for a file "
            "holds no code; leave it out (equinox: eqx.partition(model, eqx.is_array)) and put it "
            "back after load (eqx.combine)"
        )
    return (
        f"a {name} cannot be stored; a file stores dict, list, tuple, None, CompressedLeaf, "
        "GridLeaf and arrays; convert it (flax.nnx: nnx.to_pure_dict; a dataclass: a dict of its "
        "fields)"
    )
