import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import generic, leaf, params, transform

from sqs_jax import saliency

Q = generic(transform().init(params()))
THETA = np.asarray(leaf(Q).loc, np.float64)
NORMS = {"a": {"kernel": jnp.arange(1.0, 13.0), "bias": None}}
SQUARES = {"a": {"kernel": jnp.linspace(0.0, 1.0, 96).reshape(12, 8), "bias": jnp.ones(8)}}
SCORES = {
    "magnitude": saliency.magnitude,
    "gate": saliency.gate,
    "activation": lambda q: saliency.activation(q, NORMS),
    "fisher": lambda q: saliency.fisher(q, SQUARES),
}


def test_magnitude_is_inclusion_times_size():
    gates = np.asarray(leaf(Q).gate_logits, np.float64)
    want = np.abs(THETA) / (1 + np.exp(-gates))
    np.testing.assert_allclose(leaf(saliency.magnitude(Q)), want, rtol=1e-5)


def test_gate_is_the_logit():
    np.testing.assert_array_equal(leaf(saliency.gate(Q)), leaf(Q).gate_logits)


def test_activation_is_size_times_input_norm_with_mean_one():
    want = np.abs(THETA) * np.arange(1.0, 13.0)[:, None]
    np.testing.assert_allclose(leaf(SCORES["activation"](Q)), want / want.mean(), rtol=1e-5)


def test_activation_takes_norms_for_the_inputs_of_a_convolution():
    q = transform().init(params((3, 3, 4, 5)))
    whole = {"a": {"kernel": jnp.broadcast_to(jnp.arange(4.0), (3, 3, 4))}}
    short = {"a": {"kernel": jnp.arange(4.0)}}
    a, b = (leaf(saliency.activation(q, n)) for n in (whole, short))
    np.testing.assert_array_equal(a, b)
    assert a.shape == (3, 3, 4, 5) and float(a.mean()) == pytest.approx(1, rel=1e-5)


def test_activation_of_silent_inputs_is_zero_and_finite():
    silent = {"a": {"kernel": jnp.zeros(12)}}
    assert not np.any(leaf(saliency.activation(Q, silent)))


def test_fisher_is_theta_squared_times_the_squared_gradient():
    want = THETA**2 * np.asarray(SQUARES["a"]["kernel"], np.float64)
    np.testing.assert_allclose(leaf(SCORES["fisher"](Q)), want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", SCORES)
def test_scores_do_not_depend_on_kept_and_dense_leaves_have_none(name):
    scores = SCORES[name](Q)
    assert scores["a"]["bias"] is None and leaf(scores).dtype == jnp.float32
    other = {"a": {**Q["a"], "kernel": leaf(Q).replace(kept=~leaf(Q).kept)}}
    np.testing.assert_array_equal(leaf(scores), leaf(SCORES[name](other)))


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_traceable_and_of_at_least_float32(name):
    half = transform().init(params(dtype=jnp.bfloat16))
    score = jax.eval_shape(SCORES[name], half)["a"]["kernel"]
    assert score.shape == (12, 8) and score.dtype == jnp.float32


@pytest.mark.parametrize("score", [saliency.activation, saliency.fisher])
def test_missing_arrays_and_wrong_shapes_are_named_by_path(score):
    with pytest.raises(ValueError, match=r"a/kernel: .*no array.*a/bias"):
        score(Q, {"a": {"bias": jnp.ones(8)}})
    with pytest.raises(ValueError, match=r"a/kernel: .*shape \(7,\)"):
        score(Q, {"a": {"kernel": jnp.ones(7)}})
