"""Tests of residual networks: sizes, layers, gradients, folded batch norms."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import sqs_jax
from experiments.models import NETWORKS, build_model
from experiments.models.convolution import conv_general_dilated
from experiments.training.batch_norm import fold_statistics


def network(name: str, num_classes: int = 10, stem: str = "cifar", **options: Any) -> Any:
    return build_model(
        SimpleNamespace(name=name, stem=stem, dtype="float32"), num_classes, **options
    )


@pytest.mark.parametrize(
    ("name", "stem", "classes", "weights"),
    [
        ("resnet20", "cifar", 10, 269_722),
        ("resnet20b", "cifar", 10, 272_474),
        ("resnet32", "cifar", 10, 464_154),
        ("resnet44", "cifar", 10, 658_586),
        ("resnet56", "cifar", 10, 853_018),
        ("resnet110", "cifar", 10, 1_727_962),
        ("resnet18", "cifar", 100, 11_220_132),
        ("resnet18", "imagenet", 1000, 11_689_512),  # from here on torchvision's counts
        ("resnet34", "imagenet", 1000, 21_797_672),
        ("resnet50", "imagenet", 1000, 25_557_032),
    ],
)
def test_networks_have_the_published_number_of_weights(
    name: str, stem: str, classes: int, weights: int
) -> None:
    example = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(network(name, classes, stem).init, jax.random.key(0), example)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == weights


def test_compressible_layers_have_the_plain_paths_and_initial_weights() -> None:
    example = jnp.zeros((1, 8, 8, 3))
    plain, posterior = (
        jax.jit(network("resnet20", rule=rule).init)(jax.random.key(0), example)["params"]
        for rule in (None, sqs_jax.Rule(components=4))
    )
    prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
    expected = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=4)], prior=prior).init(plain)
    assert jax.tree.structure(posterior) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), posterior, expected)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'resnet21'; there are convnet, resnet20"):
        network("resnet21")
    with pytest.raises(ValueError, match="'tiny'"):
        network("resnet18", stem="tiny")
    assert set(NETWORKS) >= {"resnet18", "resnet34", "resnet50", "resnet56"}


@pytest.mark.parametrize(
    ("size", "stride", "pad"), [(3, 1, (1, 1)), (3, 2, (1, 1)), (1, 2, (0, 0)), (7, 2, (3, 2))]
)
def test_gradients_of_a_convolution_match_jax(size: int, stride: int, pad: Any) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 9, 10, 3))
    kernel = jax.random.normal(keys[1], (size, size, 3, 5))
    geometry = {"strides": (stride, stride), "padding": (pad, pad)}

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        options = {"window_strides": geometry["strides"], "padding": geometry["padding"]}
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **options)

    expected, plain_vjp = jax.vjp(plain, x, kernel)
    outputs, vjp = jax.vjp(lambda x, kernel: conv_general_dilated(x, kernel, **geometry), x, kernel)
    cotangent = jax.random.normal(keys[2], expected.shape)
    np.testing.assert_array_equal(outputs, expected)
    for a, b in zip(vjp(cotangent), plain_vjp(cotangent), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_folded_batch_norms_keep_the_outputs_and_store_constants() -> None:
    model = network("resnet20")
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    variables = model.init(jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def disturbed(x: jax.Array) -> np.ndarray:
        return np.asarray(x) * rng.uniform(0.5, 2, x.shape).astype(np.float32)

    variables = {
        "params": jax.tree.map(disturbed, variables["params"]),
        "batch_stats": jax.tree.map(disturbed, variables["batch_stats"]),
    }
    params, state = fold_statistics(variables["params"], {"batch_stats": variables["batch_stats"]})
    folded = sqs_jax.materialize({"params": params, **state})
    assert jax.tree.structure(folded) == jax.tree.structure(variables)
    expected = model.apply(variables, images)
    # outputs are sums of terms as large as the largest of them, in float32
    rounding = 1e-6 * float(np.max(np.abs(expected)))
    np.testing.assert_allclose(model.apply(folded, images), expected, rtol=1e-4, atol=rounding)
    for path, leaf in jax.tree_util.tree_leaves_with_path(folded["batch_stats"]):
        assert np.unique(leaf).size == 1, path
    without = sqs_jax.summarize({"params": params}).file_bytes
    assert sqs_jax.summarize({"params": params, **state}).file_bytes - without < 1000
    assert fold_statistics(params, {}) == (params, {})
