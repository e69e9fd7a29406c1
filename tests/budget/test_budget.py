"""Budgets: sizes of files for trees of many kinds, sensitivities, and errors."""

import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from sqs_jax import CompressedLeaf, Rule, compress_to_budget, rules_for
from tests.conftest import REAL_DATA


def laplace(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).laplace(size=shape).astype(dtype)


def original_bytes(tree):
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


def saved(path, compressed, **options):
    return sqs_jax.save(path / "model.sqs", compressed, **options)


def assert_meets_budget(path, params, ratio, **options):
    compressed = compress_to_budget(params, target_ratio=ratio, **options)
    kept = {name: options[name] for name in ("dense_dtype", "metadata") if name in options}
    share = saved(path, compressed, **kept) / int(original_bytes(params) / ratio)
    assert 0.98 <= share <= 1, f"{share:.4f} of the budget"
    dense = sqs_jax.materialize(compressed)
    for original, restored in zip(jax.tree.leaves(params), jax.tree.leaves(dense), strict=True):
        assert np.shape(original) == np.shape(restored)
        assert np.asarray(original).dtype == np.asarray(restored).dtype
        assert np.isfinite(np.asarray(restored, np.float64)).all()
    return compressed


def few(*shape):
    return np.random.default_rng(0).choice(np.float32([-0.5, 0.1, 0.7]), shape)


def cauchy(*shape):
    return np.random.default_rng(0).standard_cauchy(shape).astype(np.float32)


def mixed():
    return {
        "a": jnp.asarray(laplace(64, 100), jnp.bfloat16),
        "b": laplace(100, 50, dtype=np.float16),
        "c": [laplace(80, 90), np.arange(100).reshape(10, 10)],
        "d": (np.ones((20, 20), bool), laplace(60)),
    }


TREES = {
    "one tensor": lambda: {"w": laplace(200, 100)},
    "one small tensor": lambda: {"w": laplace(40, 40)},
    "a bare array": lambda: laplace(70, 70),
    "convolution and bias": lambda: {"k": 0.05 * laplace(3, 3, 32, 64), "b": laplace(64)},
    "many small": lambda: [laplace(24, 24, seed=i) for i in range(16)],
    "scales": lambda: {f"l{i}": 10.0 ** (-2 * i) * laplace(60, 60, seed=i) for i in range(3)},
    "mixed dtypes": mixed,
    "bfloat16": lambda: {"w": jnp.asarray(laplace(128, 128), jnp.bfloat16)},
    "constant": lambda: {"c": np.full((50, 50), 0.3, np.float32), "w": laplace(90, 90)},
    "few values": lambda: {"c": few(80, 80), "w": laplace(80, 80)},
    "zeros": lambda: {"z": np.zeros((40, 40), np.float32), "w": laplace(90, 90)},
    "scalars, empty": lambda: {
        "s": np.float32(3), "e": np.zeros((0, 5), np.float32), "w": laplace(90, 90)
    },
    "uniform": lambda: {"w": np.random.default_rng(0).random((200, 60), np.float32) - 0.5},
    "heavy tails": lambda: {"w": cauchy(100, 120)},
    "mostly zero": lambda: {
        "w": laplace(150, 150) * (np.random.default_rng(1).random((150, 150)) < 0.3)
    },
}  # fmt: skip


@pytest.mark.parametrize("ratio", [4, 6, 11, 20])
@pytest.mark.parametrize("tree", TREES)
def test_files_take_98_to_100_percent_of_the_budget(tree, ratio, tmp_path):
    assert_meets_budget(tmp_path, TREES[tree](), ratio)


@pytest.mark.parametrize("tree", ["one tensor", "many small", "mostly zero", "heavy tails"])
@pytest.mark.parametrize("ratio", [2.5, 3, 40])
def test_extreme_ratios_meet_the_budget(tree, ratio, tmp_path):
    if (tree, ratio) != ("many small", 40):  # below the size of 16 empty streams
        assert_meets_budget(tmp_path, TREES[tree](), ratio)


