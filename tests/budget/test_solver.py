"""`fit_bytes`: step functions, noise, jumps, and targets that no file meets."""

import math

import numpy as np
import pytest

from sqs_jax.budget import BudgetError, fit_bytes


def counted(size):
    """Return a measure whose candidates are the scalars, and the list of measured scalars."""
    measured = []

    def measure(x):
        measured.append(x)
        return x, size(x)

    return measure, measured


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("levels", [2, 7, 300])
def test_of_a_monotone_step_function_the_largest_fitting_step_is_found(levels, seed):
    rng = np.random.default_rng(seed)
    # Plateaus and jumps of a factor of 1 to 50.
    jumps = rng.choice([0.0, 0.01, 1.0], levels) * rng.lognormal(size=levels)
    sizes = np.round(1000 * np.exp(np.minimum(np.cumsum(jumps), 60)))
    target = float(rng.choice(sizes) + rng.integers(0, 2))
    fitting = sizes[sizes <= target].max()
    measure, measured = counted(lambda x: float(sizes[round(x)]))
    fit = fit_bytes(
        measure, target, start=int(rng.integers(levels)), slope=rng.lognormal(),
        bracket=(0, levels - 1), resolution=1, tolerance=0,
    )  # fmt: skip
    assert fit.bytes == fitting == sizes[round(fit.x)] and fit.candidate == fit.x
    if sizes[-1] > target and fit.bytes < target:
        assert fit.above == np.flatnonzero(sizes > target)[0]
    assert len(measured) == len(set(measured)) <= 2 * math.log2(levels) + 3
    assert all(0 <= x <= levels - 1 for x in measured)


@pytest.mark.parametrize("slope", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("factor", [1e-3, 0.5, 0.999, 1.003, 20.0])
def test_a_smooth_size_is_met_in_few_files(slope, factor):
    # Fixed bytes besides the coded ones, so that the logarithm of the size is no line.
    measure, measured = counted(lambda x: 50 + 1000 * math.exp(x))
    fit = fit_bytes(measure, 60 + 1000 * factor, slope=slope)
    assert 0.99 * (60 + 1000 * factor) <= fit.bytes <= 60 + 1000 * factor
    assert len(measured) <= 12


def test_a_guess_that_is_right_takes_two_files():
    measure, measured = counted(lambda x: 700 * math.exp(2 * x))
    assert 0.99 * 1000 <= fit_bytes(measure, 1000, slope=2).bytes <= 1000
    assert len(measured) == 2
    measure, measured = counted(lambda x: 992)
    assert fit_bytes(measure, 1000).x == 0 and len(measured) == 1


@pytest.mark.parametrize("seed", range(10))
def test_noise_larger_than_the_tolerance_costs_no_more_than_itself(seed):
    def size(x):
        noise = np.random.default_rng([seed, round(1e6 * (x + 100))]).uniform(-1, 1)
        return 1000 * math.exp(x + 0.03 * noise)

    measure, measured = counted(size)
    fit = fit_bytes(measure, 5000)
    assert 0.95 * 5000 <= fit.bytes <= 5000
    assert fit.bytes == max(size(x) for x in measured if size(x) <= 5000)


def test_at_a_jump_both_sides_are_returned():
    measure, measured = counted(lambda x: 800 if x < 0.3 else 1300)
    fit = fit_bytes(measure, 1000, bracket=(-1, 1), tries=60)
    assert fit.bytes == 800 and measured.count(fit.x) == 1
    assert fit.x < 0.3 <= fit.above
    assert min(x for x in measured if x >= 0.3) == fit.above


def test_a_size_that_cannot_grow_ends_the_search():
    measure, measured = counted(lambda x: min(600, 1000 * math.exp(x)))
    assert fit_bytes(measure, 5000).bytes == 600
    assert len(measured) == 2


def test_files_at_most_are_the_tries():
    measure, measured = counted(lambda x: 1 + 1e6 * (x > 0.1234))
    fit_bytes(measure, 1000, tries=5)
    assert len(measured) == 5


def test_a_target_that_nothing_meets_names_the_least_size_and_the_remedy():
    measure, measured = counted(lambda x: 500 + math.exp(x))
    message = r"budget is 300, but the smallest of 6 files still takes 50\d bytes; prune more\."
    with pytest.raises(BudgetError, match=message) as caught:
        fit_bytes(measure, 300, start=2, tries=6, name="budget", remedy="prune more")
    assert caught.value.budget == 300 and 500 <= caught.value.least <= 507
    measure, measured = counted(lambda x: 500)
    with pytest.raises(BudgetError, match=r"target is 300, .* takes 500 bytes; give more bytes\."):
        fit_bytes(measure, 300, bracket=(0, 2), resolution=1)
    assert measured == [0]


@pytest.mark.parametrize(
    ("message", "target", "options"),
    [
        ("target is 0", 0, {}),
        ("slope is -1", 10, {"slope": -1}),
        ("resolution is 0", 10, {"resolution": 0}),
        ("tolerance is 1", 10, {"tolerance": 1}),
        ("tries is 0", 10, {"tries": 0}),
        (r"start is 3, with bracket \(0, 2\)", 10, {"start": 3, "bracket": (0, 2)}),
    ],
)
def test_arguments_out_of_range_are_refused(message, target, options):
    with pytest.raises(ValueError, match=message):
        fit_bytes(lambda x: (x, 1.0), target, **options)
