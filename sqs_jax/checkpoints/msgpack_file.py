"""Reader and writer of Flax's msgpack files, as `flax.serialization` writes them."""

import os
from typing import Any

import jax
import numpy as np

from sqs_jax.artifact.atomic import write_atomically
from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.checkpoints.lazy_array import Checkpoint, LazyArray, SourceFile, check_shape
from sqs_jax.checkpoints.tensor_names import MAX_DEPTH

__all__ = ["read_msgpack", "write_msgpack"]


def read_msgpack(source: SourceFile) -> Checkpoint:
    """Read a msgpack file of Flax.

    The format has no table of contents. The WHOLE file is therefore read into memory and stays
    there as long as the tree. Arrays in chunks (over 1 GiB) are in memory twice for a moment.

    Args:
        source: Untrusted file; no code in it is executed.

    Returns:
        Checkpoint of nested dicts and lists; Python numbers become arrays of shape ().

    Raises:
        CheckpointError: If the file is damaged, or contains a leaf that is no array or number.
    """
    from flax import serialization  # slow to import, and rarely needed

    with source.open() as file:
        data = file.read()
    try:
        restored = serialization.msgpack_restore(data)
    except Exception as error:  # invalid bytes raise many types of errors in Flax's hooks
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
        raise source.error(
            f"no whole msgpack file of Flax ({cause:.200}); copy it again"
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
    """Write a msgpack file of Flax atomically; the whole tree is in memory.

    Args:
        path: Path of the file to write.
        tree: Nested dicts and lists of numpy arrays, JAX arrays or `LazyArray`s.
        state_dict: Whether to turn lists into dicts and all keys into strings, like
            `flax.serialization.to_bytes`. False writes the tree unchanged, like
            `msgpack_serialize`.

    Returns:
        Size of the file, bytes.

    Raises:
        OSError: If the file cannot be written; an existing file at `path` is then unchanged.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from sqs_jax.checkpoints import open_checkpoint, write_msgpack
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = write_msgpack(f"{folder}/m.msgpack", {"params": {"bias": np.ones(3, "f4")}})
        ...     print(open_checkpoint(f"{folder}/m.msgpack").tree)
        {'params': {'bias': LazyArray(shape=(3,), dtype=float32)}}
    """
    from flax import serialization  # slow to import, and rarely needed

    arrays = jax.tree.map(np.asarray, tree)
    if state_dict:
        arrays = serialization.to_state_dict(arrays)
    data = serialization.msgpack_serialize(arrays, in_place=True)
    write_atomically(os.fspath(path), data)
    return len(data)