def test_a_single_tensor_of_few_values_meets_the_budget(tmp_path):
    assert_meets_budget(tmp_path, {"c": few(100, 100)}, 32)


def test_unprunable_and_stacked_leaves(tmp_path):
    params = {"a": laplace(3, 60, 50), "b": laplace(60, 50, seed=1)}
    params["a"][1] *= 100
    rules = [Rule(pattern="a", stacked=1), Rule(pattern="b", prunable=False)]
    compressed = assert_meets_budget(tmp_path, params, 8, rules=rules)
    assert compressed["a"].codebook.shape[:2] == (3, 1)
    assert compressed["b"].codes.min() == 1
    dense = sqs_jax.materialize(compressed)["a"]
    error = ((dense - params["a"]) ** 2).mean((1, 2)) / (params["a"] ** 2).mean((1, 2))
    assert error[1] < 2 * error[0]


def test_dense_dtype_and_metadata_count(tmp_path):
    params = {"w": laplace(60, 60), "b": laplace(900)}
    words = {"words": [f"{i * i * i}" for i in range(200)]}
    assert_meets_budget(tmp_path, params, 4, dense_dtype="bfloat16", metadata=words)
    with pytest.raises(ValueError, match="below the least possible file"):
        compress_to_budget(params, target_ratio=6)
    assert_meets_budget(tmp_path, params, 6, dense_dtype="bfloat16")


