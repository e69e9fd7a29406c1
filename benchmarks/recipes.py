"""Ablation of the recipes on digits, a change at a time: accuracy against bytes."""

import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.configs import digits, digits_paper
from experiments.sweeps.grid import Point, points
from experiments.sweeps.local_processes import train_all

Rows = dict[tuple[str, str], list[Point]]  # runs by (table, label)

_SEEDS = range(3)
_OURS, _PAPER = "digits", "digits_paper"
_CONFIGS = {_OURS: digits, _PAPER: digits_paper}
_TIGHT = {"sqs.target_bytes": 3500}  # where all recipes lose something
# table -> (config, settings that all its rows share, rows); a row: label -> settings of its own
TABLES: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "ours, one part changed, at equal bytes": (
        _OURS,
        _TIGHT,
        {
            "as it is": {},
            "estimator mean, temperature 1 to 0.05": {"sqs.estimator": "mean"},
            "latent weights frozen": {"sqs.learning_rate.loc": 0.0},
            "no distillation": {"sqs.distill_weight": 0.0},
            "no refit, no revival": {"sqs.refit": False},
            "warm-up of 5 %": {"sqs.warmup": 0.05},
            "latent weights until 80 % only": {"sqs.latent_end": 0.8},
            "rate in the loss, 0.01": {"sqs.rate_weight": 0.01},
            "rate in the loss, 0.1": {"sqs.rate_weight": 0.1},
            "batches of half the size": {"batch_size": 64},
        },
    ),
    "simultaneous or sequential, at equal bytes": (
        _OURS,
        _TIGHT,
        {
            order: {"sqs.order": order} if order != "together" else {}
            for order in ("together", "prune_first", "quantise_first")
        },
    ),
    "the published recipe, one part changed, most to what it was": (
        _PAPER,
        {},
        {
            "corrected": {},
            "half of the Bernoulli KL": {"sqs.mistakes": ("half_bernoulli",)},
            "KL not divided by n": {"sqs.mistakes": ("unscaled_kl",)},
            "responsibilities of 32 bins": {"sqs.mistakes": ("binned",)},
            "scores that nothing trained": {"sqs.mistakes": ("untrained_scores",)},
            "all of the KL on survivors": {"sqs.kl_weight": 1.0},
            "a threshold per tensor": {"sqs.scope": "tensor"},
        },
    ),
    "levels, at 90 % sparsity": (
        _OURS,
        {"sqs.sparsity": 0.9},
        {f"K = {k}": {"sqs.components": k} for k in (2, 3, 4, 8, 10, 12, 14, 16, 32, 64)},
    ),
    "sparsity, at K = 4": (
        _OURS,
        {},
        {f"{100 * s:g} %": {"sqs.sparsity": s} for s in (0.5, 0.7, 0.8, 0.9, 0.95)},
    ),
    "windows, 12 levels, at 90 % sparsity": (
        _OURS,
        {"sqs.sparsity": 0.9},
        {
            "one": {"sqs.components": 12},
            "3, equal": {"sqs.window_kind": "equal", "sqs.window_count": 3},
            "3, outlier": {"sqs.window_kind": "outlier", "sqs.window_count": 3},
        },
    ),
    "temperature of the estimator mean": (
        _OURS,
        {},
        {
            f"{first:g} to {last:g}": {
                "sqs.estimator": "mean",
                "sqs.temperature_start": first,
                "sqs.temperature_end": last,
            }
            for first, last in ((1.0, 1.0), (1.0, 0.2), (1.0, 0.05), (1.0, 0.001), (0.001, 0.001))
        },
    ),
}


def runs_of(workdir: Path) -> Rows:
    """Return the runs of every row of every table; equal runs share a folder."""
    runs: Rows = {}
    for table, (name, shared, rows) in TABLES.items():
        config = _CONFIGS[name].get_config()
        config.finetune = False
        options = [f"--config=experiments/configs/{name}.py", "--config.finetune=False"]
        for label, settings in rows.items():
            changes = sorted(
                {**shared, **settings}.items()
            )  # sorted, so that equal runs share a folder
            axes = {field: [value] for field, value in changes} | {"seed": [*_SEEDS]}
            runs[table, label] = points(axes, options, workdir / name, config)
    return runs


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Train unfinished runs; print and return a row per change."""
    rows = runs_of(workdir / "recipes")
    runs = {point.folder: point for row in rows.values() for point in row}
    # In the order of seeds: an interrupted benchmark has complete tables of fewer seeds.
    todo = sorted((p for p in runs.values() if not p.finished), key=lambda p: p.settings["seed"])
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    failed = train_all(todo, [{}] * (os.cpu_count() or 1), say)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(str(p.folder) for p in failed)}")
    return [_row(table, label, seeds) for (table, label), seeds in _with_headings(rows)]


def _with_headings(rows: Rows) -> Iterator[tuple[tuple[str, str], list[Point]]]:
    """Yield the rows, and print a heading before the first row of a table."""
    before = None
    for names, seeds in rows.items():
        if names[0] != before:
            columns = (
                f"{'accuracy, %':>14} {'NLL':>7} {'mean, %':>8} {'averaged, %':>12} {'bytes':>7}"
            )
            print(f"\n{names[0]:42} {columns} {'smaller by':>10}")
        before = names[0]
        yield names, seeds


def _row(table: str, label: str, seeds: list[Point]) -> dict[str, Any]:
    evaluations = [json.loads((p.folder / "evaluation.json").read_text()) for p in seeds]

    def mean(network: str, metric: str, scale: float = 1.0) -> float:
        return scale * statistics.mean(e[network][metric] for e in evaluations)

    row = {
        "table": table,
        "label": label,
        "seeds": len(seeds),
        "accuracy": mean("mode", "accuracy", 100),
        "spread": statistics.stdev(100 * e["mode"]["accuracy"] for e in evaluations),
        "nll": mean("mode", "nll"),
        "mean": mean("mean", "accuracy", 100),
        "averaged": mean("averaged", "accuracy", 100),
        "bytes": mean("mode", "bytes"),
    }
    ratio = mean("dense", "bytes") / row["bytes"]
    print(
        f"  {label:40} {row['accuracy']:7.2f} ± {row['spread']:4.2f} {row['nll']:7.4f} "
        f"{row['mean']:8.2f} {row['averaged']:12.2f} {row['bytes']:7,.0f} {ratio:10.1f}"
    )
    return row
