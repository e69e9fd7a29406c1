"""Functions shared by the commands: opening files, tables, JSON."""

import argparse
import collections
import json
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

from sqs_jax.artifact import SqsFile
from sqs_jax.artifact.leaves import materialize
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


def print_json(value: Any) -> None:
    """Print a result as JSON; NaN and infinity become null."""
    say(json.dumps(_finite(value), indent=1))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
