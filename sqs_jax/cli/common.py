"""What the commands share: opening files, progress, tables, JSON."""

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
    "progress",
    "tracked",
    "workers",
]

MODEL = "model.sqs"
"""The name of the compressed weights in a folder."""

_PARALLEL_FROM = 1 << 25
"""The number of weights that is worth starting processes for: a second's decoding."""
_LARGE_FILE = 1 << 23
"""The bytes of a file of about as many weights."""


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, example: str
) -> argparse.ArgumentParser:
    """Add a command with one example in its help, and --json."""
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
    """Return a number and its noun, in the plural but for one.

    Example:
        >>> counted(1, "tensor"), counted(1200, "floating tensor")
        ('1 tensor', '1,200 floating tensors')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def open_sqs(path: str) -> SqsFile:
    """Open an sqs file, or the one in a compressed folder; all cores decode a large one."""
    if os.path.isdir(path):
        inner = os.path.join(path, MODEL)
        if not os.path.isfile(inner):
            raise ValueError(f"{path}: a folder without {MODEL}; give an sqs file, or compress it")
        path = inner
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    return SqsFile(path, workers=(os.cpu_count() or 1) if size >= _LARGE_FILE else 1)


def workers(weights: int) -> int:
    """Return how many processes code so many weights."""
    return (os.cpu_count() or 1) if weights >= _PARALLEL_FROM else 1


def lazy_tensors(file: SqsFile) -> dict[str, LazyArray]:
    """Return the dense tensors of a file by path, each decoded when it is asked for."""
    tensors = {leaf.path: _lazy(file, leaf) for leaf in file.leaves}
    if len(tensors) < len(file.leaves):
        counts = collections.Counter(leaf.path for leaf in file.leaves)
        twice = next(path for path, count in counts.items() if count > 1)
        raise ValueError(
            f"{file.path}: two tensors are called {twice!r}; load it with sqs_jax.load"
        )
    return tensors


def lazy_tree(file: SqsFile) -> Any:
    """Return the tree of a file, its tensors decoded when they are asked for."""
    return file.tree(lambda leaf: _lazy(file, leaf))


def _lazy(file: SqsFile, leaf: Leaf) -> LazyArray:
    spec = leaf.spec
    return LazyArray(spec.shape, spec.dtype, lambda: materialize(file.read(leaf.path)))


@contextlib.contextmanager
def progress(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show a bar on stderr, where that is a terminal; yields advance(amount)."""
    columns = TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.update(task, advance=amount)


def tracked(tree: Any, advance: Callable[[float], None]) -> Any:
    """Return a tree of lazy arrays, telling of each that is read by its size in bytes."""

    def tell(tensor: LazyArray) -> LazyArray:
        def read() -> Any:
            array = tensor.__array__()
            advance(tensor.nbytes)
            return array

        return LazyArray(tensor.shape, tensor.dtype, read)

    return jax.tree.map(tell, tree)


def print_json(value: Any) -> None:
    """Print a result for another program; what is not finite becomes null."""
    say(json.dumps(_finite(value), indent=1))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
