"""Arrays that stay in their file until they are asked for."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["Checkpoint", "CheckpointError", "LazyArray", "SourceFile", "check_shape", "fill"]


class CheckpointError(ValueError):
    """A checkpoint is not whole, not of a known kind, or cannot hold what it should."""


class LazyArray:
    """An array in a file: its shape and dtype now, its values when numpy asks.

    `np.asarray(lazy)` reads the values, each time anew; nothing of them is held here. To JAX a
    lazy array is a leaf.

    Attributes:
        shape: The shape.
        dtype: The numpy dtype, one of `ml_dtypes` included.
    """

    __slots__ = ("_read", "dtype", "shape")

    def __init__(
        self, shape: tuple[int, ...], dtype: DTypeLike, read: Callable[[], np.ndarray]
    ) -> None:
        """Describe an array.

        Args:
            shape: Its shape.
            dtype: Its dtype.
            read: Returns the values; must give this shape and dtype.
        """
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._read = read

    @classmethod
    def of(cls, array: np.ndarray) -> "LazyArray":
        """Wrap an array that is in memory already."""
        return cls(array.shape, array.dtype, lambda: array)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the array in memory."""
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Read the values now.

        Args:
            dtype: What to cast them to; None for their own.
            copy: As in `numpy.asarray`; reading makes a copy, so False is refused.

        Raises:
            CheckpointError: If the file has changed since it was opened, or cannot be read.
        """
        if copy is False:
            raise ValueError("the values are in a file, so that to read them is to copy them")
        array = self._read()
        if array.shape != self.shape or array.dtype != self.dtype:
            raise CheckpointError(
                f"a tensor was announced as {self.dtype}{list(self.shape)} and read as "
                f"{array.dtype}{list(array.shape)}; the checkpoint is damaged, copy it again"
            )
        if dtype is not None:
            array = array.astype(dtype, copy=False)
        # What is not writeable is a view of memory that others see.
        return array.copy() if copy and not array.flags.writeable else array

    def __repr__(self) -> str:
        return f"LazyArray(shape={self.shape}, dtype={self.dtype})"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Hold what a checkpoint contains, its values still on disk.

    Attributes:
        tree: `{name: LazyArray}`, names as they stand in the file, for safetensors, npz and
            Hugging Face folders; nested dicts and lists of `LazyArray` and None for msgpack and
            orbax.
        kind: "safetensors", "npz", "msgpack", "orbax" or "huggingface".
        metadata: JSON-able, what a round trip must keep: the `__metadata__` of a safetensors file;
            of a Hugging Face folder the layout that `write_safetensors_folder` takes; else {}.
        nbytes: Size of the files that hold tensors, bytes.
        root: Path of the folder that was read, which need not be the one that was asked for (the
            cache of huggingface_hub); "" for a file.
        left_out: Paths, relative to `root`, of files and folders that hold tensors and were not
            read: duplicates, other formats, training states.
    """

    tree: Any
    kind: str
    metadata: dict[str, Any]
    nbytes: int
    root: str = ""
    left_out: tuple[str, ...] = ()


class SourceFile:
    """A file that must stay what it was when it was first seen.

    It is opened for each read and never mapped: a mapped file that is cut short while it is read
    would end the process.

    Attributes:
        path: Where it is.
        size: Its size, bytes.
    """

    def __init__(self, path: str) -> None:
        """Take note of a file.

        Raises:
            OSError: If there is none.
        """
        self.path = path
        stat = os.stat(path)
        self._identity = _identity(stat)
        self.size = stat.st_size

    def error(self, what: str) -> CheckpointError:
        """Return an error that names the file."""
        return CheckpointError(f"{self.path}: {what}")

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file, and see that it is the same before and after.

        Raises:
            CheckpointError: If it is not, or cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                self._check(file)
                yield file
                self._check(file)
        except OSError as error:
            raise self.error(f"cannot be read ({error.strerror or error})") from error

    def chunks(self) -> Iterator[bytes]:
        """Yield the whole content, a piece at a time.

        Raises:
            CheckpointError: As `open`.
        """
        with self.open() as file:
            while block := file.read(1 << 20):
                yield block

    def read(self, file: BinaryIO, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes that begin at an offset.

        Raises:
            CheckpointError: If the file ends before.
        """
        file.seek(offset)
        done = 0
        while done < len(buffer):
            count = file.readinto(buffer[done:])  # type: ignore[attr-defined]
            if not count:
                raise self.error("cut short while it was read; copy it again")
            done += count

    def _check(self, file: BinaryIO) -> None:
        if _identity(os.fstat(file.fileno())) != self._identity:
            raise self.error("changed since it was opened; open it again once it is complete")


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def check_shape(shape: Any) -> tuple[int, ...]:
    """Return a shape from a file as a tuple.

    Raises:
        ValueError: If numpy could hold no such array.
    """
    if not isinstance(shape, list | tuple) or len(shape) > 64:
        raise ValueError(f"{shape!r:.80} is no shape")
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise ValueError(f"{shape!r:.80} is no shape")
    # Zeros aside: numpy multiplies the other axes of an empty array too.
    if math.prod(size for size in shape if size) >= 1 << 48:
        raise ValueError(f"the shape {shape!r:.80} is too large")
    return tuple(shape)


def fill(array: np.ndarray, read: Callable[[memoryview], None]) -> np.ndarray:
    """Fill a contiguous array with bytes, and check that they are such values.

    Args:
        array: Where they go.
        read: Fills the buffer that it is given.

    Returns:
        The array.

    Raises:
        ValueError: If a bool is neither 0 nor 1, which numpy takes for granted.
    """
    flat = array.reshape(-1).view(np.uint8)
    if flat.size:
        read(flat.data)
    if array.dtype == bool and flat.max(initial=0) > 1:
        raise ValueError("a bool tensor holds bytes other than 0 and 1")
    return array
