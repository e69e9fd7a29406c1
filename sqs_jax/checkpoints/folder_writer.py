"""Write a folder of safetensors files, with its indices and the files beside them."""

import collections
import os
from collections.abc import Mapping
from typing import Any

from sqs_jax.artifact.atomic import replacing_folder, write_atomically
from sqs_jax.checkpoints.lazy import CheckpointError
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
    """Write a folder of safetensors files as it was read; as a whole or not at all.

    The `total_size` of an index is that of the tensors that are written: some may be left out.

    Args:
        folder: The folder to make; it may exist if it is empty.
        tensors: Arrays or `LazyArray`s by name; they pass one at a time.
        layout: The metadata of the checkpoint that was read, not to be trusted.
        others: A folder whose other files are copied too, see `copy_other_files`.

    Returns:
        The bytes of the files with tensors, and what `copy_other_files` left out.

    Raises:
        CheckpointError: If the layout is none, or is not one of these tensors; or a tensor cannot
            be read or written.
        OSError: If it cannot be written, or something stands at `folder` (FileExistsError).
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
    """Return an index whose total_size, if it states one, is that of its tensors, bytes."""
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
    """Return the tensors by file, and name and rest of each folder's index, all of it checked."""
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
    # A shard without tensors is in no weight_map; its metadata are kept all the same.
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
