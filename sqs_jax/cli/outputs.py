"""Checks of an output path before the work begins."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence

from sqs_jax.artifact.atomic import check_writable
from sqs_jax.checkpoints.other_files import lies_in

__all__ = ["check_output"]

_STREAMS = re.compile(r"/dev/(stdout|stderr|stdin|fd/.*|tty)|/proc/[^/]+/fd/.*")
_MOST_LINKS = 40


def check_output(
    output: str, sources: Sequence[str], *, nbytes: int = 0, folder: bool = False
) -> None:
    """Raise an error if an output cannot be written or would replace an input.

    Args:
        output: Path of the file or folder to write.
        sources: Paths of the input files and folders.
        nbytes: Approximate size of the output, bytes.
        folder: Whether the output is a folder.

    Raises:
        ValueError: If the output is a standard stream, an input, or a path inside of an input; or
            if the disk lacks space.
        OSError: As `sqs_jax.artifact.atomic.check_writable`.
    """
    if output == "-" or any(_STREAMS.fullmatch(path) for path in _aliases(output)):
        raise ValueError(
            f"{output}: a stream cannot be the output, which is written as a whole or not at all; "
            "give the name of a file"
        )
    if output.endswith(os.sep) and not folder:
        raise ValueError(f"{output}: the name of a folder; give the name of a file in it")
    for source in sources:
        if os.path.isdir(source) and lies_in(output, source):
            raise ValueError(f"{output}: lies in the input {source}; choose a place outside of it")
        if os.path.exists(output) and any(os.path.samefile(output, x) for x in _files(source)):
            raise ValueError(f"{output}: is the input too; give the output a name of its own")
    check_writable(output, folder=folder)
    parent = os.path.dirname(os.path.realpath(output))
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise ValueError(
            f"{output}: takes about {nbytes:,} bytes, and {free:,} are free in {parent}; free "
            "some, or choose another place"
        )


def _aliases(path: str) -> Iterator[str]:
    """Yield the absolute paths along a chain of links, beginning with the path."""
    for _ in range(_MOST_LINKS):
        yield "/" + os.path.abspath(path).lstrip("/")
        if not os.path.islink(path):
            return
        path = os.path.join(os.path.dirname(os.path.abspath(path)), os.readlink(path))


def _files(source: str) -> Iterator[str]:
    """Yield the files of an input, including files that a folder links to."""
    if not os.path.isdir(source):
        yield source
    for folder, _, names in os.walk(source):
        paths = (os.path.join(folder, name) for name in names)
        yield from filter(os.path.exists, paths)
