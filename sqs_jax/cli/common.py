"""Functions shared by the commands: opening files, progress bars, JSON."""

import argparse
import collections
import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sqs_jax.artifact import SqsFile
from sqs_jax.artifact.compressed import materialize
from sqs_jax.artifact.reader import Leaf
from sqs_jax.checkpoints import LazyArray
from sqs_jax.cli.console import say

__all__ = [
    "MODEL",
    "add_command",
    "counted",
    "lazy_tensors",
    "lazy_tree",
    "open_sqs",
    "print_json",
    "progress",
    "tracked",
    "workers",
]

MODEL = "model.sqs"
"""Name of the compressed weights in a folder."""

_PARALLEL_FROM = 1 << 25
"""Number of weights above which worker processes pay off: about one second of decoding."""
_LARGE_FILE = 1 << 23
"""Size in bytes of a file of about `_PARALLEL_FROM` weights."""


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, example: str
) -> argparse.ArgumentParser:
    """Add a command with the option --json and an example in the help text.

    Args:
        commands: Subparsers of the main parser.
        name: Name of the command.
        run: Function that runs the command and returns the exit code.
        help: Description in one line.
        example: Example of a command line.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def counted(number: int, noun: str) -> str:
    """Format a number with a noun, in the plural unless the number is 1.

    Example:
        >>> counted(1, "tensor"), counted(1200, "floating tensor")
        ('1 tensor', '1,200 floating tensors')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def open_sqs(path: str) -> SqsFile:
    """Open an sqs file, or the sqs file of a compressed folder.

    A large file is decoded by one worker process per core.

    Raises:
        ValueError: If the path is a folder without an sqs file.
    """
    if os.path.isdir(path):
        inner = os.path.join(path, MODEL)
        if not os.path.isfile(inner):
            raise ValueError(f"{path}: a folder without {MODEL}; give an sqs file, or compress it")
        path = inner
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    return SqsFile(path, workers=(os.cpu_count() or 1) if size >= _LARGE_FILE else 1)


def workers(weights: int) -> int:
    """Return the number of processes that encode a number of weights."""
    return (os.cpu_count() or 1) if weights >= _PARALLEL_FROM else 1


def lazy_tensors(file: SqsFile) -> dict[str, LazyArray]:
    """Return lazy dense tensors of a file by path; reading a tensor decodes the leaf.

    Raises:
        ValueError: If two leaves have the same path.
    """
    tensors = {leaf.path: _lazy(file, leaf) for leaf in file.leaves}
    if len(tensors) < len(file.leaves):
        counts = collections.Counter(leaf.path for leaf in file.leaves)
        duplicate = next(path for path, count in counts.items() if count > 1)
        raise ValueError(
            f"{file.path}: two tensors are called {duplicate!r}; load it with sqs_jax.load"
        )
    return tensors


def lazy_tree(file: SqsFile) -> Any:
    """Return the tree of a file with lazy dense tensors as leaves."""
    return file.tree(lambda leaf: _lazy(file, leaf))


def _lazy(file: SqsFile, leaf: Leaf) -> LazyArray:
    spec = leaf.spec
    return LazyArray(spec.shape, spec.dtype, lambda: materialize(file.read(leaf.path)))


@contextlib.contextmanager
def progress(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show a progress bar on stderr if stderr is a terminal.

    Args:
        what: Label of the bar.
        total: Amount of work, in any unit.

    Yields:
        Function advance(amount) that moves the bar.
    """
    columns = TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.update(task, advance=amount)


def tracked(tree: Any, advance: Callable[[float], None]) -> Any:
    """Wrap a tree of lazy arrays to report each read.

    Args:
        tree: Tree of `LazyArray`s.
        advance: Function that receives the size in bytes of each array that is read.
    """

    def report_reads(tensor: LazyArray) -> LazyArray:
        def read() -> Any:
            array = tensor.__array__()
            advance(tensor.nbytes)
            return array

        return LazyArray(tensor.shape, tensor.dtype, read)

    return jax.tree.map(report_reads, tree)


def print_json(value: Any) -> None:
    """Print a result as JSON; NaN and infinity become null."""
    say(json.dumps(_finite(value), indent=1))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
