"""Reader of Hugging Face folders, including the safetensors files of subfolders.

The name of a tensor in a subfolder begins with the subfolder, "2_Dense/linear.weight". The layout
of a folder, which a round trip keeps, is JSON:

    {"index": name of the root's index or None,
     "index_metadata": other entries of that index, or None,
     "weight_map": {tensor: file},
     "shards": {file: its __metadata__},
     "folders": {subfolder: {"index", "index_metadata"}}      for subfolders with an index
     "tied": {tensor: file}}                                  listed in an index, in no file

The layout of a Flax folder is {"msgpack": name of the file}.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from sqs_jax.checkpoints.lazy_array import Checkpoint, CheckpointError, LazyArray, SourceFile
from sqs_jax.checkpoints.msgpack_file import read_msgpack
from sqs_jax.checkpoints.other_files import TOOLS, lies_in
from sqs_jax.checkpoints.safetensors_file import read_safetensors
from sqs_jax.checkpoints.weight_files import (
    INDEX,
    TENSORS,
    WeightFiles,
    find_weight_files,
    holds_tensors,
    is_plain,
    names_in,
)

__all__ = ["ModelFolder", "layout_without", "read_flax_folder", "read_huggingface"]

_MARKS = {"model_index.json", "modules.json", "config.json", "config_sentence_transformers.json"}
"""Files that mark a folder and its subfolders as a single model."""
_TRAINING_STATE = re.compile(r"checkpoint-\d+")
_TIED = re.compile(
    r"(.*\.)?(lm_head|embed_out|output|decoder|embed_tokens|wte|shared|\w*embeddings?)"
    r"\.(weight|bias)",
    re.DOTALL,
)
"""Names of input embeddings and output heads; a model with tied weights stores only one of them."""


class Part(NamedTuple):
    """Listing of a folder of a model.

    Attributes:
        path: Path of the folder, relative to the model's folder; "" for that folder.
        names: Names of the entries, sorted.
        passed: Names of the subfolders that are skipped: links, folders of tools, training states.
    """

    path: str
    names: list[str]
    passed: list[str]


class ModelFolder:
    """Folder of a model with its subfolders; listings are computed lazily and cached.

    Attributes:
        path: Path of the folder.
    """

    def __init__(self, path: str) -> None:
        """Record the path; nothing is read yet."""
        self.path = path

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of the entries of the folder, sorted."""
        return names_in(self.path)

    @functools.cached_property
    def parts(self) -> list[Part]:
        """Listings of the folder and, recursively, of all subfolders but `passed`."""
        return list(self._walk("", self.names))

    def _walk(self, inner: str, names: list[str]) -> Iterator[Part]:
        paths = {name: os.path.join(self.path, inner, name) for name in names}
        entered: list[str] = []
        passed: list[str] = []
        for name in filter(lambda name: os.path.isdir(paths[name]), names):
            visited = _is_part(name) and not os.path.islink(paths[name])
            (entered if visited else passed).append(name)
        yield Part(inner, names, passed)
        for name in entered:
            yield from self._walk(_joined(inner, name), names_in(paths[name]))

    @property
    def with_weights(self) -> list[str]:
        """Subfolders with safetensors files, relative to the folder."""
        return [part.path for part in self.parts if part.path and _has_tensors(part.names)]

    @property
    def is_huggingface(self) -> bool:
        """Whether the folder, or the parts of a marked model, have safetensors files."""
        if _has_tensors(self.names) or any(map(INDEX.fullmatch, self.names)):
            return True
        return bool(_MARKS & set(self.names)) and bool(self.with_weights)

    @property
    def flax_file(self) -> str | None:
        """Name of the msgpack file of a Flax folder; None without a single choice."""
        names = [name for name in self.names if name.endswith(".msgpack")]
        if "flax_model.msgpack" in names:
            return "flax_model.msgpack"
        return names[0] if len(names) == 1 else None

    @property
    def states_and_links(self) -> list[str]:
        """Skipped folders that contain tensors, relative to the folder, ending in "/"."""
        skipped = []
        for part in self.parts:
            for name in part.passed:
                path = os.path.join(self.path, part.path, name)
                # A link into the model, or to a folder around it, leads to the same files.
                same_files = os.path.islink(path) and (
                    lies_in(path, self.path) or lies_in(self.path, path)
                )
                if not same_files and _any_tensors(path):
                    skipped.append(_joined(part.path, name) + "/")
        return skipped


def read_huggingface(
    model: ModelFolder, exclude: Callable[[str], bool] = lambda name: False
) -> Checkpoint:
    """Open the safetensors files of a folder and its subfolders.

    Only headers and index files are read. `find_weight_files` selects the files of each folder.
    Files may be symbolic links, as in the cache of huggingface_hub. Training states
    (`checkpoint-500/`) are left out.

    Args:
        model: Folder of the model; its files are untrusted.
        exclude: Predicate that marks files as not needed, as for `open_checkpoint`.

    Returns:
        Checkpoint whose metadata are the layout of the folder, see the module's docstring.

    Raises:
        CheckpointError: If the choice of files is ambiguous, a shard is missing or damaged, a
            tensor is not in the file that the index states, or is in two shards.
    """
    layout: dict[str, Any] = {"index": None, "index_metadata": None, "weight_map": {}, "shards": {}}
    tree: dict[str, LazyArray] = {}
    folder, left_out, nbytes = model.path, model.states_and_links, 0
    for inner, *_ in model.parts:
        weights = _weight_files(folder, inner, exclude)
        left_out += [_joined(inner, name) for name in weights.left_out]
        if weights.index_name is not None:
            index = {"index": weights.index_name, "index_metadata": weights.index_metadata}
            if inner:
                layout.setdefault("folders", {})[inner] = index
            else:
                layout |= index
        nbytes += _read_files(folder, inner, weights, layout, tree)
        tied = _listed_only(folder, inner, weights, layout["weight_map"])
        if tied:
            layout.setdefault("tied", {}).update(tied)
    return Checkpoint(tree, "huggingface", layout, nbytes, folder, tuple(left_out))


