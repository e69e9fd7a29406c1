"""Round trips: decompress restores the input of compress in every format."""

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors

from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.checkpoints import flat_names, open_checkpoint
from tests.cli.checkpoints import run, weights, write

RNG = np.random.default_rng(0)


def values(name):
    """Return values of a dtype; all 256 bit patterns for float8."""
    dtype = DTYPES[name]
    if dtype.itemsize == 1 and name.startswith("float8"):
        return np.arange(256, dtype=np.uint8).view(dtype)  # one axis: never compressed
    return (4 * RNG.standard_normal((5, 3))).astype(dtype)  # an odd number of elements


def every_dtype(tmp_path):
    tree = {name: values(name) for name in DTYPES}
    path = tmp_path / "all.msgpack"
    path.write_bytes(flax.serialization.msgpack_serialize({**tree, "w": weights(64, 64)}))
    assert run("compress", path, "-o", tmp_path / "all.sqs", "--target-bytes", "1MB") == 0
    return tree, tmp_path / "all.sqs"


@pytest.mark.parametrize("extension", [".safetensors", ".msgpack", ".MsgPack"])
def test_every_dtype_comes_back_bit_for_bit(extension, tmp_path):
    tree, packed = every_dtype(tmp_path)
    again = tmp_path / f"again{extension}"
    assert run("decompress", packed, "-o", again) == 0
    back = open_checkpoint(again)
    assert back.kind == extension[1:].lower()
    for name, original in tree.items():
        restored = np.asarray(back.tree[name])
        assert (restored.dtype, restored.shape) == (original.dtype, original.shape), name
        same = restored.tobytes() == original.tobytes()
        numbers = original == original  # sign and payload of NaN may change
        assert same or (restored.view(np.uint8) == original.view(np.uint8))[numbers].all(), name
    if extension == ".msgpack":  # which keeps the bits of NaN too
        assert run("verify", packed, again) == 0
    assert run("compress", again, "-o", tmp_path / "b.sqs", "--target-bytes", "1MB") == 0


def test_other_readers_get_the_values_of_what_safetensors_lacks(tmp_path):
    _, packed = every_dtype(tmp_path)
    assert run("decompress", packed, "-o", tmp_path / "a.safetensors") == 0
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.get_tensor("int4").dtype == np.int8
        assert file.get_tensor("complex128").shape == (5, 3, 2)
        assert "int4" in file.metadata()["sqs_dtypes"]


def test_npz_has_the_arrays_or_names_what_it_cannot_hold(tmp_path, capsys):
    tree = {"a": weights(64, 64), "b": {"c": np.ones(3, np.complex128), "d": np.array(True)}}
    (tmp_path / "m.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    assert (
        run("compress", tmp_path / "m.msgpack", "-o", tmp_path / "m.sqs", "--target-ratio=4") == 0
    )
    assert run("decompress", tmp_path / "m.sqs", "-o", tmp_path / "m.npz") == 0
    with np.load(tmp_path / "m.npz") as file:
        assert set(file) == {"a", "b/c", "b/d"} and file["b/d"].dtype == bool
        np.testing.assert_array_equal(file["b/c"], tree["b"]["c"])
    assert run("verify", tmp_path / "m.sqs", tmp_path / "m.npz") == 0
    write(tmp_path / "h.safetensors", {"h": weights(64, 64).astype(ml_dtypes.bfloat16)})
    source = tmp_path / "h.safetensors"
    assert run("compress", source, "-o", tmp_path / "h.sqs", "--target-ratio", 3) == 0
    assert run("decompress", tmp_path / "h.sqs", "-o", tmp_path / "h.npz") == 3
    error = capsys.readouterr().err
    assert "'h' is bfloat16" in error and ".safetensors" in error
    assert not (tmp_path / "h.npz").exists()


def test_a_nested_tree_stays_nested_in_msgpack(tmp_path):
    tree = {"params": {"dense": {"kernel": weights(64, 64)}}, "step": np.array(3)}
    (tmp_path / "m.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    assert (
        run("compress", tmp_path / "m.msgpack", "-o", tmp_path / "m.sqs", "--target-ratio=3") == 0
    )
    assert run("decompress", tmp_path / "m.sqs", "-o", tmp_path / "n.msgpack") == 0
    back = flax.serialization.msgpack_restore((tmp_path / "n.msgpack").read_bytes())
    assert set(flat_names(back)) == {"params/dense/kernel", "step"} and back["step"] == 3


@pytest.mark.parametrize("name", ["m.bin", "m.gguf", "m.pt", "m.onnx", "m", "m.txt"])
def test_other_extensions_are_refused(name, tmp_path, capsys):
    write(tmp_path / "m.safetensors", {"a": weights(64, 64)})
    args = ["compress", tmp_path / "m.safetensors", "-o", tmp_path / "m.sqs", "--target-ratio", 3]
    assert run(*args) == 0
    before = sorted(tmp_path.iterdir())
    assert run("decompress", tmp_path / "m.sqs", "-o", tmp_path / name) == 3
    error = capsys.readouterr().err
    assert name in error and all(x in error for x in (".safetensors", ".npz", ".msgpack"))
    assert sorted(tmp_path.iterdir()) == before


def test_the_metadata_of_shards_survive_in_one_file(tmp_path):
    source = tmp_path / "hf"
    for i, part in enumerate(("x", "y")):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        write(source / name, {f"t{i}": weights(32, 32)}, {"format": "pt", "part": part})
    packed = tmp_path / "packed"
    assert run("compress", source, "-o", packed, "--target-ratio", 2) == 0
    for input_path in (packed, packed / "model.sqs"):
        assert run("decompress", input_path, "-o", tmp_path / "one.safetensors") == 0
        with safetensors.safe_open(tmp_path / "one.safetensors", "np") as file:
            assert file.metadata() == {"format": "pt"}
    assert run("decompress", packed / "model.sqs", "-o", tmp_path / "shards") == 0
    with safetensors.safe_open(tmp_path / "shards" / name, "np") as file:
        assert file.metadata() == {"format": "pt", "part": "y"}


def test_names_that_a_zip_archive_cannot_hold_are_refused(tmp_path):
    from sqs_jax.checkpoints import CheckpointError, write_npz

    for names in (["a\0b", "a"], ["n" * 70_000]):
        with pytest.raises(CheckpointError, match="cannot be a name in a zip archive"):
            write_npz(tmp_path / "n.npz", {name: np.ones(2) for name in names})
    assert not (tmp_path / "n.npz").exists()
