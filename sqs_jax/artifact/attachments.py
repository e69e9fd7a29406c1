"""Named byte strings beside the tensors: a tokenizer, a configuration, a licence."""

import dataclasses
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

from sqs_jax.artifact.spec import LeafSpec, SymbolsSpec

__all__ = ["KIND", "Attachment", "check_attachment", "check_attachments", "unwrap", "wrap"]

KIND = "attachment"
MAX_NAME = 255
"""The most bytes of UTF-8 in a name: what common file systems take."""


@dataclasses.dataclass(frozen=True)
class Attachment:
    """Bytes that are to be stored under a name, as a uint8 array `[n]`."""

    data: np.ndarray


def check_attachments(attachments: Mapping[str, bytes] | None) -> dict[str, Attachment]:
    """Check attachments that are to be written.

    Args:
        attachments: Bytes-like values by name; None stands for none.

    Returns:
        The attachments by ascending name.

    Raises:
        TypeError: If a name is no str or a value is not bytes-like.
        ValueError: If a name cannot be the name of a file.
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
    """Raise ValueError unless a name can be the name of a file in any folder."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    odd = any(c in "/\\" or unicodedata.category(c) == "Cc" for c in name)
    if not 1 <= size <= MAX_NAME or odd or name in (".", ".."):
        raise ValueError(
            f"the attachment name {name!r:.300} cannot be the name of a file; use 1 to {MAX_NAME} "
            "bytes of UTF-8 without slashes, backslashes and control characters, not '.' or '..'"
        )


def check_attachment(spec: LeafSpec) -> None:
    """Raise ValueError unless a leaf is an attachment."""
    part = spec.parts[0] if len(spec.parts) == 1 else None
    fits = isinstance(part, SymbolsSpec) and part.alphabet == 256 and part.shape == spec.shape
    if not fits or len(spec.shape) != 1 or spec.dtype != "uint8" or spec.attributes:
        raise ValueError("an attachment is symbols of one axis, below 256")


def wrap(index: dict[str, Any], nodes: dict[str, Any]) -> None:
    """Put the nodes of attachments, if any, into an index.

    Readers of 1.0 see a tuple of the tree and a dict: they list both, and refuse an attachment by
    its kind, when it is read. Outside of `tree` they would find streams that nothing claims, and
    refuse the file.
    """
    if nodes:
        index.update(tree=["t", index["tree"], nodes], attachments=True)


def unwrap(index: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the skeleton of the tree, and the node of each attachment by ascending name.

    Args:
        index: Of a file, not to be trusted. The skeleton and the nodes are not checked.

    Raises:
        ValueError: If it says that it has attachments, and has not, or not by proper names.
    """
    skeleton = index.get("tree")
    if "attachments" not in index:
        return skeleton, {}
    match skeleton:
        case ["t", inner, dict(nodes)] if index["attachments"] is True:
            for name in nodes:
                check_name(name)
            return inner, dict(sorted(nodes.items()))
    raise ValueError("the index has no attachments where it says so")
