"""Fixtures: the path of a file, and a file with every form of leaf."""

import numpy as np
import pytest

from sqs_jax.artifact import CompressedLeaf, leaf_codecs, save
from sqs_jax.artifact import container as box
from sqs_jax.artifact.digest_cache import DigestCache
from tests.artifact.trees import model, structured


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    """Empty the cache of coded leaves before each test."""
    monkeypatch.setattr(leaf_codecs, "_CACHE", DigestCache(1 << 20))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.sqs"


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    big = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    context = CompressedLeaf(structured((60, 20, 3, 3)), np.float32([[1, 2, 3, 4]]))
    tree = {**model(), "tied": [big, big], "context": context}
    path = tmp_path_factory.mktemp("original") / "m.sqs"
    save(path, tree, metadata={"a": 1})
    data = path.read_bytes()
    with open(path, "rb") as file:
        return tree, data, box.read_header(file, len(data)).data_span[0]


@pytest.fixture
def saved(path, original):
    """Save a file with every form of leaf; return tree, bytes and start of the data."""
    path.write_bytes(original[1])
    return original
