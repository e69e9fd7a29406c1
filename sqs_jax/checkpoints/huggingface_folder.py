"""Hugging Face folders: safetensors shards with an index, and the files beside them.

The layout of a folder, which a round trip keeps, is JSON:

    {"index": name of the index or None,
     "index_metadata": what else stands in the index, or None,
     "weight_map": {tensor: shard},
     "shards": {shard: its __metadata__}}
"""

import collections
import os
import re
import stat
from collections.abc import Collection, Mapping
from typing import Any

from sqs_jax.artifact.atomic import replacing, replacing_folder, write_atomically
from sqs_jax.checkpoints.lazy import Checkpoint, CheckpointError, LazyArray, SourceFile
from sqs_jax.checkpoints.safetensors_file import (
    MAX_HEADER,
    dump_json,
    load_json,
    read_safetensors,
    write_safetensors,
)

__all__ = ["copy_other_files", "is_huggingface", "read_huggingface", "write_safetensors_folder"]

TENSORS, INDEX = ".safetensors", re.compile(r".+\.safetensors\.index(\.[\w-]+)?\.json")
WEIGHTS = re.compile(
    r".*\.(safetensors|sqs|bin|pt|pth|ckpt|pkl|pickle|h5|hdf5|msgpack|npz|onnx|onnx_data|gguf|ot"
    r"|tflite)"
    r"|.+\.(safetensors|bin|h5|msgpack)\.index(\.[\w-]+)?\.json",
    re.IGNORECASE,
)
TOOLS = {".git", ".cache", "__pycache__"}
"""Folders of other tools, which can hold the weights a second time."""


def is_huggingface(folder: str) -> bool:
    """Return whether a folder has safetensors files, or an index of some, in it."""
    return any(name.endswith(TENSORS) or INDEX.fullmatch(name) for name in os.listdir(folder))


def read_huggingface(folder: str) -> Checkpoint:
    """Open the safetensors files of a folder; only their headers and the index are read.

    Taken is `model.safetensors`, else what the one index (or `model.safetensors.index.json`)
    names, else the one safetensors file there is. Files may be symbolic links, as in the cache of
    huggingface_hub.

    Args:
        folder: The folder; its files are not to be trusted.

    Returns:
        A checkpoint whose metadata are the layout of the folder, see above.

    Raises:
        CheckpointError: If it is not clear which files are meant, a shard is missing or damaged,
            or a tensor is not where the index says, or in two shards.
    """
    index, rest, weight_map, files = _find(folder)
    where: dict[str, str] = {}
    tree: dict[str, LazyArray] = {}
    shards: dict[str, Any] = {}
    nbytes = 0
    for shard in files:
        path = os.path.join(folder, shard)
        if not os.path.isfile(path):
            raise CheckpointError(f"{path}: missing, though {index} names it; download it again")
        part = read_safetensors(SourceFile(path))
        for name, tensor in part.tree.items():
            if name in where or weight_map.get(name, shard) != shard:
                other = where.get(name) or weight_map[name]
                raise CheckpointError(
                    f"{path}: {name!r:.80} is in this file and listed in {other} too; "
                    "remove it from one and correct the index"
                )
            where[name], tree[name] = shard, tensor
        shards[shard] = part.metadata
        nbytes += part.nbytes
    missing = sorted(weight_map.keys() - where.keys())
    if missing:
        raise CheckpointError(
            f"{os.path.join(folder, weight_map[missing[0]])}: no tensor {missing[0]!r:.80}, though "
            f"{index} says so; download both again"
        )
    layout = {"index": index, "index_metadata": rest, "weight_map": where, "shards": shards}
    return Checkpoint(tree, "huggingface", layout, nbytes)


def _find(folder: str) -> tuple[str | None, dict[str, Any] | None, dict[str, str], list[str]]:
    """Return the index's name, what stands in it beside its map, the map, and the files to read."""
    names = sorted(os.listdir(folder))
    files = [name for name in names if name.endswith(TENSORS)]
    indices = [name for name in names if INDEX.fullmatch(name)]
    if "model.safetensors" in files:
        return None, None, {}, ["model.safetensors"]
    if "model.safetensors.index.json" in indices:
        indices = ["model.safetensors.index.json"]
    if len(indices or files) != 1:
        found = ", ".join(indices or files) or "none"
        raise CheckpointError(f"{folder}: which weights are meant? give one file of: {found}")
    if not indices:
        return None, None, {}, files
    source = SourceFile(os.path.join(folder, indices[0]))
    try:
        if source.size > MAX_HEADER:
            raise ValueError(f"{source.size} bytes, more than {MAX_HEADER}")
        with source.open() as file:
            rest = load_json(file.read())
        if not isinstance(rest, dict):
            raise ValueError("not a JSON object")
        weight_map = _checked_map(rest.pop("weight_map", None))
        if not weight_map:
            raise ValueError("it names no tensors")
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise source.error(f"no index of shards: {error}; download it again") from error
    return indices[0], rest, weight_map, sorted(set(weight_map.values()))


