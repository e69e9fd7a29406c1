"""Which tensors of a checkpoint a command takes: --only, --exclude, --keep."""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from sqs_jax.checkpoints import flat_names

__all__ = [
    "Selection",
    "add_selection",
    "is_regex",
    "matcher",
    "no_match",
    "pattern_type",
    "select",
    "whole_or_part",
    "without",
]


class Selection(NamedTuple):
    """The tensors that are taken, and the names of those that are not.

    Attributes:
        tree: The checkpoint's tree without what is left out.
        left_out: Names of the tensors that are left out.
    """

    tree: Any
    left_out: list[str]


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add --only and --exclude."""
    for name, what, more in (
        ("--only", "take only tensors", ""),
        ("--exclude", "leave out tensors", "; also names files of a folder that are not needed"),
    ):
        parser.add_argument(
            name,
            action="append",
            default=[],
            metavar="PATTERN",
            type=pattern_type,
            help=f"{what} whose name, or the name up to a / or . in it, matches this regular "
            "expression as a whole; may be given again" + more,
        )


def pattern_type(text: str) -> str:
    """Return a regular expression from the command line, or say that it is none."""
    if not is_regex(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression")
    return text


def is_regex(text: str) -> bool:
    """Return whether a text is a regular expression."""
    try:
        re.compile(whole_or_part(text))
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def whole_or_part(pattern: str) -> str:
    """Return the expression that a whole name matches if the pattern matches it up to a / or ."""
    return rf"(?:{pattern})(?:[/.](?s:.*))?"


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return whether a name matches any of the patterns."""
    compiled = [re.compile(whole_or_part(pattern)) for pattern in patterns]
    return lambda name: any(regex.fullmatch(name) for regex in compiled)


def select(tree: Any, only: Sequence[str], exclude: Sequence[str], source: str) -> Selection:
    """Leave out the tensors that --only and --exclude say.

    Args:
        tree: A checkpoint's tree.
        only: Patterns; none take every tensor.
        exclude: Patterns.
        source: Path of the checkpoint, for messages.

    Raises:
        ValueError: If a pattern of --only matches nothing, or no tensor is left.
    """
    names = list(flat_names(tree))
    for pattern in only:
        if not any(map(matcher([pattern]), names)):
            raise ValueError(no_match("--only", pattern, names, source))
    wanted, unwanted = matcher(only), matcher(exclude)
    left_out = [n for n in names if (only and not wanted(n)) or unwanted(n)]
    if names and len(left_out) == len(names):
        raise ValueError(f"{source}: --only and --exclude leave no tensor of {len(names)}")
    return Selection(without(tree, set(left_out)) if left_out else tree, left_out)


def no_match(option: str, pattern: str, names: Sequence[str], source: str) -> str:
    """Say that a pattern matches no tensor."""
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{option} {pattern!r} matches no tensor of {source}; there are: {shown or 'none'}"


def without(tree: Any, names: set[str], path: tuple[str, ...] = ()) -> Any:
    """Return a tree without the leaves of these names; places in lists become None."""
    if isinstance(tree, dict):
        children = {key: without(child, names, (*path, str(key))) for key, child in tree.items()}
        return {key: child for key, child in children.items() if not _is_gone(child, tree[key])}
    if isinstance(tree, list | tuple):
        return [without(child, names, (*path, str(i))) for i, child in enumerate(tree)]
    return None if "/".join(path) in names else tree


def _is_gone(child: Any, before: Any) -> bool:
    """Return whether a child was a tensor, or held some, and none of them is left."""
    return not jax.tree.leaves(child) and bool(jax.tree.leaves(before))
