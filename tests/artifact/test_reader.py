"""SqsFile: reading leaf by leaf in bounded memory, and files replaced while read."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest

from sqs_jax.artifact import (
    CompressedLeaf,
    SqsFile,
    SqsFileError,
    inspect,
    load,
    materialize,
    read_metadata,
    save,
    summarize,
)
from tests.artifact.trees import compressed, model, same, structured


def test_leaves_are_read_by_path(path):
    tree = model()
    save(path, tree, metadata={"a": [1]})
    with SqsFile(path) as file:
        paths = [leaf.path for leaf in file.leaves]
        assert paths[:3] == ["batch_stats/0", "batch_stats/1/0", "params/conv/bias"]
        is_leaf = {"is_leaf": lambda node: isinstance(node, CompressedLeaf)}
        assert len(paths) == len(jax.tree.leaves(tree, **is_leaf))
        for name, want in reversed(list(zip(paths, jax.tree.leaves(tree, **is_leaf), strict=True))):
            assert same(file.read(name), want)
        assert file.metadata == {"a": [1]} and file.version == (1, 0)
        assert file.file_bytes == path.stat().st_size
        for name in ("params", "params/conv", "", "x", "params/conv/kernel/", "batch_stats/2"):
            with pytest.raises(KeyError, match=rf"m\.sqs.*no leaf '{name}'.*batch_stats/0"):
                file.read(name)
    with pytest.raises(ValueError, match="closed"):
        file.read("params/conv/bias")


def test_a_bare_leaf_and_an_empty_tree(path):
    save(path, np.arange(3))
    with SqsFile(path) as file:
        assert file.read("").tolist() == [0, 1, 2] and file.leaves[0].path == ""
    save(path, {})
    with SqsFile(str(path)) as file, pytest.raises(KeyError, match="there are: none"):
        file.read("")


def test_tree_with_a_function_of_each_leaf(path):
    tree = {"a": [np.ones(3), compressed((4, 5))], "b": ({1: np.int8(2)}, None)}
    save(path, tree)
    with SqsFile(path) as file:
        shapes = file.tree(lambda leaf: leaf.spec.shape)
        assert shapes == {"a": [(3,), (4, 5)], "b": ({1: ()}, None)}
        assert file.tree(lambda leaf: leaf.path)["b"][0][1] == "b/0/1"
        assert same(file.tree(lambda leaf: file.read(leaf.path)), tree)
        assert same(file.tree(), tree)


@pytest.mark.parametrize("tree", [model(), {}, [np.ones(2000)] * 3, [compressed((70, 70))] * 2])
def test_the_report_is_that_of_the_tree(tree, path):
    save(path, tree)
    with SqsFile(path) as file:
        assert file.report() == summarize(tree) == inspect(path)


def test_shared_leaves_are_one_object_and_cost_bytes_once(path):
    table = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32)
    codes = compressed((64, 64), 9)
    once = save(path, {"in": table, "codes": codes})
    tree = {"in": table, "out": table.copy(), "codes": codes, "tied": [codes, codes]}
    tree["other"] = table.T.copy()
    size = save(path, tree)
    assert once < size < once + table.nbytes + 150
    again = load(path)
    assert same(again, tree)
    assert again["in"] is again["out"] is not again["other"]
    assert again["codes"] is again["tied"][0] is again["tied"][1]
    with SqsFile(path) as file:
        shared = {leaf.path: leaf.shared_with for leaf in file.leaves}
        assert shared == {
            "codes": None,
            "in": None,
            "other": None,
            "out": 1,
            "tied/0": 0,
            "tied/1": 0,
        }
        assert same(file.read("out"), table) and same(file.read("tied/1"), codes)
        assert [leaf.file_bytes > 0 for leaf in file.leaves] == [True] * 3 + [False] * 3
    data = path.read_bytes()
    save(path, again)
    assert path.read_bytes() == data
    # Equal bits and not equal numbers; equal bytes, but of another dtype or shape, are not shared.
    apart = [np.zeros(1024, np.float32), -np.zeros(1024, np.float32), np.zeros(1024, np.int32)]
    save(path, [*apart, np.zeros((2, 512), np.float32)])
    with SqsFile(path) as file:
        assert all(leaf.shared_with is None for leaf in file.leaves)


def test_memory_is_that_of_one_leaf(path):
    """Reading 8 leaves takes the memory of a single leaf."""
    rng = np.random.default_rng(0)
    size = 1 << 18
    tree = {f"d{i}": rng.normal(size=size).astype(np.float32) for i in range(6)}
    tree |= {f"c{i}": compressed((512, 512), seed=i) for i in range(2)}
    save(path, tree)

    def peak(call):
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def leaf_by_leaf(file):
        for leaf in file.leaves:
            assert file.read(leaf.path) is not None

    leaf_bytes = 4 * size
    load(path)
    with SqsFile(path) as file:
        assert peak(lambda: leaf_by_leaf(file)) < 2.1 * leaf_bytes  # bytes and array
        assert peak(file.check) < 2.1 * leaf_bytes  # bytes with and without checksum
        assert peak(file.report) < leaf_bytes // 10
        assert peak(file.tree) > 6 * leaf_bytes
    dictionary = 4 << 20  # of the index's LZMA decoder
    assert peak(lambda: read_metadata(path)) < dictionary + leaf_bytes // 10


def test_damage_in_one_leaf_leaves_the_others_readable(path):
    tree = model()
    save(path, tree)
    with SqsFile(path) as file:
        at = {leaf.path: leaf.offset for leaf in file.leaves}
    data = bytearray(path.read_bytes())
    data[at["params/embed"] + 5] ^= 1
    path.write_bytes(data)
    with SqsFile(path) as file:
        assert same(file.read("params/conv/kernel"), tree["params"]["conv"]["kernel"])
        with pytest.raises(SqsFileError, match=r"m\.sqs: a checksum.*leaf 'params/embed'"):
            file.read("params/embed")
        with pytest.raises(SqsFileError, match="params/embed"):
            file.check()
        assert same(file.read("params/layers"), tree["params"]["layers"])
        assert file.report() == summarize(tree)


@pytest.mark.parametrize("workers", [0, -1, True, "2", 2.0, None])
def test_invalid_workers_are_refused(workers, path):
    save(path, {})
    with pytest.raises(ValueError, match=r"workers is .*int >= 1") as error:
        SqsFile(path, workers=workers)
    assert not isinstance(error.value, SqsFileError)


def test_two_workers_read_the_same(path, monkeypatch):
    monkeypatch.setattr("sqs_jax.artifact.coding.stream.CHUNK", 1 << 12)
    tree = [
        CompressedLeaf(structured((200, 100)), np.float32([[1, 2, 3, 4]])),
        compressed((20_000,), 3),
        compressed((20_000,), 4, 64),
        np.ones(5),
    ]
    save(path, tree)
    with SqsFile(path, workers=2) as file:
        # The other processes have a CHUNK of their own, and are handed chunks all the same.
        assert same(file.tree(), tree)
        for leaf, want in zip(file.leaves, tree, strict=True):
            assert same(file.read(leaf.path), want)


WRITER = """
import sys
import numpy as np
from sqs_jax.artifact import CompressedLeaf, save

path, number = sys.argv[1], int(sys.argv[2])
codes = np.random.default_rng(number).integers(0, 5, (100, 100 + number)).astype(np.uint8)
tree = {"codes": CompressedLeaf(codes, np.float32([[1, 2, 3, number]])), "number": np.int64(number)}
save(path + str(number), tree)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(60):
    save(path, tree)
"""


def test_a_reader_sees_one_whole_file_whoever_writes_it(path):
    save(path, {"number": np.int64(0)})
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "error", "-c", WRITER, str(path)]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    writers = [subprocess.Popen([*command, n], cwd=root, text=True, **pipe) for n in ("1", "2")]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n", writer.stderr.read()
        want = {n: materialize(load(f"{path}{n}")) for n in (1, 2)} | {0: load(path)}
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        seen = set()
        while any(writer.poll() is None for writer in writers):
            tree = materialize(load(path))
            number = int(tree["number"])
            assert same(tree, want[number])
            seen.add(number)
        assert seen >= {1, 2} and all(writer.returncode == 0 for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.sqs", "m.sqs1", "m.sqs2"]
