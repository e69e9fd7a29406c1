"""Writer for folders of safetensors shards, their index files and other files."""

import collections
import os
from collections.abc import Mapping
from typing import Any

from sqs_jax.artifact.atomic import replacing_folder, write_atomically
from sqs_jax.checkpoints.lazy_array import CheckpointError
from sqs_jax.checkpoints.other_files import copy_other_files
from sqs_jax.checkpoints.safetensors_file import dump_json, write_safetensors
from sqs_jax.checkpoints.weight_files import INDEX, check_weight_map, is_plain

__all__ = ["write_safetensors_folder"]


def write_safetensors_folder(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    layout: Mapping[str, Any],
    *,
    others: str | os.PathLike[str] | None = None,
) -> tuple[int, list[str]]:
    """Write a folder of safetensors shards in a given layout, atomically.

    An index that states a `total_size` gets the size of the tensors that are written, because the
    caller may have left some out.

    Args:
        folder: Path of the folder to create; an empty one may exist.
        tensors: Arrays or `LazyArray`s by name; one is in memory at a time.
        layout: Metadata of the Hugging Face checkpoint that was read; untrusted and checked.
        others: Path of a folder whose other files are copied too, see `copy_other_files`; or None.

    Returns:
        Size of the shards in bytes, and the paths that `copy_other_files` left out.

    Raises:
        CheckpointError: If the layout is malformed or lists other tensors, or a tensor cannot be
            read or written.
        OSError: If the folder cannot be written, or is not empty (FileExistsError).

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from sqs_jax.checkpoints import open_checkpoint, write_safetensors_folder
        >>> layout = {"weight_map": {"w": "model.safetensors"}, "shards": {"model.safetensors": {}}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = write_safetensors_folder(f"{folder}/m", {"w": np.ones(4, "f4")}, layout)
        ...     print(open_checkpoint(f"{folder}/m").tree)
        {'w': LazyArray(shape=(4,), dtype=float32)}
    """
    target = os.fspath(folder)
    try:
        shards, indices = _check(layout, tensors)
    except ValueError as error:
        raise CheckpointError(
            f"{target}: no layout of a folder: {error}; write the tensors to one .safetensors file"
        ) from error
    nbytes = 0
    with replacing_folder(target) as temporary:
        skipped = copy_other_files(others, temporary) if others is not None else []
        for shard, names in shards.items():
            inner = _folder_of(shard)
            os.makedirs(os.path.join(temporary, inner), exist_ok=True)
            part = {_within(inner, name): tensors[name] for name in names}
            path = os.path.join(temporary, shard)
            try:
                nbytes += write_safetensors(path, part, layout["shards"].get(shard))
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(temporary, target)) from error
        for inner, (index, rest) in indices.items():
            listed = {**layout["weight_map"], **layout.get("tied", {})}
            inside = {n: shard for n, shard in listed.items() if _folder_of(shard) == inner}
            weight_map = {_within(inner, n): _within(inner, shard) for n, shard in inside.items()}
            size = sum(tensors[name].nbytes for name in inside if name in tensors)
            text = dump_json({**_with_total(rest, size), "weight_map": weight_map})
            write_atomically(os.path.join(temporary, inner, index), text)
    return nbytes, skipped


def _with_total(index: dict[str, Any], size: int) -> dict[str, Any]:
    """Return a copy of an index with `total_size` in bytes, if the index states a size."""
    metadata = index.get("metadata")
    if not isinstance(metadata, dict) or "total_size" not in metadata:
        return index
    return {**index, "metadata": {**metadata, "total_size": size}}


def _folder_of(shard: str) -> str:
    return shard.rpartition("/")[0]


def _within(inner: str, path: str) -> str:
    return path.removeprefix(f"{inner}/") if inner else path


def _check(
    layout: Mapping[str, Any], tensors: Mapping[str, Any]
) -> tuple[dict[str, list[str]], dict[str, tuple[str, dict[str, Any]]]]:
    """Check a layout, and return its shards and index files.

    Returns:
        Names of the tensors of each shard; and, for each folder with an index, the name and the
        other entries of that index.

    Raises:
        ValueError: If the layout is malformed or does not list exactly the tensors.
    """
    if not isinstance(layout, Mapping):
        raise ValueError(f"{layout!r:.80}")
    weight_map = check_weight_map(layout.get("weight_map"), nested=True)
    tied = check_weight_map(layout.get("tied", {}), nested=True)
    differing = sorted(weight_map.keys() ^ tensors.keys())
    if differing:
        raise ValueError(f"{differing[0]!r:.80} is in the layout or given, but not both")
    for name, shard in (*weight_map.items(), *tied.items()):
        inner = _folder_of(shard)
        if inner and not name.startswith(f"{inner}/"):
            raise ValueError(
                f"{name!r:.80} is in {shard!r:.80}, no plain name of a file, nor one in the folder "
                "that the tensor is named after"
            )
    # Start from the metadata: a shard without tensors is in no weight_map, but is written too.
    metadata = layout.get("shards")
    if not isinstance(metadata, dict):
        raise ValueError("its metadata are no objects")
    shards: dict[str, list[str]] = collections.defaultdict(list)
    for shard, strings in metadata.items():
        check_weight_map({"": shard}, nested=True)
        if not isinstance(strings, dict):
            raise ValueError(f"the metadata of {shard!r:.80} are no object")
        if not all(isinstance(text, str) for text in strings.values()):
            raise ValueError(f"the metadata of {shard!r:.80} must be strings")
        shards[shard] = []
    for name, shard in weight_map.items():
        shards[shard].append(name)
    return shards, _check_indices(layout)


def _check_indices(layout: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    folders = layout.get("folders", {})
    if not isinstance(folders, dict) or not all(isinstance(x, dict) for x in folders.values()):
        raise ValueError("its folders are no objects")
    indices = {}
    for inner, entry in (("", layout), *folders.items()):
        index, rest = entry.get("index"), entry.get("index_metadata")
        plain = isinstance(index, str) and is_plain(index) and INDEX.fullmatch(index)
        if index is not None and not plain:
            raise ValueError(f"{index!r:.80} is no name of an index")
        if inner and not all(is_plain(part) for part in inner.split("/")):
            raise ValueError(f"{inner!r:.80} is no path of a folder")
        if not isinstance(rest, dict | None):
            raise ValueError("its metadata are no objects")
        if index is not None:
            indices[inner] = index, rest or {}
    return indices
