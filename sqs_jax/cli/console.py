"""Standard streams and signals of the command, handled without tracebacks."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from rich.control import Control

from sqs_jax.artifact.atomic import remove_temporaries
from sqs_jax.artifact.text_table import printable

__all__ = ["complain", "end_cleanly_on_signals", "flush", "say", "standard_streams"]


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Make printing safe for closed streams and for narrow encodings.

    A closed stream is replaced by the null device, so that no other file gets its descriptor. A
    character that the encoding lacks is escaped, as Python does on stderr.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Never closed, like the standard streams.
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
    """Print text to stdout.

    A closed pipe is no error: the command finishes and the exit code stays valid.
    """
    try:
        print(text)
    except BrokenPipeError:
        _discard_stdout()


def flush() -> None:
    """Flush stdout.

    Raises:
        OSError: If the output cannot be written; a closed pipe is no error.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    except OSError:
        _discard_stdout()  # otherwise the interpreter flushes again at exit and prints the error
        raise


def _discard_stdout() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def complain(text: str) -> None:
    """Print an error message to stderr; a closed stderr is ignored."""
    with contextlib.suppress(OSError):
        print(printable(f"sqs: {text}"), file=sys.stderr)


def end_cleanly_on_signals() -> None:
    """Install handlers of SIGINT, SIGTERM and SIGHUP that remove temporary files.

    The exit code is 128 + signal. By default SIGTERM (Slurm, docker stop) would leave temporary
    files behind.
    """

    def end(number: int, _: FrameType | None) -> None:
        remove_temporaries()
        text = f"sqs: stopped by {signal.Signals(number).name}; no output was written\n"
        if os.isatty(2):  # a progress bar has hidden the cursor
            text = f"{Control.show_cursor(True)}\n{text}"
        with contextlib.suppress(OSError):
            os.write(2, text.encode())  # print is not reentrant, and may have been interrupted
        os._exit(128 + number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # A signal that the parent process ignores (nohup) stays ignored.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
