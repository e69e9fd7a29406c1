"""Names of the leaves of a nested tree."""

from collections.abc import Iterator
from typing import Any

from sqs_jax.checkpoints.lazy import CheckpointError

__all__ = ["MAX_DEPTH", "flat_names"]

MAX_DEPTH = 200
"""The deepest tree, as in an sqs file."""


def flat_names(tree: Any) -> dict[str, Any]:
    """Name the leaves of a tree by their path, `{"a/b/0": leaf}`.

    Args:
        tree: dicts, lists and tuples around leaves of any kind. None and empty containers hold no
            leaf, and are left out.

    Returns:
        The leaves in the order of the tree. The names of a flat dict are its keys.

    Raises:
        CheckpointError: If two leaves have the same name, or the tree is a bare leaf or too deep.
    """
    named: dict[str, Any] = {}
    for keys, leaf in _leaves(tree, ()):
        name = "/".join(keys)
        if not keys:
            raise CheckpointError("the tree is one bare array, which has no name; put it in a dict")
        if name in named:
            raise CheckpointError(f"two leaves have the name {name!r}; rename the key of one")
        named[name] = leaf
    return named


def _leaves(node: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if len(keys) > MAX_DEPTH:
        raise CheckpointError(f"{'/'.join(keys)[:80]!r}...: the tree is deeper than {MAX_DEPTH}")
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _leaves(child, (*keys, str(key)))
    elif isinstance(node, list | tuple):
        for index, child in enumerate(node):
            yield from _leaves(child, (*keys, str(index)))
    elif node is not None:
        yield keys, node
