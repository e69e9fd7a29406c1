"""CoDeQ: the quantizer against the paper's equations, learned parameters, constraints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sqs_jax
from sqs_jax import Rule, Windows
from sqs_jax.baselines.codeq import DeadZone, codeq

RNG = np.random.default_rng(0)
PARAMS = {
    "kernel": (RNG.laplace(size=(40, 30)) * 0.1).astype(np.float32),
    "bias": np.ones(30, np.float32),
}
RULES = [Rule(pattern="kernel", components=6)]


def as_published(w: np.ndarray, dead: float, bits: int) -> np.ndarray:
    """Quantize weight by weight: equations 4 to 9, in float64."""
    size = np.quantile(np.abs(w), 0.99)
    d = 2 * size * (1 - abs(np.tanh(dead)))
    most = 2 ** (bits - 1) - 1
    step = (size - d / 2) / (most - 0.5)
    quantized = np.zeros_like(w)
    for i, x in np.ndenumerate(w):
        if abs(x) > d / 2:
            q = min(max(round((abs(x) - d / 2 + step / 2) / step), 1), most)
            quantized[i] = np.sign(x) * (step * q + d / 2 - step / 2)
    return quantized


@pytest.mark.parametrize("components", [2, 6, 14])
@pytest.mark.parametrize("dead", [3.0, 0.8, -0.5])
def test_weights_are_quantized_as_published(components, dead):
    transform = codeq([Rule(pattern="kernel", components=components)])
    posterior = transform.init(PARAMS)
    leaf = posterior["kernel"].replace(dead_zone=jnp.float32(dead))
    params = transform.mode({**posterior, "kernel": leaf})
    published = as_published(PARAMS["kernel"].astype("f8"), dead, leaf.bits)
    off = np.abs(np.asarray(params["kernel"]) - published) > 1e-5
    assert off.mean() < 2e-3  # a weight on a border may fall to either side
    np.testing.assert_array_equal(params["bias"], PARAMS["bias"])


def test_the_file_holds_the_weights_on_a_uniform_grid_around_a_dead_zone(tmp_path):
    transform = codeq(RULES)
    posterior = transform.init(PARAMS)
    leaf = posterior["kernel"].replace(dead_zone=jnp.float32(0.7))
    posterior = {**posterior, "kernel": leaf}
    compressed = transform.compress(posterior)
    weights = transform.mode(posterior)["kernel"]
    np.testing.assert_array_equal(sqs_jax.materialize(compressed)["kernel"], weights)
    book = compressed["kernel"].codebook.ravel()
    assert len(book) == 6
    np.testing.assert_allclose(book, -book[::-1], atol=1e-7)
    np.testing.assert_allclose(np.diff(book[3:]), np.diff(book[3:])[0], rtol=1e-4)
    half = np.quantile(np.abs(PARAMS["kernel"]), 0.99) * (1 - np.tanh(0.7))
    zeros = np.asarray(weights) == 0
    np.testing.assert_array_equal(zeros, ~np.asarray(leaf.kept))
    assert np.abs(PARAMS["kernel"][zeros]).max() <= half + 1e-6
    assert np.abs(PARAMS["kernel"][~zeros]).min() >= half - 1e-6
    sqs_jax.save(tmp_path / "m.sqs", compressed)
    assert sqs_jax.inspect(tmp_path / "m.sqs").sparsity == pytest.approx(zeros.mean())


def test_a_tensor_that_is_all_zeros_has_a_file():
    leaf = DeadZone(jnp.ones((3, 4)), jnp.float32(0), jnp.float32(3), 3, False)
    compressed = codeq(RULES).compress({"kernel": leaf})
    assert not np.asarray(sqs_jax.materialize(compressed)["kernel"]).any()


@pytest.mark.parametrize("mixed", [False, True])
def test_the_penalty_widens_dead_zones_and_takes_bits(mixed):
    x = RNG.standard_normal((64, 40)).astype(np.float32)
    y = jnp.asarray(x @ PARAMS["kernel"])
    transform = codeq(RULES, mixed=mixed)

    def nll(params, batch):
        return jnp.mean((batch @ params["kernel"] - y) ** 2), None

    def trained(weight):
        posterior = transform.init(PARAMS)
        trainable, fixed = sqs_jax.partition(posterior, train=("loc", "spread"))
        loss_fn = sqs_jax.elbo(transform, nll, num_data=64, kl_weight=weight)
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 300))

        @jax.jit
        def step(trainable, state):
            def loss(part):
                return loss_fn(sqs_jax.combine(part, fixed), x, jax.random.key(0), 0)[0]

            value, grads = jax.value_and_grad(loss)(trainable)
            updates, state = optimizer.update(grads, state, trainable)
            return optax.apply_updates(trainable, updates), state, value

        with jax.numpy_dtype_promotion("standard"):
            state, values = optimizer.init(trainable), []
            for _ in range(300):
                trainable, state, value = step(trainable, state)
                values.append(float(value))
        return sqs_jax.combine(trainable, fixed)["kernel"], values

    light, values = trained(1e-3)
    heavy, _ = trained(10.0)
    assert values[-1] < 0.85 * values[0]
    kept = [float(jnp.mean(leaf.kept)) for leaf in (light, heavy)]
    assert kept[1] < 0.9 * kept[0]
    assert (abs(heavy.width) < abs(light.width)) == mixed
    levels = [transform.compress({"k": leaf})["k"].codebook.size for leaf in (light, heavy)]
    assert levels[1] <= levels[0] <= 6


@pytest.mark.parametrize(
    "rule",
    [
        Rule(components=5),
        Rule(components=6, windows=Windows(kind="equal", count=2)),
        Rule(stacked=1),
    ],
)
def test_rules_that_fit_no_quantizer_are_refused(rule):
    with pytest.raises(ValueError, match=r"2\*\*b - 2 levels"):
        codeq([rule])
    with pytest.raises(ValueError, match="not finite"):
        codeq(RULES).init({"kernel": np.full((3, 3), np.nan, np.float32)})
