import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import KEY, PRIOR

import sqs_jax
import sqs_jax.linen as sqs_linen
from sqs_jax import Rule, SubDistribution

RULE = Rule(components=4)
IMAGE = jnp.ones((2, 8, 8, 3))
TOKENS = jnp.array([[1, 2, 0], [3, 3, 1]])


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    chex.assert_trees_all_equal(a, b)


def transform(**options):
    return sqs_jax.spike_slab_gmm([Rule(components=4, **options)], prior=PRIOR)


class Net(nn.Module):
    lib: object
    options: dict

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.lib.Conv(4, (3, 3), name="conv", **self.options)(x))
        return self.lib.Dense(5, name="dense", **self.options)(x.reshape(x.shape[0], -1))


class Text(nn.Module):
    lib: object
    options: dict

    def setup(self):
        self.embed = self.lib.Embed(7, 6, **self.options)
        self.head = self.lib.Dense(7, use_bias=False, **self.options)

    def __call__(self, tokens):
        x = self.embed(tokens)
        return self.head(x) + self.embed.attend(x)


@pytest.mark.parametrize(("net", "x"), [(Net, IMAGE), (Text, TOKENS)], ids=["compact", "setup"])
def test_params_are_init_of_the_plain_models_params(net, x):
    plain = net(nn, {}).init(KEY, x)["params"]
    model = net(sqs_linen, {"rule": RULE})
    t = transform()
    q = model.init(KEY, x)["params"]
    same(q, t.init(plain))
    deployed = net(nn, {}).apply({"params": t.mode(q)}, x)
    for weights in (q, t.mode(q), sqs_jax.materialize(t.compress(q))):
        np.testing.assert_allclose(model.apply({"params": weights}, x), deployed, rtol=1e-5)
    np.testing.assert_allclose(
        model.apply({"params": plain}, x), net(nn, {}).apply({"params": plain}, x), rtol=1e-5
    )


def test_a_rule_without_components_leaves_the_layer_plain():
    model = sqs_linen.Dense(5, rule=Rule(components=None))
    same(model.init(KEY, jnp.ones((2, 6))), nn.Dense(5).init(KEY, jnp.ones((2, 6))))
    assert isinstance(
        sqs_linen.Dense(5).init(KEY, jnp.ones((2, 6)))["params"]["kernel"], SubDistribution
    )


def test_layers_under_scan_are_the_transforms_stacked_leaves():
    def net(lib, options):
        class Body(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.relu(lib.Dense(6, name="dense", **options)(x)), None

        return nn.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()

    x = jnp.ones((2, 6))
    plain = net(nn, {}).init(KEY, x, None)["params"]
    rule = Rule(components=4, stacked=1)
    model, t = net(sqs_linen, {"rule": rule}), transform(stacked=1)
    q = jax.jit(model.init)(KEY, x, None)["params"]
    assert jax.tree.structure(q) == jax.tree.structure(t.init(plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), q, t.init(plain)
    )
    want = net(nn, {}).apply({"params": t.mode(q)}, x, None)[0]
    np.testing.assert_allclose(model.apply({"params": q}, x, None)[0], want, rtol=1e-5)


def test_gradients_reach_a_layers_posterior_straight_through():
    model, x = sqs_linen.Dense(5, rule=RULE), jax.random.normal(KEY, (3, 6))
    q = model.init(KEY, x)["params"]
    gradient = jax.grad(lambda p: model.apply({"params": p}, x).sum(), allow_int=True)(q)
    want = jnp.broadcast_to(x.sum(axis=0)[:, None], (6, 5))
    np.testing.assert_allclose(gradient["kernel"].loc, want, rtol=1e-5)


def test_the_layers_own_fields_still_work():
    x = jnp.ones((2, 6), jnp.bfloat16)
    model = sqs_linen.Dense(5, rule=RULE, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    q = model.init(KEY, x)["params"]
    assert q["kernel"].loc.dtype == jnp.bfloat16 and q["kernel"].means.dtype == jnp.float32
    assert model.apply({"params": q}, x).dtype == jnp.bfloat16


def test_a_structure_that_does_not_fit_is_named_by_the_layers_path():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return sqs_linen.Dense(5, rule=Rule(structure=(2, 4)), name="head")(x)

    with pytest.raises(ValueError, match=r"head/kernel: structure \(2, 4\)"):
        Model().init(KEY, jnp.ones((2, 6)))


def test_boxed_weights_are_refused_by_path():
    boxed = nn.with_partitioning(nn.initializers.ones, ("in", "out"))
    model = sqs_jax.linen.Dense(4, rule=sqs_jax.Rule(components=2), kernel_init=boxed)
    with pytest.raises(ValueError, match="kernel: its initializer boxes"):
        model.init(jax.random.key(0), jnp.ones((1, 3)))
