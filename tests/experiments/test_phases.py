"""Schedules of the mask, and settings that contradict each other."""

import re

import numpy as np
import pytest

from experiments.configs import digits, digits_paper
from experiments.training.metrics_log import forget_after
from experiments.training.phases import phases


def sqs_phase(**changes: object):  # type: ignore[no-untyped-def]
    config = digits.get_config()
    config.sqs.update(changes)
    return phases(config, num_train=1280)[-1]


def test_the_ramp_is_cubic_and_ends_exactly() -> None:
    phase = sqs_phase(sparsity=0.8)
    mask, steps = phase.mask, phase.steps
    end = round(0.4 * steps)
    assert float(mask.sparsity(0)) == 0
    assert float(mask.sparsity(end // 2)) == pytest.approx(0.8 * (1 - 0.5**3), rel=0.01)
    assert float(mask.sparsity(end)) == pytest.approx(0.8)
    assert float(mask.sparsity(steps)) == pytest.approx(0.8)


def test_the_mask_is_decided_on_time_and_then_frozen() -> None:
    phase = sqs_phase(prune_every=7)
    due = [step for step in range(phase.steps) if phase.mask.due(step)]
    freeze = round(0.8 * phase.steps)
    assert due[0] == 0 and due[-1] == freeze
    assert set(step % 7 for step in due[:-1]) == {0}


def test_a_mask_that_freezes_at_the_end_still_reaches_its_target() -> None:
    phase = sqs_phase(sparsity=0.8, prune_end=1.0, prune_freeze=1.0)
    last = max(step for step in range(phase.steps) if phase.mask.due(step))
    assert float(phase.mask.sparsity(last)) == pytest.approx(0.8, abs=1e-6)


def test_a_peer_that_learns_what_it_prunes_has_no_mask() -> None:
    rates = {"spread": 1e-3}
    phase = sqs_phase(method="dgms", estimator="mean", components=6, learning_rate=rates)
    assert phase.mask is None and phase.transform.sample is None
    posterior = phase.transform.init({"kernel": np.ones((4, 4), np.float32)})
    assert posterior["kernel"].means.shape[-1] == 7  # six, and zero


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"saliency": "gate"}, "learning_rate.gate is 0"),
        ({"saliency": "luck"}, "'luck'"),
        ({"prune_start": 0.9}, "must ascend"),
        ({"window_kind": "outlier", "window_count": 2}, "Windows.count"),
        ({"estimator": "guess"}, "guess"),
        ({"method": "dgms"}, r"config\.sqs\.estimator is 'mode'.*: use 'mean'"),
        (
            {"method": "dgms", "estimator": "mean"},
            r"config\.sqs\.learning_rate\.spread is 0\.0.*positive rate",
        ),
        (
            {
                "method": "dgms",
                "estimator": "mean",
                "learning_rate": {"spread": 1e-3},
                "rate_weight": 0.05,
            },
            r"config\.sqs\.rate_weight is 0\.05.*'dgms' does not use it.*default, 0\.0",
        ),
        (
            {"start": "calibration", "target_bytes": 9000, "mistakes": ("binned",)},
            "use 'weights', or no mistakes",
        ),
        ({"saliency": "activation", "mistakes": ("untrained_scores",)}, "use one of them"),
        ({"start": "calibration"}, "which is 0: give the bytes, or start at the 'weights'"),
        (
            {"start": "calibration", "target_bytes": 9000, "order": "prune_first"},
            "or the order 'together'",
        ),
    ],
)
def test_contradictions_are_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sqs_phase(**changes)


def test_all_that_cannot_be_trained_is_named_at_once() -> None:
    config = digits.get_config()
    changes = {
        "batch_size": 2000,
        "evaluation.average_samples": -1,
        "evaluation.temperature": 0.0,
        "sqs.temperature_end": 0.0,
        "sqs.scope": "globl",
        "sqs.dense_dtype": "float7",
        "sqs.reestimate": -1,
        "sqs.learning_rate.loc": float("nan"),
        "sqs.distill_weight": 1.5,
        "dense.optimizer": "adam",
    }
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match="cannot be trained") as error:
        phases(config, num_train=1280)
    for field, value in changes.items():
        assert re.search(rf"config\.{field} is '?{value}", str(error.value)), field


def test_gates_may_stay_after_the_mask() -> None:
    config = digits_paper.get_config()
    config.sqs.gate_end = 9 / 11
    sqs = phases(config, num_train=1280)[-1]
    assert sqs.settled["gate"] == round(9 / 11 * sqs.steps) < sqs.steps == sqs.settled["loc"]
    config.sqs.gate_end = 1.5
    with pytest.raises(ValueError, match=r"warmup and gate_end must ascend .* 1\.5"):
        phases(config, num_train=1280)


def test_the_fair_baseline_shares_everything_but_the_compression() -> None:
    for config in (digits.get_config(), digits_paper.get_config()):
        _, finetune, sqs = phases(config, num_train=1280)
        for field in ("steps", "distill_weight", "distill_temperature", "weight_decay"):
            assert getattr(finetune, field) == getattr(sqs, field)


def test_a_resumed_run_forgets_what_it_will_write_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "metrics.jsonl"
    line = '{{"phase": "{}", "step": {}}}\n'.format
    path.write_text(line("dense", 90) + line("sqs", 10) + line("sqs", 20) + '{"phase": "sq')
    forget_after(path, "sqs", 10)
    assert path.read_text() == line("dense", 90) + line("sqs", 10)