def _weight_files(folder: str, inner: str, exclude: Callable[[str], bool]) -> WeightFiles:
    return find_weight_files(
        os.path.join(folder, inner) if inner else folder, lambda name: exclude(_joined(inner, name))
    )


def _read_files(
    folder: str, inner: str, weights: WeightFiles, layout: dict[str, Any], tree: dict[str, Any]
) -> int:
    """Add the tensors of a directory's files to the tree and the layout, in place.

    Returns:
        Total size of the files, bytes.
    """
    weight_map, nbytes = layout["weight_map"], 0
    for name in weights.files:
        shard = _joined(inner, name)
        path = os.path.join(folder, shard)
        if not all(map(is_plain, shard.split("/"))):  # other systems could not write such a name
            raise CheckpointError(f"{path}: a name with a backslash or a colon; rename it")
        if not os.path.isfile(path):
            reason = f"missing, though {weights.index_name} names it"
            reason = reason if weights.index_name else "a link to nothing"
            raise CheckpointError(f"{path}: {reason}; download it again")
        part = read_safetensors(SourceFile(path))
        for tensor, array in part.tree.items():
            full = _joined(inner, tensor)
            listed = weights.weight_map.get(tensor, name)
            if full in weight_map or listed != name:
                other = weight_map.get(full) or _joined(inner, listed)
                raise CheckpointError(
                    f"{path}: {full!r:.80} is in this file and listed in {other} too; "
                    "remove it from one and correct the index"
                )
            weight_map[full], tree[full] = shard, array
        layout["shards"][shard] = part.metadata
        nbytes += part.nbytes
    return nbytes


def _listed_only(
    folder: str, inner: str, weights: WeightFiles, weight_map: dict[str, str]
) -> dict[str, str]:
    """Return the tensors in an index that no file has, because of weight tying.

    Raises:
        CheckpointError: If a tensor is missing that cannot be tied.
    """
    listed = {_joined(inner, tensor): shard for tensor, shard in weights.weight_map.items()}
    missing = sorted(listed.keys() - weight_map.keys())
    if missing and not _ties_weights(os.path.join(folder, inner), missing):
        path = os.path.join(folder, _joined(inner, listed[missing[0]]))
        raise CheckpointError(
            f"{path}: no tensor {missing[0]!r:.80}, though {weights.index_name} lists it; download "
            f"both again, or remove it from {weights.index_name} if the model does without"
        )
    return {tensor: _joined(inner, listed[tensor]) for tensor in missing}


def layout_without(layout: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a copy of a folder's layout without some tensors and the emptied files.

    Args:
        layout: Metadata of a checkpoint that `read_huggingface` returned.
        names: Names of the tensors to leave out.
    """
    weight_map = {n: shard for n, shard in layout["weight_map"].items() if n not in names}
    emptied = set(layout["weight_map"].values()) - set(weight_map.values())
    shards = {shard: x for shard, x in layout["shards"].items() if shard not in emptied}
    kept = {shard.rpartition("/")[0] for shard in weight_map.values()}
    reduced = {**layout, "weight_map": weight_map, "shards": shards}
    if "" not in kept:
        reduced |= {"index": None, "index_metadata": None}
    if "folders" in layout:
        reduced["folders"] = {k: x for k, x in layout["folders"].items() if k in kept}
    if "tied" in layout:
        tied = layout["tied"].items()
        reduced["tied"] = {n: shard for n, shard in tied if shard.rpartition("/")[0] in kept}
    return reduced


def _ties_weights(folder: str, missing: list[str]) -> bool:
    """Return whether weight tying explains the missing tensors, by config and names."""
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError, RecursionError):
        config = {}
    config = config if isinstance(config, dict) else {}
    text = config.get("text_config")
    stated = (text if isinstance(text, dict) else {}).get("tie_word_embeddings")
    if config.get("tie_word_embeddings", stated) is False:
        return False
    return all(_TIED.fullmatch(name.split("/")[-1]) for name in missing)


def _joined(inner: str, name: str) -> str:
    return f"{inner}/{name}" if inner else name


def _has_tensors(names: list[str]) -> bool:
    return any(name.endswith(TENSORS) for name in names)


def _is_part(name: str) -> bool:
    return name not in TOOLS and not _TRAINING_STATE.fullmatch(name)


def _any_tensors(folder: str) -> bool:
    return any(any(map(holds_tensors, names)) for _, _, names in os.walk(folder))


def read_flax_folder(model: ModelFolder, name: str) -> Checkpoint:
    """Open a Hugging Face folder whose weights are a Flax msgpack file.

    Args:
        model: Folder of the model.
        name: Name of the msgpack file, see `ModelFolder.flax_file`.

    Returns:
        Checkpoint of nested dicts whose metadata are {"msgpack": name}.

    Raises:
        CheckpointError: As `read_msgpack`.
    """
    read = read_msgpack(SourceFile(os.path.join(model.path, name)))
    left_out = model.states_and_links
    for part in model.parts:
        paths = [_joined(part.path, other) for other in part.names]
        left_out += [path for path in paths if holds_tensors(path) and path != name]
    layout = {"msgpack": name}
    return Checkpoint(read.tree, "huggingface", layout, read.nbytes, model.path, tuple(left_out))
