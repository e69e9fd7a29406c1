import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FIELDS, KEY, generic, leaf, params, reference_kl, transform

import sqs_jax
from sqs_jax import SubDistribution, Windows, combine, elbo, partition

T = transform()
Q = generic(T.init(params((6, 3))))
X = jax.random.normal(KEY, (64, 6))
Y = jax.random.normal(jax.random.key(3), (64, 3))


def nll(weights, batch):
    x, y = batch
    error = x @ weights["a"]["kernel"] + weights["a"]["bias"][None] - y
    return jnp.mean(jnp.sum(error**2, axis=-1)), {"error": jnp.sum(error)}


def gradient(loss, batch, posterior=Q):
    return jax.jit(jax.grad(lambda q: loss(q, batch, KEY, 0)[0], allow_int=True))(posterior)


@pytest.mark.parametrize("estimator", ["mean", "sample", "mode"])
def test_the_gradient_does_not_depend_on_the_batch_size(estimator):
    loss = elbo(T, nll, num_data=64, estimator=estimator)  # one key: the draw is the same
    grad = jax.jit(jax.grad(lambda q, b: loss(q, b, KEY, 0)[0], allow_int=True))
    whole = leaf(grad(Q, (X, Y)))
    parts = [leaf(grad(Q, (X[i : i + 8], Y[i : i + 8]))) for i in range(0, 64, 8)]
    for name in FIELDS:
        mean = np.mean([getattr(part, name) for part in parts], axis=0)
        np.testing.assert_allclose(getattr(whole, name), mean, rtol=2e-3, atol=1e-5, err_msg=name)


def test_the_loss_is_the_nll_at_the_estimate_plus_the_weighed_kl_per_unit():
    points = {"mean": T.mean(Q, temperature=0.5), "mode": T.mode(Q)}
    points["sample"] = T.sample(Q, KEY, temperature=0.5, relaxation=0.3)
    for estimator, point in points.items():
        kl = reference_kl(leaf(Q), 1e-9 if estimator == "mode" else 0.5).sum()
        options = {"kl_weight": 0.2, "temperature": 0.5, "relaxation": 0.3}
        loss, aux = elbo(T, nll, num_data=500, estimator=estimator, **options)(Q, (X, Y), KEY, 0)
        want, model_aux = nll(point, (X, Y))
        assert float(aux.nll) == pytest.approx(float(want), rel=1e-5)
        assert float(aux.kl) == pytest.approx(kl, rel=1e-4)
        assert float(loss) == pytest.approx(float(want) + 0.2 * kl / 500, rel=1e-5)
        assert float(aux.model_aux["error"]) == pytest.approx(float(model_aux["error"]), rel=1e-3)


@pytest.mark.parametrize("estimator", ["mean", "sample", "mode"])
def test_another_regularizer_takes_the_place_of_the_kl(estimator):
    def regularizer(posterior, *, temperature):
        return temperature * jnp.sum(leaf(posterior).means)

    other = T._replace(kl=regularizer)
    _, aux = elbo(other, nll, num_data=9, estimator=estimator, temperature=0.5)(Q, (X, Y), KEY, 0)
    assert float(aux.kl) == pytest.approx(0.5 * float(jnp.sum(leaf(Q).means)), rel=1e-6)


def test_scalars_may_be_schedules_of_the_step():
    fixed = elbo(
        T, nll, num_data=9, estimator="sample", kl_weight=0.6, temperature=0.4, relaxation=0.2
    )
    schedules = elbo(
        T,
        nll,
        num_data=9,
        estimator="sample",
        kl_weight=lambda step: 0.1 * step,
        temperature=lambda step: 2.4 / step,
        relaxation=lambda step: jnp.float32(1.2) / step,
    )
    step = jnp.float32(6)
    want, aux = fixed(Q, (X, Y), KEY, 0)
    got, scheduled = jax.jit(schedules)(Q, (X, Y), KEY, step)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    assert float(scheduled.kl_weight) == pytest.approx(float(aux.kl_weight)) == pytest.approx(0.6)


def test_several_samples_average_the_nll_and_give_the_aux_a_leading_axis():
    single = elbo(T, nll, num_data=9, estimator="sample")
    several = elbo(T, nll, num_data=9, estimator="sample", num_samples=3)
    loss, aux = several(Q, (X, Y), KEY, 0)
    draws = [single(Q, (X, Y), key, 0)[1] for key in jax.random.split(KEY, 3)]
    assert aux.model_aux["error"].shape == (3,) and aux.nll.shape == loss.shape == ()
    assert float(aux.nll) == pytest.approx(np.mean([draw.nll for draw in draws]), rel=1e-5)
    errors = [float(draw.model_aux["error"]) for draw in draws]
    np.testing.assert_allclose(aux.model_aux["error"], errors, rtol=1e-4)
    assert len(set(errors)) == 3
    assert single(Q, (X, Y), KEY, 0)[1].model_aux["error"].shape == ()


def test_the_kl_reaches_the_means_alone_under_mode():
    def free(weights, _):
        return 0.0 * jnp.sum(leaf(weights)), None

    got = leaf(gradient(elbo(T, free, num_data=10, estimator="mode"), None))
    assert np.any(got.means)
    for name in ("loc", "gate_logits", "log_scales", "mixture_logits"):
        assert not np.any(getattr(got, name)), name
    everywhere = leaf(gradient(elbo(T, free, num_data=10), None))
    for name in FIELDS:
        assert np.any(getattr(everywhere, name)), name


