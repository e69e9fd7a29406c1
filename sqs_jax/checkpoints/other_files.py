"""Files of a model folder without tensors: configuration, tokenizer, license."""

import os
import stat
from collections.abc import Collection
from typing import NamedTuple

from sqs_jax.artifact.atomic import replacing
from sqs_jax.checkpoints.lazy_array import CheckpointError, SourceFile
from sqs_jax.checkpoints.weight_files import holds_tensors, is_index, names_in

__all__ = ["TOOLS", "OtherFiles", "copy_other_files", "list_other_files"]

TOOLS = {".git", ".cache", "__pycache__"}
"""Folders of other tools, which can contain the weights a second time."""


class OtherFiles(NamedTuple):
    """Files and folders that `copy_other_files` copies or leaves out.

    Attributes:
        copied: Paths to copy, relative to the source; folders end in "/".
        left_out: Paths that are not copied, relative to the source; folders end in "/".
        nbytes: Size of the files to copy, bytes.
    """

    copied: list[str]
    left_out: list[str]
    nbytes: int


def list_other_files(source: str | os.PathLike[str], exclude: Collection[str] = ()) -> OtherFiles:
    """List the files of a folder without tensors, and the paths to leave out.

    Paths to leave out are weight files of any format (by extension), their index files, and folders
    of tools (.git, .cache). Links to files are followed, links to folders are not. The `._*`
    companions of macOS (AppleDouble) are in neither list.

    Args:
        source: Path of the folder.
        exclude: Further paths, relative to `source` with "/", that appear in neither list.

    Returns:
        Paths, sorted within each folder.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    source = os.fspath(source)
    copied: list[str] = []
    left_out: list[str] = []
    nbytes = 0

    def visit(inner: str) -> None:
        nonlocal nbytes
        for name in names_in(os.path.join(source, inner)):
            relative = f"{inner}/{name}" if inner else name
            path = os.path.join(source, relative)
            if relative in exclude:
                continue
            if os.path.isdir(path):
                if name == "__pycache__":
                    continue
                if name in TOOLS or os.path.islink(path):
                    left_out.append(relative + "/")
                else:
                    copied.append(relative + "/")
                    visit(relative)
            elif holds_tensors(name) or is_index(name) or not _is_regular(path):
                left_out.append(relative)
            else:
                nbytes += os.path.getsize(path)
                copied.append(relative)

    visit("")
    return OtherFiles(copied, left_out, nbytes)


def copy_other_files(
    source: str | os.PathLike[str], target: str | os.PathLike[str], exclude: Collection[str] = ()
) -> list[str]:
    """Copy the files without tensors to another folder, see `list_other_files`.

    Args:
        source: Path of the folder to copy from.
        target: Path of an existing folder outside of `source`.
        exclude: Further paths to leave out, relative to `source` with "/".

    Returns:
        Paths that were left out, relative to `source`, without those of `exclude`; folders end in
        "/".

    Raises:
        CheckpointError: If `target` lies in `source`, or a file cannot be read.
        OSError: If a file cannot be written.

    Example:
        >>> import os, pathlib, tempfile
        >>> from sqs_jax.checkpoints import copy_other_files
        >>> with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as target:
        ...     for name in ("config.json", "model.safetensors"):
        ...         pathlib.Path(source, name).touch()
        ...     copy_other_files(source, target), os.listdir(target)
        (['model.safetensors'], ['config.json'])
    """
    source, target = os.fspath(source), os.fspath(target)
    if lies_in(target, source):
        raise CheckpointError(f"{target}: lies in {source}, which is copied; choose another place")
    others = list_other_files(source, exclude)
    for relative in others.copied:
        if relative.endswith("/"):
            os.makedirs(os.path.join(target, relative), exist_ok=True)
        else:
            with replacing(os.path.join(target, relative)) as file:
                file.writelines(SourceFile(os.path.join(source, relative)).chunks())
    return others.left_out


def lies_in(path: str, folder: str) -> bool:
    """Return whether a path equals a folder or lies inside, with links resolved."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path == folder or path.startswith(os.path.join(folder, ""))


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); remove it") from error