def _checked_map(weight_map: Any) -> dict[str, str]:
    if not isinstance(weight_map, dict):
        raise ValueError("it has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain(shard) or not shard.endswith(TENSORS):
            raise ValueError(f"{name!r:.80} is in {shard!r:.80}, no plain name of a {TENSORS} file")
    return weight_map


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not re.search(r"[/\\:\0]", name)


def copy_other_files(
    source: str | os.PathLike[str], target: str | os.PathLike[str], exclude: Collection[str] = ()
) -> list[str]:
    """Copy what is not weights from one folder to another: configuration, tokenizer, licence.

    Left out are files of weights in any format, by their extension, their indices, and the folders
    of tools (.git, .cache). Links to files are followed, links to folders are not.

    Args:
        source: The folder to copy from.
        target: The folder to copy to; it exists and lies outside of `source`.
        exclude: More to leave out: paths relative to `source`, with "/".

    Returns:
        Paths relative to `source` of all that was left out, those of `exclude` apart; folders end
        in "/".

    Raises:
        CheckpointError: If `target` lies in `source`, or a file cannot be read.
        OSError: If a file cannot be written.
    """
    source, target = os.fspath(source), os.fspath(target)
    real = os.path.realpath(source)
    if os.path.commonpath([real, os.path.realpath(target)]) == real:
        raise CheckpointError(f"{target}: lies in {source}, which is copied; choose another place")
    skipped = []

    def visit(inner: str) -> None:
        os.makedirs(os.path.join(target, inner), exist_ok=True)
        for name in sorted(os.listdir(os.path.join(source, inner))):
            relative = f"{inner}/{name}" if inner else name
            path = os.path.join(source, relative)
            if relative in exclude:
                continue
            if os.path.isdir(path):
                if name in TOOLS or os.path.islink(path):
                    skipped.append(relative + "/")
                else:
                    visit(relative)
            elif WEIGHTS.fullmatch(name) or _is_special(path):
                skipped.append(relative)
            else:
                with replacing(os.path.join(target, relative)) as file:
                    file.writelines(SourceFile(path).chunks())

    visit("")
    return skipped


def _is_special(path: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); remove it") from error


def write_safetensors_folder(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    layout: Mapping[str, Any],
    *,
    others: str | os.PathLike[str] | None = None,
) -> tuple[int, list[str]]:
    """Write a folder of safetensors files as it was read; as a whole or not at all.

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
        index, rest, shards = _check(layout, tensors)
    except ValueError as error:
        raise CheckpointError(f"{target}: no layout of a folder: {error}") from error
    nbytes = 0
    with replacing_folder(target) as temporary:
        skipped = copy_other_files(others, temporary) if others is not None else []
        for shard, names in shards.items():
            part = {name: tensors[name] for name in names}
            path = os.path.join(temporary, shard)
            nbytes += write_safetensors(path, part, layout["shards"].get(shard))
        if index is not None:
            text = dump_json({**(rest or {}), "weight_map": dict(layout["weight_map"])})
            write_atomically(os.path.join(temporary, index), text)
    return nbytes, skipped


def _check(
    layout: Mapping[str, Any], tensors: Mapping[str, Any]
) -> tuple[str | None, dict[str, Any] | None, dict[str, list[str]]]:
    """Return the index's name, its metadata, and the names by shard, all of it checked."""
    if not isinstance(layout, Mapping):
        raise ValueError(f"{layout!r:.80}")
    weight_map, metadata = _checked_map(layout.get("weight_map")), layout.get("shards")
    index, rest = layout.get("index"), layout.get("index_metadata")
    differing = sorted(weight_map.keys() ^ tensors.keys())
    if differing:
        raise ValueError(f"{differing[0]!r:.80} is in the layout or given, but not both")
    if index is not None and not (
        isinstance(index, str) and _is_plain(index) and INDEX.fullmatch(index)
    ):
        raise ValueError(f"{index!r:.80} is no name of an index")
    if not isinstance(rest, dict | None) or not isinstance(metadata, dict):
        raise ValueError("its metadata are no objects")
    # A shard without tensors is in no weight_map; its metadata are kept all the same.
    shards: dict[str, list[str]] = collections.defaultdict(list)
    for shard, found in metadata.items():
        _checked_map({"": shard})
        if not isinstance(found, dict):
            raise ValueError(f"the metadata of {shard!r:.80} are no object")
        shards[shard] = []
    for name, shard in weight_map.items():
        shards[shard].append(name)
    return index, rest, shards
