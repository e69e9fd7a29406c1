"""Sweeps: what a grid means, what cannot be one, the frontier, and a kill in the middle."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.configs import digits
from experiments.frontier import read_sweeps
from experiments.pages.pareto_front import front, spots, write_frontier
from experiments.points import Point, points, train_all
from experiments.sweep import parse
from experiments.training.workdir import claim_workdir

BRIEF = (
    "--config=experiments/configs/digits.py",
    "--config.dense.epochs=1",
    "--config.sqs.epochs=2",
    "--config.finetune=False",
    "--config.evaluation.average_samples=1",
)


def test_points_are_all_combinations() -> None:
    axes = parse(["sqs.components=[2, 4]", "config.seed=[0, 1, 2]"], digits.get_config())
    found = points(axes, ["--config=c.py"], Path("w"), digits.get_config())
    assert found[4].config.sqs.components == 4 and found[4].config.seed == 1
    assert [p.settings for p in found[:2]] == [
        {"sqs.components": 2, "seed": 0},
        {"sqs.components": 2, "seed": 1},
    ]
    assert len(found) == len({p.folder for p in found}) == 6
    assert found[0].command == [
        *("-m", "experiments.train", "--config=c.py", "--config.sqs.components=2"),
        *("--config.seed=0", "--workdir=w/sqs.components=2,seed=0"),
    ]


def test_everything_wrong_with_a_grid_is_listed() -> None:
    grid = ["sqs.componets=[2]", "seed=1", "seed=[", "sqs.sparsity=['much']", "batch_size=[8,8]"]
    with pytest.raises(ValueError) as error:
        parse(grid, digits.get_config())
    said = str(error.value)
    assert "no field sqs.componets" in said and "must be a list" in said
    assert "'seed=[': write it as" in said and "'much' does not fit" in said
    assert "'batch_size=[8,8]': a value is there twice" in said


def test_a_finished_run_of_another_config_is_not_taken_for_a_point(tmp_path: Path) -> None:
    config = digits.get_config()
    (point,) = points({"sqs.components": [2]}, [], tmp_path, config)
    claim_workdir(point.folder, point.config)
    (point.folder / "report.html").write_text("")
    assert points({"sqs.components": [2]}, [], tmp_path, config)[0].finished
    config.sqs.epochs = 7
    with pytest.raises(ValueError, match=r"config\.sqs\.epochs: 120\.0 there, 7\.0 now"):
        points({"sqs.components": [2]}, [], tmp_path, config)


def run(size: int, accuracy: float, seed: int, **settings: Any) -> dict[str, Any]:
    scores = {"mode": (accuracy, size), "dense": (0.9, 1000), "finetune": (0.91, 1000)}
    evaluation = {name: {"accuracy": a, "bytes": b} for name, (a, b) in scores.items()}
    return {"settings": {**settings, "seed": seed}, "command": "c", "evaluation": evaluation}


def test_seeds_are_joined_and_only_what_nothing_beats_is_on_the_front(tmp_path: Path) -> None:
    results = [run(100, 0.80, 0, k=2), run(120, 0.82, 1, k=2), run(200, 0.80, 0, k=4)]
    found = spots([*results, run(400, 0.9, 0, k=8)])
    assert [spot.label for spot in found] == ["k = 2", "k = 4", "k = 8"]
    assert found[0].size == 110 and found[0].accuracy == pytest.approx(81)
    assert found[0].spread == pytest.approx(2**0.5) and found[0].lost == pytest.approx(10)
    assert [spot.label for spot in front(found)] == ["k = 2", "k = 8"]
    page = write_frontier(tmp_path / "frontier.html", results).read_text()
    assert "81.00 ± 1.41" in page and "<svg" in page


def test_sweeps_on_the_same_axes_keep_their_own_fronts(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder, accuracy in ((ours, 0.9), (theirs, 0.8)):
        folder.mkdir()
        results = [run(100, accuracy, seed, k=2) for seed in (0, 1)]
        (folder / "results.json").write_text(json.dumps(results))
    results = read_sweeps([ours, theirs])
    found = spots(results)
    assert [(spot.sweep, spot.accuracy) for spot in found] == [
        (str(ours), pytest.approx(90)),
        (str(theirs), pytest.approx(80)),  # the same settings, but not the same runs
    ]
    page = write_frontier(tmp_path / "both.html", results).read_text()
    assert page.count(f"{theirs}: k = 2") == 1 and page.count(f">{theirs}<") == 1  # row, legend
    with pytest.raises(FileNotFoundError, match=r"nothing.*no results\.json there"):
        read_sweeps([ours, tmp_path / "nothing"])


TRAINING = """
import json, os, pathlib, sys, time
started = time.monotonic()
time.sleep(0.3)
gpu, ended = os.environ["CUDA_VISIBLE_DEVICES"], time.monotonic()
pathlib.Path(sys.argv[1], "times.json").write_text(json.dumps([gpu, started, ended]))
sys.exit(sys.argv[1].endswith("3"))
"""


def test_a_gpu_trains_one_point_at_a_time(tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(5)]
    todo = [Point({}, folder, ["-c", TRAINING, str(folder)], None) for folder in folders]
    said: list[str] = []
    failed = train_all(todo, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "12"], said.append)
    assert [point.folder.name for point in failed] == ["3"]
    assert "3: exit code 1, see log.txt there" in said and "4: done" in said
    times = sorted(json.loads((folder / "times.json").read_text()) for folder in folders)
    assert {gpu for gpu, _, _ in times} == {"1", "2"}
    for (gpu, _, ended), (after, started, _) in itertools.pairwise(times):
        assert gpu != after or ended <= started


@pytest.mark.scale
def test_a_killed_sweep_goes_on_and_repeats_no_finished_point(tmp_path: Path) -> None:
    def start(workdir: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "experiments.sweep", *BRIEF, f"--workdir={workdir}"]
        return subprocess.Popen([*command, "--grid=sqs.components=[2,4]"])

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed)
    second = killed / "sqs.components=4"
    while not (second / "config.json").exists():
        assert process.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)  # the training it started lives on
    process.wait()
    first = (killed / "sqs.components=2" / "report.html").stat().st_mtime_ns
    for workdir in (killed, whole):
        assert start(workdir).wait() == 0
    assert (killed / "sqs.components=2" / "report.html").stat().st_mtime_ns == first
    tables = [json.loads((folder / "results.json").read_text()) for folder in (killed, whole)]
    for table in tables:
        for row in table:
            row.pop("command")  # names the folder
    assert tables[0] == tables[1] and len(tables[0]) == 2
    assert (killed / "frontier.html").stat().st_size > 5_000
