"""Reader and writer of numpy's .npz files: zip archives of .npy files."""

import functools
import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sqs_jax.artifact.atomic import replacing
from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.checkpoints.lazy_array import (
    Checkpoint,
    CheckpointError,
    LazyArray,
    SourceFile,
    check_shape,
    fill,
)

__all__ = ["read_npz", "write_npz"]

MOST_INFLATED = 1032
"""Largest expansion factor of deflate."""

_STEP = 1 << 18
_MOST_HEADER = 1 << 16
_LONGEST_NAME = 65_000  # bytes; a zip archive stores the length of a name in 16 bits
PICKLE = (
    "a pickle inside, which would run code when it is loaded; convert it to safetensors first, "
    "where you trust it: safetensors.torch.save_model(model, 'model.safetensors')"
)


class _Member(NamedTuple):
    """Entry of the archive.

    Attributes:
        name: File name.
        offset: Position of the local header in the archive, bytes.
        packed: Compressed size, bytes.
        size: Uncompressed size, bytes.
        deflated: Whether the entry is deflated; stored otherwise.
        crc: CRC-32 of the uncompressed bytes.
    """

    name: str
    offset: int
    packed: int
    size: int
    deflated: bool
    crc: int


class _Array(NamedTuple):
    """Header of a .npy file.

    Attributes:
        shape: Shape of the array.
        fortran: Whether the values are in Fortran order.
        dtype: Dtype of the array.
        header: Length of the header, bytes.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    header: int


def read_npz(source: SourceFile) -> Checkpoint:
    """Open a .npz file by reading the headers of its arrays alone.

    Args:
        source: Untrusted file; nothing is ever unpickled.

    Returns:
        Checkpoint with the names that `numpy.savez` received.

    Raises:
        CheckpointError: If the file is damaged, or contains an array that is not numeric.
    """
    tree: dict[str, LazyArray] = {}
    try:
        with source.open() as file:
            for member in _members(source, file):
                name = member.name.removesuffix(".npy")
                if name in tree or name == member.name:
                    what = "appears twice" if name in tree else "is no .npy file"
                    raise ValueError(f"the entry {member.name!r:.80} {what}")
                array = _header(source, file, member)
                read = functools.partial(_read, source, member, array)
                tree[name] = LazyArray(array.shape, DTYPES[array.dtype.name], read)
    except CheckpointError:
        raise
    except (ValueError, zlib.error) as error:
        raise source.error(f"no whole .npz file: {error}; write it again") from error
    return Checkpoint(tree, "npz", {}, source.size)


def _members(source: SourceFile, file: BinaryIO) -> list[_Member]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries, comment = archive.infolist(), len(archive.comment)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged directory raises many types of errors
        raise ValueError(f"the directory of the zip archive is damaged ({error})") from error
    # zipfile does not check the count: a damaged length can hide an entry in the previous one.
    file.seek(source.size - 22 - comment)
    (count,) = struct.unpack_from("<10xH", file.read(22))
    if count not in (len(entries), 0xFFFF):
        raise ValueError(f"the zip archive counts {count} entries and lists {len(entries)}")
    names = [entry.filename for entry in entries]
    if any(name.split("/")[-1] == "data.pkl" for name in names):
        raise source.error(f"a PyTorch file, {PICKLE}")
    if len(set(names)) < len(names):
        raise ValueError("a name appears twice in the zip archive")
    if not any(name.endswith(".npy") for name in names):
        raise source.error("a zip archive without .npy files, no checkpoint; unpack it first")
    for entry in entries:
        most = entry.compress_size
        if entry.compress_type == zipfile.ZIP_DEFLATED:
            most *= MOST_INFLATED
        elif entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{entry.filename!r:.80} is neither stored nor deflated")
        if entry.flag_bits & 1:
            raise ValueError(f"{entry.filename!r:.80} is encrypted")
        if not 0 <= entry.file_size <= most or entry.compress_size > source.size:
            raise ValueError(f"{entry.filename!r:.80} has impossible sizes")
    return [
        _Member(
            entry.filename,
            entry.header_offset,
            entry.compress_size,
            entry.file_size,
            entry.compress_type == zipfile.ZIP_DEFLATED,
            entry.CRC,
        )
        for entry in entries
    ]


def _chunks(source: SourceFile, file: BinaryIO, member: _Member) -> Iterator[bytes]:
    """Yield the uncompressed bytes of a member in small blocks.

    The caller checks length and checksum.
    """
    local = bytearray(30)
    source.read(file, member.offset, memoryview(local))
    if not local.startswith(b"PK\x03\x04"):
        raise ValueError(f"{member.name!r:.80} is not where the directory says")
    flags, name, extra = struct.unpack_from("<6xH18xHH", local)
    if file.read(name).decode("utf-8" if flags & 0x800 else "cp437") != member.name:
        raise ValueError(f"{member.name!r:.80} has another name in its own header")
    file.seek(extra, io.SEEK_CUR)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    left = member.packed
    while left:
        block = file.read(min(left, _STEP))
        if not block:
            raise source.error("cut short while it was read; copy it again")
        left -= len(block)
        if not member.deflated:
            yield block
            continue
        while block and not inflate.eof:
            yield inflate.decompress(block, _STEP)
            block = inflate.unconsumed_tail
    if member.deflated:
        yield inflate.flush()


def _header(source: SourceFile, file: BinaryIO, member: _Member) -> _Array:
    start = bytearray()
    for chunk in _chunks(source, file, member):
        start += chunk
        if len(start) >= _MOST_HEADER:
            break
    text = io.BytesIO(start)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            version = np.lib.format.read_magic(text)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(text)
            elif version == (2, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(text)
            else:
                raise ValueError(f"version {version} of the .npy format is for structured arrays")
    except Exception as error:  # numpy's parser raises many types of errors on invalid headers
        raise ValueError(f"{member.name!r:.80}: no .npy header ({error})") from error
    if dtype.hasobject:
        raise source.error(f"{member.name!r:.80} holds Python objects: {PICKLE}")
    if dtype.kind == "V" and dtype.names is None and dtype.subdtype is None:
        raise source.error(
            f"{member.name!r:.80} is raw bytes of dtype {dtype.str}, as numpy saves bfloat16 and "
            "float8 without their names; save it as safetensors, or cast it to float32 first"
        )
    if dtype.name not in DTYPES or dtype.names is not None or dtype.subdtype is not None:
        raise source.error(f"{member.name!r:.80} is {dtype}, no tensor; save it without this array")
    array = _Array(check_shape(shape), fortran, dtype, text.tell())
    if array.header + math.prod(shape) * dtype.itemsize != member.size:
        raise ValueError(f"{member.name!r:.80} is not as long as its shape {shape} says")
    return array


def _read(source: SourceFile, member: _Member, array: _Array) -> np.ndarray:
    flat = np.empty(math.prod(array.shape), array.dtype)
    try:
        with source.open() as file:
            _check_all(source, file, member, array, flat)
    except CheckpointError:
        raise
    except (ValueError, zlib.error) as error:
        raise source.error(f"{member.name!r:.80}: {error}; copy it again") from error
    values = flat.reshape(array.shape, order="F" if array.fortran else "C")
    return values.astype(DTYPES[array.dtype.name], copy=False)


def _check_all(
    source: SourceFile, file: BinaryIO, member: _Member, array: _Array, flat: np.ndarray
) -> None:
    """Fill the flat array, and check length and checksum of the member."""
    crc = done = 0

    def read(buffer: memoryview) -> None:
        nonlocal crc, done
        for chunk in _chunks(source, file, member):
            crc = zlib.crc32(chunk, crc)
            start, done = done - array.header, done + len(chunk)
            if done > member.size:
                break
            kept = chunk[max(-start, 0) :]
            buffer[max(start, 0) : max(start, 0) + len(kept)] = kept

    fill(flat, read)
    if flat.size and (done != member.size or crc != member.crc):
        raise ValueError("its checksum does not match")


def write_npz(path: str | os.PathLike[str], tensors: Mapping[str, Any]) -> int:
    """Write a .npz file atomically, array by array.

    Args:
        path: Path of the file to write.
        tensors: numpy arrays, JAX arrays or `LazyArray`s by name.

    Returns:
        Size of the file, bytes.

    Raises:
        CheckpointError: If a tensor's dtype is not built into numpy (bfloat16, float8, int4), two
            names are equal in a zip archive, or a lazy array cannot be read.
        OSError: If the file cannot be written; an existing file at `path` is then unchanged.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from sqs_jax.checkpoints import write_npz
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = write_npz(f"{folder}/m.npz", {"bias": np.ones(3, np.float32)})
        ...     np.load(f"{folder}/m.npz")["bias"].tolist()
        [1.0, 1.0, 1.0]
    """
    target = os.fspath(path)
    for name, tensor in tensors.items():
        if np.dtype(tensor.dtype).isbuiltin != 1:
            raise CheckpointError(
                f"{target}: {name!r:.80} is {tensor.dtype.name}, which .npz cannot hold; write "
                ".safetensors, or .msgpack"
            )
        if "\0" in name or len(name.encode()) > _LONGEST_NAME:
            raise CheckpointError(f"{target}: {name!r:.80} cannot be a name in a zip archive")
    members = [f"{name}.npy" for name in tensors]
    if len({zipfile.ZipInfo(member).filename for member in members}) < len(members):
        raise CheckpointError(f"{target}: two names are the same in a zip archive; rename one")
    with replacing(target) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for member, tensor in zip(members, tensors.values(), strict=True):
                # ZipInfo's default date, 1980, so that the same tensors give the same bytes
                with archive.open(zipfile.ZipInfo(member), "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asarray(tensor), allow_pickle=False)
        return file.tell()
