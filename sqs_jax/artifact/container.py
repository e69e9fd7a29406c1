"""The container: a safetensors file of two byte streams, "index" and "data".

    8 bytes             length of the header, little-endian
    header              JSON, padded with spaces to a multiple of 8: safetensors' own
    "index"             JSON, compressed in the .lzma format, and its CRC-32
    "data"              the bytes of each leaf and their CRC-32; left out if there are no leaves

Both are of dtype U8. `__metadata__` is {"format": "sqs", "version": "1.0"}, or "1.1" where a file
needs what 1.1 added.
"""

import json
import lzma
import struct
import zlib
from typing import Any, BinaryIO, NamedTuple

__all__ = [
    "CHECKSUM",
    "DAMAGED",
    "FIRST_VERSION",
    "MAX_INDEX",
    "VERSION",
    "Streams",
    "index_text",
    "max_index",
    "read_header",
    "read_index",
    "sealed",
    "unsealed",
    "write_header",
    "write_index",
]

VERSION = (1, 1)
"""A reader refuses a newer first number, and reads what it knows of a newer second one."""
FIRST_VERSION = (1, 0)
"""What is written where a file needs nothing that came later: older readers take it whole."""
CHECKSUM = 4
"""Bytes of the CRC-32 behind the index and behind each leaf."""
MAX_HEADER = 1 << 16
MAX_INDEX = 1 << 22
"""The most bytes of JSON the index of a 1.0 file may unfold to."""
DICTIONARY = 1 << 22
"""Bytes that LZMA looks back in an index; a reader's decoder takes up to four times as many."""
INDEX_PER_LEAF = 512
"""Bytes of JSON more for each leaf that has bytes of its own: its name twice, shapes, figures."""

MAGIC = {
    b"PK\x03\x04": "a zip archive (.npz or a PyTorch file)",
    b"\x93NUMPY": "a numpy array (.npy)",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04\x95": "a Python pickle",
    b"\x80\x05\x95": "a Python pickle",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
    b"GGUF": "a GGUF file",
}
DAMAGED = "the file is damaged or cut short; copy it again"


class Streams(NamedTuple):
    """Where the two streams lie in a file: (start, end) in bytes from its beginning."""

    of_index: tuple[int, int]
    data: tuple[int, int]
    version: tuple[int, int]


def write_header(
    index_bytes: int, data_bytes: int, version: tuple[int, int] = FIRST_VERSION
) -> bytes:
    """Return what stands before the streams.

    It is written here and not by safetensors, which puts the two entries of `__metadata__` in a
    random order: the same model must be the same bytes.
    """
    metadata = {"format": "sqs", "version": ".".join(map(str, version))}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, size in (("index", index_bytes), ("data", data_bytes)):
        if size:
            start, end = end, end + size
            header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(file: BinaryIO, file_bytes: int) -> Streams:
    """Find the streams of a file, which is not to be trusted.

    Args:
        file: At its beginning.
        file_bytes: Its length.

    Raises:
        ValueError: If this is no sqs file that this version reads; says what it seems to be.
    """
    if not file_bytes:
        raise ValueError("the file is empty; it was never written, copy it again")
    first = file.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else file_bytes
    head = file.read(min(length, file_bytes, MAX_HEADER))
    for magic, name in MAGIC.items():
        if first.startswith(magic):
            raise ValueError(f"this is {name}, not an sqs file; open it with what wrote it")
    ours = b'"format":"sqs"' in head[:256]
    header = _object(head) if length == len(head) else None
    if header is None:
        if ours:
            raise ValueError(DAMAGED)
        raise ValueError(
            "this is neither an sqs file nor a whole safetensors file; give a file that "
            "sqs_jax.save wrote"
        )
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or metadata.get("format") != "sqs":
        raise ValueError(
            "this is a safetensors file, but its metadata does not say format 'sqs': "
            f"{metadata!r:.200}; open it with safetensors, or compress it"
        )
    version = _version(metadata.get("version"))
    end = 8 + length
    spans = {"index": (end, end), "data": (end, end)}
    for name, entry in sorted(header.items(), key=lambda item: item[0] != "index"):
        size = entry.get("shape") if isinstance(entry, dict) else None
        if name not in spans or not (isinstance(size, list) and len(size) == 1):
            raise ValueError(f"unknown entry {name!r:.50}; {DAMAGED}")
        start, end = end, end + size[0] if type(size[0]) is int and size[0] > 0 else 0
        offsets = [start - 8 - length, end - 8 - length]
        expected = {"dtype": "U8", "shape": size, "data_offsets": offsets}
        # Equal as text: 1.0 and true are no offsets.
        if not end or json.dumps(entry, sort_keys=True) != json.dumps(expected, sort_keys=True):
            raise ValueError(f"entry {name!r} claims bytes that are not there; {DAMAGED}")
        spans[name] = start, end
    if end != file_bytes:
        raise ValueError(f"the header claims {end} bytes of {file_bytes}; {DAMAGED}")
    return Streams(spans["index"], spans["data"], version)


