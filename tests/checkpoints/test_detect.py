"""Detection of formats by content, and errors for other files with their remedy."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

from sqs_jax.artifact import save
from sqs_jax.checkpoints import CheckpointError, open_checkpoint

PICKLED = {protocol: b"\x80" + bytes([protocol]) + b"}q\x00." for protocol in (2, 3, 4, 5)}


@pytest.mark.parametrize("extension", ["", ".ckpt", ".safetensors", ".npz", ".msgpack", ".txt"])
def test_the_name_does_not_matter(extension, tmp_path):
    tree = {"a": np.ones(3, np.float32)}
    files = {kind: tmp_path / (kind + extension) for kind in ("safetensors", "npz", "msgpack")}
    safetensors.numpy.save_file(tree, files["safetensors"])
    with open(files["npz"], "wb") as file:
        np.savez(file, **tree)
    files["msgpack"].write_bytes(serialization.msgpack_serialize(tree))
    if extension == ".safetensors":
        del files["msgpack"]  # begins with an arbitrary byte, so that here the name decides
    for kind, path in files.items():
        assert open_checkpoint(path).kind == kind
        assert open_checkpoint(str(path)).kind == kind


@pytest.mark.parametrize("length", [0x0280, 0x0580, 0x8B1F, 0xA181, 0xA1DE])
def test_the_length_of_a_header_may_look_like_another_kind(length, tmp_path):
    """The lengths equal the first bytes of a pickle, a gzip file and a msgpack map."""
    path = tmp_path / "model"
    entry = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(length.to_bytes(8, "little") + entry.ljust(length) + b"\7")
    checkpoint = open_checkpoint(path)
    assert checkpoint.kind == "safetensors" and np.asarray(checkpoint.tree["a"]).tolist() == [7]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("m.safetensors", b"", "the file is empty"),
        ("m", b"", "the file is empty"),
        (
            "m",
            b"hello",
            "no checkpoint of a known kind, it begins with b'hello'; give .safetensors",
        ),
        ("m.json", b'{"a": 1, "b": 2}', "no checkpoint of a known kind"),
        ("m.pt", PICKLED[2], "PyTorch file.*convert it to safetensors first"),
        ("m", PICKLED[3], "would run code when it is loaded"),
        ("m.pkl", PICKLED[4], "would run code when it is loaded"),
        ("m.safetensors", PICKLED[5], "would run code when it is loaded"),
        ("m.bin", b"\0\1\2", "would run code when it is loaded"),
        ("m.npy", b"\x93NUMPY\1\0", "numpy.savez"),
        ("m.h5", b"\x89HDF\r\n", "HDF5"),
        ("m.safetensors.gz", b"\x1f\x8b\x08\0", "unpack it first"),
        ("m.gguf", b"GGUF\3\0\0\0", "GGUF"),
        ("m.sqs", b"anything", "sqs decompress"),
        ("m.npz", b"anything", "no zip archive"),
        ("m.npz", b"PK\5\6" + bytes(18), "without .npy files"),
        ("m.safetensors", b"anything {", "claims .* bytes, more than"),
    ],
)
def test_what_is_no_checkpoint_is_named(name, data, says, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=says) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_an_sqs_file_is_compressed_already(tmp_path):
    for name in ("m.sqs", "m.safetensors", "m"):
        save(tmp_path / name, {"a": np.ones(3)})
        with pytest.raises(CheckpointError, match=r"sqs file.*compressed already.*sqs decompress"):
            open_checkpoint(tmp_path / name)


def test_folders_without_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"found nothing; give \.safetensors"):
        open_checkpoint(tmp_path)
    for number in range(7):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(CheckpointError, match=r"found 0.txt, 1.txt, .*4.txt, \.\.\.; give"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(PICKLED[2])
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: a PyTorch file.*convert"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.sqs").touch()
    with pytest.raises(CheckpointError, match=r"model.sqs: .*sqs decompress"):
        open_checkpoint(tmp_path)


def test_where_there_is_nothing_to_open(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_checkpoint(tmp_path / "no")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        open_checkpoint(tmp_path / "pipe")


def test_the_slow_libraries_are_imported_only_where_needed(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(3)}, tmp_path / "m")
    code = (
        "import sys; from sqs_jax.checkpoints import open_checkpoint;"
        "open_checkpoint(sys.argv[1]); assert 'orbax.checkpoint' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, tmp_path / "m"], check=True, cwd=root)


def test_a_tree_goes_through_jax(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(3, np.float32)}, tmp_path / "m")
    tree = open_checkpoint(tmp_path / "m").tree
    doubled = jax.tree.map(lambda leaf: 2 * jax.numpy.asarray(np.asarray(leaf)), tree)
    assert doubled["a"].tolist() == [2, 2, 2]
