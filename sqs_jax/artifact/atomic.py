"""Replace a file, or fill a folder, as a whole or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

__all__ = [
    "check_writable",
    "remove_temporaries",
    "replacing",
    "replacing_folder",
    "write_atomically",
]

_TEMPORARIES: set[str] = set()
"""What this process is writing now, for a signal handler that ends it."""


def remove_temporaries() -> None:
    """Remove the temporary files and folders of unfinished writes, before the process ends.

    For signal handlers. An exception raised there would unwind through whatever code the signal
    met, compiled extensions too, and could be lost; ending the process after this call cannot.
    """
    for path in list(_TEMPORARIES):
        with contextlib.suppress(OSError):
            os.unlink(path)
        shutil.rmtree(path, ignore_errors=True)


def write_atomically(path: str, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, nothing between.

    Args:
        path: Where to write. A symbolic link is followed.
        data: The whole content.

    Raises:
        OSError: As `replacing`.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Give a file to write to, which takes its name once it is complete.

    The bytes go to a temporary file in the same folder, reach the disk, and then take the name.
    On any failure, also one in the `with` block, the temporary file is removed and what stood at
    `path` is untouched.

    Args:
        path: Where to write. A symbolic link is followed.

    Yields:
        The temporary file, open for writing.

    Raises:
        OSError: Of the kind the system gave (FileNotFoundError, PermissionError, ...), naming the
            path and, where there is one, the way out.
    """
    target, folder, temporary = _places(path)
    with _explained(path, folder, temporary):
        _check_file(target)
        _TEMPORARIES.add(temporary)
        try:
            with os.fdopen(_create(temporary), "wb") as file:
                yield file
                file.flush()
                if os.path.exists(target):  # whoever could read it still can, and nobody else
                    os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        finally:
            _TEMPORARIES.discard(temporary)
    _sync_folder(folder)


def _create(path: str) -> int:
    # O_EXCL and not tempfile: the file gets the permissions any new file here gets.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


@contextlib.contextmanager
def replacing_folder(path: str) -> Iterator[str]:
    """Give a new folder to fill, which takes its name once it is complete.

    The folder lies beside its place under a temporary name; what is in it reaches the disk before
    it is renamed. On any failure, also one in the `with` block, it is removed with its content.

    Args:
        path: The folder to make. It may exist if it is empty; a symbolic link is followed.

    Yields:
        The path of the temporary folder.

    Raises:
        OSError: Of the kind the system gave, naming the path and the way out; FileExistsError if
            something stands there.
    """
    target, folder, temporary = _places(path)
    with _explained(path, folder, temporary):
        _check_new_folder(target)
        _TEMPORARIES.add(temporary)
        try:
            os.mkdir(temporary)
            yield temporary
            _sync_tree(temporary)
            if os.path.isdir(target):
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
            os.replace(temporary, target)  # which refuses a folder that has been filled meanwhile
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            _TEMPORARIES.discard(temporary)
    _sync_folder(folder)


def check_writable(path: str, *, folder: bool = False) -> None:
    """Raise what `replacing` or `replacing_folder` would raise, before there is anything to write.

    Args:
        path: Where a file or a folder will be written.
        folder: Whether it is a folder.

    Raises:
        OSError: As `replacing` and `replacing_folder`.
    """
    target, parent, temporary = _places(path)
    with _explained(path, parent, temporary):
        (_check_new_folder if folder else _check_file)(target)
        try:  # permissions alone do not tell: the disk may be read-only, or have no inode left
            tempfile.TemporaryFile(dir=parent).close()  # without a name, where there are such files
        except OSError as error:
            raise OSError(error.errno, error.strerror) from error


def _check_file(target: str) -> None:
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "is a folder")
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(errno.EINVAL, "is a device or a pipe, which a file would replace")


def _check_new_folder(target: str) -> None:
    if os.path.lexists(target) and not os.path.isdir(target):
        raise FileExistsError(errno.EEXIST, "a file stands at this path")
    if os.path.isdir(target) and os.listdir(target):
        raise FileExistsError(errno.EEXIST, "the folder is not empty")


@contextlib.contextmanager
def _explained(path: str, folder: str, temporary: str) -> Iterator[None]:
    """Let errors of the temporary file name the path that was asked for, and the remedy."""
    try:
        yield
    except OSError as error:
        inner = str(error.filename)
        if inner.startswith(temporary + os.sep):  # of a file in the folder that is being filled
            named = path + inner.removeprefix(temporary)
            text = (error.strerror or "").replace(temporary, path)
            raise type(error)(error.errno, text, named) from error
        if error.filename not in (None, temporary):
            raise  # of another file, in the with block; a failed write has no name
        raise type(error)(error.errno, _explain(error, folder), path) from error


def _places(path: str) -> tuple[str, str, str]:
    """Return what to replace, its folder, and a temporary name in that."""
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    return target, folder, os.path.join(folder, f".{name[:50]}.{secrets.token_hex(8)}.tmp")


def _explain(error: OSError, folder: str) -> str:
    what = error.strerror or str(error)
    if isinstance(error, IsADirectoryError):
        return "cannot save to a folder: give the name of a file in it"
    if isinstance(error, FileExistsError) or error.errno == errno.ENOTEMPTY:
        return f"cannot save: {what}; give the name of a new folder, or remove what is there"
    if isinstance(error, FileNotFoundError):
        return f"cannot save: there is no folder {folder!r}, create it first"
    if isinstance(error, PermissionError):
        return f"cannot save: no permission to write in the folder {folder!r}"
    return f"cannot save: {what}; what stood at this path before is untouched"


def _sync_tree(folder: str) -> None:
    for path, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(path, name), "r+b") as file:
                os.fsync(file.fileno())
        _sync_folder(path)


def _sync_folder(folder: str) -> None:
    # The rename itself must reach the disk. Some network file systems, and Windows, cannot sync
    # a folder; the file is complete either way.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
