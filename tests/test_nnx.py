import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problems import KEY, PRIOR

import sqs_jax
import sqs_jax.nnx as sqs_nnx
from sqs_jax import Rule, SubDistribution

RULE = Rule(components=4)


def transform():
    return sqs_jax.spike_slab_gmm([Rule(components=4, min_ndim=2)], prior=PRIOR)


class Net(nnx.Module):
    def __init__(self, lib, rngs, **options):
        self.embed = lib.Embed(7, 8, rngs=rngs, **options)
        self.conv = lib.Conv(8, 6, (3,), rngs=rngs, **options)
        self.blocks = nnx.List([lib.Linear(6, 6, rngs=rngs, **options) for _ in range(2)])
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, tokens):
        x = self.conv(self.embed(tokens))
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.dropout(self.norm(x))


TOKENS = jnp.array([[1, 2, 0, 4], [3, 3, 1, 6]])


def plain():
    return sqs_nnx.functionalize(Net(nnx, nnx.Rngs(0)))


def compressible():
    return sqs_nnx.functionalize(Net(sqs_nnx, nnx.Rngs(0), rule=RULE))


def test_params_are_init_of_the_plain_models_params():
    q, want = compressible()[0], transform().init(plain()[0])
    assert jax.tree.structure(q) == jax.tree.structure(want)
    chex.assert_trees_all_equal(q, want)
    assert isinstance(q["blocks"][1]["kernel"], SubDistribution)


def test_a_kernel_may_be_a_posterior_or_any_array():
    t, (q, state, apply_fn) = transform(), compressible()
    params, plain_state, plain_apply = plain()
    assert jax.tree.structure(state) == jax.tree.structure(plain_state)
    want = plain_apply(t.mode(q), state, TOKENS)[0]
    for weights in (q, t.mode(q), sqs_jax.materialize(t.compress(q))):
        np.testing.assert_allclose(apply_fn(weights, state, TOKENS)[0], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        apply_fn(params, state, TOKENS)[0],
        plain_apply(params, state, TOKENS)[0],
        rtol=1e-5,
        atol=1e-6,
    )


def test_functionalize_carries_batch_statistics_and_dropout_streams():
    params, state, apply_fn = plain()
    first, new = jax.jit(apply_fn)(params, state, TOKENS)
    again, _ = apply_fn(params, state, TOKENS)
    np.testing.assert_allclose(
        first, again, rtol=1e-5, atol=1e-6
    )  # pure: equal states give equal outputs
    second, newer = apply_fn(params, new, TOKENS)
    assert (np.asarray(first == 0) != np.asarray(second == 0)).any()  # another dropout mask
    assert np.any(new["norm"]["mean"] != state["norm"]["mean"])
    assert np.any(newer["norm"]["mean"] != new["norm"]["mean"])
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_functionalize_does_not_change_the_model():
    model = Net(nnx, nnx.Rngs(0))
    params, state, apply_fn = sqs_nnx.functionalize(model)
    before = jax.tree.map(np.asarray, state["norm"])
    apply_fn(jax.tree.map(lambda x: 0 * x, params), state, TOKENS)
    chex.assert_trees_all_equal(sqs_nnx.functionalize(model)[1]["norm"], before)


def test_gradients_reach_every_layers_posterior():
    q, state, apply_fn = compressible()
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(apply_fn(p, state, TOKENS)[0])), allow_int=True)(
        q
    )
    for kernel in (gradient["embed"]["embedding"], gradient["conv"]["kernel"],
                   gradient["blocks"][0]["kernel"]):  # fmt: skip
        assert np.any(kernel.loc) and np.any(kernel.means) and not np.any(kernel.log_scales)


def test_a_rule_without_components_leaves_the_layer_plain():
    layer = sqs_nnx.Linear(6, 5, rngs=nnx.Rngs(0), rule=Rule(components=None))
    want = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    x = jax.random.normal(KEY, (3, 6))
    np.testing.assert_array_equal(layer(x), want(x))
    default = sqs_nnx.functionalize(sqs_nnx.Linear(6, 5, rngs=nnx.Rngs(0)))[0]
    assert isinstance(default["kernel"], SubDistribution)


def test_a_tied_head_uses_the_deployed_table():
    embed = sqs_nnx.Embed(7, 6, rngs=nnx.Rngs(0), rule=RULE)
    table = sqs_nnx.functionalize(embed)[0]["embedding"].mode()
    x = jax.random.normal(KEY, (3, 6))
    np.testing.assert_allclose(embed.attend(x), x @ table.T, rtol=1e-4, atol=1e-5)


def test_a_structure_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"kernel: structure \(2, 4\)"):
        sqs_nnx.Linear(6, 5, rngs=nnx.Rngs(0), rule=Rule(structure=(2, 4)))


def test_a_compressed_param_has_the_shape_and_dtype_of_its_weights():
    plain = nnx.Linear(6, 4, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    layer = sqs_nnx.Linear(
        6, 4, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16, rule=sqs_jax.Rule(components=2)
    )
    for name in ("shape", "ndim", "dtype"):
        assert getattr(layer.kernel, name) == getattr(plain.kernel, name)
