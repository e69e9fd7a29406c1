"""What was coded last is not coded again."""

import numpy as np

from sqs_jax.artifact import CompressedLeaf, coding, kinds, load, save, summarize
from sqs_jax.artifact.recent import Recent, digest
from tests.artifact.trees import structured


def _tree(count=5):
    rng = np.random.default_rng(0)
    book = np.float32([[1, 2, 3]])
    return {f"layer{i}": CompressedLeaf(rng.integers(4, size=(20, 30), dtype=np.uint8), book)
            for i in range(count)}  # fmt: skip


def test_a_file_that_was_weighed_is_not_coded_again(path, monkeypatch):
    tree = _tree()
    monkeypatch.setattr(kinds, "_RECENT", Recent(0))
    save(path, tree)
    whole = path.read_bytes()
    monkeypatch.setattr(kinds, "_RECENT", Recent(1 << 20))
    coded, encode = [], coding.encode_all
    monkeypatch.setattr(coding, "encode_all", lambda *a: [coded.extend(a[0]), encode(*a)][1])
    assert summarize(tree).file_bytes == len(whole)
    assert len(coded) == 5
    save(path, tree)
    assert len(coded) == 5 and path.read_bytes() == whole


def test_a_code_that_changed_in_place_is_coded_again(path):
    tree = _tree()
    summarize(tree)
    tree["layer2"].codes[3, 4] ^= 1
    save(path, tree)
    np.testing.assert_array_equal(load(path)["layer2"].codes, tree["layer2"].codes)


def test_streams_differ_by_all_that_their_bytes_depend_on():
    codes = structured((12, 12))
    streams = [
        (codes, 5, False),
        (codes, 6, False),
        (codes, 5, True),
        (codes.reshape(6, 24), 5, False),
        (codes.astype(np.uint16), 5, False),
        (codes.T, 5, False),
    ]
    assert len({digest(*stream) for stream in streams}) == len(streams)
    contiguous = np.ascontiguousarray(codes.T)
    assert digest(contiguous, 5, False) == digest(codes.T, 5, False)


def test_the_oldest_streams_go_first():
    recent = Recent(10)
    for key, size in ((b"a", 4), (b"b", 4), (b"c", 4), (b"d", 11)):
        recent.add(key, bytes(size))
    assert [recent.get(key) for key in (b"a", b"b", b"c", b"d")] == [None, bytes(4), bytes(4), None]
    recent.add(b"e", bytes(10))
    assert recent.get(b"c") is None and recent.get(b"e") == bytes(10)
