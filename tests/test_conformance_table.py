"""Every kind of model through every transformation of JAX, for one training step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from problems import KEY, PRIOR

import sqs_jax
import sqs_jax.linen
import sqs_jax.nnx

RULE = sqs_jax.Rule(pattern=".*kernel", components=4)
T = sqs_jax.spike_slab_gmm([RULE], prior=PRIOR)
X, Y = jax.random.normal(KEY, (8, 6)), jax.random.normal(jax.random.key(1), (8, 4))
ESTIMATORS = ["mean", "sample", "mode"]


def dictionary():
    kernel = jax.random.normal(jax.random.key(2), (6, 4))
    params = {"out": {"kernel": kernel, "bias": jnp.zeros(4)}, "count": jnp.arange(2)}
    return T.init(params), lambda p, x: x @ p["out"]["kernel"] + p["out"]["bias"][None]


def linen():
    model = sqs_jax.linen.Dense(4, rule=RULE, name="out")
    q = model.init(jax.random.key(2), X)["params"]
    return q, lambda p, x: model.apply({"params": p}, x)


def nnx_module():
    q, state, apply_fn = sqs_jax.nnx.functionalize(
        sqs_jax.nnx.Linear(6, 4, rngs=nnx.Rngs(2), rule=RULE)
    )
    return q, lambda p, x: apply_fn(p, state, x)[0]


MODELS = {"dict": dictionary, "linen": linen, "nnx": nnx_module}


def problem(model, estimator):
    """A posterior, its trained and fixed parts, and one step of SGD that counts its traces."""
    posterior, apply = MODELS[model]()
    posterior = sqs_jax.prune(posterior, 0.25)
    traces = []

    def nll(params, batch):
        x, y = batch
        return jnp.mean(jnp.square(apply(params, x) - y)), None

    loss_fn = sqs_jax.elbo(T, nll, num_data=8, estimator=estimator)
    trainable, fixed = sqs_jax.partition(posterior)
    tx = optax.sgd(0.1)

    def step(part, fixed, batch, key):
        traces.append(1)
        value, gradient = jax.value_and_grad(
            lambda p: loss_fn(sqs_jax.combine(p, fixed), batch, key, 0)[0]
        )(part)
        updates, _ = tx.update(gradient, tx.init(part), part)
        return optax.apply_updates(part, updates), value

    return posterior, trainable, fixed, step, traces


@functools.cache
def reference(model, estimator):
    """One step on one device, compiled once for all the rows that compare with it."""
    _, part, fixed, step, _ = problem(model, estimator)
    return jax.jit(step)(part, fixed, (X, Y), jax.random.split(KEY, 2)[1])


def check(before, after):
    """Same paths, shapes and dtypes; finite; and something moved."""
    assert jax.tree.structure(before) == jax.tree.structure(after)
    moved = False
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.isfinite(b).all()
        moved |= bool((np.asarray(a) != np.asarray(b)).any())
    assert moved


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("model", MODELS)
class TestTable:
    def test_jit_traces_once(self, model, estimator):
        posterior, part, fixed, step, traces = problem(model, estimator)
        jitted = jax.jit(step)
        new, value = jitted(part, fixed, (X, Y), KEY)
        newer, _ = jitted(new, fixed, (X, Y), jax.random.fold_in(KEY, 1))
        assert len(traces) == 1 and np.isfinite(value)
        check(part, new)
        check(posterior, sqs_jax.combine(newer, fixed))

    def test_vmap_over_posteriors_and_keys_is_one_step_each(self, model, estimator):
        _, part, fixed, step, _ = problem(model, estimator)
        pair = jax.tree.map(lambda x: jnp.stack([1.1 * x, x]), part)
        keys = jax.random.split(KEY, 2)
        many, values = jax.jit(jax.vmap(step, in_axes=(0, None, None, 0)))(
            pair, fixed, (X, Y), keys
        )
        check(pair, many)
        one, value = reference(model, estimator)
        np.testing.assert_allclose(values[1], value, rtol=1e-4)
        assert values[0] != values[1]
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[1], b, rtol=1e-3, atol=1e-5)

    def test_eval_shape_gives_the_paths_and_dtypes(self, model, estimator):
        _, part, fixed, step, _ = problem(model, estimator)
        new, value = jax.eval_shape(step, part, fixed, (X, Y), KEY)
        assert jax.tree.structure(new) == jax.tree.structure(part)
        for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(new), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert value.shape == () and value.dtype == jnp.float32

    @pytest.mark.parametrize("split", [False, True], ids=["replicated", "sharded"])
    def test_a_mesh_of_two_devices_changes_nothing(self, model, estimator, split):
        posterior, part, fixed, step, traces = problem(model, estimator)
        want, value = reference(model, estimator)
        key = jax.random.split(KEY, 2)[1]
        mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

        def place(x):
            rows = split and x.ndim == 2 and x.shape == (6, 4)
            spec = PartitionSpec("d", None) if rows else PartitionSpec()
            return jax.device_put(x, NamedSharding(mesh, spec))

        batch = jax.device_put((X, Y), NamedSharding(mesh, PartitionSpec("d", None)))
        placed, rest = jax.tree.map(place, (part, fixed))
        traces.clear()
        shardings = jax.tree.map(lambda x: x.sharding, placed)
        jitted = jax.jit(step, out_shardings=(shardings, None))
        got, sharded_value = jax.block_until_ready(jitted(placed, rest, batch, key))
        jax.block_until_ready(jitted(got, rest, batch, key))
        assert len(traces) == 1
        np.testing.assert_allclose(sharded_value, value, rtol=1e-4)
        check(part, got)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
        assert jax.tree.structure(posterior) == jax.tree.structure(sqs_jax.combine(got, rest))


@pytest.mark.parametrize("model", MODELS)
def test_plain_grad_of_the_whole_posterior(model):
    posterior, _, _, _, _ = problem(model, "mode")

    def total(q):
        return T.kl(q) + sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(T.mean(q)))

    gradient = jax.jit(jax.grad(total, allow_int=True))(posterior)
    assert jax.tree.structure(gradient) == jax.tree.structure(posterior)
    floating = [x for x in jax.tree.leaves(gradient) if x.dtype != jax.dtypes.float0]
    assert floating and all(np.isfinite(x).all() for x in floating)


def test_linen_layers_are_plain_flax_modules():
    assert issubclass(sqs_jax.linen.Dense, nn.Dense) and issubclass(sqs_jax.nnx.Linear, nnx.Linear)
