"""The bound on the length of an index: enough for any model, and no more."""

import json
import re

import numpy as np
import pytest

from sqs_jax.artifact import SqsFile, SqsFileError, container, inspect, load, read_metadata, save
from tests.artifact.forge import assemble, parts, refuse
from tests.artifact.trees import same


def test_the_names_of_a_large_mixture_of_experts_fit_twice(path):
    """A model has 36,096 tensors; its metadata list every name with a shard."""
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight"
        for layer in range(94)
        for expert in range(128)
        for kind in ("down", "gate", "up")
    ]
    tree = {name: np.full(1, i, np.uint16) for i, name in enumerate(names)}
    shards = {name: f"model-{i // 306 + 1:05}-of-00118.safetensors" for i, name in enumerate(names)}
    save(path, tree, metadata={"weight_map": shards})
    with SqsFile(path) as file:
        assert file.version == (1, 1) and len(file.leaves) == 36_096
        assert file.read(names[-1])[0] == 36_095
    index, _ = parts(path)
    assert len(json.dumps(index)) > container.MAX_INDEX
    assert same(load(path), tree) and read_metadata(path)["weight_map"] == shards
    assert inspect(path).weights == 36_096


def test_the_limit_is_exact(path, monkeypatch):
    """A file has version 1.0 below `MAX_INDEX`; an index beyond the bound is refused."""
    for module in ("container", "file"):
        monkeypatch.setattr(f"sqs_jax.artifact.{module}.MAX_INDEX", 1000)
    monkeypatch.setattr(container, "INDEX_PER_LEAF", 10)
    tree = [np.ones(2), np.zeros(3), np.arange(1500.0), np.arange(1500.0)]  # the last is shared

    def write(length):
        save(path, tree, metadata={"a": "x" * length})
        index, _ = parts(path)
        with SqsFile(path) as file:
            return len(json.dumps(index, separators=(",", ":"))), file.version

    fixed = write(0)[0]
    assert write(999 - fixed) == (999, (1, 0)) and write(1000 - fixed) == (1000, (1, 1))
    assert write(1030 - fixed) == (1030, (1, 1)) and same(load(path), tree)
    data = path.read_bytes()
    with pytest.raises(ValueError, match=r"takes 1,031 bytes, metadata 8.. of them.*1,030.*3 leav"):
        write(1031 - fixed)
    assert path.read_bytes() == data
    index, leaves = parts(path)
    index["metadata"]["a"] += "x"
    text = json.dumps(index, separators=(",", ":")).encode()
    refuse(path, assemble(text, leaves), "1031 bytes is too long for 3 leaves")


def test_the_index_is_bounded_by_the_bytes_of_the_file(path):
    """The data stream bounds the number of leaves, as each leaf has a checksum."""
    index = {"tree": None, "arrays": [], "symbols": []}
    for leaves, says in (([], "too long or no JSON"), ([b"x" * 9000], "too long for 1 leaves")):
        nodes = ["d"] * len(leaves)
        index["tree"] = ["l", *nodes]
        index["arrays"] = [[[9000]], ["uint8"], ["uint8"]] if leaves else []
        index["metadata"] = {"a": "x" * (container.MAX_INDEX + 1000)}
        refuse(path, assemble(index, leaves), says)
    index["metadata"] = {"a": "x" * (container.max_index(9004 // 4) + 1000)}
    refuse(path, assemble(index, leaves), "too long or no JSON")


def test_the_remedy_of_the_message_works(path):
    large = {"vocabulary": "x" * (1 << 23)}
    with pytest.raises(ValueError) as error:
        save(path, {}, metadata=large)
    figures = re.findall(r"[\d,]{7,}", str(error.value))
    assert [int(figure.replace(",", "")) for figure in figures[1:]] == [(1 << 23) + 17, 1 << 22]
    assert "pass large metadata as attachments" in str(error.value)
    save(path, {}, attachments={"vocabulary.json": json.dumps(large).encode()})
    assert inspect(path).attachments[0].original_bytes > 1 << 23


def test_every_leaf_needs_a_checksum_or_is_shared(path):
    save(path, [np.arange(2000.0)] * 3)
    index, leaves = parts(path)
    index["tree"] = ["l", "d", *[["r", 0]] * 9]
    index["metadata"] = {"a": "x" * container.max_index(2)}
    with pytest.raises(SqsFileError, match="too long for 1 leaves"):
        path.write_bytes(assemble(index, leaves))
        load(path)
