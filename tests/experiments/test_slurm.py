"""Points of a sweep as jobs: submitit's local executor, and Slurm replaced by scripts."""

import os
from pathlib import Path

import pytest

from experiments.sweeps.grid import Point
from experiments.sweeps.slurm import submit

# What submitit asks of Slurm. sbatch starts the array's tasks here.
FAKES = {
    "sbatch": """
echo "$@" >> {log}
cp "$1" {log}.sh
for task in 0 1; do
  SLURM_JOB_ID=7$task SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=2 \\
  SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_NODEID=0 SLURM_LOCALID=0 \\
  SLURM_JOB_NODELIST=here bash "$1" &
done > {log}.out 2>&1
echo Submitted batch job 7
""",
    "srun": """
while [ "${{1#-}}" != "$1" ]; do case $1 in --output|--error) shift;; esac; shift; done
exec "$@"
""",
    "sacct": "printf 'JobID|State|NodeList\\n7_0|COMPLETED|here\\n7_1|FAILED|here\\n'",
    "scontrol": "echo here",
}


def point(folder: Path, code: str) -> Point:
    return Point({}, folder, ["-c", code], None)


def two_points(tmp_path: Path) -> tuple[Point, Point]:
    good, bad = tmp_path / "good", tmp_path / "bad"
    report = f"open({str(good / 'report.html')!r}, 'w').close()"
    return point(good, report), point(bad, "print('what went wrong'); raise SystemExit(3)")


def test_jobs_train_points_and_failures_are_told(tmp_path: Path) -> None:
    good, bad = two_points(tmp_path)
    said: list[str] = []
    options = {"timeout_min": 5}
    assert submit([good, bad], tmp_path / "jobs", "local", options, said.append) == [bad]
    assert good.finished and not bad.finished
    assert "what went wrong" in (bad.folder / "log.txt").read_text()
    assert said[-2] == "good: done" and "exit code 3" in said[-1]


def test_slurm_gets_one_array_with_the_options(tmp_path: Path, monkeypatch) -> None:
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in FAKES.items():
        path = commands / name
        path.write_text("#!/bin/bash\n" + text.format(log=tmp_path / "sbatch"))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    good, bad = two_points(tmp_path)
    options = {"slurm_partition": "gpu", "gpus_per_node": 1, "timeout_min": 240}
    assert submit([good, bad], tmp_path / "jobs", "slurm", options, print) == [bad]
    assert good.finished
    assert len((tmp_path / "sbatch").read_text().splitlines()) == 1
    script = (tmp_path / "sbatch.sh").read_text()
    for line in ("--partition=gpu", "--gpus-per-node=1", "--time=240", "--array=0-1"):
        assert f"#SBATCH {line}" in script


def test_without_points_no_cluster_is_needed(tmp_path: Path) -> None:
    assert submit([], tmp_path, "slurm", {}, print) == []


def test_a_cluster_that_is_not_here_and_unknown_options_are_named(tmp_path: Path) -> None:
    points = [point(tmp_path, "")]
    with pytest.raises(ValueError, match=r"cluster=slurm.*srun"):
        submit(points, tmp_path, "slurm", {}, print)
    with pytest.raises(ValueError, match="nonsense"):
        submit(points, tmp_path, "local", {"nonsense": 1}, print)
