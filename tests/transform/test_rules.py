import jax.numpy as jnp
import numpy as np
import pytest
from problems import PRIOR

import sqs_jax
from sqs_jax import Rule, SubDistribution, Windows


def init(rules, params):
    return sqs_jax.spike_slab_gmm(rules, prior=PRIOR).init(params)


def components(posterior):
    return {
        path: None if not isinstance(x, SubDistribution) else x.means.shape[-1]
        for path, x in posterior.items()
    }


TREE = {"kernel": jnp.ones((4, 4)), "kernels": jnp.ones((4, 4)), "bias": jnp.ones(4)}


def test_the_first_rule_that_matches_the_whole_path_applies():
    rules = [Rule(pattern="kernel", components=2), Rule(components=3)]
    assert components(init(rules, TREE)) == {"kernel": 2, "kernels": 3, "bias": None}
    dense_first = [Rule(pattern="kernel", components=None), Rule(components=3)]
    assert components(init(dense_first, TREE)) == {"kernel": None, "kernels": 3, "bias": None}


def test_min_ndim_does_not_count_stacked_axes():
    got = init([Rule(pattern="bias", components=2, min_ndim=1), Rule(stacked=1)], TREE)
    assert components(got) == {"kernel": None, "kernels": None, "bias": 2}


def test_paths_reach_through_lists_and_tuples():
    tree = {"layers": [{"kernel": jnp.ones((2, 2))}, ({"kernel": jnp.ones((2, 2))},)]}
    got = init([Rule(pattern="layers/1/0/kernel", components=2)], tree)
    assert isinstance(got["layers"][1][0]["kernel"], SubDistribution)
    assert not isinstance(got["layers"][0]["kernel"], SubDistribution)


def test_a_rule_that_matches_nothing_is_an_error_that_shows_the_paths():
    with pytest.raises(ValueError, match=r"'kern' matches no leaf.*whole path.*bias, kernel"):
        init([Rule(pattern="kern")], TREE)
    with pytest.raises(ValueError, match="empty tree"):
        init([Rule()], {})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"pattern": "("}, r"pattern is '\('"),
        ({"pattern": None}, "pattern is None"),
        ({"components": 0}, "components is 0"),
        ({"components": 65_536}, "components is 65536"),
        ({"components": 2.0}, "components is 2.0"),
        ({"components": 32_768, "windows": Windows(kind="equal", count=2)}, "2 windows of 32768"),
        ({"windows": "equal"}, "windows is 'equal'"),
        ({"min_ndim": -1}, "min_ndim is -1"),
        ({"stacked": 1.0}, "stacked is 1.0"),
        ({"structure": (3, 2)}, r"structure is \(3, 2\)"),
        ({"structure": (0, 2)}, r"structure is \(0, 2\)"),
        ({"structure": [2, 4]}, r"structure is \[2, 4\]"),
    ],
)
def test_rules_refuse_what_is_out_of_range(options, named):
    with pytest.raises(ValueError, match=named):
        Rule(**options)


def test_rules_are_keyword_only_frozen_and_hashable():
    assert hash(Rule(components=3)) == hash(Rule(components=3)) and Rule(components=65_535)
    with pytest.raises(TypeError):
        Rule(".*")
    with pytest.raises(AttributeError):
        Rule().components = 3


@pytest.mark.parametrize("rules", [[], ["kernel"], [None]])
def test_rules_of_another_kind_are_refused(rules):
    with pytest.raises(TypeError, match=r"sequence of sqs_jax.Rule"):
        sqs_jax.spike_slab_gmm(rules, prior=PRIOR)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_a_leaf_that_is_not_floating_cannot_be_compressed(dtype):
    tree = {"w": jnp.ones((3, 3), dtype), "v": jnp.ones((3, 3))}
    with pytest.raises(ValueError, match=rf"w: rule.*{jnp.dtype(dtype)}.*components=None"):
        init([Rule(components=2)], tree)
    passed = init([Rule(pattern="w", components=None), Rule(components=2)], tree)["w"]
    assert passed.dtype == dtype


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_weights_that_are_not_finite_are_counted_at_their_path(bad, dtype):
    tree = {"a": {"w": jnp.ones((3, 3), dtype).at[0].set(bad)}}
    with pytest.raises(ValueError, match=r"a/w: 3 of 9 weights are not finite.*components=None"):
        init([Rule(components=2)], tree)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6, 3)])
def test_a_structure_needs_an_axis_it_divides(shape):
    with pytest.raises(ValueError, match=r"w: structure \(2, 4\).*multiple of 4"):
        init([Rule(structure=(2, 4))], {"w": jnp.ones(shape)})
