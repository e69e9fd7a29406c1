"""The model of the memory adds up, and counts what the states of real steps hold."""

import jax
import pytest

from benchmarks import equal_layers, footprint, memory, peak
from benchmarks.footprint import Setting, per_weight

WIDTH, LAYERS = 64, 2


def test_the_bars_are_the_models():
    dense = per_weight(Setting("dense")).total
    assert dense == 4 + 8 + 4
    assert per_weight(Setting("mean")).total - dense == (4 + 1) + 8 + 4 + 4 == 21
    mode = Setting("mode", gate_bytes=2, train_gates=False)
    assert per_weight(mode).total - dense == (2 + 1) + 4 == 7


def test_frozen_weights_have_neither_gradients_nor_moments():
    frozen = per_weight(Setting("mode", train_loc=False, train_gates=False, gate_bytes=2))
    assert frozen.gradients == frozen.optimizer == 0
    assert frozen.total == 4 + 2 + 1 + 4


@pytest.mark.parametrize("name", list(equal_layers.ways(equal_layers.problem(WIDTH, LAYERS))))
def test_states_hold_what_the_model_counts(name):
    way = equal_layers.ways(equal_layers.problem(WIDTH, LAYERS))[name]
    arrays = jax.tree.leaves(jax.eval_shape(way.state))
    # codebooks and counters, which the model leaves out, are small and not shaped as weights
    held = sum(x.size * x.dtype.itemsize for x in arrays if x.shape == (WIDTH, WIDTH))
    counted = per_weight(way.setting)
    assert held == (counted.state + counted.optimizer) * WIDTH * WIDTH * LAYERS


def test_a_compiled_step_holds_its_state_once():
    problem = equal_layers.problem(WIDTH, LAYERS)
    way = equal_layers.ways(problem)["dense"]
    weights = WIDTH * WIDTH * LAYERS
    # the donated state is counted once; a gradient may be gone before the last is there
    assert 12 <= memory.step_bytes(way, problem) / weights < 16 + 4


def test_on_paper_sharding_divides_and_share_decides():
    network, device = footprint.Network("a", 8e9), footprint.Device("b", 160e9)
    assert footprint.per_device(network, Setting("dense"), 8) == 16 * 8e9 / 8
    assert footprint.fits(network, Setting("dense"), device, 1)  # 128 of 128 GB
    assert not footprint.fits(network, Setting("mean"), device, 1)
    rows = memory.paper()
    assert len(rows) == len(footprint.NETWORKS) * len(footprint.SETTINGS)


def test_a_peak_is_measured_in_a_process_of_its_own():
    measured = peak.measure("dense", WIDTH, LAYERS)
    assert measured is None or measured > 0
