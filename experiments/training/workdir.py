"""The folder of a run, which is the run of one config."""

import fcntl
import json
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments.atomic_files import write_json
from experiments.configs import base

# Where a run lies on its devices may change from one start to the next.
_LAYOUT = ("mesh.", "sharding")
_HELD: dict[Path, Any] = {}  # open files, whose locks end with this process, however it ends


def read_config(workdir: Path) -> ConfigDict:
    """Return the config of a run; fields that there were not when it began have their defaults.

    Raises:
      FileNotFoundError, json.JSONDecodeError: if there is none, or a damaged one.
    """
    config = ConfigDict(_defaults(), type_safe=False)
    config.update(json.loads((workdir / "config.json").read_text()))
    return config


def _defaults() -> dict[str, Any]:
    return json.loads(base.experiment().to_json_best_effort())


def claim_workdir(workdir: Path, config: Any) -> None:
    """Make the folder the run of this config, or raise ValueError if it holds another's."""
    wanted = json.loads(config.to_json_best_effort())
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is a file; give a folder, or a new name.")
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} is damaged ({error}). If the run in {workdir} is of this config, remove "
                "that file to go on; else give another --workdir."
            ) from error
        there, now = (flatten_dict(config, sep=".") for config in (found, wanted))
        defaults = flatten_dict(_defaults(), sep=".")
        there = {name: value for name, value in defaults.items() if name in now} | there
        differences = [
            f"config.{name}: {there.get(name, 'absent')} there, {now.get(name, 'absent')} now"
            for name in sorted({**there, **now})
            if there.get(name) != now.get(name) and not name.startswith(_LAYOUT)
        ]
        if differences:
            raise ValueError(
                f"{workdir} holds a run of another config. Differences: {'; '.join(differences)}. "
                "Give another --workdir, or remove this one to start anew."
            )
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def locked(path: Path) -> Any:
    """Open a file to append to, locked until it is closed; None if another process has it."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def hold_workdir(workdir: Path) -> None:
    """Keep others from training in a folder while this process lives.

    Raises:
      ValueError: if another process is at it.
    """
    place = workdir.resolve()
    if place in _HELD:
        return
    lock = locked(place / "lock")
    if lock is None:
        raise ValueError(
            f"Another process is training in {workdir}; wait for it, or give another --workdir."
        )
    _HELD[place] = lock