def _object(text: bytes) -> dict[str, Any] | None:
    """Return a JSON object, None if the text is none or says anything twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _version(text: Any) -> tuple[int, int]:
    numbers = text.split(".") if isinstance(text, str) else []
    plain = all(n.isascii() and n.isdecimal() and len(n) < 10 for n in numbers)
    if not (plain and len(numbers) == 2):
        raise ValueError(f"format version {text!r:.50} is not two numbers; {DAMAGED}")
    major, minor = map(int, numbers)
    if not 1 <= major <= VERSION[0]:
        raise ValueError(
            f"format version {text} is not one that this sqs_jax reads (1.0 to {VERSION[0]}.x); "
            "upgrade sqs_jax"
        )
    return major, minor


def sealed(data: bytes) -> bytes:
    """Return bytes with their CRC-32 behind them, little-endian."""
    return data + struct.pack("<I", zlib.crc32(data))


def unsealed(data: bytes) -> bytes:
    """Return the bytes of `sealed`.

    Raises:
        ValueError: If the checksum does not match.
    """
    data, checksum = data[:-CHECKSUM], data[-CHECKSUM:]
    if struct.pack("<I", zlib.crc32(data)) != checksum:
        raise ValueError(f"a checksum does not match; {DAMAGED}")
    return data


def max_index(leaves: int) -> int:
    """Return how many bytes of JSON the index of so many leaves may unfold to.

    Args:
        leaves: Leaves with bytes of their own, attachments included. Shared ones do not count: each
            of the others has a checksum in the file, so that memory stays in proportion to it.
    """
    return MAX_INDEX + INDEX_PER_LEAF * leaves


def index_text(index: dict[str, Any], leaves: int) -> bytes:
    """Return the index as JSON.

    Args:
        index: Its keys and values.
        leaves: As for `max_index`.

    Raises:
        ValueError: If it is longer than a reader accepts.
    """
    text = json.dumps(index, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    if len(text) > max_index(leaves):
        metadata = len(json.dumps(index.get("metadata"), separators=(",", ":")))
        raise ValueError(
            f"the index takes {len(text):,} bytes, metadata {metadata:,} of them, more than the "
            f"{max_index(leaves):,} that a reader accepts for {leaves:,} leaves; pass large "
            "metadata as attachments, and shorten the keys of the tree"
        )
    return text


def write_index(text: bytes) -> bytes:
    """Return the index as the bytes of a file, from its JSON."""
    # The small literal contexts suit JSON; lzma, as numbers and names are a third shorter than in
    # zlib's code. For the 6 to 10 MB of 36,096 leaves preset 9 takes 2 to 6 s, preset 3 a tenth to
    # a third of that and between 16 % fewer and 18 % more bytes: little beside so many leaves.
    preset = 9 if len(text) <= MAX_INDEX else 3
    coder = {"id": lzma.FILTER_LZMA1, "dict_size": DICTIONARY, "lc": 1, "pb": 0, "preset": preset}
    return sealed(lzma.compress(text, lzma.FORMAT_ALONE, filters=[coder]))


def read_index(data: bytes, data_bytes: int) -> tuple[dict[str, Any], int]:
    """Unfold the index, which is not to be trusted.

    Args:
        data: Its bytes in the file.
        data_bytes: The bytes of all leaves together, which bound how many leaves there can be.

    Returns:
        The index, and the length of its JSON, bytes.

    Raises:
        ValueError: If this is no index, or one that unfolds to more than a reader accepts.
    """
    unzip = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=4 * DICTIONARY)
    most = max_index(data_bytes // CHECKSUM)
    try:
        text = unzip.decompress(unsealed(data), most + 1)  # the end marker is read with one more
    except lzma.LZMAError as error:
        raise ValueError(f"the index cannot be read ({error}); {DAMAGED}") from error
    whole = unzip.eof and not unzip.unused_data and len(text) <= most
    index = _object(text) if whole else None
    if index is None:
        raise ValueError(f"the index is too long or no JSON object; {DAMAGED}")
    return index, len(text)
