"""Detection of a checkpoint's format by content, and by file name only in doubt."""

import os
import stat
import struct
from collections.abc import Callable

from sqs_jax.checkpoints.hub_cache import hub_snapshot
from sqs_jax.checkpoints.huggingface_folder import (
    ModelFolder,
    read_flax_folder,
    read_huggingface,
)
from sqs_jax.checkpoints.lazy_array import Checkpoint, CheckpointError, SourceFile
from sqs_jax.checkpoints.msgpack_file import read_msgpack
from sqs_jax.checkpoints.npz_file import PICKLE, read_npz
from sqs_jax.checkpoints.orbax_folder import is_orbax, read_orbax
from sqs_jax.checkpoints.safetensors_file import MAX_HEADER, SQS, read_safetensors

__all__ = ["open_checkpoint"]

KINDS = (
    ".safetensors, .npz, a msgpack file of Flax, a folder of Hugging Face with safetensors, or a "
    "folder of orbax"
)
_PYTORCH = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_UNSUPPORTED = {
    b"\x93NUMPY": "one numpy array without a name (.npy); save it with numpy.savez",
    b"\x89HDF": "an HDF5 file; convert it to safetensors first",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"GGUF": "a GGUF file; give the safetensors that it was made of",
}


def open_checkpoint(
    path: str | os.PathLike[str], *, exclude: Callable[[str], bool] = lambda name: False
) -> Checkpoint:
    """Open a checkpoint of another tool without reading the values of its tensors.

    Untrusted files are safe to open. No code in them is executed, and the sizes that a header
    states are checked against the file before memory is allocated.

    Args:
        path: Path of a file (safetensors, npz, Flax msgpack) or a folder (Hugging Face, orbax). A
            msgpack file is read whole; all other formats have one tensor in memory at a time.
        exclude: Predicate that marks files of a Hugging Face folder as not needed. Its argument is
            a path relative to the folder. It is called only if the choice of files is ambiguous.

    Returns:
        Checkpoint whose leaves are `LazyArray`s; `numpy.asarray` reads one.

    Raises:
        CheckpointError: If the format is unknown or the checkpoint is damaged. The message states
            the path, the content and a remedy.
        OSError: If the path does not exist (FileNotFoundError) or cannot be read.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from sqs_jax.checkpoints import open_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/model.npz", weight=np.zeros((2, 3), np.float32))
        ...     checkpoint = open_checkpoint(f"{folder}/model.npz")
        ...     print(checkpoint.kind, checkpoint.tree["weight"].shape)
        npz (2, 3)
    """
    path = os.fspath(path)
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        return _open_folder(path, exclude)
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: neither a file nor a folder; give {KINDS}")
    source = SourceFile(path)
    extension = os.path.splitext(path)[1].lower()
    with source.open() as file:
        head = file.read(16)
    if not head:
        raise source.error("the file is empty; it was never written, copy it again")
    if extension == ".sqs":
        raise source.error(SQS)
    # First, because the leading length of a safetensors file can equal any other magic number.
    if _is_safetensors(head):
        return read_safetensors(source)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return read_npz(source)
    if head.startswith(_PICKLES):
        raise source.error(f"a PyTorch file, or another with {PICKLE}")
    for magic, remedy in _UNSUPPORTED.items():
        if head.startswith(magic):
            raise source.error(remedy)
    if extension == ".safetensors":  # the reader raises the precise error
        return read_safetensors(source)
    if extension == ".msgpack" or _is_msgpack(head):
        return read_msgpack(source)
    if extension == ".npz":
        raise source.error("no zip archive, as .npz is; it is damaged, copy it again")
    if extension in _PYTORCH:
        raise source.error(f"a PyTorch file, or another with {PICKLE}")
    raise source.error(f"no checkpoint of a known kind, it begins with {head!r}; give {KINDS}")


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= MAX_HEADER


def _is_msgpack(head: bytes) -> bool:
    """Return whether the bytes begin a msgpack map whose first key is a string."""
    for first, keys_at in ((range(0x81, 0x90), 1), (range(0xDE, 0xDF), 3), (range(0xDF, 0xE0), 5)):
        if head[0] in first and len(head) > keys_at:
            return 0xA0 <= head[keys_at] <= 0xBF or 0xD9 <= head[keys_at] <= 0xDB
    return False


def _open_folder(path: str, exclude: Callable[[str], bool]) -> Checkpoint:
    path = hub_snapshot(path)
    folder = ModelFolder(path)
    if folder.is_huggingface:
        return read_huggingface(folder, exclude)
    if is_orbax(path):
        return read_orbax(path)
    names, flax = folder.names, folder.flax_file
    for name in names:
        if name.endswith(".sqs"):
            raise CheckpointError(f"{os.path.join(path, name)}: {SQS}")
    if flax is not None:
        return read_flax_folder(folder, flax)
    if sum(name.endswith(".msgpack") for name in names) > 1:
        raise CheckpointError(
            f"{path}: several msgpack files, which are not read together; give one of them, or "
            "save the model as safetensors"
        )
    for name in names:
        if name.endswith(_PYTORCH):
            raise CheckpointError(f"{os.path.join(path, name)}: a PyTorch file, {PICKLE}")
    parts = folder.with_weights
    if parts:
        shown = ", ".join(os.path.join(path, part) for part in parts[:5])
        raise CheckpointError(
            f"{path}: the weights are in its folders, and nothing says that they are one model; "
            f"give one of: {shown}{', ...' if len(parts) > 5 else ''}"
        )
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"
    raise CheckpointError(f"{path}: no checkpoint of a known kind, found {shown}; give {KINDS}")
