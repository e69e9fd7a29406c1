"""Atomic writes: a file is replaced, or a folder created, as a whole."""

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
"""Paths of this process's unfinished writes, for a signal handler that ends the process."""


def remove_temporaries() -> None:
    """Remove the temporary files and folders of unfinished writes.

    For signal handlers that end the process after this call. An exception raised in a handler
    would instead unwind through the interrupted code, compiled extensions included, and could be
    lost there.
    """
    for path in list(_TEMPORARIES):
        with contextlib.suppress(OSError):
            os.unlink(path)
        shutil.rmtree(path, ignore_errors=True)


def write_atomically(path: str, data: bytes) -> None:
    """Write a file atomically.

    Readers see the complete old content or the complete new content, also after a crash.

    Args:
        path: Path of the file. A symbolic link is followed.
        data: Content of the file.

    Raises:
        OSError: As `replacing`.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the `with` block ends.

    The temporary file lies in the same folder. It is synced to disk and then renamed. On any
    failure, also in the `with` block, the temporary file is removed and `path` stays unchanged.

    Args:
        path: Path of the file. A symbolic link is followed.

    Yields:
        The temporary file, open for writing.

    Raises:
        OSError: The subclass that the system raised (FileNotFoundError, PermissionError, ...), with
            `path` and, where there is one, a remedy.
    """
    target, folder, temporary = _target_and_temporary(path)
    with _explain_errors(path, folder, temporary):
        _check_file(target)
        _TEMPORARIES.add(temporary)
        try:
            with os.fdopen(_create(temporary), "wb") as file:
                yield file
                file.flush()
                if os.path.exists(target):  # keep the permissions of the file that is replaced
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
    # Not tempfile, whose files only their owner can read: this file gets the default permissions.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


@contextlib.contextmanager
def replacing_folder(path: str) -> Iterator[str]:
    """Create a temporary folder that is renamed to `path` when the `with` block ends.

    The temporary folder lies beside `path`. Its content is synced to disk before the rename. On any
    failure, also in the `with` block, it is removed with its content.

    Args:
        path: Path of the new folder. An existing folder must be empty; a symbolic link is followed.

    Yields:
        The path of the temporary folder.

    Raises:
        OSError: The subclass that the system raised, with `path` and a remedy; FileExistsError if
            there is a file or a folder with content at `path`.
    """
    target, folder, temporary = _target_and_temporary(path)
    with _explain_errors(path, folder, temporary):
        _check_new_folder(target)
        _TEMPORARIES.add(temporary)
        try:
            os.mkdir(temporary)
            yield temporary
            _sync_tree(temporary)
            if os.path.isdir(target):
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
            os.replace(temporary, target)  # raises if another process has filled the folder
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            _TEMPORARIES.discard(temporary)
    _sync_folder(folder)


def check_writable(path: str, *, folder: bool = False) -> None:
    """Check that a file or folder can be written, before its content is computed.

    Args:
        path: Path of the file or folder that will be written.
        folder: True for a folder.

    Raises:
        OSError: As `replacing` and `replacing_folder`.
    """
    target, parent, temporary = _target_and_temporary(path)
    with _explain_errors(path, parent, temporary):
        (_check_new_folder if folder else _check_file)(target)
        # Permissions alone do not show a read-only disk, or one without free inodes.
        try:
            tempfile.TemporaryFile(dir=parent).close()
        except OSError as error:
            raise OSError(error.errno, error.strerror) from error


def _check_file(target: str) -> None:
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "is a folder")
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(errno.EINVAL, "is a device or a pipe, which a file would replace")


def _check_new_folder(target: str) -> None:
    if os.path.lexists(target) and not os.path.isdir(target):
        raise FileExistsError(errno.EEXIST, "there is a file at this path")
    if os.path.isdir(target) and os.listdir(target):
        raise FileExistsError(errno.EEXIST, "the folder is not empty")


@contextlib.contextmanager
def _explain_errors(path: str, folder: str, temporary: str) -> Iterator[None]:
    """Replace the temporary path in errors by `path`, and add a remedy."""
    try:
        yield
    except OSError as error:
        filename = str(error.filename)
        if filename.startswith(temporary + os.sep):  # a file in the folder that is being filled
            final_name = path + filename.removeprefix(temporary)
            text = (error.strerror or "").replace(temporary, path)
            raise type(error)(error.errno, text, final_name) from error
        # Errors of unrelated files in the `with` block pass. A failed write has no filename.
        if error.filename not in (None, temporary):
            raise
        raise type(error)(error.errno, _explain(error, folder), path) from error


def _target_and_temporary(path: str) -> tuple[str, str, str]:
    """Resolve a path; return target, parent folder and temporary path in the folder."""
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
    return f"cannot save: {what}; the previous content of this path is untouched"


def _sync_tree(folder: str) -> None:
    for path, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(path, name), "r+b") as file:
                os.fsync(file.fileno())
        _sync_folder(path)


def _sync_folder(folder: str) -> None:
    # This syncs the rename. Windows and some network file systems cannot sync a folder; the file is
    # complete in either case.
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
