"""Accuracy and file size of both recipes on digits, over five seeds."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import sqs_jax

_RECIPES = {"default": "digits", "paper": "digits_paper"}
_SEEDS = range(5)


def run(workdir: Path, data: Path) -> dict[str, Any]:
    """Train unfinished runs; print means and spreads per recipe."""
    result: dict[str, Any] = {}
    for recipe, config in _RECIPES.items():
        rows = [_evaluate(config, seed, workdir) for seed in _SEEDS]
        result[recipe] = {"runs": rows, "pooled": _pool(rows)}
        for row in rows:
            print(
                f"{recipe:>8} seed {row['seed']}: dense {row['dense']:.2f} %  mean "
                f"{row['mean']:.2f} %  mode {row['mode']:.2f} %  averaged {row['averaged']:.2f} %"
                f"  {row['bytes']:,} bytes, {row['ratio']:.1f}x, sparsity {row['sparsity']:.4f}"
            )
    headers = f"{'dense':>13} {'mode':>13} {'drop':>13} {'gap':>6} {'bytes':>7} {'ratio':>6}"
    print(f"{'recipe':>8} {headers}")
    for recipe, both in result.items():
        pooled = both["pooled"]
        cells = "  ".join(
            f"{pooled[name]['mean']:5.2f} ± {pooled[name]['spread']:.2f}"
            for name in ("dense", "mode", "drop")
        )
        print(f"{recipe:>8}  {cells}  {pooled['mean_to_mode_gap']:+.2f} "
              f"{pooled['bytes']['mean']:7,.0f} {pooled['ratio']['mean']:6.1f}")  # fmt: skip
    return result


def _evaluate(config: str, seed: int, workdir: Path) -> dict[str, Any]:
    """Run or resume an experiment, and read the results."""
    run_dir = workdir / f"{config}_{seed}"
    command = [
        sys.executable, "-m", "experiments.train", f"--workdir={run_dir}",
        f"--config=experiments/configs/{config}.py", f"--config.seed={seed}",
    ]  # fmt: skip
    if not (run_dir / "report.html").exists():  # the experiment writes the report last
        subprocess.run(command, check=True)
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    report = sqs_jax.inspect(run_dir / "model.sqs")
    accuracy = {name: 100 * row["accuracy"] for name, row in evaluation.items()}
    # The fair baseline is the better of the starting weights and their fine-tuning.
    dense = max(accuracy["dense"], accuracy["finetune"])
    return {
        "seed": seed,
        **accuracy,
        "dense": dense,
        "drop": dense - accuracy["mode"],
        "bytes": report.file_bytes,
        "ratio": report.original_bytes / report.file_bytes,
        "sparsity": report.sparsity,
        "count": evaluation["mode"]["count"],
        "correct_mean": evaluation["mean"]["correct"],
        "correct_mode": evaluation["mode"]["correct"],
    }


def _pool(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and standard deviations over seeds, and the mean-to-mode gap.

    The gap pools the predictions of all seeds.
    """
    pooled: dict[str, Any] = {
        name: {
            "mean": statistics.mean(row[name] for row in rows),
            "spread": statistics.stdev(row[name] for row in rows),
        }
        for name in ("dense", "mean", "mode", "averaged", "drop", "bytes", "ratio")
    }
    predictions = sum(row["count"] for row in rows)
    gap = sum(row["correct_mean"] - row["correct_mode"] for row in rows)
    pooled["predictions"] = predictions
    pooled["mean_to_mode_gap"] = 100 * gap / predictions
    return pooled
