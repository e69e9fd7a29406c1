"""Flax's msgpack files: what `flax.serialization.to_bytes` and `msgpack_serialize` write."""

import os
from typing import Any

import jax
import numpy as np

from sqs_jax.artifact.atomic import write_atomically
from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.checkpoints.lazy import Checkpoint, LazyArray, SourceFile, check_shape
from sqs_jax.checkpoints.names import MAX_DEPTH

__all__ = ["read_msgpack", "write_msgpack"]


def read_msgpack(source: SourceFile) -> Checkpoint:
    """Read a msgpack file of Flax.

    The format has no table of contents, so the WHOLE file is read into memory, and stays there as
    long as the tree; only arrays in chunks (over 1 GiB) are there twice for a moment.

    Args:
        source: The file, not to be trusted. Nothing in it is executed.

    Returns:
        A checkpoint of nested dicts and lists; Python numbers become arrays of shape ().

    Raises:
        CheckpointError: If the file is damaged, or holds other things than arrays and numbers.
    """
    from flax import serialization  # slow to import, and few need it

    with source.open() as file:
        data = file.read()
    try:
        restored = serialization.msgpack_restore(data)
    except Exception as error:  # foreign bytes in Flax's hooks fail in many ways
        found = f"{type(error).__name__}: {error}".rstrip(": ")
        raise source.error(
            f"no whole msgpack file of Flax ({found:.200}); copy it again"
        ) from error
    tree = _leaves(source, restored, ())
    return Checkpoint(tree, "msgpack", {}, source.size)


def _leaves(source: SourceFile, node: Any, keys: tuple[str, ...]) -> Any:
    where = "/".join(keys)[:80] or "(root)"
    if len(keys) > MAX_DEPTH:
        raise source.error(f"{where!r}...: the tree is deeper than {MAX_DEPTH}; flatten it")
    if node is None:
        return None
    if isinstance(node, dict):
        odd = [key for key in node if type(key) not in (str, int)]
        if odd:
            raise source.error(f"{where!r} has the key {odd[0]!r:.80}; rename it to a string")
        return {key: _leaves(source, child, (*keys, str(key))) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [_leaves(source, child, (*keys, str(i))) for i, child in enumerate(node)]
    if not isinstance(node, np.ndarray | np.generic | bool | int | float | complex):
        raise source.error(
            f"{where!r} is {type(node).__name__}, {node!r:.80}; save the arrays without it"
        )
    array = np.asarray(node)
    if array.dtype.name not in DTYPES or array.dtype.names is not None:
        raise source.error(f"{where!r} is of dtype {array.dtype}, no tensor; cast it first")
    try:
        check_shape(array.shape)
        if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
            raise ValueError("a bool tensor holds bytes other than 0 and 1")
    except ValueError as error:
        raise source.error(f"{where!r}: {error}") from error
    return LazyArray.of(np.asarray(array, DTYPES[array.dtype.name]))


def write_msgpack(path: str | os.PathLike[str], tree: Any, *, state_dict: bool = True) -> int:
    """Write a msgpack file of Flax, as a whole or not at all; the whole tree is in memory.

    Args:
        path: Where to write.
        tree: Nested dicts and lists of arrays of numpy or JAX, or `LazyArray`s.
        state_dict: Whether lists become dicts and all keys strings, as in the files of
            `flax.serialization.to_bytes`; False to write the tree as it is, as `msgpack_serialize`.

    Returns:
        The size of the file, bytes.

    Raises:
        OSError: If the file cannot be written; what stood at `path` is then untouched.
    """
    from flax import serialization  # slow to import, and few need it

    arrays = jax.tree.map(np.asarray, tree)
    if state_dict:
        arrays = serialization.to_state_dict(arrays)
    data = serialization.msgpack_serialize(arrays, in_place=True)
    write_atomically(os.fspath(path), data)
    return len(data)
