"""The study against closed forms of the normal distribution, and its conclusion."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from scipy.stats import norm

from experiments import pruning_or_quantisation as study
from experiments.configs import pruning_or_quantisation as config_of

NORMAL = np.random.default_rng(0).standard_normal(60_000)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_pruned_normal_weights_lose_what_lies_below_the_threshold(share: float) -> None:
    """E w^2 of the weights below t is 1 - share - 2 t phi(t), with share = P(|w| > t)."""
    t = norm.isf(share / 2)
    wanted = -10 * math.log10(1 - share - 2 * t * norm.pdf(t))
    values = study.prune(NORMAL, share)
    assert np.count_nonzero(values) == round(share * NORMAL.size)
    assert study.signal_to_noise(NORMAL, values) == pytest.approx(wanted, abs=0.4)


def test_rounded_uniform_weights_lose_a_twelfth_of_a_squared_step() -> None:
    uniform = np.random.default_rng(1).uniform(-1, 1, 60_000)
    values = study.quantise(uniform, 64)
    assert len(np.unique(values)) <= 64 and 0 in values
    # E w^2 = 1/3, and steps are 2/64, or a little more where the ends are cut
    assert study.signal_to_noise(uniform, values) == pytest.approx(20 * math.log10(64), abs=0.4)


def test_entropy_is_that_of_the_shares() -> None:
    values = np.repeat([0.0, 1.0, 2.0, 3.0], [4, 2, 1, 1])
    assert study.entropy(values) == pytest.approx(1.75)


def test_quantisation_is_ahead_but_for_heavy_tails_and_both_at_once_are_ahead_of_either() -> None:
    bits = (1, 2, 3, 4)
    normal = study.study(NORMAL.astype(np.float32), bits)
    heavy = np.random.default_rng(2).standard_t(2.5, 60_000).astype(np.float32)
    tails = study.study(heavy, bits)
    assert study.crossing(normal, "bits") == "nowhere" == study.crossing(normal, "coded")
    assert study.crossing(tails, "bits").startswith("1.0 to")
    for found in (normal, tails):
        sizes, ratios = ([row[key] for row in found["both"]] for key in ("coded", "snr"))
        for name in ("pruning", "quantisation"):
            for row in found[name]:
                if sizes[0] <= row["coded"] <= sizes[-1]:
                    assert np.interp(row["coded"], sizes, ratios) > row["snr"] - 0.3


def test_the_command(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    config = config_of.get_config()
    config.count, config.bits = 12_000, (2, 4)
    np.savez(tmp_path / "w.npz", a=NORMAL[:12_000].reshape(120, 100).astype("f4"), b=np.ones(3))
    config.weights = str(tmp_path / "w.npz")
    given = type("Given", (), {"config": config, "workdir": str(tmp_path / "run")})
    monkeypatch.setattr(flags, "FLAGS", given)
    study.main(sys.argv)
    found = json.loads((tmp_path / "run" / "study.json").read_text())
    assert list(found) == ["normal", "Laplace", "Student, 3 degrees", "a"]
    page = (tmp_path / "run" / "study.html").read_text()
    assert page.count("<svg") == 8 and "pruning ahead" in capsys.readouterr().out
