"""Tests of exported files, which hold the deployed weights exactly."""

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from experiments.calibration.blocks import examples_of
from experiments.calibration.size import compress
from experiments.comparison.post_training import PEERS
from experiments.configs import digits
from experiments.data import Dataset
from experiments.export import as_stored, deployed, export, shipped
from experiments.models.resnet import ResNet
from experiments.training.calibrated import with_codes
from experiments.training.phases import Phase, phases
from experiments.training.step import init_state
from experiments.trees import flat_leaves, map_leaves


@pytest.fixture(scope="module")
def network() -> tuple[Phase, Any, Any]:
    config = digits.get_config()
    config.evaluation.average_samples = 2
    model = ResNet(blocks=(1,), widths=(8,), num_classes=4)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: x + 0.1 * rng.random(x.shape, np.float32), variables)
    return phases(config, num_train=1280)[-1], jax.tree.map(np.asarray, variables), config


@pytest.mark.parametrize("dense_dtype", ["float16", "bfloat16", ""])
@pytest.mark.parametrize("start", ["weights", "codes", "rtn-groups", "spqr", "decomposition"])
def test_the_file_holds_the_deployed_weights(
    network: Any, dense_dtype: str, start: str, tmp_path: Path
) -> None:
    phase, variables, config = network
    config = config.copy_and_resolve_references()
    config.sqs.dense_dtype = dense_dtype
    if start == "codes":
        posterior = phase.transform.init(variables["params"])
        phase = with_codes(phase, jax.device_get(phase.transform.compress(posterior)))
    elif start != "weights":
        peer, params = PEERS[start], variables["params"]
        kernels = {path: w for path, w in flat_leaves(params).items() if path.endswith("kernel")}
        compressed = peer.compress(kernels, peer.ladders[0][-2], None)
        phase = with_codes(phase, map_leaves(lambda path, w: compressed.get(path, w), params))
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        state = init_state(phase, variables)
    export(tmp_path, phase, None, state, state.model_state, config)
    expected = flat_leaves(deployed(phase, state, config))
    tree = sqs_jax.load(tmp_path / "model.sqs")
    stored = flat_leaves(sqs_jax.materialize(tree))
    assert stored.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(stored[path], leaf, err_msg=path)
    for leaf in flat_leaves(tree["params"]).values():
        if isinstance(leaf, sqs_jax.CompressedLeaf) and dense_dtype:  # two bytes per level
            rounded = leaf.codebook.astype(jnp.dtype(dense_dtype)).astype(np.float32)
            np.testing.assert_array_equal(leaf.codebook, rounded)
    # Other starts have no draws.
    assert (tmp_path / "average.sqs").is_file() == (start == "weights")


def test_levels_that_overflow_the_dense_dtype_are_refused(network: Any) -> None:
    phase, variables, config = network
    with jax.numpy_dtype_promotion("standard"):
        state = init_state(phase, variables)
    compressed = phase.transform.compress(state.posterior)
    params = jax.tree.map(
        lambda x: 1e6 * x if jnp.issubdtype(x.dtype, jnp.floating) else x, compressed
    )
    with pytest.raises(
        ValueError, match=r"kernel: .* is more than config\.sqs\.dense_dtype 'float16'"
    ):
        shipped(params, {}, config)
    integers = {"count": np.arange(3, dtype=np.int32), "half": np.ones(3, np.float16)}
    chex.assert_trees_all_equal(as_stored(integers, "float16"), integers)


@pytest.mark.parametrize("dense_dtype", ["float16", ""])
def test_fixed_codes_leave_space_for_trained_values(
    network: Any, dense_dtype: str, tmp_path: Path
) -> None:
    """Values that are initially zero take a byte each, and two or four after training."""
    config = network[2]
    config = config.copy_and_resolve_references()
    config.sqs.dense_dtype, config.sqs.target_bytes, config.batch_size = dense_dtype, 4000, 4
    model = ResNet(blocks=(1,), widths=(24,), num_classes=4)  # biases are 0, scales 1
    drawn = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    variables = jax.tree.map(np.asarray, drawn)
    images = np.random.default_rng(1).normal(size=(8, 8, 8, 3)).astype(np.float32)
    train = Dataset(images, np.zeros(8, np.int32), None, None)
    config.calibration.examples = 8
    batches = examples_of(train, config)

    def size(compressed: Any) -> int:
        tree, options = shipped(compressed, {"batch_stats": variables["batch_stats"]}, config)
        return sqs_jax.summarize(jax.tree.map(np.asarray, tree), **options).file_bytes

    arguments = model, variables, train, batches, config
    tight = compress(*arguments, tmp_path / "tight")
    assert 3900 < size(tight) <= 4000
    roomy = compress(*arguments, tmp_path / "roomy", trained=True)
    rng = np.random.default_rng(2)

    def moved(x: Any) -> Any:
        return x + rng.normal(size=x.shape).astype(x.dtype) if x.dtype == np.float32 else x

    assert size(jax.tree.map(moved, roomy)) <= 4000 < size(jax.tree.map(moved, tight))
