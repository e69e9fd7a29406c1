"""Names of tensors: of the leaves of a nested tree, and without the wrappers of training."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from sqs_jax.checkpoints.lazy import CheckpointError

__all__ = ["MAX_DEPTH", "flat_names", "unwrapped"]

T = TypeVar("T")

MAX_DEPTH = 200
"""The deepest tree, as in an sqs file."""
_ANYWHERE = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""What torch.compile, FSDP and activation checkpointing put into names; no module has this name."""
_IN_FRONT = ("module.", "model.")
"""What DataParallel and training frameworks put before every name."""


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


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """Remove from PyTorch's names what training wraps around a network.

    `_orig_mod.` (torch.compile) and its like are removed anywhere in a name, `module.` and `model.`
    in front, as often as all names have them.

    Example:
        >>> unwrapped({"module._orig_mod.fc.weight": 1, "module._orig_mod.fc.bias": 2})
        {'fc.weight': 1, 'fc.bias': 2}

    Args:
        tensors: Values by name, e.g. a state dict.

    Returns:
        The same values in the same order.

    Raises:
        CheckpointError: If two names become the same.
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
