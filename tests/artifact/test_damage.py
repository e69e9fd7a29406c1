"""Damaged files, false headers, other formats: refused by path, in little memory."""

import io
import json
import struct
import time
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from sqs_jax.artifact import (
    CompressedLeaf,
    SqsFile,
    SqsFileError,
    inspect,
    load,
    read_metadata,
    save,
)
from tests.artifact.forge import forge, refuse
from tests.artifact.trees import model, same, structured


def test_cut_short_at_any_byte(path, saved):
    _, data, start = saved
    cuts = np.random.default_rng(0).integers(start, len(data), 100)
    for cut in [*range(1, start + 1), *cuts.tolist(), len(data) - 1]:
        path.write_bytes(data[:cut])
        with pytest.raises(SqsFileError, match=r"m\.sqs"):
            load(path)
    refuse(path, data + b"\0")
    refuse(path, b"", "empty")


def test_a_flipped_bit_is_noticed(path, saved):
    tree, data, start = saved
    rng = np.random.default_rng(0)
    bits = [*range(0, 8 * start, 3), *rng.integers(0, 8 * len(data), 300).tolist()]
    accepted = 0
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            again = load(path)
        except SqsFileError:
            continue
        accepted += 1
        assert same(again, tree)
    assert accepted < 20  # spaces of the header, the second number of the version


def test_flipped_data_are_noticed_by_each_reader(path, saved):
    _, data, start = saved
    for at in np.random.default_rng(1).integers(start, len(data), 20):
        wrong = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        refuse(path, wrong, "checksum does not match.*leaf '", by=(load, inspect))
        assert read_metadata(path) == {"a": 1}


# Other files.


def zipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a", "b")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (safetensors.numpy.save({"w": np.ones(3)}), "safetensors"),
        (safetensors.numpy.save({"w": np.ones(3)}, {"format": "pt"}), "safetensors"),
        (zipped(), "zip"),
        (bytes.fromhex("80049507000000000000007d948c016194") + b"." * 99, "pickle"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}", "numpy"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"GGUF\x03\0\0\0" + bytes(99), "GGUF"),
        (b"\x1f\x8b\x08" + bytes(99), "gzip"),
        (b"hello, world, this is some text\n" * 9, "neither"),
        (b"x", "neither"),
        (bytes(1000), "neither"),
        (b"\xff" * 1000, "neither"),
        (b"\x10" + bytes(7) + b"[" * 16, "neither"),
        (b"\x00\x80" + bytes(6) + b"[" * (1 << 15), "neither"),
    ],
    ids=range(14),
)
def test_other_formats_are_named(data, says, path):
    refuse(path, data, says)


