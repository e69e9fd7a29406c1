"""Attachments: named byte strings beside the tensors, for example a tokenizer."""

import dataclasses
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

from sqs_jax.artifact.spec import LeafSpec, SymbolsSpec

__all__ = ["KIND", "Attachment", "check_attachment", "check_attachments", "unwrap", "wrap"]

KIND = "attachment"
MAX_NAME = 255
"""Largest length of a name in bytes of UTF-8, the limit of common file systems."""


@dataclasses.dataclass(frozen=True)
class Attachment:
    """Content of an attachment that is to be written, a uint8 array `[n]`."""

    data: np.ndarray


def check_attachments(attachments: Mapping[str, bytes] | None) -> dict[str, Attachment]:
    """Check the attachments of a file that is to be written.

    Args:
        attachments: Bytes-like values by name; None is an empty dict.

    Returns:
        The attachments by ascending name.

    Raises:
        TypeError: If a name is no str or a value is not bytes-like.
        ValueError: If a name is not valid as a file name.
    """
    if attachments is None:
        return {}
    if not isinstance(attachments, Mapping):
        raise TypeError(f"attachments is a {type(attachments).__name__}; give a dict of bytes")
    checked = {}
    for name, value in attachments.items():
        if not isinstance(name, str):
            raise TypeError(f"the attachment name {name!r:.100} is no str; name it as a file")
        check_name(name)
        try:
            data = memoryview(value).tobytes()
        except TypeError:
            raise TypeError(
                f"attachment {name!r} is a {type(value).__name__}, not bytes; encode text, "
                "text.encode(), and read a file, pathlib.Path(...).read_bytes()"
            ) from None
        checked[name] = Attachment(np.frombuffer(data, np.uint8))
    return dict(sorted(checked.items()))


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is valid as a file name on common file systems."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    has_bad_character = any(c in "/\\" or unicodedata.category(c) == "Cc" for c in name)
    if not 1 <= size <= MAX_NAME or has_bad_character or name in (".", ".."):
        raise ValueError(
            f"the attachment name {name!r:.300} cannot be the name of a file; use 1 to {MAX_NAME} "
            "bytes of UTF-8 without slashes, backslashes and control characters, not '.' or '..'"
        )


def check_attachment(spec: LeafSpec) -> None:
    """Raise ValueError unless the description of a leaf is that of an attachment."""
    part = spec.parts[0] if len(spec.parts) == 1 else None
    fits = isinstance(part, SymbolsSpec) and part.alphabet == 256 and part.shape == spec.shape
    if not fits or len(spec.shape) != 1 or spec.dtype != "uint8" or spec.attributes:
        raise ValueError("an attachment is symbols of one axis, below 256")


def wrap(index: dict[str, Any], nodes: dict[str, Any]) -> None:
    """Add the nodes of attachments to an index, if there are any.

    The nodes go into `tree`, beside the tree itself. A reader of format 1.0 then sees a tuple of
    the tree and a dict. It lists both, and refuses an attachment only when that leaf is read. With
    nodes elsewhere, it would find bytes that no leaf claims and refuse the whole file.

    Args:
        index: Index of the file, changed in place.
        nodes: Node of each attachment by name.
    """
    if nodes:
        index.update(tree=["t", index["tree"], nodes], attachments=True)


def unwrap(index: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Split the tree of an index into the skeleton and the nodes of attachments.

    Args:
        index: Index of an untrusted file.

    Returns:
        The skeleton, and the node of each attachment by ascending name, both unchecked.

    Raises:
        ValueError: If the index claims attachments and has none, or has invalid names.
    """
    skeleton = index.get("tree")
    if "attachments" not in index:
        return skeleton, {}
    match skeleton:
        case ["t", inner, dict(nodes)] if index["attachments"] is True:
            for name in nodes:
                check_name(name)
            return inner, dict(sorted(nodes.items()))
    raise ValueError("the index claims attachments and has none")
