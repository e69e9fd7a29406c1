"""Evaluation of the files of a run in a separate process, and the printed summary."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sqs_jax
from experiments.scores import fingerprint

_ROUNDING = 1e-3  # largest fraction of labels that differ by rounding


def evaluate_files(
    workdir: Path, correct: np.ndarray | None = None, networks: Iterable[str] = ()
) -> None:
    """Evaluate files in a separate process, and check model.sqs against the network.

    Args:
      workdir: Folder of the run.
      correct: Mask of the labels that the network in memory predicts correctly, bool [n]; None
        skips the check.
      networks: Names of the evaluated networks, "mode" among them; all by default.

    Raises:
      RuntimeError: The file predicts other labels correctly. On an accelerator, the number of
        correct labels differs by more than one in a thousand.
    """
    print("Evaluating the files in a process of their own.", flush=True)
    command = [sys.executable, "-m", "experiments.evaluate", f"--workdir={workdir}"]
    subprocess.run([*command, f"--networks={','.join(networks)}"], check=True)
    scores = json.loads((workdir / "evaluation.json").read_text())["mode"]
    if correct is None or scores["fingerprint"] == fingerprint(correct):
        return
    # Accelerators autotune programs in each process, and therefore round differently.
    close = abs(scores["correct"] - int(correct.sum())) <= _ROUNDING * correct.size
    if jax.default_backend() == "cpu" or not close:
        raise RuntimeError(
            f"{workdir / 'model.sqs'}: the file classifies {scores['correct']} of {correct.size} "
            f"images correctly, the trained network {int(correct.sum())}, and not the same ones."
        )


def show(evaluation: dict[str, Any], size: sqs_jax.SizeReport) -> None:
    """Print a line of scores for each network, and a summary of the compression."""
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
