"""Convergence rate of posteriors: slopes, figures and page of the study."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pages.page import table, write_page
from experiments.pages.panels import COLORS, QUIET, panel, styled, svg


def slope(examples: list[int], errors: list[float]) -> float:
    """Return the slope of the least-squares line of log error against log n."""
    return float(np.polyfit(np.log(examples), np.log(errors), 1)[0])


def medians(rows: list[dict[str, Any]]) -> dict[tuple[str, int], dict[int, float]]:
    """Return the median error over the seeds: (posterior, hidden) -> n -> error.

    Args:
      rows: Rows of consistency.json.
    """
    groups: dict[tuple[str, int], dict[int, list[float]]] = {}
    for row in rows:
        line = groups.setdefault((row["posterior"], row["hidden"]), {})
        line.setdefault(row["n"], []).append(row["error"])
    return {
        key: {n: statistics.median(errors) for n, errors in line.items()}
        for key, line in groups.items()
    }


@styled
def figure(lines: dict[tuple[str, int], dict[int, float]], hidden: int) -> str:
    """Draw error against n on log axes for teachers with `hidden` units."""
    picture, axes = panel(360, 300, f"Teacher of {hidden} hidden units", left=52, bottom=44)
    colors = {"SQS": COLORS["mode"], "dense Gaussians": COLORS["averaged"]}
    for (name, size), line in lines.items():
        if size == hidden:
            fitted = f"{name}, slope {slope(list(line), list(line.values())):.2f}"
            axes.plot(
                list(line),
                list(line.values()),
                "o-",
                ms=5,
                lw=1.4,
                color=colors[name],
                label=fitted,
            )
    n = np.asarray(sorted(next(iter(lines.values()))), float)
    top = max(line[int(n[0])] for (_, size), line in lines.items() if size == hidden)
    axes.plot(n, top * (n / n[0]) ** -0.5, color=QUIET, lw=1, ls=(0, (4, 3)), label="slope -0.50")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.set_xlabel("examples, n")
    axes.legend(frameon=False, fontsize=9)
    return svg(picture, f"error-{hidden}", f"function error against n, {hidden} hidden units")


def write_consistency(page: Path, rows: list[dict[str, Any]], config: Any) -> list[list[str]]:
    """Write the page, and return the cells of its table.

    Args:
      page: Path of the page.
      rows: Rows of consistency.json.
      config: Config of the study.
    """
    lines = medians(rows)
    cells = [
        [f"{name}, {hidden}", *(f"{error:.4f}" for error in line.values()),
         f"{slope(list(line), list(line.values())):.2f}"]
        for (name, hidden), line in lines.items()
    ]  # fmt: skip
    figures = "".join(figure(lines, hidden) for hidden in config.hidden)
    write_page(
        page,
        "Consistency",
        "Function error of posteriors fitted to n noisy examples of sparse quantized networks: "
        f"medians over {len(config.seeds)} seeds.",
        f'<div class="panels">{figures}</div>',
        table(["posterior, hidden units", *map(str, config.examples), "slope"], cells),
    )
    return cells
