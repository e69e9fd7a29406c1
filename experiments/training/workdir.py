"""Working directory of a run: its config and its lock."""

import fcntl
import json
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from experiments.atomic_files import write_json
from experiments.configs import base

# A resumed run may use other devices.
_LAYOUT = ("mesh.", "sharding")
_LOCKS: dict[Path, Any] = {}  # open files; the operating system releases their locks at exit


def read_config(workdir: Path) -> ConfigDict:
    """Read the config of a run; fields that are newer than the run have their defaults.

    Raises:
      FileNotFoundError: The folder has no config.json.
      json.JSONDecodeError: The config is damaged.
    """
    config = ConfigDict(_defaults(), type_safe=False)
    config.update(json.loads((workdir / "config.json").read_text()))
    return config


def _defaults() -> dict[str, Any]:
    return json.loads(base.experiment().to_json_best_effort())


def claim_workdir(workdir: Path, config: Any) -> None:
    """Assign a folder to a config; create the folder if necessary.

    Raises:
      ValueError: The folder belongs to another config; the message lists the differences.
    """
    claimed = json.loads(config.to_json_best_effort())
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is a file; give a folder, or a new name.")
    if path.exists():
        try:
            stored = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} is damaged ({error}). If the run in {workdir} is of this config, remove "
                "that file to go on; else give another --workdir."
            ) from error
        there, now = (flatten_dict(config, sep=".") for config in (stored, claimed))
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
    write_json(path, claimed)


def locked(path: Path) -> Any:
    """Open a file for appending, and lock the file until the end.

    Returns:
      The binary file; None if another process has locked the file.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def hold_workdir(workdir: Path) -> None:
    """Lock a folder against other processes until this process ends.

    Raises:
      ValueError: Another process has locked the folder.
    """
    folder = workdir.resolve()
    if folder in _LOCKS:
        return
    lock = locked(folder / "lock")
    if lock is None:
        raise ValueError(
            f"Another process is training in {workdir}; wait for it, or give another --workdir."
        )
    _LOCKS[folder] = lock
