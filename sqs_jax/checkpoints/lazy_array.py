"""Lazy arrays: shape and dtype in memory, values in a file until they are read."""

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
    """Error of a checkpoint that is damaged, of an unknown format, or not representable.

    Example:
        >>> import os, tempfile
        >>> from sqs_jax.checkpoints import CheckpointError, open_checkpoint
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> with open(path, "wb") as file:
        ...     _ = file.write(b"not a model")
        >>> try:
        ...     open_checkpoint(path)
        ... except CheckpointError as error:
        ...     print(isinstance(error, ValueError))
        True
    """


class LazyArray:
    """Array in a file, with shape and dtype in memory.

    `np.asarray(lazy)` reads the values, anew at every call; they are not cached. A lazy array is
    a leaf of a JAX pytree.

    Attributes:
        shape: Shape of the array.
        dtype: numpy dtype of the array; may be a dtype of `ml_dtypes`.

    Example:
        >>> import numpy as np
        >>> from sqs_jax.checkpoints import LazyArray
        >>> lazy = LazyArray((2,), "float32", lambda: np.ones(2, np.float32))
        >>> lazy, np.asarray(lazy).tolist()
        (LazyArray(shape=(2,), dtype=float32), [1.0, 1.0])
    """

    __slots__ = ("_read", "dtype", "shape")

    def __init__(
        self, shape: tuple[int, ...], dtype: DTypeLike, read: Callable[[], np.ndarray]
    ) -> None:
        """Describe an array.

        Args:
            shape: Shape of the array.
            dtype: Dtype of the array.
            read: Function that returns the values, of this shape and dtype.
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
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the array in memory, bytes."""
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Read the values.

        Args:
            dtype: Dtype to cast the values to; None for the array's dtype.
            copy: Copy mode as in `numpy.asarray`; False raises, because reading makes a copy.

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
        # An array that is not writeable is a view of memory that other code sees.
        return array.copy() if copy and not array.flags.writeable else array

    def __repr__(self) -> str:
        return f"LazyArray(shape={self.shape}, dtype={self.dtype})"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors and metadata of a checkpoint, with the values still on disk.

    Attributes:
        tree: Tensors. For safetensors, npz and Hugging Face folders `{name: LazyArray}`, with the
            names in the file. For msgpack and orbax nested dicts and lists of `LazyArray` and None.
        kind: Format: "safetensors", "npz", "msgpack", "orbax" or "huggingface".
        metadata: JSON-serializable metadata that a round trip keeps. For a safetensors file its
            `__metadata__`; for a Hugging Face folder the layout that `write_safetensors_folder`
            takes; {} for other formats.
        nbytes: Size of the files with tensors, bytes.
        root: Path of the folder that was read; "" for a file. Differs from the requested path for
            the cache of huggingface_hub.
        left_out: Paths, relative to `root`, of files and folders with tensors that were not read:
            duplicates, other formats, training states.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from sqs_jax.checkpoints import open_checkpoint
        >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
        >>> np.savez(path, kernel=np.ones((4, 2), np.float32))
        >>> checkpoint = open_checkpoint(path)
        >>> checkpoint.kind, checkpoint.tree
        ('npz', {'kernel': LazyArray(shape=(4, 2), dtype=float32)})
    """

    tree: Any
    kind: str
    metadata: dict[str, Any]
    nbytes: int
    root: str = ""
    left_out: tuple[str, ...] = ()


class SourceFile:
    """File whose reads raise an error once its content has changed.

    The file is opened for each read and never memory-mapped: truncating a mapped file during a read
    would kill the process (SIGBUS).

    Attributes:
        path: Path of the file.
        size: Size of the file, bytes.
    """

    def __init__(self, path: str) -> None:
        """Record identity and size of a file.

        Raises:
            OSError: If the file does not exist.
        """
        self.path = path
        stat = os.stat(path)
        self._identity = _identity(stat)
        self.size = stat.st_size

    def error(self, what: str) -> CheckpointError:
        """Build a CheckpointError whose message begins with the path."""
        return CheckpointError(f"{self.path}: {what}")

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file for reading, and check for changes before and after.

        Raises:
            CheckpointError: If the file has changed or cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                self._check(file)
                yield file
                self._check(file)
        except OSError as error:
            raise self.error(f"cannot be read ({error.strerror or error})") from error

    def chunks(self) -> Iterator[bytes]:
        """Yield the whole content in blocks of at most 1 MiB.

        Raises:
            CheckpointError: As `open`.
        """
        with self.open() as file:
            while block := file.read(1 << 20):
                yield block

    def read(self, file: BinaryIO, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from an offset on.

        Raises:
            CheckpointError: If the file ends before the buffer is full.
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
    """Return a shape from an untrusted file as a tuple.

    Raises:
        ValueError: If the value is no shape, or too large for a numpy array.
    """
    if not isinstance(shape, list | tuple) or len(shape) > 64:
        raise ValueError(f"{shape!r:.80} is no shape")
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise ValueError(f"{shape!r:.80} is no shape")
    # Without zeros, because numpy multiplies the other axes of an empty array too.
    if math.prod(size for size in shape if size) >= 1 << 48:
        raise ValueError(f"the shape {shape!r:.80} is too large")
    return tuple(shape)


def fill(array: np.ndarray, read: Callable[[memoryview], None]) -> np.ndarray:
    """Fill a contiguous array with bytes, and check that its dtype allows them.

    Args:
        array: Array to fill in place.
        read: Function that fills the buffer in its argument.

    Returns:
        The array.

    Raises:
        ValueError: If a bool is neither 0 nor 1; numpy relies on these two values.
    """
    flat = array.reshape(-1).view(np.uint8)
    if flat.size:
        read(flat.data)
    if array.dtype == bool and flat.max(initial=0) > 1:
        raise ValueError("a bool tensor holds bytes other than 0 and 1")
    return array
