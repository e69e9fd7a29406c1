"""Selection of tensors by the options --only, --exclude and --keep."""

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
    """Selected tensors of a checkpoint, and the names of the rest.

    Attributes:
        tree: Tree of the checkpoint without the tensors that are left out.
        left_out: Names of the tensors that are left out.
    """

    tree: Any
    left_out: list[str]


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options --only and --exclude."""
    for name, what, more in (
        ("--only", "compress only tensors", ""),
        ("--exclude", "leave out tensors", "; also leaves out files of a folder"),
    ):
        parser.add_argument(
            name,
            action="append",
            default=[],
            metavar="PATTERN",
            type=pattern_type,
            help=f"{what} whose name, or the name up to a slash or dot, fully matches this regular "
            "expression; may be repeated" + more,
        )


def pattern_type(text: str) -> str:
    """Check a regular expression on the command line; the type of an option."""
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
    """Return a regular expression for a pattern followed by nothing, "/..." or "..."."""
    return rf"(?:{pattern})(?:[/.](?s:.*))?"


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return a predicate of names that match any of the patterns."""
    compiled = [re.compile(whole_or_part(pattern)) for pattern in patterns]
    return lambda name: any(regex.fullmatch(name) for regex in compiled)


def select(tree: Any, only: Sequence[str], exclude: Sequence[str], source: str) -> Selection:
    """Select tensors by the patterns of --only and --exclude.

    Args:
        tree: Tree of a checkpoint.
        only: Patterns of the tensors to take; empty for all tensors.
        exclude: Patterns of the tensors to leave out.
        source: Path of the checkpoint, for messages.

    Raises:
        ValueError: If a pattern of --only matches nothing, or no tensor is left.
    """
    names = list(flat_names(tree))
    for pattern in only:
        if not any(map(matcher([pattern]), names)):
            raise ValueError(no_match("--only", pattern, names, source))
    included, excluded = matcher(only), matcher(exclude)
    left_out = [n for n in names if (only and not included(n)) or excluded(n)]
    if names and len(left_out) == len(names):
        raise ValueError(f"{source}: --only and --exclude leave no tensor of {len(names)}")
    return Selection(without(tree, set(left_out)) if left_out else tree, left_out)


def no_match(option: str, pattern: str, names: Sequence[str], source: str) -> str:
    """Format the error of a pattern that matches no tensor."""
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{option} {pattern!r} matches no tensor of {source}; there are: {shown or 'none'}"


def without(tree: Any, names: set[str], path: tuple[str, ...] = ()) -> Any:
    """Remove leaves from a tree; a removed element of a list becomes None.

    Args:
        tree: Tree of a checkpoint.
        names: Names of the leaves to remove, as `flat_names` forms them.
        path: Keys above the tree, for the recursion.
    """
    if isinstance(tree, dict):
        children = {key: without(child, names, (*path, str(key))) for key, child in tree.items()}
        return {key: child for key, child in children.items() if not _is_gone(child, tree[key])}
    if isinstance(tree, list | tuple):
        return [without(child, names, (*path, str(i))) for i, child in enumerate(tree)]
    return None if "/".join(path) in names else tree


def _is_gone(child: Any, before: Any) -> bool:
    """Return whether a subtree lost all of its leaves."""
    return not jax.tree.leaves(child) and bool(jax.tree.leaves(before))
