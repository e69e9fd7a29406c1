"""Networks and training steps of the benchmarks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from benchmarks import equal_layers, steps, training
from benchmarks.models import Decoder, ResNet
from benchmarks.models.decoder import rotate

TINY = Decoder(vocabulary=16, width=8, layers=2, heads=2, kv_heads=1, hidden=12)


def text(model, batch=2, length=6):
    tokens = jax.random.randint(jax.random.key(1), (batch, length + 1), 0, model.vocabulary)
    return training.Problem("tiny", model, tokens[:, :-1], tokens[:, 1:])


def variables(problem):
    """Random (params, other collections), without compiling initializers."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(problem.variables)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.3, 0.3, x.shape), x.dtype), shapes)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("make", "units", "least", "most"),
    [
        (steps.decoder, 2048, 5e6, 7e6),
        (steps.llama, 8192, 1.0e9, 1.1e9),
        (steps.resnet20, 128, 0.27e6, 0.28e6),
        (steps.resnet18, 256, 11e6, 11.3e6),
    ],
)
def test_networks_have_the_stated_size(make, units, least, most):
    case = make()
    params, _ = jax.eval_shape(case.problem.variables)
    sqs = training.transform(16, stacked=case.stacked)
    compressible = training.compressible(sqs, params)
    assert case.problem.labels.size == units
    assert least <= compressible <= most
    assert compressible > 0.99 * count(params)  # norms and biases stay dense


def test_scanned_layers_equal_separate_layers():
    problem, scanned = text(TINY), text(TINY.clone(scan=True))
    params, _ = variables(scanned)
    separate = {name: leaf for name, leaf in params.items() if name != "layers"}
    separate |= {
        f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(2)
    }
    batch = problem.inputs, problem.labels, {}  # the decoder has no mutable state
    scanned_nll, _ = jax.jit(scanned.nll)(params, batch)
    separate_nll, _ = jax.jit(problem.nll)(separate, batch)
    np.testing.assert_allclose(scanned_nll, separate_nll, rtol=1e-5)


def test_logits_do_not_depend_on_later_tokens():
    problem = text(TINY)
    params, _ = variables(problem)
    changed = problem.inputs.at[:, 4].set((problem.inputs[:, 4] + 1) % 16)
    apply = jax.jit(TINY.apply)
    before, after = (apply({"params": params}, x) for x in (problem.inputs, changed))
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-4


def test_rotary_products_depend_on_the_distance_only():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(np.tile(rng.normal(size=8), (1, 5, 1, 1)), jnp.float32) for _ in "qk")
    query, key = (np.asarray(x)[0, :, 0] for x in jax.jit(lambda q, k: (rotate(q), rotate(k)))(
        query, key))  # fmt: skip
    products = query @ key.T
    for distance in range(-4, 5):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, np.full_like(diagonal, diagonal[0]), atol=1e-5)
    assert np.ptp(products) > 0.1


def test_small_tensors_start_as_by_init():
    kernel = np.random.default_rng(0).normal(size=(8, 6))
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.ones(6)}
    sqs = training.transform(4)
    assert jax.tree.all(jax.tree.map(np.array_equal, training.start(sqs, params), sqs.init(params)))


def test_with_exact_codebooks_the_sqs_step_equals_the_dense_step():
    model = ResNet(widths=(4,), blocks=1, classes=3)
    problem = steps._images("tiny", model, 4)
    params, model_state = variables(problem)
    # Kernels have at most three values and no pruned weights: deployed weights equal the weights.
    params = jax.tree.map(
        lambda x: jnp.asarray(np.sign(np.round(3 * x)) / 8) if x.ndim > 1 else x, params
    )
    sqs = training.transform(3)
    posterior = sqs.init(params)
    trainable, _ = sqs_jax.partition(posterior, train=training.TRAIN["mode"])

    def after(step, weights, trained):
        state = training.State(weights, model_state, training.optimizer().init(trained))
        state = jax.tree.map(jnp.array, state)
        return step(state, problem.inputs, problem.labels, jnp.int32(0))

    sqs_state = after(training.sqs_step(problem, sqs, "mode"), posterior, trainable)
    dense = after(training.dense_step(problem), params, params)
    latent = jax.tree.map(
        lambda leaf: leaf.loc if isinstance(leaf, sqs_jax.SubDistribution) else leaf,
        sqs_state.weights,
        is_leaf=lambda leaf: isinstance(leaf, sqs_jax.SubDistribution),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), latent, dense.weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), sqs_state.model_state,
        dense.model_state,
    )  # fmt: skip


def test_a_row_has_a_bar():
    problem = equal_layers.problem(8, 1)
    case = steps.Case(problem, {("mode", 4): 1.0})
    dense = training.steps(training.dense_step(problem), training.dense_state(problem), problem)
    row = steps.measure(case, dense, "mode", 4, pairs=2)
    assert row["bar"] == 1.0 and row["pairs"] == 2 and row["ratio"] > 0
    assert steps._line(row)
