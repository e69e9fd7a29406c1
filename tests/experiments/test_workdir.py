"""One folder, one run, one process."""

import fcntl
from pathlib import Path

import pytest

from experiments.training.workdir import hold_workdir


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"Another process is training in .*another --workdir"):
            hold_workdir(tmp_path)
    hold_workdir(tmp_path)  # the other has ended
    hold_workdir(tmp_path)  # our own
    with (tmp_path / "lock").open("a") as late, pytest.raises(BlockingIOError):
        fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)
