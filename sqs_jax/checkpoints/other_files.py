"""The files of a folder that hold no tensors: configuration, tokenizer, licence."""

import os
import stat
from collections.abc import Collection
from typing import NamedTuple

from sqs_jax.artifact.atomic import replacing
from sqs_jax.checkpoints.lazy_array import CheckpointError, SourceFile
from sqs_jax.checkpoints.weight_files import holds_tensors, is_index, names_in

__all__ = ["TOOLS", "OtherFiles", "copy_other_files", "list_other_files"]

TOOLS = {".git", ".cache", "__pycache__"}
"""Folders of other tools, which can hold the weights a second time."""


class OtherFiles(NamedTuple):
    """What `copy_other_files` would do.

    Attributes:
        copied: Paths of files and, ending in "/", of folders, relative to the source.
        left_out: Paths of what is not copied, folders ending in "/".
        nbytes: Size of the copied files, bytes.
    """

    copied: list[str]
    left_out: list[str]
    nbytes: int


def list_other_files(source: str | os.PathLike[str], exclude: Collection[str] = ()) -> OtherFiles:
    """List the files without tensors of a folder, and what is left out.

    Left out are files of weights in any format, by their extension, their indices, and the folders
    of tools (.git, .cache). Links to files are followed, links to folders are not. The `._*`
    companions of macOS (AppleDouble) are in neither list.

    Args:
        source: The folder.
        exclude: More to leave out without listing it: paths relative to `source`, with "/".

    Returns:
        The paths, sorted within each folder.

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
    """Copy the files without tensors from one folder to another, see `list_other_files`.

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
    """Return whether a path is a folder or lies in it, links followed."""
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path == folder or path.startswith(os.path.join(folder, ""))


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); remove it") from error
