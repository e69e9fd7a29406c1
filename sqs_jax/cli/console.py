"""Standard streams and signals of the command: neither ends it with a traceback."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from sqs_jax.artifact.atomic import remove_temporaries
from sqs_jax.artifact.text_table import printable

__all__ = ["complain", "end_cleanly_on_signals", "flush", "say", "standard_streams"]


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


def end_cleanly_on_signals() -> None:
    """End the process on SIGINT, SIGTERM and SIGHUP without temporary files, code 128 + signal.

    Without this, SIGTERM (Slurm, docker stop) would leave them behind.
    """

    def end(number: int, _: FrameType | None) -> None:
        remove_temporaries()
        text = f"sqs: stopped by {signal.Signals(number).name}; no output was written\n"
        with contextlib.suppress(OSError):
            os.write(2, text.encode())  # print could be what the signal has interrupted
        os._exit(128 + number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # what the parent has told the process to ignore (nohup) stays ignored
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
