import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import KEY, generic, leaf, params, transform

import sqs_jax
from sqs_jax import bayesian_average

T = transform()
Q = generic(T.init(params()))
X = jax.random.normal(jax.random.key(5), (5, 12))


def predict(weights):
    return jax.nn.softmax(X @ leaf(weights))


def test_the_average_is_the_mean_over_the_draws():
    got = bayesian_average(predict, T, Q, KEY, num_samples=5, temperature=3.0)
    draws = [
        predict(T.sample(Q, key, temperature=3.0, hard=True)) for key in jax.random.split(KEY, 5)
    ]
    np.testing.assert_allclose(got, np.mean(draws, axis=0), rtol=1e-5)
    np.testing.assert_allclose(got.sum(axis=-1), 1, rtol=1e-5)
    assert np.std(draws, axis=0).max() > 1e-3  # the draws differ


def test_the_networks_have_k_levels_and_the_predictor_is_traced_at_most_twice():
    seen = []

    def spy(weights):
        seen.append(1)
        d = leaf(Q)
        distance = jnp.abs(leaf(weights)[..., None] - d.means[0][None, None])
        at_a_level = (distance.min(-1) == 0) & d.kept | (leaf(weights) == 0) & ~d.kept
        return jnp.mean(at_a_level, keepdims=True)

    got = bayesian_average(spy, T, Q, KEY, num_samples=7)
    assert got.item() == pytest.approx(1) and len(seen) <= 2


def test_towards_temperature_zero_every_draw_is_the_mode():
    got = bayesian_average(predict, T, Q, KEY, num_samples=3, temperature=1e-6)
    np.testing.assert_allclose(got, predict(T.mode(Q)), rtol=1e-5)


def test_half_precision_probabilities_are_added_in_float32():
    # In bfloat16 a sum of 600 ones stops at 256.
    got = bayesian_average(lambda w: jnp.ones((2, 1), jnp.bfloat16), T, Q, KEY, num_samples=600)
    assert got.dtype == jnp.bfloat16 and got.ravel().tolist() == [1.0, 1.0]


def test_it_can_be_compiled_and_repeats_with_its_key():
    average = jax.jit(lambda key: bayesian_average(predict, T, Q, key, num_samples=2))
    np.testing.assert_array_equal(average(KEY), average(KEY))
    assert (np.asarray(average(KEY)) != np.asarray(average(jax.random.key(1)))).any()


@pytest.mark.parametrize("bad", [0, -1, 2.0])
def test_the_number_of_networks_must_be_a_positive_int(bad):
    with pytest.raises(ValueError, match=f"num_samples is {bad}"):
        bayesian_average(predict, T, Q, KEY, num_samples=bad)


def test_a_transform_without_samples_cannot_be_averaged():
    with pytest.raises(ValueError, match="cannot sample"):
        bayesian_average(predict, T._replace(sample=None), Q, KEY, num_samples=2)


@pytest.mark.parametrize("predict", [lambda w: jnp.arange(3), lambda w: (jnp.ones(3), None)])
def test_only_probabilities_are_averaged(predict):
    t = transform()
    with pytest.raises(ValueError, match="one array of probabilities"):
        sqs_jax.bayesian_average(predict, t, t.init(params()), KEY, num_samples=2)
