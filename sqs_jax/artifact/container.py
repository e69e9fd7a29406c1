"""The container: a safetensors file of two byte streams, "index" and "data".

    8 bytes             length of the header, little-endian
    header              JSON, padded with spaces to a multiple of 8: safetensors' own
    "index"             JSON, compressed in the .lzma format, and its CRC-32
    "data"              the bytes of each leaf and their CRC-32; left out if there are no leaves

Both streams have dtype U8. `__metadata__` is {"format": "sqs", "version": "1.0"}, or "1.1" for a
file that uses a feature of 1.1.
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
"""Newest version of the format, as (major, minor). A reader refuses files of a newer major version.
Of files of a newer minor version it reads the leaves that it knows."""
FIRST_VERSION = (1, 0)
"""Version of a file that uses no feature of a later version, so that older readers accept it."""
CHECKSUM = 4
"""Bytes of the CRC-32 after the index and after each leaf."""
MAX_HEADER = 1 << 16
"""Largest header, bytes."""
MAX_INDEX = 1 << 22
"""Largest index of a 1.0 file, bytes of JSON."""
DICTIONARY = 1 << 22
"""Size of the LZMA dictionary of an index, bytes; a reader accepts up to four times as much."""
INDEX_PER_LEAF = 512
"""Bytes of JSON that each leaf with data adds to `MAX_INDEX`: its name twice, shapes, figures."""

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
    """Positions of the two streams of a file, as (start, end) in bytes.

    Attributes:
        index_span: Position of the index, from the beginning of the file.
        data_span: Position of the leaves, from the beginning of the file.
        version: Version of the format, (major, minor).
    """

    index_span: tuple[int, int]
    data_span: tuple[int, int]
    version: tuple[int, int]


def write_header(
    index_bytes: int, data_bytes: int, version: tuple[int, int] = FIRST_VERSION
) -> bytes:
    """Return the header of a file, with its length in front.

    The safetensors library is not used, because it writes the entries of `__metadata__` in random
    order. The same model must give the same bytes.

    Args:
        index_bytes: Length of the index stream.
        data_bytes: Length of the data stream.
        version: Version of the format, (major, minor).
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
    """Read the header of an untrusted file.

    Args:
        file: File, positioned at its beginning.
        file_bytes: Length of the file.

    Returns:
        The positions of the streams, which cover the rest of the file.

    Raises:
        ValueError: If the file is no sqs file, or of a newer major version. The message names the
            format that the file seems to have.
    """
    if not file_bytes:
        raise ValueError("the file is empty; it was never written, copy it again")
    first = file.read(8)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else file_bytes
    head = file.read(min(length, file_bytes, MAX_HEADER))
    for magic, name in MAGIC.items():
        if first.startswith(magic):
            raise ValueError(f"this is {name}, not an sqs file; open it with what wrote it")
    claims_sqs = b'"format":"sqs"' in head[:256]
    header = _parse_object(head) if length == len(head) else None
    if header is None:
        if claims_sqs:
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
        # Compared as text, because in Python 1 == 1.0 == True.
        if not end or json.dumps(entry, sort_keys=True) != json.dumps(expected, sort_keys=True):
            raise ValueError(f"entry {name!r} claims bytes that are not there; {DAMAGED}")
        spans[name] = start, end
    if end != file_bytes:
        raise ValueError(f"the header claims {end} bytes of {file_bytes}; {DAMAGED}")
    return Streams(spans["index"], spans["data"], version)


def _parse_object(text: bytes) -> dict[str, Any] | None:
    """Return a JSON object; None unless `text` is an object with unique names."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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
    """Return `data` with a little-endian CRC-32 appended."""
    return data + struct.pack("<I", zlib.crc32(data))


def unsealed(data: bytes) -> bytes:
    """Verify and remove the checksum that `sealed` appended.

    Raises:
        ValueError: If the checksum does not match.
    """
    data, checksum = data[:-CHECKSUM], data[-CHECKSUM:]
    if struct.pack("<I", zlib.crc32(data)) != checksum:
        raise ValueError(f"a checksum does not match; {DAMAGED}")
    return data


def max_index(leaves: int) -> int:
    """Return the largest length of an index that a reader accepts, bytes of JSON.

    Args:
        leaves: Number of leaves with data, attachments included. Leaves that share the data of
            another do not count. Each leaf with data has a checksum, so that the bound stays in
            proportion to the length of the file.
    """
    return MAX_INDEX + INDEX_PER_LEAF * leaves


def index_text(index: dict[str, Any], leaves: int) -> bytes:
    """Return the JSON of an index.

    Args:
        index: Keys and values of the index.
        leaves: Number of leaves with data, see `max_index`.

    Raises:
        ValueError: If the JSON is longer than a reader accepts.
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
    """Return the index stream of a file: compressed JSON and a checksum."""
    # LZMA codes names and numbers in a third fewer bytes than zlib; lc=1 and pb=0 suit JSON.
    # Preset 9 takes 2 to 6 s for an index of 6 to 10 MB (36,096 leaves). Preset 3 takes a tenth to
    # a third of that, for 16 % fewer to 18 % more bytes, which are few beside the data.
    preset = 9 if len(text) <= MAX_INDEX else 3
    coder = {"id": lzma.FILTER_LZMA1, "dict_size": DICTIONARY, "lc": 1, "pb": 0, "preset": preset}
    return sealed(lzma.compress(text, lzma.FORMAT_ALONE, filters=[coder]))


def read_index(data: bytes, data_bytes: int) -> tuple[dict[str, Any], int]:
    """Decompress the index of an untrusted file.

    Args:
        data: Index stream of the file.
        data_bytes: Length of the data stream, which bounds the number of leaves.

    Returns:
        The index, and the length of its JSON in bytes.

    Raises:
        ValueError: If `data` is no index, or its JSON is longer than a reader accepts.
    """
    unzip = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=4 * DICTIONARY)
    limit = max_index(data_bytes // CHECKSUM)
    try:
        text = unzip.decompress(unsealed(data), limit + 1)  # one byte more reads the end marker
    except lzma.LZMAError as error:
        raise ValueError(f"the index cannot be read ({error}); {DAMAGED}") from error
    complete = unzip.eof and not unzip.unused_data and len(text) <= limit
    index = _parse_object(text) if complete else None
    if index is None:
        raise ValueError(f"the index is too long or no JSON object; {DAMAGED}")
    return index, len(text)
