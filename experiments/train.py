"""Train a dense network, compress it, write the file, evaluate it in a second process, report.

    python -m experiments.train --config=experiments/configs/digits.py --workdir=runs/digits

Every field of the config can be set: --config.sqs.sparsity=0.9. A run that was interrupted goes
on from its latest checkpoint when the same command is given again, also on another number of
devices or processes. Several processes each get --coordinator_address, --num_processes and
--process_id; experiments.launch starts them on one machine. See docs/training_at_scale.md.

Exits with 0 when all is done, with 75 (EX_TEMPFAIL) when SIGTERM ended a training in good order,
its last step saved, and with 1 for an error.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import sqs_jax
from experiments.evaluate import predict
from experiments.export import deployed, describe_distributions, export
from experiments.problem import described
from experiments.report import write_report
from experiments.scores import fingerprint
from experiments.training.processes import is_writer, joined, wait_for_all
from experiments.training.run import run_trainings

_CONFIG: Any = config_flags.DEFINE_config_file(
    "config", None, "Experiment: experiments/configs/digits.py, ...", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; made if it is not there.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
_COUNT = flags.DEFINE_integer("num_processes", None, "Processes of this training; one by default.")
_INDEX = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def train(config: Any, workdir: Path) -> dict[str, Any]:
    """Run an experiment to its end; returns what evaluation.json holds.

    Raises:
      RuntimeError: if the files do not do what was trained, and as `run_trainings`.
    """
    config = described(config)
    model, splits, dense, finetuned, phase, state = run_trainings(config, workdir)
    export(workdir, phase, dense, finetuned, state, config)
    describe_distributions(workdir / "distributions.json", state.posterior)
    trained = deployed(phase, state, config)
    if is_writer():
        evaluate_files(workdir, predict(model, [trained], splits.holdout).correct)
    wait_for_all("the files are evaluated")
    return json.loads((workdir / "evaluation.json").read_text())


def evaluate_files(workdir: Path, correct: np.ndarray) -> None:
    """Evaluate the files in a process of their own, and compare the one that ships.

    Args:
      workdir: of the run.
      correct: which images [n] the trained network classifies correctly.

    Raises:
      RuntimeError: if the file classifies other images correctly.
    """
    print("Evaluating the files in a process of their own.", flush=True)
    command = [sys.executable, "-m", "experiments.evaluate", f"--workdir={workdir}"]
    subprocess.run(command, check=True)
    found = json.loads((workdir / "evaluation.json").read_text())["mode"]
    if found["fingerprint"] != fingerprint(correct):
        raise RuntimeError(
            f"{workdir / 'model.sqs'}: the file classifies {found['correct']} of {correct.size} "
            f"images correctly, the trained network {int(correct.sum())}, and not the same ones."
        )


def show(evaluation: dict[str, Any], size: sqs_jax.SizeReport) -> None:
    """Print what was evaluated, a line for each network, and what was gained and lost."""
    print(f"{'network':>10}  {'accuracy':>9}  {'NLL':>7}  {'ECE':>6}  {'file bytes':>10}")
    for name, row in evaluation.items():
        print(
            f"{name:>10}  {100 * row['accuracy']:8.2f} %  {row['nll']:7.4f}  "
            f"{row['calibration_error']:6.4f}  {row['bytes']:10,}"
        )
    rivals = [name for name in ("dense", "finetune") if name in evaluation]
    dense = max(rivals, key=lambda name: evaluation[name]["accuracy"])
    lost = 100 * (evaluation[dense]["accuracy"] - evaluation["mode"]["accuracy"])
    apart = f"{lost:.2f} points lost against {dense}"
    if "perplexity" in evaluation["mode"]:
        dense = min(rivals, key=lambda name: evaluation[name]["nll"])
        more = evaluation["mode"]["perplexity"] / evaluation[dense]["perplexity"] - 1
        apart = (
            f"perplexity {evaluation['mode']['perplexity']:.3f}, {100 * more:.2f} % above {dense}"
        )
    print(
        f"{size.original_bytes:,} bytes of weights in a file of {size.file_bytes:,}: "
        f"{size.ratio:.1f} times smaller at {100 * size.sparsity:.1f} % sparsity, "
        f"{apart}"
    )


def main(_: Any) -> None:
    for flag in (_CONFIG, _WORKDIR):
        if not flag.value:
            raise app.UsageError(f"--{flag.name} is needed.")
    logging.set_verbosity(logging.WARNING)  # orbax tells of every save
    workdir = Path(_WORKDIR.value)
    with joined(_COORDINATOR.value, _COUNT.value, _INDEX.value):
        evaluation = train(_CONFIG.value, workdir)
        if is_writer():
            show(evaluation, sqs_jax.inspect(workdir / "model.sqs"))
            print(f"report: {write_report(workdir)}")


if __name__ == "__main__":
    app.run(main)
