"""Tests of the consistency study: teachers, dense posterior, slopes, structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs.consistency import get_config
from experiments.studies.consistency_page import figure, medians, slope
from experiments.studies.mean_field import dense_gaussians
from experiments.studies.posterior_fit import students
from experiments.studies.teacher_network import make_task, network


def test_teachers_are_sparse_and_quantized_and_examples_are_noisy():
    config = get_config()
    task = make_task(0, 16, config)
    weights = np.concatenate([np.ravel(x) for x in jax.tree.leaves(task.truth)])
    assert set(np.unique(weights)) == {0.0, *config.levels}
    assert np.mean(weights == 0) == pytest.approx(config.sparsity, abs=0.15)
    residuals = task.targets - network(task.truth, task.inputs)
    assert float(residuals.std()) == pytest.approx(config.noise, rel=0.05)
    noise = np.concatenate([np.ravel(x) for x in jax.tree.leaves(task.start)]) - weights
    assert noise.std() == pytest.approx(config.start_noise, rel=0.3)


def test_dense_gaussians_match_their_closed_forms():
    transform = dense_gaussians(2.0)
    prior = {"mean": {"w": jnp.zeros(5)}, "log_scale": {"w": jnp.full(5, jnp.log(2.0))}}
    assert float(transform.kl(prior)) == pytest.approx(0, abs=1e-6)
    unit = {"mean": {"w": jnp.ones(1)}, "log_scale": {"w": jnp.zeros(1)}}
    assert float(transform.kl(unit)) == pytest.approx(np.log(2) + 2 / 8 - 0.5, rel=1e-6)
    wide = {"mean": {"w": jnp.full(40_000, 3.0)}, "log_scale": {"w": jnp.full(40_000, -1.0)}}
    draw = transform.sample(wide, jax.random.key(0))["w"]
    assert float(draw.mean()) == pytest.approx(3, abs=0.01)
    assert float(draw.std()) == pytest.approx(np.exp(-1), rel=0.02)


def test_the_slope_of_a_power_law_is_its_exponent():
    examples = get_config().examples
    rows = [
        {"posterior": name, "hidden": 4, "seed": seed, "n": n, "error": seed * n**power}
        for name, power in (("SQS", -0.5), ("dense Gaussians", -0.25))
        for seed in (1, 2, 9)
        for n in examples
    ]
    lines = medians(rows)
    line = lines["SQS", 4]
    assert line[256] == pytest.approx(2 * 256**-0.5)
    assert slope(list(line), list(line.values())) == pytest.approx(-0.5)
    assert "slope -0.25" in figure(lines, 4).replace("−", "-")


def test_a_dense_posterior_converges_with_more_examples():
    config = get_config()
    config.steps, config.draws = 600, 8
    task = make_task(0, 4, config)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        dense = students(config)["dense Gaussians"]
        errors = [dense.error(task, n) for n in (128, 4096)]
    assert errors[1] < 0.5 * errors[0]


def test_the_trained_structure_matches_the_teacher():
    config = get_config()
    config.structure_steps = 600
    task = make_task(0, 4, config)
    student = students(config)["SQS"]
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
        posterior = student.find_structure(task, 4096)
    weights = student.transform.mode(posterior)
    zeros = {layer: np.asarray(w["kernel"] == 0) for layer, w in weights.items()}
    truth = {layer: np.asarray(w["kernel"] == 0) for layer, w in task.truth.items()}
    agree = np.concatenate([(zeros[layer] == truth[layer]).ravel() for layer in truth])
    assert agree.mean() > 0.8
    for layer, leaf in posterior.items():
        kept = np.asarray(leaf["kernel"].kept)
        np.testing.assert_array_equal(
            np.asarray(leaf["kernel"].loc)[kept], np.asarray(weights[layer]["kernel"])[kept]
        )
