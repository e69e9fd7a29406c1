"""Round trips of msgpack files keep lists and keys."""

import jax
import numpy as np
import pytest
from flax import serialization

from sqs_jax.checkpoints import write_msgpack
from tests.cli.checkpoints import run, weights, write_json

TREE = {
    "layers": [weights(32, 32), None, {"bias": weights(3)}],
    "by number": {3: weights(4), 11: weights(5)},
    "empty": {},
}


def restored(path):
    return serialization.msgpack_restore(path.read_bytes())


@pytest.mark.parametrize("folder", [False, True])
def test_lists_and_integer_keys_come_back(folder, tmp_path):
    source = tmp_path / "source"
    if folder:
        write_json(source / "config.json", {})
    file = source / "flax_model.msgpack" if folder else source
    file.write_bytes(serialization.msgpack_serialize(TREE))
    assert run("compress", source, "-o", tmp_path / "packed", "--target-ratio", 2) == 0
    again = tmp_path / ("again" if folder else "again.msgpack")
    assert run("decompress", tmp_path / "packed", "-o", again) == 0
    back = restored(again / file.name if folder else again)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    np.testing.assert_array_equal(back["by number"][11], TREE["by number"][11])


def test_a_tree_of_another_format_is_written_as_flax_loads_it(tmp_path):
    path = tmp_path / "m.msgpack"
    write_msgpack(path, {"layers": [weights(2), weights(3)]})
    target = {"layers": [np.zeros(2, np.float32), np.zeros(3, np.float32)]}
    back = serialization.from_bytes(target, path.read_bytes())
    np.testing.assert_array_equal(back["layers"][1], weights(3))
