"""Page of Bayesian averages: metrics by number of networks, and reliability."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.pages.page import table, write_page
from experiments.pages.panels import COLORS, INK, QUIET, line_color, panel, styled, svg
from experiments.studies.bayesian_averaging import CLEAN

_METRICS = {"accuracy": ("Accuracy, %", 100), "nll": ("NLL, nats", 1)}
_METRICS |= {"calibration_error": ("Calibration error, points", 100)}


@styled
def _against_passes(rows: list[dict[str, Any]], metric: str) -> str:
    """Draw a metric on the clean images against the number of averaged networks."""
    title, scale = _METRICS[metric]
    picture, axes = panel(360, 260, title, left=48, bottom=44)
    clean = [row for row in rows if row["condition"] == CLEAN]
    (mode,) = (row for row in clean if row["network"] == "mode")
    axes.axhline(scale * mode[metric], color=COLORS["mode"], lw=1.6, label="mode, one network")
    for i, network in enumerate(dict.fromkeys(r["network"] for r in clean if r is not mode)):
        line = [row for row in clean if row["network"] == network]
        axes.plot(
            [row["passes"] for row in line], [scale * row[metric] for row in line],
            "o-", ms=4, lw=1.4, color=line_color(1 + i), label=network,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlabel("networks averaged, M")
    if metric == "accuracy":
        axes.legend(frameon=False, fontsize=9)
    return svg(picture, metric, title)


@styled
def _reliability(bins: dict[str, Any]) -> str:
    """Draw accuracy against confidence; a calibrated network is on the diagonal."""
    picture, axes = panel(360, 260, "Reliability: accuracy, %", left=48, bottom=44)
    axes.plot([0, 100], [0, 100], color=QUIET, lw=1, ls=(0, (4, 3)))
    # Later names replace earlier ones, so that the largest number of draws remains per network.
    last = {name.split(",")[0]: name for name in bins}
    for i, name in enumerate(last.values()):
        sure, right, _ = np.transpose(bins[name])
        axes.plot(100 * sure, 100 * right, "o-", ms=4, lw=1.4, color=line_color(i), label=name)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    axes.set_xlabel("confidence, %")
    return svg(picture, "reliability", "accuracy against confidence")


def write_study(workdir: Path, results: dict[str, Any]) -> Path:
    """Write inference.html, and return its path.

    Args:
      workdir: Folder of the run.
      results: Results of `study`.
    """
    rows = results["rows"]
    cells = [
        [
            row["network"], row["condition"], str(row["passes"]), f"{row['bytes']:,}",
            f"{100 * row['accuracy']:.2f}", f"{row['nll']:.4f}",
            f"{100 * row['calibration_error']:.2f}",
        ]
        for row in sorted(rows, key=lambda row: row["condition"] != CLEAN)
    ]  # fmt: skip
    columns = [
        "network", "images", "forward passes", "bytes", "accuracy, %", "NLL",
        "calibration error, points",
    ]  # fmt: skip
    figures = "".join(_against_passes(rows, metric) for metric in _METRICS)
    return write_page(
        workdir / "inference.html",
        f"Inference: {workdir.resolve().name}",
        f"The deployed network beside averages of K-level draws, on {rows[0]['count']:,} held-out "
        "images and corrupted copies of them. Bytes are those of a file with all codes.",
        f'<div class="panels">{figures}{_reliability(results["reliability"])}</div>',
        table(columns, cells, [i for i, row in enumerate(cells) if row[0] == "mode"]),
    )
