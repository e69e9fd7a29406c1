"""Tests of the study against closed forms, and of its conclusion."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from scipy.stats import norm

from experiments import pruning_or_quantization as command
from experiments.configs import pruning_or_quantization
from experiments.studies import signal_to_noise as study

NORMAL = np.random.default_rng(0).standard_normal(60_000)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_pruning_error_of_normal_weights_matches_the_closed_form(share: float) -> None:
    """Weights below t have E w^2 = 1 - share - 2 t phi(t), with share = P(|w| > t)."""
    t = norm.isf(share / 2)
    expected = -10 * math.log10(1 - share - 2 * t * norm.pdf(t))
    values = study.prune(NORMAL, share)
    assert np.count_nonzero(values) == round(share * NORMAL.size)
    assert study.signal_to_noise(NORMAL, values) == pytest.approx(expected, abs=0.4)


def test_rounding_error_of_uniform_weights_is_a_twelfth_of_a_squared_step() -> None:
    uniform = np.random.default_rng(1).uniform(-1, 1, 60_000)
    values = study.quantize(uniform, 64)
    assert len(np.unique(values)) <= 64 and 0 in values
    # E w^2 is 1/3; the step is 2/64, or slightly larger where the grid clips the extremes
    assert study.signal_to_noise(uniform, values) == pytest.approx(20 * math.log10(64), abs=0.4)


def test_entropy_matches_the_frequencies() -> None:
    values = np.repeat([0.0, 1.0, 2.0, 3.0], [4, 2, 1, 1])
    assert study.entropy(values) == pytest.approx(1.75)


def test_quantization_beats_pruning_except_for_heavy_tails_and_both_beat_either() -> None:
    bits = (1, 2, 3, 4)
    normal = study.study(NORMAL.astype(np.float32), bits)
    heavy = np.random.default_rng(2).standard_t(2.5, 60_000).astype(np.float32)
    tails = study.study(heavy, bits)
    assert study.crossing(normal, "bits") == "nowhere" == study.crossing(normal, "coded")
    assert study.crossing(tails, "bits").startswith("1.0 to")
    for rows in (normal, tails):
        sizes, ratios = ([row[key] for row in rows["both"]] for key in ("coded", "snr"))
        for name in ("pruning", "quantisation"):
            for row in rows[name]:
                if sizes[0] <= row["coded"] <= sizes[-1]:
                    assert np.interp(row["coded"], sizes, ratios) > row["snr"] - 0.3


def test_command_writes_results_and_page(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    config = pruning_or_quantization.get_config()
    config.count, config.bits = 12_000, (2, 4)
    np.savez(tmp_path / "w.npz", a=NORMAL[:12_000].reshape(120, 100).astype("f4"), b=np.ones(3))
    config.weights = str(tmp_path / "w.npz")
    options = type("Options", (), {"config": config, "workdir": str(tmp_path / "run")})
    monkeypatch.setattr(flags, "FLAGS", options)
    command.main(sys.argv)
    results = json.loads((tmp_path / "run" / "study.json").read_text())
    assert list(results) == ["normal", "Laplace", "Student, 3 degrees", "a"]
    page = (tmp_path / "run" / "study.html").read_text()
    assert page.count("<svg") == 8 and "pruning ahead" in capsys.readouterr().out
