"""What a command ends with: its files evaluated in a process of their own, and a line for each."""

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

_ROUNDING = 1e-3  # of all labels


def evaluate_files(
    workdir: Path, correct: np.ndarray | None = None, networks: Iterable[str] = ()
) -> None:
    """Evaluate the files in a process of their own, and compare the one that ships.

    Args:
      workdir: of the run.
      correct: which images [n] the network in memory classifies correctly, if that is known.
      networks: names of those that are evaluated, "mode" among them; all by default.

    Raises:
      RuntimeError: if the file classifies other images correctly; on an accelerator, if their
        number differs by more than one in a thousand.
    """
    print("Evaluating the files in a process of their own.", flush=True)
    command = [sys.executable, "-m", "experiments.evaluate", f"--workdir={workdir}"]
    subprocess.run([*command, f"--networks={','.join(networks)}"], check=True)
    found = json.loads((workdir / "evaluation.json").read_text())["mode"]
    if correct is None or found["fingerprint"] == fingerprint(correct):
        return
    # An accelerator's programs are tuned anew in each process, and each rounds in its own way.
    close = abs(found["correct"] - int(correct.sum())) <= _ROUNDING * correct.size
    if jax.default_backend() == "cpu" or not close:
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
