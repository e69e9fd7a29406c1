"""Standard streams and signals of the command: nothing that they do ends in a traceback."""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from sqs_jax.artifact.bits import printable

__all__ = ["Stopped", "complain", "flush", "say", "standard_streams", "stopping"]


class Stopped(BaseException):
    """A signal asks the process to end; raised in the main thread, so that files are removed."""

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Let output be printed to a closed stream, or in an encoding without the characters.

    A closed stream is replaced by the null device, so that no other file takes its number; a
    character that the encoding lacks is escaped, as Python does it on stderr.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # open until the process ends, as standard streams are
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    stream = sys.stdout
    before = stream.errors if isinstance(stream, io.TextIOWrapper) else None
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if isinstance(stream, io.TextIOWrapper) and before is not None and not stream.closed:
            flush()
            stream.reconfigure(errors=before)


def say(text: str) -> None:
    """Print to stdout. A reader who has gone has seen enough: the work and its exit code count."""
    try:
        print(text)
    except BrokenPipeError:
        _to_nowhere()


def flush() -> None:
    """Hand everything printed to the system.

    Raises:
        OSError: If it cannot be written; a reader who has gone is no error.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere()
    except OSError:
        _to_nowhere()  # else the interpreter would try again when it ends, and say so
        raise


def _to_nowhere() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def complain(text: str) -> None:
    """Print one message to stderr, if it can be."""
    with contextlib.suppress(OSError):
        print(printable(f"sqs: {text}"), file=sys.stderr)


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into `Stopped`, once: while it is handled they are ignored.

    Without this, SIGTERM (Slurm, docker stop) would end the process where it stands and leave
    temporary files.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]

    def stop(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    # what the parent has told the process to ignore (nohup) stays ignored
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
