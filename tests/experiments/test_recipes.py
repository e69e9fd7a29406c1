"""The pieces that recipes are made of: orders, mistakes, batch statistics."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from experiments.configs import digits, digits_paper
from experiments.models import build_model
from experiments.training.ablations import with_mistakes
from experiments.training.batch_norm import estimate_statistics
from experiments.training.phases import phases
from experiments.training.sequential import in_order
from experiments.trees import sub_distributions

NUM_DATA = 1280


def compression(get_config=digits.get_config, **changes):
    config = get_config()
    config.sqs.update(changes)
    model = build_model(config.model, 10)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    return phases(config, NUM_DATA)[-1], params


def kept_of(posterior):
    return {path: np.asarray(d.kept) for path, d in sub_distributions(posterior).items()}


def test_prune_first_trains_float_weights_and_then_keeps_its_mask():
    phase, params = compression()
    first, second = in_order(phase, "prune_first")
    assert first.steps + second.steps == phase.steps
    posterior = first.transform.init(params)
    posterior = first.mask.decide(posterior, first.mask.freeze, {})
    kept = kept_of(posterior)
    weights = first.transform.mode(posterior)
    for path, mask in kept.items():
        layer, name = path.split("/")
        np.testing.assert_array_equal(weights[layer][name], np.where(mask, params[layer][name], 0))
    # pruned weights have a gradient: they may come back while the first training lasts
    slope = jax.grad(
        lambda p: jnp.sum(first.transform.mode(p)["Dense_0"]["kernel"]), allow_int=True
    )
    np.testing.assert_array_equal(slope(posterior)["Dense_0"]["kernel"].loc, 1.0)

    start = second.transform.init(posterior)
    assert [step for step in range(second.steps) if second.mask.due(step)] == [0]
    for path, leaf in sub_distributions(second.mask.decide(start, 0, {})).items():
        np.testing.assert_array_equal(leaf.kept, kept[path])
        # every level lies among the survivors, none near the zeros
        survivors = np.abs(np.asarray(leaf.loc)[kept[path]])
        assert np.abs(leaf.means).min() >= survivors.min()


def test_quantise_first_then_prunes_what_it_no_longer_moves():
    phase, params = compression()
    first, second = in_order(phase, "quantise_first")
    posterior = first.transform.init(params)
    for step in (0, first.steps // 2):
        posterior = first.mask.decide(posterior, step, {})
        assert all(mask.all() for mask in kept_of(posterior).values())
    assert "loc" not in second.learning_rate and "means" in second.learning_rate
    pruned = second.mask.decide(second.transform.init(posterior), second.mask.freeze, {})
    zeros = 1 - np.mean(np.concatenate([mask.ravel() for mask in kept_of(pruned).values()]))
    assert zeros == pytest.approx(0.81, abs=1e-3)


def test_orders_that_are_unknown_or_unfit_are_named():
    phase, _ = compression()
    assert in_order(phase, "together") == [phase]
    with pytest.raises(ValueError, match="'sideways'"):
        in_order(phase, "sideways")
    with pytest.raises(ValueError, match="'mean'"):
        in_order(phase._replace(estimator="mean"), "prune_first")


def test_the_term_of_the_spike_is_what_half_of_the_kl_lacks():
    phase, params = compression(digits_paper.get_config)
    posterior = phase.transform.init(params)
    half = with_mistakes(phase, ["half_bernoulli"], NUM_DATA).transform
    missing = float(phase.transform.kl(posterior) - half.kl(posterior))
    count = sum(d.kept.size for d in sub_distributions(posterior).values())
    # all gates start at 0.99; lambda is 0.01
    assert missing == pytest.approx(count * 0.01 * np.log(0.01 / 0.99), rel=1e-3)


def test_an_unscaled_kl_weighs_as_much_as_there_are_examples():
    phase, _ = compression(digits_paper.get_config)
    wrong = with_mistakes(phase, ["unscaled_kl"], NUM_DATA)
    assert wrong.kl_weight == pytest.approx(phase.kl_weight * NUM_DATA)


def test_bins_leave_few_distinct_weights():
    phase, params = compression(digits_paper.get_config)
    posterior = with_mistakes(phase, ["binned"], NUM_DATA).transform.init(params)
    leaf = posterior["Dense_0"]["kernel"]
    assert len(np.unique(leaf.loc)) <= 32 < len(np.unique(params["Dense_0"]["kernel"]))
    width = np.ptp(params["Dense_0"]["kernel"]) / 32
    assert np.abs(leaf.loc - params["Dense_0"]["kernel"]).max() <= 1.001 * width


def test_scores_that_nothing_trained_prune_at_random():
    phase, params = compression(digits_paper.get_config)
    wrong = with_mistakes(phase, ["untrained_scores"], NUM_DATA)
    posterior = phase.transform.init(params)
    pruned = wrong.mask.prune(posterior, 0.5)
    leaf = sub_distributions(pruned)["Dense_0/kernel"]
    magnitude, kept = np.abs(np.asarray(leaf.loc)), np.asarray(leaf.kept)
    assert kept.mean() == pytest.approx(0.5, abs=0.02)
    assert magnitude[kept].mean() == pytest.approx(magnitude.mean(), rel=0.02)
    chex.assert_trees_all_equal(pruned, wrong.mask.prune(posterior, 0.5))


def test_an_unknown_mistake_is_named():
    phase, _ = compression()
    with pytest.raises(ValueError, match=r"\['typo'\].*half_bernoulli"):
        with_mistakes(phase, ("typo",), NUM_DATA)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"warmup": 0.9, "latent_end": 0.5}, "0.9 and 0.5"),
        ({"latent_end": 1.5}, "1.5"),
    ],
)
def test_settings_out_of_range_are_named(changes, said):
    with pytest.raises(ValueError, match=said):
        compression(**changes)


def test_learning_rates_rise_and_latent_weights_stop_where_they_are_told_to():
    phase, params = compression(warmup=0.1, latent_end=0.5)
    posterior = phase.transform.init(params)
    trainable, _ = sqs_jax.partition(posterior, train=phase.learning_rate)
    optimizer = phase.optimizer()
    state, ones = optimizer.init(trainable), jax.tree.map(jnp.ones_like, trainable)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        update = jax.jit(optimizer.update).lower(ones, state, trainable).compile()
    moved = {"loc": [], "means": []}
    for _ in range(phase.steps):
        updates, state = update(ones, state, trainable)
        for name, sizes in moved.items():
            sizes.append(abs(float(getattr(updates["Dense_0"]["kernel"], name).ravel()[0])))
    assert moved["loc"][0] == 0 and np.argmax(moved["loc"]) == round(0.1 * phase.steps)
    assert not any(moved["loc"][phase.steps // 2 + 1 :]) and moved["means"][-2] > 0


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(images)


def test_statistics_are_means_over_the_batches():
    images = np.random.default_rng(0).normal(3, 2, (6, 50, 4, 4, 3)).astype(np.float32)
    model = Normalised()
    variables = dict(model.init(jax.random.key(0), images[0]))
    params = variables.pop("params")
    stats = estimate_statistics(model, params, variables, images)["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], images.mean((0, 1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(stats["var"], images.var((1, 2, 3)).mean(0), rtol=1e-4)
    assert estimate_statistics(model, params, {}, images) == {}
