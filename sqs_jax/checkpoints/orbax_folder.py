"""Reader of orbax checkpoints: a tree, a step of a CheckpointManager, or its root."""

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.checkpoints.lazy_array import (
    Checkpoint,
    CheckpointError,
    LazyArray,
    SourceFile,
    check_shape,
)
from sqs_jax.checkpoints.weight_files import holds_tensors

__all__ = ["is_orbax", "read_orbax"]

MARK = "_METADATA"
"""Name of the file that orbax writes into the folder of each tree."""

_STEP = re.compile(r"(?:[A-Za-z]\w*_)?(\d{1,18})")
_DAMAGED = "the checkpoint is damaged or not complete; copy it again"


def is_orbax(folder: str) -> bool:
    """Return whether a folder is an orbax checkpoint, a step, or a manager's root."""
    return bool(_items(folder) or _steps(folder))


def read_orbax(folder: str) -> Checkpoint:
    """Open an orbax checkpoint by reading its metadata alone.

    Each array is restored separately as a numpy array on the host, whatever devices saved it.

    Args:
        folder: Path of a checkpoint (of StandardSave or PyTreeSave), of a step of a
            CheckpointManager, or of the manager's root, whose latest step is opened. A step must
            have a single tree or a tree named "default".

    Returns:
        Checkpoint of nested dicts and lists; tuples are lists, keys are strings.

    Raises:
        CheckpointError: If orbax is not installed, the checkpoint is damaged, a leaf is no array
            or number, or the choice of the tree is ambiguous.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise CheckpointError(
            f"{folder}: an orbax checkpoint, to be read by orbax, which is not installed; "
            "pip install 'sqs_jax[orbax]'"
        ) from error

    item = os.path.abspath(_choose(folder))
    mark = SourceFile(os.path.join(item, MARK))
    try:
        metadata = ocp.PyTreeCheckpointHandler().metadata(Path(item)).tree
    except Exception as error:  # orbax and tensorstore raise many types of errors
        raise CheckpointError(f"{item}: {_first_line(error)}; {_DAMAGED}") from error

    def leaf(node: Any, keys: tuple[Any, ...]) -> LazyArray:
        where = "/".join(map(str, keys)) or "(root)"
        dtype, shape = getattr(node, "dtype", None), getattr(node, "shape", None)
        if dtype is None or shape is None or np.dtype(dtype).name not in DTYPES:
            raise CheckpointError(
                f"{item}: {where!r} is {type(node).__name__} of dtype {dtype}, no tensor; "
                "save the arrays without it"
            )
        try:
            check_shape(shape)
        except ValueError as error:
            raise CheckpointError(f"{item}: {where!r}: {error}; {_DAMAGED}") from error
        read = functools.partial(_read, mark, item, metadata, keys)
        return LazyArray(shape, DTYPES[np.dtype(dtype).name], read)

    files = (Path(path, name) for path, _, names in os.walk(item) for name in names)
    nbytes = sum(file.stat().st_size for file in files)
    root = os.path.abspath(folder)
    tree = _map(leaf, metadata, ())
    return Checkpoint(tree, "orbax", {}, nbytes, root, tuple(_left_out(root, item)))


def _items(folder: str) -> list[str]:
    """List the orbax trees of a folder: the folder itself, or its subfolders."""
    if os.path.isfile(os.path.join(folder, MARK)):
        return [folder]
    inner = (os.path.join(folder, name) for name in sorted(os.listdir(folder)))
    return [path for path in inner if os.path.isfile(os.path.join(path, MARK))]


def _steps(folder: str) -> list[tuple[int, str]]:
    """Return number and path of the finished steps in a manager's root, ascending."""
    steps = []
    for name in os.listdir(folder):
        path, match = os.path.join(folder, name), _STEP.fullmatch(name)
        if match and os.path.isdir(path) and _items(path):
            steps.append((int(match[1]), path))
    return sorted(steps)


def _choose(folder: str) -> str:
    if _items(folder) == [folder]:
        return folder
    steps = _steps(folder)
    items = _items(steps[-1][1] if steps else folder)
    default = [path for path in items if os.path.basename(path) == "default"]
    if len(default or items) != 1:
        names = ", ".join(map(repr, items)) or "none"
        raise CheckpointError(f"{folder}: {len(items)} trees in it, give one of {names}")
    return (default or items)[0]


def _left_out(root: str, item: str) -> Iterator[str]:
    """Yield other trees and weight files of a folder, relative to the folder."""
    for folder, inner, names in os.walk(root):
        relative = os.path.relpath(folder, root)
        if folder != item and MARK in names:
            inner.clear()
            yield relative + "/"
            continue
        if folder == item:
            inner.clear()  # subfolders of the tree hold orbax's own files
        inner.sort()
        for name in sorted(names):
            if holds_tensors(name):
                yield os.path.normpath(os.path.join(relative, name))


def _map(leaf: Any, node: Any, keys: tuple[Any, ...]) -> Any:
    """Map a function over orbax's metadata, whose leaves are no leaves to jax.tree."""
    if node is None:
        return None
    if isinstance(node, dict):
        return {key: _map(leaf, child, (*keys, key)) for key, child in node.items()}
    if isinstance(node, list | tuple):
        return [_map(leaf, child, (*keys, i)) for i, child in enumerate(node)]
    return leaf(node, keys)


def _read(mark: SourceFile, item: str, metadata: Any, keys: tuple[Any, ...]) -> np.ndarray:
    import orbax.checkpoint as ocp

    # orbax restores a part of nested dicts. Lists must be complete, with placeholders elsewhere.
    partial = all(isinstance(key, str) for key in keys)

    def part(make: Any) -> Any:
        if not partial:
            return _map(lambda _, at: make(at == keys), metadata, ())
        nested = make(True)
        for key in reversed(keys):
            nested = {key: nested}
        return nested

    restore = ocp.args.PyTreeRestore(
        item=part(lambda selected: 0 if selected else ocp.PLACEHOLDER),
        restore_args=part(lambda _: ocp.RestoreArgs(restore_type=np.ndarray)),
        partial_restore=partial,
    )
    try:
        with mark.open(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            node = checkpointer.restore(item, args=restore)
            for key in keys:
                node = node[key]
            return np.asarray(node)
    except CheckpointError:
        raise
    except Exception as error:
        where = "/".join(map(str, keys))
        raise CheckpointError(f"{item}: {where!r}: {_first_line(error)}; {_DAMAGED}") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