def test_a_missing_file_a_folder_and_a_forbidden_file_stay_themselves(path, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.sqs")
    with pytest.raises(IsADirectoryError):
        inspect(tmp_path)
    save(path, model())

    def forbidden(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", forbidden)
    for read in (load, inspect, read_metadata):
        with pytest.raises(PermissionError, match=r"m\.sqs"):
            read(path)


# The header.


def header(start, **changes):
    """Return a change of a file's header by key; "meta_..." are keys of its metadata."""

    def change(data):
        length = struct.unpack("<Q", data[:8])[0]
        fields = json.loads(data[8 : 8 + length])
        for key, value in changes.items():
            if key.startswith("meta_"):
                fields["__metadata__"][key[5:]] = value
            elif value is None:
                del fields[key]
            elif isinstance(value, dict):
                fields[key] = {**fields.get(key, {}), **value}
            else:
                fields[key] = value
        text = json.dumps(fields, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return change


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("2.0", "upgrade"),
        ("900.1", "upgrade"),
        ("0.9", "upgrade"),
        ("1", "two numbers"),
        ("1.0.0", "two numbers"),
        ("x", "two numbers"),
        ("1.", "two numbers"),
        ("-1.0", "two numbers"),
        ("1.٣", "two numbers"),
        ("1." + "9" * 5000, "two numbers"),
        ("", "two numbers"),
        (1.0, "two numbers"),
        (None, "two numbers"),
    ],
    ids=range(13),
)
def test_other_versions(version, says, path, saved):
    refuse(path, header(0, meta_version=version)(saved[1]), says)


def test_a_later_minor_version_is_read(path, saved):
    tree, _, _ = saved

    def later(index, leaves):
        index["later"] = {"anything": [1, 2]}

    data = forge(path, later)
    path.write_bytes(header(0, meta_version="1.7")(data))
    assert same(load(path), tree) and inspect(path).file_bytes == path.stat().st_size
    with SqsFile(path) as file:
        assert file.version == (1, 7)


HEADERS = [
    {"index": None},
    {"data": None},
    {"more": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
    {"index": 3},
    {"data": [1]},
    {"data": {"dtype": "I8"}},
    {"data": {"extra": 1}},
    *[{"data": {"shape": value}} for value in ([], [1, 2], 5, None, ["5"], [[5]], [True])],
    *[
        {name: {"shape": [value]}}
        for name in ("index", "data")
        for value in (0, -1, 1 << 62, 1 << 80, 1e300, 5.0)
    ],
    *[
        {name: {"data_offsets": value}}
        for name in ("index", "data")
        for value in ([], [0], [0, -1], [-8, 8], [0, 1 << 62], [5, 4], "ab", None, [True, 9])
    ],
    {"index": {"shape": [-5], "data_offsets": [0, -5]}},
    {"index": {"shape": [0], "data_offsets": [0, 0]}},
    {"meta_format": "SQS"},
    {"__metadata__": 3},
]


@pytest.mark.parametrize("changes", HEADERS, ids=range(len(HEADERS)))
def test_false_claims_in_the_header_are_refused(changes, path, saved):
    refuse(path, header(0, **changes)(saved[1]))


def test_numbers_of_the_header_are_integers(path, saved):
    data = saved[1]
    length = struct.unpack("<Q", data[:8])[0]
    fields = json.loads(data[8 : 8 + length])
    size = fields["index"]["shape"][0]
    assert fields["index"]["data_offsets"] == [0, size]
    for wrong in ([False, size], [0.0, size], [0, float(size)]):
        refuse(path, header(0, index={"data_offsets": wrong})(data), "not there")
    refuse(path, header(0, index={"shape": [float(size)]})(data), "not there")


def test_a_header_with_a_repeated_name_is_refused(path, saved):
    data = saved[1]
    length = struct.unpack("<Q", data[:8])[0]
    text = data[8 : 8 + length].rstrip()
    twice = text[:-1] + b',"data":' + json.dumps(json.loads(text)["data"]).encode() + b"}"
    twice += b" " * (-len(twice) % 8)
    refuse(path, struct.pack("<Q", len(twice)) + twice + data[8 + length :])
    for size in (0, 7, length - 1, length + 1, 1 << 16, 1 << 63, (1 << 64) - 1):
        refuse(path, struct.pack("<Q", size) + data[8:])
    long = text[:-1] + b" " * (1 << 17) + b"}"
    refuse(path, struct.pack("<Q", len(long)) + long + data[8 + length :])


# A file that changes.


def test_a_file_that_is_written_over_while_it_is_read(path, saved):
    tree, data, _ = saved
    other = {**tree, "context": CompressedLeaf(structured((60, 20, 3, 3), seed=1), np.ones((1, 4)))}
    for late in (data[:-1] + b"\0", data[:-50], data + b"\0", data[:0]):
        path.write_bytes(data)
        with SqsFile(path) as file:
            time.sleep(0.02)  # file times have a grain
            path.write_bytes(late)
            with pytest.raises(SqsFileError, match=r"m\.sqs.*changed while it was read"):
                file.tree()
    save(path, tree)
    with SqsFile(path) as file:
        save(path, other)  # replaces the file, does not touch the one that is open
        assert same(file.tree(), tree)
    assert same(load(path), other)
