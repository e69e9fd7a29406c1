"""Tensor names: paths of the leaves of a tree, and removal of training wrappers."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from sqs_jax.checkpoints.lazy_array import CheckpointError

__all__ = ["MAX_DEPTH", "flat_names", "unwrapped"]

T = TypeVar("T")

MAX_DEPTH = 200
"""Largest depth of a tree, as in an sqs file."""
_ANYWHERE = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""Parts of names that torch.compile, FSDP and activation checkpointing add; never module names."""
_IN_FRONT = ("module.", "model.")
"""Prefixes that DataParallel and training frameworks add to every name."""


def flat_names(tree: Any) -> dict[str, Any]:
    """Name the leaves of a tree by their path, `{"a/b/0": leaf}`.

    Args:
        tree: Nested dicts, lists and tuples with leaves of any type. None and empty containers are
            dropped.

    Returns:
        Leaves by name, in the order of the tree. The names of a flat dict are its keys.

    Raises:
        CheckpointError: If two leaves have the same name, or the tree is a bare leaf or too deep.

    Example:
        >>> from sqs_jax.checkpoints import flat_names
        >>> flat_names({"layer": {"kernel": 1, "scales": [2, 3]}})
        {'layer/kernel': 1, 'layer/scales/0': 2, 'layer/scales/1': 3}
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


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """Remove the prefixes of training wrappers from PyTorch's parameter names.

    `_orig_mod.` (torch.compile) and the names of similar wrappers are removed anywhere in a name.
    The prefixes `module.` and `model.` are removed as long as all names begin with them.

    Args:
        tensors: Values by name, e.g. a state dict.

    Returns:
        The same values in the same order, by shorter names.

    Raises:
        CheckpointError: If two names become equal.

    Example:
        >>> from sqs_jax.checkpoints import unwrapped
        >>> unwrapped({"module._orig_mod.fc.weight": 1, "module._orig_mod.fc.bias": 2})
        {'fc.weight': 1, 'fc.bias': 2}
    """
    renamed = {name: _ANYWHERE.sub("", name) for name in tensors}
    while renamed:
        shared = [p for p in _IN_FRONT if all(new.startswith(p) for new in renamed.values())]
        if not shared:
            break
        renamed = {name: new.removeprefix(shared[0]) for name, new in renamed.items()}
    values: dict[str, T] = {}
    for name, new in renamed.items():
        if new in values:
            raise CheckpointError(
                f"two tensors are called {new!r} without wrappers; remove {name!r}"
            )
        values[new] = tensors[name]
    return values