def test_bytes_and_ratio_are_the_same_budget():
    params = {"w": laplace(60, 60)}
    by_ratio = compress_to_budget(params, target_ratio=8)
    by_bytes = compress_to_budget(params, target_bytes=60 * 60 * 4 // 8)
    np.testing.assert_array_equal(by_ratio["w"].codes, by_bytes["w"].codes)


def test_codebooks_ascend_and_codes_are_of_the_right_dtype():
    wide = compress_to_budget({"w": laplace(300, 300)}, target_ratio=3.3)["w"]
    assert wide.codebook.shape[-1] > 255 and wide.codes.dtype == np.uint16
    narrow = compress_to_budget({"w": laplace(300, 300)}, target_ratio=10)["w"]
    assert narrow.codes.dtype == np.uint8
    assert all((np.diff(leaf.codebook[0]) > 0).all() for leaf in (wide, narrow))


def test_leaves_that_are_not_compressed_are_unchanged():
    params = mixed() | {"z": laplace(4, 4).astype(np.complex64)}
    compressed = compress_to_budget(params, target_ratio=6)
    np.testing.assert_array_equal(compressed["c"][1], params["c"][1])
    np.testing.assert_array_equal(compressed["d"][0], params["d"][0])
    np.testing.assert_array_equal(compressed["d"][1], params["d"][1])
    np.testing.assert_array_equal(compressed["z"], params["z"])


def test_rules_keep_leaves_dense():
    rules = [Rule(pattern="w", components=None), Rule()]
    params = {"w": laplace(30, 30), "v": laplace(90, 90)}
    compressed = compress_to_budget(params, target_ratio=5, rules=rules)
    np.testing.assert_array_equal(compressed["w"], params["w"])
    assert isinstance(compressed["v"], CompressedLeaf)


@pytest.mark.parametrize("tree", ["one tensor", "mixed dtypes", "few values", "scalars, empty"])
def test_a_generous_budget_returns_the_exact_tree(tree):
    params = TREES[tree]()
    budget = original_bytes(params) + 2000
    dense = sqs_jax.materialize(compress_to_budget(params, target_bytes=budget))
    for original, restored in zip(jax.tree.leaves(params), jax.tree.leaves(dense), strict=True):
        np.testing.assert_array_equal(np.asarray(original), np.asarray(restored))


def test_few_values_are_lossless_at_their_entropy():
    params = {"c": few(100, 100)}
    compressed = compress_to_budget(
        params, target_bytes=2500
    )  # log2(3) bits per weight, and a header
    np.testing.assert_array_equal(sqs_jax.materialize(compressed)["c"], params["c"])


def test_small_tensors_stay_dense_at_a_generous_budget():
    params = {"w": laplace(120, 120), "s": laplace(2, 3)}
    compressed = compress_to_budget(params, target_ratio=4)
    assert isinstance(compressed["w"], CompressedLeaf)
    assert not isinstance(compressed["s"], CompressedLeaf)


def test_a_larger_budget_has_a_smaller_error():
    params = {"a": laplace(100, 80), "b": 0.1 * laplace(60, 70, seed=1)}

    def error(ratio):
        dense = sqs_jax.materialize(compress_to_budget(params, target_ratio=ratio))
        return sum(np.sum((dense[k] - params[k]) ** 2) / np.linalg.norm(params[k]) for k in params)

    errors = [error(ratio) for ratio in (3, 5, 8, 12, 20, 40)]
    assert errors == sorted(errors)


def test_tensors_of_different_scales_keep_their_weights():
    params = {"a": 1e-3 * laplace(60, 60), "b": 10 * laplace(60, 60, seed=1)}
    dense = sqs_jax.materialize(compress_to_budget(params, target_ratio=6))
    for name in params:
        error = np.linalg.norm(dense[name] - params[name]) / np.linalg.norm(params[name])
        assert error < 0.7, name


def test_the_norm_of_a_tensor_is_preserved():
    params = {"w": laplace(100, 100)}
    dense = sqs_jax.materialize(compress_to_budget(params, target_ratio=40))["w"]
    # The tolerance is that of 8-bit levels. Means of cells would have 70 % of the norm.
    assert np.linalg.norm(dense) == pytest.approx(np.linalg.norm(params["w"]), rel=0.04)


# --- sensitivity --------------------------------------------------------------------------------


def bytes_of(compressed):
    report = sqs_jax.summarize(compressed)
    return {leaf.path: leaf.file_bits / 8 for leaf in report.leaves}


def test_a_tensor_of_larger_sensitivity_gets_more_bytes(tmp_path):
    params = {"a": laplace(60, 60), "b": laplace(60, 60, seed=1)}
    plain = bytes_of(assert_meets_budget(tmp_path, params, 8))
    assert plain["a"] == pytest.approx(plain["b"], rel=0.05)
    moved = bytes_of(assert_meets_budget(tmp_path, params, 8, sensitivity={"a": 100.0, "b": 1.0}))
    assert moved["a"] > 1.5 * moved["b"]


def test_sensitivity_of_each_weight(tmp_path):
    params = {"w": laplace(100, 80)}
    rows = np.where(np.arange(100) < 20, 50.0, 1.0)[:, None]
    compressed = assert_meets_budget(tmp_path, params, 10, sensitivity={"w": rows})
    error = ((sqs_jax.materialize(compressed)["w"] - params["w"]) ** 2).mean(1)
    assert error[:20].mean() < 0.3 * error[20:].mean()
    full = compress_to_budget(
        params, target_ratio=10, sensitivity={"w": np.broadcast_to(rows, (100, 80)).copy()}
    )
    np.testing.assert_array_equal(full["w"].codes, compressed["w"].codes)


def test_the_unit_of_sensitivities_has_no_effect():
    params = {"a": laplace(50, 50), "b": 2 * laplace(50, 50, seed=1), "c": laplace(40, 40)}
    sensitivity = {"a": 1.0, "b": np.full((50, 50), 3.0)}
    small = compress_to_budget(params, target_ratio=8, sensitivity=sensitivity)
    sensitivity = jax.tree.map(lambda s: 2.0**20 * s, sensitivity)
    large = compress_to_budget(params, target_ratio=8, sensitivity=sensitivity | {"c": None})
    for name in params:
        np.testing.assert_array_equal(small[name].codes, large[name].codes)


def test_a_leaf_of_zero_sensitivity_is_pruned(tmp_path):
    params = {"a": laplace(50, 50), "b": laplace(50, 50, seed=1)}
    compressed = assert_meets_budget(tmp_path, params, 8, sensitivity={"a": 0.0, "b": 1.0})
    assert not compressed["a"].codes.any()


@pytest.mark.parametrize(
    ("sensitivity", "message"),
    [
        ({"w": np.ones((3, 40))}, r"w: sensitivity has shape \(3, 40\)"),
        ({"w": np.ones((1, 40, 40))}, r"w: sensitivity has shape \(1, 40, 40\)"),
        ({"w": -1.0}, "w: 1 of 1 sensitivities are negative or not finite"),
        ({"w": np.full((40, 1), np.nan)}, "w: 40 of 40 sensitivities"),
        ({"w": np.inf}, "w: 1 of 1"),
        ({"v": 1.0}, "sensitivity has v, where params have no leaf"),
    ],
)
def test_unusable_sensitivities_are_refused(sensitivity, message):
    with pytest.raises(ValueError, match=message):
        compress_to_budget({"w": laplace(40, 40)}, target_ratio=4, sensitivity=sensitivity)


# --- errors -------------------------------------------------------------------------------------


def test_exactly_one_target():
    with pytest.raises(ValueError, match="exactly one of target_bytes and target_ratio"):
        compress_to_budget({"w": laplace(9, 9)})
    with pytest.raises(ValueError, match="exactly one"):
        compress_to_budget({"w": laplace(9, 9)}, target_bytes=9, target_ratio=2)


@pytest.mark.parametrize("name", ["target_bytes", "target_ratio"])
@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf, "4", True, np.ones(3), [4]])
def test_a_budget_is_a_positive_number(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*; it must be a positive finite number"):
        compress_to_budget({"w": laplace(9, 9)}, **{name: value})


def test_a_budget_below_the_smallest_file_is_refused():
    params = {"w": laplace(60, 60), "b": laplace(500)}
    with pytest.raises(ValueError, match="least possible file") as error:
        compress_to_budget(params, target_bytes=2000)
    message = str(error.value)
    assert "2,000 bytes" in message and "take 2,000 bytes of it" in message
    assert "dense_dtype" in message and "min_ndim=1" in message
    least = int(re.search(r"file: ([\d,]+) bytes", message)[1].replace(",", ""))
    compress_to_budget(params, target_bytes=least)
    with pytest.raises(ValueError, match="least possible"):
        compress_to_budget(params, target_bytes=least - 1)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="a/w: 1 of 81 weights are not finite"):
        weights = laplace(9, 9)
        weights[0, 0] = np.nan
        compress_to_budget({"a": {"w": weights}}, target_ratio=2)


