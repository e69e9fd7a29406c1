"""Memory model: closed forms, and comparison with the states of real steps."""

import jax
import pytest

from benchmarks import equal_layers, footprint, memory, peak_memory
from benchmarks.footprint import Setting, per_weight

WIDTH, LAYERS = 64, 2


def test_the_bars_equal_the_memory_model():
    dense = per_weight(Setting("dense")).total
    assert dense == 4 + 8 + 4
    assert per_weight(Setting("mean")).total - dense == (4 + 1) + 8 + 4 + 4 == 21
    mode = Setting("mode", gate_bytes=2, train_gates=False)
    assert per_weight(mode).total - dense == (2 + 1) + 4 == 7


def test_frozen_weights_have_neither_gradients_nor_moments():
    frozen = per_weight(Setting("mode", train_loc=False, train_gates=False, gate_bytes=2))
    assert frozen.gradients == frozen.optimizer == 0
    assert frozen.total == 4 + 2 + 1 + 4


@pytest.mark.parametrize("name", list(equal_layers.trainings(equal_layers.problem(WIDTH, LAYERS))))
def test_states_have_the_bytes_of_the_memory_model(name):
    variant = equal_layers.trainings(equal_layers.problem(WIDTH, LAYERS))[name]
    arrays = jax.tree.leaves(jax.eval_shape(variant.state))
    # The model omits codebooks and counters, whose shapes differ from those of weights.
    state_bytes = sum(x.size * x.dtype.itemsize for x in arrays if x.shape == (WIDTH, WIDTH))
    predicted = per_weight(variant.setting)
    assert state_bytes == (predicted.state + predicted.optimizer) * WIDTH * WIDTH * LAYERS


def test_a_compiled_step_holds_its_state_once():
    problem = equal_layers.problem(WIDTH, LAYERS)
    variant = equal_layers.trainings(problem)["dense"]
    weights = WIDTH * WIDTH * LAYERS
    # A donated state counts once; XLA may free a gradient before the last gradient exists.
    assert 12 <= memory.step_bytes(variant, problem) / weights < 16 + 4


def test_bytes_per_device_divide_and_fit_within_the_share():
    network, device = footprint.Network("a", 8e9), footprint.Device("b", 160e9)
    assert footprint.per_device(network, Setting("dense"), 8) == 16 * 8e9 / 8
    assert footprint.fits(network, Setting("dense"), device, 1)  # 128 of 128 GB
    assert not footprint.fits(network, Setting("mean"), device, 1)
    rows = memory.paper()
    assert len(rows) == len(footprint.NETWORKS) * len(footprint.SETTINGS)


def test_a_separate_process_measures_the_peak():
    measured = peak_memory.measure("dense", WIDTH, LAYERS)
    assert measured is None or measured > 0
