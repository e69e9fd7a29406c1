"""DGMS: the paper's expectation, the component at zero, and a training run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sqs_jax
from sqs_jax import Rule, Windows
from sqs_jax.baselines.dgms import dgms

RNG = np.random.default_rng(0)
PARAMS = {
    "kernel": (RNG.laplace(size=(40, 30)) * 0.1).astype(np.float32),
    "bias": np.ones(30, np.float32),
}
RULES = [Rule(pattern="kernel", components=4)]


@pytest.mark.parametrize("evaluation", ["loop", "table"])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_the_mean_is_the_expectation_with_a_component_at_zero(evaluation, temperature):
    transform = dgms(RULES, evaluation=evaluation)
    posterior = transform.init(PARAMS)
    leaf = posterior["kernel"]
    assert leaf.means.shape == (1, 5) and float(leaf.means[0, 0]) == 0
    means, scales = np.asarray(leaf.means[0], "f8"), np.exp(np.asarray(leaf.log_scales[0], "f8"))
    shares = jax.nn.softmax(leaf.mixture_logits[0])
    w = PARAMS["kernel"][..., None].astype("f8")
    joint = np.log(shares / scales) - ((w - means) / scales) ** 2 / 2
    soft = jax.nn.softmax(jnp.asarray(joint / temperature), axis=-1)
    mean = transform.mean(posterior, temperature=temperature)
    np.testing.assert_allclose(mean["kernel"], soft @ means.astype("f4"), atol=3e-4)
    np.testing.assert_array_equal(mean["bias"], PARAMS["bias"])
    cold = transform.mean(posterior, temperature=1e-6)["kernel"]
    np.testing.assert_allclose(cold, transform.mode(posterior)["kernel"], atol=1e-6)
    assert float(transform.kl(posterior)) == 0 and transform.sample is None


def test_what_the_component_at_zero_holds_is_pruned(tmp_path):
    transform = dgms(RULES)
    posterior = transform.init(PARAMS)
    moved = posterior["kernel"].replace(means=posterior["kernel"].means + 0.05)
    posterior = {**posterior, "kernel": moved}  # an optimizer may move it; it stays where it is
    weights, compressed = transform.mode(posterior), transform.compress(posterior)
    leaf = compressed["kernel"]
    assert leaf.codebook.shape == (1, 4) and leaf.codes.dtype == np.uint8
    np.testing.assert_array_equal(sqs_jax.materialize(compressed)["kernel"], weights["kernel"])
    zeros = np.asarray(leaf.codes == 0)
    np.testing.assert_array_equal(zeros, np.asarray(weights["kernel"]) == 0)
    assert 0.1 < zeros.mean() < 0.9
    sqs_jax.save(tmp_path / "m.sqs", compressed)
    assert sqs_jax.inspect(tmp_path / "m.sqs").sparsity == pytest.approx(zeros.mean())


def test_stacked_tensors_have_a_zero_each():
    rules = [Rule(pattern="kernel", components=3, stacked=1)]
    kernel = np.stack([PARAMS["kernel"], 3 * PARAMS["kernel"]])
    transform = dgms(rules)
    posterior = transform.init({"kernel": kernel})
    np.testing.assert_array_equal(posterior["kernel"].means[..., 0], np.zeros((2, 1)))
    leaf = transform.compress(posterior)["kernel"]
    assert leaf.codebook.shape == (2, 1, 3)
    kernels = sqs_jax.materialize({"kernel": leaf})["kernel"]
    np.testing.assert_array_equal(kernels, transform.mode(posterior)["kernel"])


def test_it_trains_in_the_elbo():
    x = RNG.standard_normal((64, 40)).astype(np.float32)
    y = jnp.asarray(x @ PARAMS["kernel"])
    transform = dgms(RULES)

    def nll(params, batch):
        return jnp.mean((batch @ params["kernel"] - y) ** 2), None

    posterior = transform.init(PARAMS)
    trainable, fixed = sqs_jax.partition(posterior, train=("loc", "means", "spread"))
    loss_fn = sqs_jax.elbo(transform, nll, num_data=64, temperature=0.5)
    optimizer = optax.adam(3e-3)
    state = optimizer.init(trainable)

    @jax.jit
    def step(trainable, state):
        def loss(part):
            return loss_fn(sqs_jax.combine(part, fixed), x, jax.random.key(0), 0)[0]

        value, grads = jax.value_and_grad(loss)(trainable)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(trainable, updates), state, value, grads

    losses = []
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        for _ in range(60):
            trainable, state, value, grads = step(trainable, state)
            losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    assert float(grads["kernel"].means[0, 0]) == 0
    assert bool(jnp.all(jnp.abs(grads["kernel"].means[0, 1:]) > 0))


def test_windows_are_refused():
    with pytest.raises(ValueError, match="has 3 windows; the component at zero needs one"):
        dgms([Rule(windows=Windows(kind="outlier", count=3))])