def test_under_mode_theta_gets_the_gradient_of_the_deployed_weights():
    loss = elbo(T, nll, num_data=10, estimator="mode")
    got, want = gradient(loss, (X, Y)), jax.grad(lambda w: nll(w, (X, Y))[0])(T.mode(Q))
    np.testing.assert_allclose(leaf(got).loc, leaf(want), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["a"]["bias"], want["a"]["bias"], rtol=1e-4)


@pytest.mark.parametrize("bad", [0, -5, float("nan"), float("inf"), None, "100"])
def test_num_data_must_be_a_positive_number(bad):
    with pytest.raises(ValueError, match="num_data"):
        elbo(T, nll, num_data=bad)
    with pytest.raises(TypeError, match="num_data"):
        elbo(T, nll)


@pytest.mark.parametrize("kind", [int, float, np.int64, np.float32])
def test_num_data_may_be_any_real_number(kind):
    assert np.isfinite(elbo(T, nll, num_data=kind(64))(Q, (X, Y), KEY, 0)[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"estimator": "median"}, "estimator is 'median'"),
        ({"num_samples": 0, "estimator": "sample"}, "num_samples is 0"),
        ({"num_samples": 2.0, "estimator": "sample"}, "num_samples is 2.0"),
        ({"num_samples": 2}, "num_samples is 2, but estimator 'mean' draws nothing"),
    ],
)
def test_options_out_of_range_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        elbo(T, nll, num_data=9, **options)


def test_a_transform_without_samples_refuses_to_sample():
    with pytest.raises(ValueError, match="cannot sample"):
        elbo(T._replace(sample=None), nll, num_data=9, estimator="sample")


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (lambda w, b: (jnp.zeros(3), None), r"shape \(3,\).*jnp.mean"),
        (lambda w, b: jnp.float32(0), r"\(mean NLL, model_aux\)"),
        (lambda w, b: (jnp.float32(0), None, None), r"return \(nll, None\)"),
    ],
)
def test_what_nll_fn_must_return_is_said(bad, named):
    with pytest.raises(ValueError, match=named):
        elbo(T, bad, num_data=9)(Q, None, KEY, 0)


def temporaries(posterior, transform, estimator):
    """Temporary memory of a compiled step, in floats per weight."""
    trainable, fixed = partition(posterior, train=("loc", "gate", "means", "spread"))

    def total(weights, _):
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(weights)), None

    loss = elbo(transform, total, num_data=9, estimator=estimator)

    def value(part, rest):
        return loss(combine(part, rest), None, KEY, 0)[0]

    step = jax.jit(jax.value_and_grad(value)).lower(trainable, fixed)
    memory = step.compile().memory_analysis()
    leaves = jax.tree.leaves(posterior, is_leaf=lambda x: isinstance(x, SubDistribution))
    return memory.temp_size_in_bytes / 4 / sum(x.loc.size for x in leaves)


# Floats per weight: buffers in the shape of the weights, plus a block.
LIMITS = {"mean": 8, "sample": 8, "mode": 8}


@pytest.mark.parametrize(
    ("estimator", "components"), [("mean", 16), ("sample", 16), ("mode", 16), ("mean", 64)]
)
def test_a_compiled_step_holds_no_buffer_of_n_times_k(estimator, components):
    windows = Windows(kind="outlier", count=4) if components == 16 else Windows()
    t = transform(components=components, windows=windows)
    q = jax.eval_shape(t.init, {"a": {"kernel": jnp.zeros((1024, 1024))}})
    assert temporaries(q, t, estimator) < LIMITS[estimator]


@pytest.mark.parametrize("estimator", ["mean", "sample"])
def test_a_compiled_step_of_stacked_slices_holds_none_either(estimator):
    t = transform(components=16, stacked=1)
    q = jax.eval_shape(t.init, {"a": {"kernel": jnp.zeros((64, 128, 128))}})
    assert temporaries(q, t, estimator) < LIMITS[estimator]


def test_a_compiled_step_of_many_leaves_holds_none_either():
    t = sqs_jax.spike_slab_gmm(
        [sqs_jax.Rule(components=16)], prior=sqs_jax.SpikeSlabPrior(inclusion=0.3, scale=0.7)
    )
    q = jax.eval_shape(t.init, {f"w{i}": jnp.zeros((256, 256)) for i in range(4)})
    # XLA holds the temporaries of several leaves at once on a CPU, which is not N x K either
    assert temporaries(q, t, "mean") < 2 * LIMITS["mean"]


def test_an_integer_nll_is_refused_and_a_half_one_is_not_where_the_kl_is_lost():
    t = transform()
    q = t.init(params())
    with pytest.raises(ValueError, match="int32; it must be floating"):
        sqs_jax.elbo(t, lambda w, b: (jnp.int32(3), None), num_data=5)(q, None, KEY, 0)
    loss, aux = sqs_jax.elbo(t, lambda w, b: (jnp.bfloat16(3), None), num_data=5)(q, None, KEY, 0)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 3 + aux.kl / 5, rtol=1e-6)
