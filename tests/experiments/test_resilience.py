"""Resilience to non-finite values, damaged checkpoints, full disks and SIGTERM."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import Dataset, batch_indices
from experiments.models import build_model
from experiments.training.checkpoints import Checkpoints
from experiments.training.loop import run_phase
from experiments.training.phases import phases
from experiments.training.processes import STOPPED, stop_requests
from experiments.training.sharding import make_mesh
from tests.experiments.fifty_steps import dataset, experiment, lines


def run(workdir: Path, data: Dataset, steps: int = 30, rate: float = 2e-3, every: int = 8) -> Any:
    """Train the dense network, whose step compiles in a second."""
    config, model = experiment(), build_model(experiment().model, 10)
    config.checkpoint_every = every
    phase = phases(config, len(data.labels))[0]
    phase = phase._replace(steps=steps, learning_rate={"dense": rate})
    start = jax.jit(model.init)(jax.random.key(0), jnp.asarray(data.examples[:1]))
    workdir.mkdir(exist_ok=True)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
        return run_phase(phase, model, start, {}, data, config, workdir, make_mesh(config))


def states(at: float) -> list[jax.Array]:
    mesh = make_mesh(experiment())
    rows = jax.NamedSharding(mesh, jax.P("data"))
    return [
        jax.device_put(np.full((64, 32), at, np.float32), rows),
        jax.device_put(np.int32(at), jax.NamedSharding(mesh, jax.P())),
        jnp.zeros((0,)),
    ]


def test_a_bad_image_stops_the_run_before_it_is_learned_from(tmp_path: Path) -> None:
    data = dataset()
    images = data.examples.copy()
    images[17, 3, 3, 0] = np.nan
    bad = Dataset(images, data.labels)
    size, config = len(data.labels), experiment()
    batches = [batch_indices(size, config.batch_size, config.seed, step) for step in range(30)]
    first = next(step for step, batch in enumerate(batches) if 17 in batch)
    with pytest.raises(FloatingPointError) as stopped:
        run(tmp_path, bad)
    said = str(stopped.value)
    assert f"dense, step {first + 1}:" in said
    assert "batch/examples (1 of 4096 values are not finite)" in said
    assert f"none in {tmp_path}" in said


def test_a_gradient_that_explodes_is_named_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, dataset(), steps=8)
    with pytest.raises(FloatingPointError) as stopped:
        run(tmp_path, dataset(), rate=1e30)
    said = str(stopped.value)
    assert "gradient/" in said and f"step 8 in {tmp_path / 'checkpoints' / 'dense'}" in said
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path))
    state = run(tmp_path, dataset(), steps=8)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state))


def test_a_step_that_processes_agree_on_may_lie_in_the_next_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """JAX names a future step, which a counter per training might never reach."""
    asked: list[int] = []

    def reached(step: int) -> bool:
        asked.append(step)
        return step == asked[0] + 4

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", reached)
    with stop_requests() as stop:
        assert [stop() for _ in range(3)] == [False] * 3
    with stop_requests() as stop:
        assert [stop() for _ in range(2)] == [False, True]


def test_sigterm_saves_at_the_next_step_and_the_run_goes_on_as_if_nothing_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = run(whole, dataset(), steps=300, every=300)
    before = signal.getsignal(signal.SIGTERM)

    def kill_once_it_runs() -> None:
        while not (stopped / "metrics.jsonl").exists() or not lines(stopped):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=kill_once_it_runs)
    killer.start()
    with pytest.raises(SystemExit) as left:
        run(stopped, dataset(), steps=300, every=300)
    killer.join()
    assert left.value.code == STOPPED == 75
    assert "Stopped by SIGTERM; saved as step" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    jax.tree.map(
        np.testing.assert_array_equal, expected, run(stopped, dataset(), steps=300, every=300)
    )
    assert lines(whole) == lines(stopped)


@pytest.mark.parametrize("how", ["cut", "flip"])
def test_a_damaged_checkpoint_is_left_out_whichever_file_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    good, folder = tmp_path / "good", tmp_path / "damaged"
    with Checkpoints(good, 1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, states(step))
        assert checkpoints.latest() == f"step 2 in {good}"
    names = [path.relative_to(good) for path in (good / "2").rglob("*") if path.is_file()]
    assert len(names) > 8
    for name in names:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        content = bytearray((good / name).read_bytes())
        middle = len(content) // 2
        if how == "cut":
            content = content[:middle]
        else:
            content[middle] ^= 16
        (folder / name).write_bytes(content)
        with Checkpoints(folder, 1) as checkpoints:
            step, state = checkpoints.restore(states(0)) or (0, [])
            np.testing.assert_array_equal(state[0], np.full((64, 32), step, np.float32))
            said = capsys.readouterr().out
            if step == 2:
                # what orbax says of the checkpoint as a whole; no array needs it
                assert name.name in ("_CHECKPOINT_METADATA", "commit_success.txt"), name
                continue
            assert step == 1
            assert f"{folder / '2'} is damaged: {name.relative_to('2')} " in said, said
            checkpoints.save(2, states(2))
            assert checkpoints.latest() == f"step 2 in {folder}"
        assert (folder / "damaged-2-0" / name.relative_to("2")).read_bytes() == content


def test_without_a_whole_checkpoint_the_way_out_is_named(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(1, states(1))
    (tmp_path / "1" / "checksums.json").unlink()
    with (
        Checkpoints(tmp_path, 1) as checkpoints,
        pytest.raises(ValueError, match=f"{tmp_path}: no checkpoint is whole. Remove"),
    ):
        checkpoints.restore(states(0))


FULL_DISK = """
import resource, sys
from pathlib import Path
from experiments.training.checkpoints import Checkpoints
from tests.experiments.test_resilience import states

limits = resource.getrlimit(resource.RLIMIT_FSIZE)
with Checkpoints(Path(sys.argv[1]), 1) as checkpoints:
    checkpoints.save(1, states(1))
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    checkpoints.save(2, states(2))
    print("training goes on meanwhile")
"""


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "training goes on" in result.stdout
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"RuntimeError: {tmp_path}: a checkpoint could not be written")
    assert f"The last good checkpoint is step 1 in {tmp_path}" in last
    with Checkpoints(tmp_path, 1) as checkpoints:
        step, state = checkpoints.restore(states(0)) or (0, [])
        assert (step, int(state[1])) == (1, 1)
        checkpoints.save(2, states(2))
        assert checkpoints.latest() == f"step 2 in {tmp_path}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
