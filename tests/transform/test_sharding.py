"""Shardings over a mesh: by rules, automatic, and of training states."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import sqs_jax

SQS = sqs_jax.spike_slab_gmm(
    [sqs_jax.Rule(pattern=".*kernel", components=4)],
    prior=sqs_jax.SpikeSlabPrior(inclusion=0.2, scale=1.0),
)
PARAMS = {
    "layers": [{"kernel": np.ones((8, 6), np.float32), "bias": np.zeros(6, np.float32)}],
    "kernel": np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6),
}
RULES = [("layers/0/kernel", PartitionSpec("fsdp")), (".*kernel", PartitionSpec(None, "fsdp"))]


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((1, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def test_the_first_rule_applies_and_other_leaves_are_replicated(mesh) -> None:
    layout = sqs_jax.shardings(PARAMS, mesh, RULES)
    assert layout["layers"][0]["kernel"].spec == PartitionSpec("fsdp")
    assert layout["kernel"].spec == PartitionSpec(None, "fsdp")
    assert layout["layers"][0]["bias"].is_fully_replicated
    placed = jax.device_put(PARAMS, layout)
    assert placed["layers"][0]["kernel"].addressable_shards[0].data.shape == (4, 6)


def test_posteriors_and_their_parts_are_sharded_like_params_also_abstractly(mesh) -> None:
    posterior = jax.eval_shape(SQS.init, PARAMS)
    layout = sqs_jax.shardings(posterior, mesh, RULES)
    assert jax.tree.structure(layout) == jax.tree.structure(posterior)
    leaf = layout["layers"][0]["kernel"]
    assert isinstance(leaf, sqs_jax.SubDistribution)
    for field in ("loc", "gate_logits", "kept"):
        assert getattr(leaf, field).spec == PartitionSpec("fsdp")
    for field in ("means", "log_scales", "mixture_logits", "boundaries"):
        assert getattr(leaf, field).is_fully_replicated
    for part in sqs_jax.partition(posterior):
        layout_of_part = sqs_jax.shardings(part, mesh, RULES[1:])
        assert jax.tree.structure(layout_of_part) == jax.tree.structure(part)
    jitted = jax.jit(SQS.init, out_shardings=layout)(PARAMS)
    chex.assert_trees_all_equal(jitted, SQS.init(PARAMS))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("nothing", PartitionSpec()), "'nothing' matches no leaf"),
        (("(", PartitionSpec()), "no regular expression"),
        (("layers.*nel", PartitionSpec("model")), r"layers/0/kernel: .*no axis 'model'.*\(8, 6\)"),
        ((".*kernel", PartitionSpec("fsdp", "fsdp")), "'fsdp' comes twice"),
        ((".*bias", PartitionSpec(None, "fsdp")), "2 entries for 1 dimensions"),
        (("odd", PartitionSpec("fsdp")), "odd: dimension 0 of length 3 does not split in 2 parts"),
    ],
)
def test_mistakes_are_named(mesh, rule, message) -> None:
    with pytest.raises(ValueError, match=message):
        sqs_jax.shardings({**PARAMS, "odd": np.zeros(3)}, mesh, [rule])


def test_the_automatic_sharding_splits_large_dimensions_evenly(mesh) -> None:
    shapes = {"a": (64, 128), "b": (2, 3, 128, 64), "odd": (129, 65), "small": (8, 8), "s": ()}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    layout = sqs_jax.fully_sharded(tree, mesh, axis="fsdp")
    assert layout["a"].spec == PartitionSpec(None, "fsdp")
    assert layout["b"].spec == PartitionSpec(None, None, "fsdp")
    assert all(layout[name].is_fully_replicated for name in ("odd", "small", "s"))
    with pytest.raises(ValueError, match="'rows'"):
        sqs_jax.fully_sharded(tree, mesh, axis="rows")


def test_moments_follow_their_parameter_and_other_arrays_are_replicated(mesh) -> None:
    posterior = jax.eval_shape(SQS.init, PARAMS)
    layout = sqs_jax.shardings(posterior, mesh, RULES)
    rates = ("loc", "gate", "means", "dense")
    optimizer = optax.partition({r: optax.adam(1e-3) for r in rates}, sqs_jax.param_labels)
    trainable, _ = sqs_jax.partition(posterior, train=rates)
    # "scale" has the shape of the bias, but not the path of a parameter: replicated.
    statistics = {"layers": [{"scale": jax.ShapeDtypeStruct((6,), jnp.float32)}]}
    state = (posterior, statistics, jax.eval_shape(optimizer.init, trainable))
    shardings = sqs_jax.state_shardings(state, posterior, layout)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    assert shardings[0] == layout
    pairs = jax.tree_util.tree_flatten_with_path(shardings[1:])[0]
    split = {
        jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
        for path, sharding in pairs
        if not sharding.is_fully_replicated
    }
    ends = {(path.split("/inner_state/0/")[1], tuple(spec)) for path, spec in split.items()}
    assert ends == {
        (f"{moment}/{path}/{field}", spec)
        for moment in ("mu", "nu")
        for field in ("loc", "gate_logits")
        for path, spec in (("layers/0/kernel", ("fsdp",)), ("kernel", (None, "fsdp")))
    }
    assert all(isinstance(sharding, NamedSharding) for _, sharding in pairs)
