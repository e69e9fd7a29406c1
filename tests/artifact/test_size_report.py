"""Size reports: figures against closed forms, and sums against the file."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.artifact import CompressedLeaf, inspect, save, summarize
from tests.artifact.trees import structured


def exact(counts, windows=1, components=4, dtype=np.float32):
    """Return a leaf with exact counts of the codes 0, 1, 2, ..."""
    codes = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    codes = np.random.default_rng(0).permutation(codes)
    book = np.random.default_rng(1).normal(size=(windows, components)).astype(dtype)
    return CompressedLeaf(codes, book)


@pytest.mark.parametrize(
    ("leaf", "paper", "fixed", "entropy"),
    [
        # Half pruned, four equal components: r log2 K = 1; H = 1/2 + 1/2 (1 + 2) = 2.
        (exact([512, 128, 128, 128, 128]), 1024, 1024 + 1024 + 128, 2048),
        # K = 1: no bits by the paper, the bitmap alone by fixed-length codes.
        (exact([512, 512], components=1), 0, 1024 + 32, 1024),
        # Nothing pruned, windows count: ceil(log2 W K), and log2 K alone for the paper.
        (exact([0, 256, 256, 256, 256], 2, 2), 1024, 1024 + 2048 + 128, 2048),
        # Not a power of two: three values take two bits.
        (exact([0, 300, 300, 300], 1, 3), 900 * math.log2(3), 900 + 1800 + 96, 900 * math.log2(3)),
        # Pruned entirely: no entropy.
        (exact([1000]), 0, 1000 + 128, 0),
        (exact([512, 256, 256, 0, 0], dtype=jnp.bfloat16), 1024, 1024 + 1024 + 64, 1536),
    ],
)
def test_compressed_figures_are_the_closed_forms(leaf, paper, fixed, entropy):
    (size,) = summarize({"kernel": leaf}).leaves
    assert size.paper_bits == pytest.approx(paper)
    assert size.fixed_bits == fixed
    assert size.entropy_bits == pytest.approx(entropy, abs=0.051)  # to a tenth of a bit
    assert size.kept == np.count_nonzero(leaf.codes) and size.weights == leaf.codes.size
    assert size.sparsity == pytest.approx(1 - size.kept / size.weights)
    assert (size.windows, size.components) == leaf.codebook.shape
    assert size.entropy_bits_per_weight == size.entropy_bits / leaf.codes.size
    assert size.path == "kernel" and size.compressed


def test_dense_leaves_count_their_dtype_and_nothing_for_the_paper():
    tree = {"a": np.full(10, 0.1), "b": np.arange(3, dtype=np.int16), "c": np.float32(0.1)}
    report = summarize(tree)
    assert [leaf.fixed_bits for leaf in report.leaves] == [640, 48, 32]
    assert [leaf.entropy_bits for leaf in report.leaves] == [640, 48, 32]
    assert [leaf.file_bits for leaf in report.leaves] == [640, 48, 32]
    assert report.paper_bits == 0 and report.original_bytes == 90
    assert report.weights == 14 and report.compressed_weights == 0 and report.sparsity == 0
    assert report.leaves[2].shape == () and not report.leaves[2].compressed


def test_stacked_codebooks_all_count():
    codes = np.ones((3, 7), np.uint8)
    leaf = CompressedLeaf(codes, np.full((3, 1, 2), 0.1, np.float32))
    (size,) = summarize([leaf]).leaves
    assert size.fixed_bits == 21 + 21 + 3 * 2 * 32 and size.paper_bits == 21


def test_shared_leaves_count_once():
    """A shared leaf counts once in weights, bits and bytes of the file."""
    leaf, bias = exact([512, 256, 256, 0, 0]), np.linspace(0, 1, 2000)
    once, twice = summarize([leaf, bias]), summarize([leaf, bias, leaf, bias.copy()])
    for name in ("weights", "kept", "original_bytes", "paper_bits", "fixed_bits", "entropy_bits"):
        assert getattr(once, name) == getattr(twice, name) > 0
    assert once.file_bytes < twice.file_bytes < once.file_bytes + 40
    again = twice.leaves[2]
    assert (again.weights, again.file_bits, again.shape) == (0, 0, leaf.codes.shape)
    assert again.compressed and again.components == 4 and again.sparsity == 0
    small = np.linspace(0, 1, 100)
    assert summarize([small] * 2).weights == 200  # not worth a second look


def test_entropy_is_of_order_0_even_if_contexts_are_shorter():
    leaf = CompressedLeaf(structured((200, 90)), np.ones((1, 4), np.float32))
    (size,) = summarize([leaf]).leaves
    counts = np.bincount(leaf.codes.reshape(-1))
    entropy = float(counts @ np.log2(leaf.codes.size / counts))
    assert size.entropy_bits == pytest.approx(entropy, abs=0.051)
    assert size.file_bits < 0.95 * size.entropy_bits


def test_totals_are_sums_and_file_bytes_are_those_on_disk(tmp_path):
    tree = {
        "x": exact([512, 128, 128, 128, 128]),
        "y": exact([700, 100, 100, 50, 50]),
        "bias": np.linspace(0, 1, 30, dtype=np.float32),
        "count": jnp.arange(5, dtype=jnp.int32),
    }
    path = tmp_path / "m.sqs"
    written = save(path, tree)
    report = summarize(tree)
    assert report == inspect(path) and report.file_bytes == written == path.stat().st_size
    for figure in ("paper", "fixed", "entropy"):
        name = f"{figure}_bits"
        assert getattr(report, name) == sum(getattr(leaf, name) for leaf in report.leaves)
    assert report.file_bits == 8 * written
    streams = sum(leaf.file_bits for leaf in report.leaves)
    assert 0 < report.file_bits - streams < 8 * 500
    assert report.weights == 1024 + 1000 + 30 + 5
    assert report.original_bytes == 4 * report.weights
    assert report.ratio == report.original_bytes / written
    assert report.file_bits_per_weight == 8 * written / report.weights
    assert report.kept == 512 + 300 and report.sparsity == pytest.approx(1 - 812 / 2024)
    # The order that makes the paper's figure a claim and the file's a fact.
    assert report.paper_bits < report.entropy_bits < report.file_bits


def test_inspect_reports_the_rounded_sizes(tmp_path):
    tree = {"bias": np.random.default_rng(0).normal(size=1000).astype(np.float32)}
    path = tmp_path / "m.sqs"
    save(path, tree, dense_dtype="bfloat16")
    (leaf,) = inspect(path).leaves
    assert leaf.file_bits == 16_000 and leaf.fixed_bits == 32_000


def test_reports_print_and_go_to_json():
    tree = {"layer": {"kernel": exact([512, 128, 128, 128, 128]), "bias": np.ones(3, np.float32)}}
    report = summarize(tree)
    text = str(report)
    assert "layer/kernel" in text and "50.0%" in text and f"{report.ratio:.2f}x" in text
    table = text.splitlines()[:-1]
    assert max(map(len, table)) == len(table[1]) and all(
        len(line) <= len(table[1]) for line in table
    )
    again = json.loads(json.dumps(report.as_dict()))
    assert again["file_bytes"] == report.file_bytes and again["leaves"][1]["kept"] == 512
    assert again["ratio"] == report.ratio and again["leaves"][0]["components"] is None


def test_an_empty_tree_has_a_report():
    report = summarize({})
    assert report.weights == 0 and report.file_bits_per_weight == 0 and report.ratio == 0
    assert report.file_bytes < 250
    assert "total" in str(report)
