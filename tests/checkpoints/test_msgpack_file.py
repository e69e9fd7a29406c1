"""msgpack: files of flax.serialization are read; other files are refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training.train_state import TrainState

from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.checkpoints import CheckpointError, open_checkpoint
from tests.checkpoints.arrays import array, same, state

NAMES = [name for name in DTYPES if not name.startswith(("int2", "uint2", "int4", "uint4"))]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint_100"  # as flax.training.checkpoints named them


def test_what_msgpack_serialize_writes_is_read(path):
    tree = {"params": state(*NAMES), "list": [np.arange(3), None], "none": None, "none left": {}}
    path.write_bytes(serialization.msgpack_serialize(tree))
    checkpoint = open_checkpoint(path)
    assert same(checkpoint.tree, tree)
    assert (checkpoint.kind, checkpoint.metadata) == ("msgpack", {})
    assert checkpoint.nbytes == path.stat().st_size


def test_numbers_become_arrays(path):
    path.write_bytes(serialization.msgpack_serialize({"a": 3, "b": True, "c": 1.5, "d": 2j}))
    tree = open_checkpoint(path).tree
    assert same(
        tree, {"a": np.array(3), "b": np.array(True), "c": np.array(1.5), "d": np.array(2j)}
    )


def test_a_training_state(path):
    model = nn.Dense(3)
    params = model.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    training = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3))
    path.write_bytes(serialization.to_bytes(training))
    tree = open_checkpoint(path).tree
    assert same(tree["params"], jax.tree.map(np.asarray, params))
    assert int(np.asarray(tree["step"])) == 0 and "0" in tree["opt_state"]


def test_arrays_in_chunks(path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    tree = {"a": {"b": array("float32", (10, 10))}}
    path.write_bytes(serialization.msgpack_serialize(tree))
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    assert same(open_checkpoint(path).tree, tree)


def test_what_is_read_is_the_callers(path):
    path.write_bytes(serialization.msgpack_serialize({"a": np.zeros(3)}))
    leaf = open_checkpoint(path).tree["a"]
    np.array(leaf)[:] = 1
    assert (np.asarray(leaf) == 0).all()


def ndarray(shape, dtype, data):
    return msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x81\xa1a", "no whole msgpack file"),
        (b"\x81\xa1a\xc1", "no whole msgpack file"),
        (b"\x81\xa1a\x01\x01", "no whole msgpack file"),
        (b"\x81\xa1a" * 5000, "no whole msgpack file"),
        (b"\x81\xa1a" * 300 + b"\x01", "deeper than 200"),
        (b"\xdf\xff\xff\xff\xff\xa1a", "no whole msgpack file"),
        (ndarray([1], "O", bytes(8)), "no whole msgpack file"),
        (ndarray([3], "float32", bytes(8)), "no whole msgpack file"),
        (ndarray([0, 1 << 62], "float32", b""), "no whole msgpack file"),
        (ndarray([1], "V2", bytes(2)), r"'a' is of dtype \|V2"),
        (ndarray([1], "nothing", bytes(2)), "no whole msgpack file"),
        (msgpack.packb({"a": {"__msgpack_chunked_array__": True}}), "no whole msgpack file"),
        (msgpack.packb({"a": {"b": "text"}}), "'a/b' is str, 'text'"),
        (msgpack.packb({"a": {"b": b"bytes"}}), "'a/b' is bytes"),
        (msgpack.packb({"a": {1.5: 1}}), "'a' has the key 1.5"),
    ],
)
def test_foreign_bytes_are_refused(data, says, path):
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=says) as error:
        open_checkpoint(path)
    assert str(error.value).startswith(str(path))


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    data = serialization.msgpack_serialize({"params": {"w": np.ones(4, np.float32)}})
    path = tmp_path / "model.msgpack"
    for size in range(1, len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="copy it again"):
            open_checkpoint(path)
