"""The cache of coded leaves: equal leaves are coded once."""

import ml_dtypes
import numpy as np

from sqs_jax.artifact import CompressedLeaf, coding, leaf_codecs, load, save, summarize
from sqs_jax.artifact.digest_cache import DigestCache, digest
from tests.artifact.trees import structured


def _tree(count=5):
    rng = np.random.default_rng(0)
    codes = [rng.integers(4, size=(20, 30), dtype=np.uint8) for _ in range(count)]
    return {f"layer{i}": CompressedLeaf(layer, np.float32([[1, 2, 3]]))
            for i, layer in enumerate(codes)}  # fmt: skip


def test_save_after_summarize_codes_nothing(path, monkeypatch):
    tree = _tree()
    monkeypatch.setattr(leaf_codecs, "_CACHE", DigestCache(0))
    save(path, tree)
    whole = path.read_bytes()
    monkeypatch.setattr(leaf_codecs, "_CACHE", DigestCache(1 << 20))
    coded, encode = [], coding.encode_all
    monkeypatch.setattr(coding, "encode_all", lambda *a: [coded.extend(a[0]), encode(*a)][1])
    assert summarize(tree).file_bytes == len(whole)
    assert len(coded) == 5
    save(path, tree)
    assert len(coded) == 5 and path.read_bytes() == whole


def test_leaves_changed_in_place_are_coded_again(path):
    tree = _tree()
    summarize(tree)
    tree["layer2"].codes[3, 4] ^= 1
    tree["layer3"].codebook[0, 1] = 7
    save(path, tree)
    again = load(path)
    np.testing.assert_array_equal(again["layer2"].codes, tree["layer2"].codes)
    assert again["layer3"].codebook[0, 1] == 7


def test_equal_leaves_of_one_file_are_coded_once(path, monkeypatch):
    (leaf,) = _tree(1).values()
    coded, encode = [], coding.encode_all
    monkeypatch.setattr(coding, "encode_all", lambda *a: [coded.extend(a[0]), encode(*a)][1])
    save(path, [leaf] * 3)
    assert len(coded) == 1
    for loaded in load(path):
        np.testing.assert_array_equal(loaded.codes, leaf.codes)


def test_digests_depend_on_dtype_shape_and_values():
    codes = structured((12, 12))
    values = [
        (codes, 5, False),
        (codes, 6, False),
        (codes, 5, True),
        (codes.reshape(6, 24), 5, False),
        (codes.astype(np.uint16), 5, False),
        (codes.T, 5, False),
        ([codes, 5], False),
        (np.float32(codes), 5, False),
        (codes.astype(ml_dtypes.bfloat16), 5, False),
        (codes.astype(np.float16), 5, False),
    ]
    assert len({digest(value) for value in values}) == len(values)
    assert digest((np.ascontiguousarray(codes.T), 5)) == digest((codes.T, 5))


def test_the_oldest_entries_are_evicted_first():
    recent = DigestCache(10)
    for key, size in ((b"a", 4), (b"b", 4), (b"c", 4), (b"d", 11)):
        recent.add(key, [key], size)
    assert [recent.get(key) for key in (b"a", b"b", b"c", b"d")] == [None, [b"b"], [b"c"], None]
    recent.add(b"e", [b"e"], 10)
    assert recent.get(b"c") is None and recent.get(b"e") == [b"e"]
