"""Compressed models: leaves of codes and codebooks, size reports, and the file.

`leaves` defines compressed tensors and `materialize`. `file` turns a tree of leaves into a small
file and back, with `save` and `load`. `size_report` defines the sizes that `summarize` and
`inspect` return. The package depends on no other package of the library: it knows trees of arrays,
and nothing about their training.
"""

from sqs_jax.artifact.file import (
    inspect,
    load,
    read_attachments,
    read_metadata,
    save,
    summarize,
)
from sqs_jax.artifact.leaves import (
    CompressedLeaf,
    GridLeaf,
    OverlayLeaf,
    ProductLeaf,
    ScaledLeaf,
    TransposedLeaf,
    is_compressed,
    materialize,
)
from sqs_jax.artifact.reader import SqsFile, SqsFileError
from sqs_jax.artifact.size_report import AttachmentSize, LeafSize, SizeReport

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
