"""Two processes with two devices per process: stopped, killed and restarted."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = (sys.executable, "-m", "experiments.launch", "--processes=2", "--devices_per_process=2")
TINY = (
    "--config=experiments/configs/digits.py",
    "--config.dense.epochs=30",  # still training when a signal has reached both processes
    "--config.sqs.epochs=3",
    "--config.checkpoint_every=7",
    "--config.evaluation.average_samples=1",
    "--config.model.features=(4,)",
    "--config.model.hidden=64",
    "--config.mesh.fsdp=2",
    "--config.sqs.pattern=Dense_0/kernel",
    "--config.sqs.prune_every=13",
)


def start(workdir: Path, cache: Path) -> subprocess.Popen[str]:
    # Compiled once for all the processes of these tests.
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [*LAUNCH, "--", *TINY, f"--workdir={workdir}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for_step(process: subprocess.Popen[str], workdir: Path, phase: str, step: int) -> None:
    path = workdir / "metrics.jsonl"
    while True:
        text = path.read_text() if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
        if any(line["phase"] == phase and line["step"] >= step for line in lines):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def children(process: subprocess.Popen[str]) -> list[int]:
    actual = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == process.pid:
            actual.append(int(status.parent.name))
    return sorted(actual)


@pytest.mark.scale  # finds processes through /proc: on Linux
def test_stopped_killed_and_started_again_the_file_is_the_same(tmp_path: Path) -> None:
    whole, broken, cache = (tmp_path / name for name in ("whole", "broken", "cache"))
    code, out, err = finish(start(whole, cache))
    assert code == 0, err[-4000:]
    assert out.count("report: ") == 1  # one process reports

    process = start(broken, cache)
    wait_for_step(process, broken, "dense", 10)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 75, err[-4000:]
    assert re.search(r"Stopped by SIGTERM; saved as step \d+ in .*checkpoints/dense", out)

    process = start(broken, cache)
    wait_for_step(process, broken, "sqs", 10)
    victims = children(process)
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 128 + signal.SIGKILL
    assert "Process 1 of 2 ended by signal 9" in err and "goes on from the latest" in err
    assert not (broken / "model.sqs").exists()

    code, _, err = finish(start(broken, cache))
    assert code == 0, err[-4000:]
    digests = [hashlib.sha256((d / "model.sqs").read_bytes()).digest() for d in (whole, broken)]
    assert digests[0] == digests[1]
    assert (whole / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()


def test_half_of_the_flags_of_a_process_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.train", TINY[0], f"--workdir={tmp_path}"]
    result = subprocess.run([*command, "--process_id=0"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "--coordinator_address and --num_processes is missing" in result.stderr