def test_a_structure_is_refused():
    rules = [Rule(structure=(2, 4))]
    with pytest.raises(ValueError, match=r"w: a rule of structure \(2, 4\).*structure=None"):
        compress_to_budget({"w": laplace(8, 8)}, target_ratio=2, rules=rules)


def test_a_rule_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="'v' matches no leaf"):
        compress_to_budget({"w": laplace(8, 8)}, target_ratio=2, rules=[Rule(pattern="v")])


def test_a_compressed_tree_is_refused():
    compressed = compress_to_budget({"w": laplace(60, 60)}, target_ratio=8)
    with pytest.raises(ValueError, match="materialize"):
        compress_to_budget(compressed, target_ratio=9)


# --- determinism, lazy leaves, rules ------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes(tmp_path):
    files = []
    for i in range(2):
        compressed = compress_to_budget(mixed(), target_ratio=7)
        sqs_jax.save(tmp_path / f"{i}.sqs", compressed)
        files.append((tmp_path / f"{i}.sqs").read_bytes())
    assert files[0] == files[1]


def test_few_lazy_leaves_are_in_memory_at_a_time():
    class Lazy:
        live = most = 0
        lock = threading.Lock()

        def __init__(self, seed):
            self.seed, self.shape, self.dtype = seed, (100, 100), np.dtype(np.float32)

        def __array__(self, dtype=None, copy=None):
            class Counted(np.ndarray):
                def __del__(array):
                    with Lazy.lock:
                        Lazy.live -= array.base is None

            array = Counted(self.shape, self.dtype)
            array[:] = laplace(*self.shape, seed=self.seed)
            with Lazy.lock:
                Lazy.live += 1
                Lazy.most = max(Lazy.most, Lazy.live)
            return array

    count, threads = 24, 4
    lazy = {f"l{i}": Lazy(i) for i in range(count)}
    compressed = compress_to_budget(lazy, target_ratio=8)
    assert Lazy.most <= 2 * threads
    eager = {f"l{i}": laplace(100, 100, seed=i) for i in range(count)}
    expected = compress_to_budget(eager, target_ratio=8)
    for name in lazy:
        np.testing.assert_array_equal(compressed[name].codes, expected[name].codes)


