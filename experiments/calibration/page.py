"""HTML page of a calibration: scores, sizes, and bytes by layer."""

import json
from html import escape
from pathlib import Path
from typing import Any

import sqs_jax
from experiments.pages import figures
from experiments.pages.page import table, write_page
from experiments.pages.tables import leaves_table, percent

_NAMES = {"dense": "dense", "mode": "compressed: model.sqs"}


def write_calibration(workdir: Path) -> Path:
    """Write calibration.html from the files of experiments.calibrate.

    Args:
      workdir: Folder of the run.

    Returns:
      Path of the page.

    Raises:
      FileNotFoundError: A file of the run is missing.
    """
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    seconds = json.loads((workdir / "calibration.json").read_text())["seconds"]
    size = sqs_jax.inspect(workdir / "model.sqs")
    took = ", ".join(f"{name} {value} s" for name, value in seconds.items())
    intro = (
        f"{size.original_bytes:,} bytes of weights in a file of {size.file_bytes:,}: "
        f"{size.ratio:.1f} times smaller, {size.file_bits_per_weight:.2f} bits per weight, "
        f"{100 * size.sparsity:.1f} % of the weights 0; no labels and no training. What is scored "
        f"is loaded from the files, in a process of its own. It took: {escape(took)}."
    )
    spoken = "perplexity" in evaluation["mode"]
    columns = ["network", *(["perplexity"] if spoken else []), "accuracy", "NLL", "bytes"]
    rows = [_row(label, evaluation[name], spoken) for name, label in _NAMES.items()]
    return write_page(
        workdir / "calibration.html",
        f"Calibration: {workdir.resolve().name}",
        intro,
        table(columns, rows, best=[1]),
        _panels(figures.sizes(size)),
        _panels(figures.layers(size)),
        f'<div class="scroll">{leaves_table(size)}</div>',
    )


def _panels(drawn: list[str]) -> str:
    return f'<div class="panels">{"".join(drawn)}</div>'


def _row(label: str, scores: dict[str, Any], spoken: bool) -> list[str]:
    return [
        label,
        *([f"{scores['perplexity']:.3f}"] if spoken else []),
        percent(scores["accuracy"], scores["count"]),
        f"{scores['nll']:.4f}",
        f"{scores['bytes']:,}",
    ]
