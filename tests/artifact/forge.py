"""Forged files: any content with valid lengths and checksums, and their refusal."""

import json
import lzma
import tracemalloc

import pytest

from sqs_jax.artifact import SqsFile, SqsFileError, inspect, load, read_metadata
from sqs_jax.artifact import container as box

BYTES = 200 << 20


def refuse(path, data, says=None, *, by=(load, inspect, read_metadata)):
    """Assert that readers refuse bytes in little memory, with the path in the error."""
    path.write_bytes(data)
    for read in by:
        with pytest.raises(SqsFileError, match=says) as error:
            read(path)
        assert str(path) in str(error.value) and len(str(error.value)) < 1000
    tracemalloc.start()
    try:
        with pytest.raises(SqsFileError):
            by[0](path)
        assert tracemalloc.get_traced_memory()[1] < BYTES
    finally:
        tracemalloc.stop()


def assemble(index, leaves, *, packed=False):
    """Return the bytes of a file.

    Args:
        index: Value that JSON can represent, or the JSON itself as bytes.
        leaves: Bytes of the data of each leaf, without checksums.
        packed: True if `index` is compressed bytes already.
    """
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    head = box.sealed(text if packed else lzma.compress(text, lzma.FORMAT_ALONE))
    data = b"".join(map(box.sealed, leaves))
    return box.write_header(len(head), len(data)) + head + data


def parts(path):
    """Return the index of a file and the bytes of its leaves, attachments last."""
    data = path.read_bytes()
    with open(path, "rb") as file:
        streams = box.read_header(file, len(data))
    with SqsFile(path) as file:
        listed = [*file.leaves, *file._attachments.values()]
        own = [leaf for leaf in listed if leaf.shared_with is None]
    leaves = [data[leaf.offset : leaf.offset + leaf.spec.nbytes] for leaf in own]
    start, end = streams.data_span
    return box.read_index(data[slice(*streams.index_span)], end - start)[0], leaves


def forge(path, change):
    """Return the bytes of a file after `change(index, leaves)`, with valid checksums."""
    index, leaves = parts(path)
    change(index, leaves)
    return assemble(index, leaves)


def put(value, *keys):
    """Return a change for `forge` that sets a value of the index by its keys."""

    def change(index, leaves):
        node = index
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    return change
