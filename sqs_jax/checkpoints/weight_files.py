"""Selection of the files of a directory that contain a model's tensors."""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from sqs_jax.checkpoints.lazy_array import CheckpointError, SourceFile
from sqs_jax.checkpoints.safetensors_file import MAX_HEADER, load_json

__all__ = [
    "INDEX",
    "TENSORS",
    "WeightFiles",
    "check_weight_map",
    "find_weight_files",
    "holds_tensors",
    "is_plain",
    "names_in",
]

TENSORS = ".safetensors"
# DOTALL everywhere: a file name may contain a line break.
INDEX = re.compile(r".+\.safetensors\.index(\.[\w-]+)?\.json", re.DOTALL)
_ANY_INDEX = re.compile(
    r".+\.(safetensors|bin|h5|msgpack)\.index(\.[\w-]+)?\.json", re.IGNORECASE | re.DOTALL
)
_WEIGHTS = re.compile(
    r".*\.(safetensors|sqs|bin|pt|pth|ckpt|pkl|pickle|h5|hdf5|msgpack|npz|onnx|onnx_data|gguf|ot"
    r"|tflite)",
    re.IGNORECASE | re.DOTALL,
)
_TRAINER_STATE = re.compile(r"training_args\.bin|scheduler\.pt|rng_state\w*\.pth")
"""Small files that the Trainer of transformers writes; they contain settings, not weights."""
_PRIMARY = ("model.safetensors", "diffusion_pytorch_model.safetensors")
"""Files that transformers and diffusers prefer over any index."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors", re.DOTALL)


class WeightFiles(NamedTuple):
    """Files of a directory that contain tensors, and the index file that lists them.

    Attributes:
        files: Names of the safetensors files to read, sorted.
        weight_map: File name of each tensor according to the index; empty without an index.
        index_name: Name of the index file, or None.
        index_metadata: Contents of the index without its weight map, or None.
        left_out: Names of the other files with tensors: duplicates, variants, other formats.
    """

    files: list[str]
    weight_map: dict[str, str]
    index_name: str | None
    index_metadata: dict[str, Any] | None
    left_out: list[str]


def names_in(folder: str) -> list[str]:
    """List a directory, sorted, without the `._*` files of macOS (AppleDouble)."""
    return [name for name in sorted(os.listdir(folder)) if not _is_companion(folder, name)]


def _is_companion(folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    if not name.startswith("._") or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:
        return True
    if head.startswith(b"\0\5\x16"):
        return True
    # A damaged companion has the name of a weight file, but no safetensors header.
    return holds_tensors(name) and head[8:9] != b"{"


def holds_tensors(name: str) -> bool:
    """Return whether a file name is that of a weight file, in any format."""
    return bool(_WEIGHTS.fullmatch(name)) and not _TRAINER_STATE.fullmatch(name)


def is_index(name: str) -> bool:
    """Return whether a file name is that of an index of shards, in any format."""
    return bool(_ANY_INDEX.fullmatch(name))


def is_plain(name: str) -> bool:
    """Return whether a name cannot point outside of a folder on any system."""
    return name not in ("", ".", "..") and not re.search(r"[/\\:\0]", name)


def find_weight_files(
    folder: str, exclude: Callable[[str], bool] = lambda name: False
) -> WeightFiles:
    """Select the weight files of a directory, without its subfolders.

    The first rule that applies decides:

    1. `model.safetensors` (or diffusers' `diffusion_pytorch_model.safetensors`), unless the index
       lists that file.
    2. The files in the index, and the shards of the same set that the index omits.
    3. A complete set of shards, or the only file.

    Args:
        folder: Path of the directory; its files are untrusted.
        exclude: Predicate that marks a file name as not needed. It is called only if the choice of
            files is ambiguous.

    Returns:
        Weight files; empty if the directory has no safetensors files.

    Raises:
        CheckpointError: If the choice of files is ambiguous, a file is missing, or the index is
            damaged.
    """
    names = names_in(folder)
    tensors = [n for n in names if n.endswith(TENSORS) and not os.path.isdir(f"{folder}/{n}")]
    indices = [n for n in names if INDEX.fullmatch(n)]
    primary = next((n for n in _PRIMARY if n in tensors), None)
    index = _choose_index(folder, indices, primary, exclude)
    metadata, weight_map = _read_index(folder, index) if index else (None, {})
    if primary and primary not in weight_map.values():
        index, metadata, weight_map, files = None, None, {}, [primary]
    elif index:
        listed = set(weight_map.values())
        sets = {_shard_set(name) for name in listed} - {None}
        files = sorted(listed | {name for name in tensors if _shard_set(name) in sets})
    else:
        files = _without_index(folder, tensors, exclude)
    others = [n for n in names if holds_tensors(n) and not os.path.isdir(f"{folder}/{n}")]
    left_out = [name for name in others if name not in files and not _is_alias(folder, name, files)]
    return WeightFiles(files, weight_map, index, metadata, left_out)


def _is_alias(folder: str, name: str, files: list[str]) -> bool:
    """Return whether a name is a link to any of the files."""
    path = os.path.join(folder, name)
    chosen = (os.path.join(folder, other) for other in files)
    return os.path.exists(path) and any(
        os.path.exists(other) and os.path.samefile(path, other) for other in chosen
    )


def _shard_set(name: str) -> tuple[str, str] | None:
    """Return base and total of a shard's name; all shards of a set have the same."""
    shard = _SHARD.fullmatch(name)
    return (shard[1], shard[3]) if shard else None


def _choose_index(
    folder: str, indices: list[str], primary: str | None, exclude: Callable[[str], bool]
) -> str | None:
    preferred = [f"{name}.index.json" for name in _PRIMARY if f"{name}.index.json" in indices]
    if preferred or len(indices) == 1:
        return (preferred or indices)[0]
    if indices and not primary:
        needed = [name for name in indices if not exclude(name)]
        if len(needed) == 1:
            return needed[0]
        raise CheckpointError(
            f"{folder}: which index is meant? leave out (--exclude) all but one of: "
            f"{', '.join(indices)}"
        )
    return None


def _without_index(folder: str, tensors: list[str], exclude: Callable[[str], bool]) -> list[str]:
    """Choose among files without an index: the only file, or all shards of a set."""
    # A variant such as model.fp16.safetensors is ignored beside model.safetensors.
    variant = re.compile(r"(.+)\.[\w-]+\.safetensors", re.DOTALL)
    plain = [
        name
        for name in tensors
        if not ((match := variant.fullmatch(name)) and match[1] + TENSORS in tensors)
    ]
    if len(plain) <= 1:
        return plain
    sets = {_shard_set(name) for name in plain}
    if None in sets or len(sets) > 1:
        needed = [name for name in plain if not exclude(name)]
        if 0 < len(needed) < len(plain):
            return _without_index(folder, needed, exclude)
        raise CheckpointError(
            f"{folder}: which weights are meant? give one file of: {', '.join(plain)}; or "
            "leave out those that are not needed (--exclude)"
        )
    base, total = sets.pop() or ("", "")
    first = 0 if f"{base}-00000-of-{total}{TENSORS}" in plain else 1
    numbers = range(first, int(total) + first)
    missing = [name for i in numbers if (name := f"{base}-{i:05}-of-{total}{TENSORS}") not in plain]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise CheckpointError(
            f"{folder}: there is no index, and of {int(total)} shards {shown} "
            f"{'is' if len(missing) == 1 else 'are'} missing; download the missing files"
        )
    return plain


def _read_index(folder: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    source = SourceFile(os.path.join(folder, name))
    try:
        if source.size > MAX_HEADER:
            raise ValueError(f"{source.size} bytes, more than {MAX_HEADER}")
        with source.open() as file:
            rest = load_json(file.read())
        if not isinstance(rest, dict):
            raise ValueError("not a JSON object")
        weight_map = check_weight_map(rest.pop("weight_map", None))
        if not weight_map:
            raise ValueError("it names no tensors")
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise source.error(f"no index of shards: {error}; download it again") from error
    return rest, weight_map


def check_weight_map(weight_map: Any, *, nested: bool = False) -> dict[str, str]:
    """Check and return a weight map, `{tensor: file}`.

    Args:
        weight_map: Untrusted JSON value from a file.
        nested: Whether files may lie in subfolders, "unet/model.safetensors".

    Raises:
        ValueError: If the value is no dict from tensor names to plain safetensors file names.
    """
    if not isinstance(weight_map, dict):
        raise ValueError("it has no weight_map")
    for name, shard in weight_map.items():
        parts = shard.split("/") if nested and isinstance(shard, str) else [shard]
        plain = all(isinstance(part, str) and is_plain(part) for part in parts)
        if not plain or not parts[-1].endswith(TENSORS):
            raise ValueError(f"{name!r:.80} is in {shard!r:.80}, no plain name of a {TENSORS} file")
    return weight_map
