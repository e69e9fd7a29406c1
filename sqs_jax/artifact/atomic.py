"""Replace a file as a whole or not at all."""

import errno
import os
import secrets
import stat

__all__ = ["write_atomically"]


def write_atomically(path: str, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, nothing between.

    The bytes go to a temporary file in the same folder, reach the disk, and then take the name.
    On any failure the temporary file is removed and what stood at `path` is untouched.

    Args:
        path: Where to write. A symbolic link is followed.
        data: The whole content.

    Raises:
        OSError: Of the kind the system gave (FileNotFoundError, PermissionError, ...), naming the
            path and, where there is one, the way out.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:50]}.{secrets.token_hex(8)}.tmp")
    try:
        if os.path.isdir(target):
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        # O_EXCL and not tempfile: the file gets the permissions any new file here gets.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temporary, flags, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if os.path.exists(target):  # whoever could read it still can, and nobody else
                    os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise type(error)(error.errno, _explain(error, folder), path) from error
    _sync_folder(folder)


def _explain(error: OSError, folder: str) -> str:
    what = error.strerror or str(error)
    if isinstance(error, IsADirectoryError):
        return "cannot save to a folder: give the name of a file in it"
    if isinstance(error, FileNotFoundError):
        return f"cannot save: there is no folder {folder!r}, create it first"
    if isinstance(error, PermissionError):
        return f"cannot save: no permission to write in the folder {folder!r}"
    return f"cannot save: {what}; what stood at this path before is untouched"


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
