"""A folder belongs to a single run and a single process."""

import fcntl
import json
from pathlib import Path

import pytest

from experiments.configs import digits
from experiments.training.workdir import claim_workdir, hold_workdir, read_config


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"Another process is training in .*another --workdir"):
            hold_workdir(tmp_path)
    hold_workdir(tmp_path)  # the other has ended
    hold_workdir(tmp_path)  # our own
    with (tmp_path / "lock").open("a") as late, pytest.raises(BlockingIOError):
        fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_from_before_a_field_was_goes_on_with_its_default(tmp_path: Path) -> None:
    config = digits.get_config()
    claim_workdir(tmp_path, config)
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    assert older.pop("accumulate") == 1 and older["model"].pop("remat") is False
    path.write_text(json.dumps(older))
    claim_workdir(tmp_path, config)
    actual = read_config(tmp_path)
    assert actual.accumulate == 1 and actual.model.features == [16, 32]
    assert actual.to_dict() == json.loads(config.to_json_best_effort())
    config.accumulate = 2
    with pytest.raises(ValueError, match=r"config\.accumulate: 1 there, 2 now"):
        claim_workdir(tmp_path, config)