def test_rules_for_an_allocation_reproduce_its_levels():
    params = {"a.b": laplace(60, 60), "c": [laplace(2, 40, 40), laplace(30)]}
    rules = [Rule(pattern="c/0", stacked=1), Rule()]
    compressed = compress_to_budget(params, target_ratio=6, rules=rules)
    allocation_rules = rules_for(compressed)
    assert [rule.components for rule in allocation_rules] == [
        compressed["a.b"].codebook.shape[-1], compressed["c"][0].codebook.shape[-1], None
    ]  # fmt: skip
    prior = sqs_jax.SpikeSlabPrior(inclusion=0.3, scale=1.0)
    posterior = sqs_jax.spike_slab_gmm(allocation_rules, prior=prior).init(params)
    assert posterior["a.b"].means.shape == compressed["a.b"].codebook.shape
    assert posterior["c"][0].means.shape == compressed["c"][0].codebook.shape
    assert rules_for({"w": compressed["a.b"]})[-1].components is not None


@pytest.mark.real_data
@pytest.mark.parametrize("ratio", [4, 12])
def test_a_real_network_meets_the_budget(ratio, tmp_path):
    with np.load(REAL_DATA / "cifar10_resnet20.npz") as state:
        params = {k: state[k] for k in state if not k.endswith("num_batches_tracked")}
    assert_meets_budget(tmp_path, params, ratio)


@pytest.mark.real_data
def test_a_real_network_with_rounded_dense_leaves_meets_the_budget(tmp_path):
    with np.load(REAL_DATA / "cifar100_resnet20.npz") as state:
        params = {k: state[k] for k in state if not k.endswith("num_batches_tracked")}
    assert_meets_budget(tmp_path, params, 25, dense_dtype="bfloat16")


def test_shared_weights_count_once_in_the_budget():
    weights = np.random.default_rng(0).normal(size=(100, 80)).astype(np.float32)
    tree = {"in": weights, "mid": 2 * weights, "out": weights.copy()}
    compressed = compress_to_budget(tree, target_ratio=8)
    assert compressed["in"] is compressed["out"]
    size = sqs_jax.summarize(compressed).file_bytes
    assert 0.98 * 3 * weights.nbytes / 8 <= size <= 3 * weights.nbytes / 8


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-30, 1e30, 1e200])
def test_the_scale_of_all_weights_has_no_effect_on_the_size(scale):
    weights = np.random.default_rng(0).normal(size=(100, 80))
    compressed = compress_to_budget({"a": scale * weights}, target_ratio=12)
    size = sqs_jax.summarize(compressed).file_bytes
    assert 0.98 * weights.nbytes / 12 <= size <= weights.nbytes / 12
    error = np.linalg.norm(sqs_jax.materialize(compressed)["a"] / scale - weights)
    assert error < 0.1 * np.linalg.norm(weights)
