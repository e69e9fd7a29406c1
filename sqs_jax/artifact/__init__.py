"""What ships: codes and codebooks, their bits, and the file.

`CompressedLeaf` and `materialize` say what a compressed tensor is; `summarize` and `inspect` count
its bits; `save` and `load` turn a tree of them into one small file and back. This package stands
on the ground: it knows arrays and trees of them, and nothing of how they were trained.
"""

from sqs_jax.artifact.bits import AttachmentSize, LeafSize, SizeReport
from sqs_jax.artifact.composed import OverlayLeaf, ProductLeaf, ScaledLeaf, TransposedLeaf
from sqs_jax.artifact.compressed import CompressedLeaf, GridLeaf, is_compressed, materialize
from sqs_jax.artifact.file import (
    inspect,
    load,
    read_attachments,
    read_metadata,
    save,
    summarize,
)
from sqs_jax.artifact.reader import SqsFile, SqsFileError

__all__ = [
    "AttachmentSize",
    "CompressedLeaf",
    "GridLeaf",
    "LeafSize",
    "OverlayLeaf",
    "ProductLeaf",
    "ScaledLeaf",
    "SizeReport",
    "SqsFile",
    "SqsFileError",
    "TransposedLeaf",
    "inspect",
    "is_compressed",
    "load",
    "materialize",
    "read_attachments",
    "read_metadata",
    "save",
    "summarize",
]
