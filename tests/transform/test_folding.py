"""Equality of folded layers and layers with batch normalization."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax


class Net(nn.Module):
    use_bias: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), use_bias=self.use_bias)(x)
        return nn.BatchNorm(use_running_average=True, epsilon=1e-3)(x)


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_folded_flax_convolution_equals_convolution_and_normalization(use_bias):
    net, rng = Net(use_bias), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 6, 3)), jnp.float32)
    variables = net.init(jax.random.key(0), x)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(np.abs(rng.normal(size=leaf.shape)) + 0.1, leaf.dtype), variables
    )
    conv, norm = variables["params"]["Conv_0"], variables["params"]["BatchNorm_0"]
    stats = variables["batch_stats"]["BatchNorm_0"]
    kernel, bias = sqs_jax.fold_batch_norm(
        conv["kernel"],
        scale=norm["scale"],
        bias=norm["bias"],
        mean=stats["mean"],
        variance=stats["var"],
        epsilon=1e-3,
        layer_bias=conv.get("bias", 0.0),
    )
    plain = nn.Conv(8, (3, 3))
    folded = plain.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(folded, net.apply(variables, x), rtol=1e-4, atol=1e-4)
    assert kernel.dtype == conv["kernel"].dtype and bias.shape == (8,)


def test_pytorch_kernels_have_their_outputs_first():
    rng = np.random.default_rng(1)
    kernel = jnp.asarray(rng.normal(size=(4, 3, 3, 3)), jnp.float32)
    mean, variance = jnp.arange(4.0), jnp.ones(4) * 3
    folded, bias = sqs_jax.fold_batch_norm(
        kernel, scale=2.0, bias=1.0, mean=mean, variance=variance, epsilon=1.0, axis=0
    )
    np.testing.assert_allclose(folded, kernel, rtol=1e-6)  # 2 / sqrt(3 + 1)
    np.testing.assert_allclose(bias, 1 - np.arange(4.0), rtol=1e-6)


def test_statistics_of_another_layer_are_refused():
    with pytest.raises(ValueError, match=r"mean has shape \(5,\).*4 output channels"):
        sqs_jax.fold_batch_norm(
            jnp.ones((3, 4)), scale=1.0, bias=0.0, mean=jnp.ones(5), variance=jnp.ones(4)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": jnp.ones((4, 1))}, r"bias has shape \(4, 1\)"),
        ({"scale": jnp.ones(3)}, r"scale has shape \(3,\)"),
        ({"variance": -jnp.ones(4)}, "below 0"),
        ({"axis": 7}, "axis is 7"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes, message):
    arguments = {"scale": 1.0, "bias": 0.0, "mean": jnp.ones(4), "variance": jnp.ones(4)}
    with pytest.raises(ValueError, match=message):
        sqs_jax.fold_batch_norm(jnp.ones((3, 4)), **{**arguments, **changes})
