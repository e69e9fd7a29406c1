"""Pareto front of accuracy and bytes over finished runs, and the page of the front."""

import statistics
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.ticker import FuncFormatter

from experiments.pages.page import table, write_page
from experiments.pages.panels import COLORS, INK, QUIET, line_color, panel, styled, svg


class Spot(NamedTuple):
    """Runs that differ only in their seed.

    Attributes:
      sweep: Name of the sweep; "" if there is only one sweep.
      label: Settings without the seed.
      size: Size of model.sqs, mean over the runs, bytes.
      ratio: Size of dense.sqs over `size`.
      accuracy: Accuracy of the deployed network, mean over the runs, percent.
      spread: Standard deviation of the accuracy over the runs, percentage points.
      dense: Accuracy of the better dense network, mean over the runs, percent.
      commands: Command of each run.
    """

    sweep: str
    label: str
    size: float
    ratio: float
    accuracy: float
    spread: float
    dense: float
    commands: tuple[str, ...]

    @property
    def lost(self) -> float:
        """Accuracy below the dense network, percentage points."""
        return self.dense - self.accuracy


def spots(results: list[dict[str, Any]]) -> list[Spot]:
    """Group runs that differ only in their seed, and sort by the size of the file.

    Args:
      results: Finished runs as in `write_frontier`.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        settings = {k: v for k, v in result["settings"].items() if k != "seed"}
        label = ", ".join(f"{field} = {value}" for field, value in settings.items())
        groups.setdefault((result.get("sweep", ""), label or "all seeds"), []).append(result)
    joined = []
    for (sweep, label), runs in groups.items():
        scores = [run["evaluation"] for run in runs]
        accuracy = [100 * s["mode"]["accuracy"] for s in scores]
        dense = [
            100 * max(s[name]["accuracy"] for name in ("dense", "finetune") if name in s)
            for s in scores
        ]
        size = statistics.mean(s["mode"]["bytes"] for s in scores)
        whole = statistics.mean(s["dense"]["bytes"] for s in scores)
        joined.append(
            Spot(
                sweep, label, size, whole / size, statistics.mean(accuracy),
                statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
                statistics.mean(dense), tuple(run["command"] for run in runs),
            )
        )  # fmt: skip
    return sorted(joined, key=lambda spot: (spot.size, -spot.accuracy))


def front(ordered: list[Spot]) -> list[Spot]:
    """Return the spots that no spot of smaller or equal size beats in accuracy.

    Args:
      ordered: Spots by ascending size.
    """
    best, kept = float("-inf"), []
    for spot in ordered:
        if spot.accuracy > best:
            kept.append(spot)
            best = spot.accuracy
    return kept


@styled
def figure(ordered: list[Spot]) -> str:
    """Draw accuracy against bytes on a log axis, with fronts and the dense network."""
    picture, axes = panel(760, 420, "Accuracy against bytes of the file, %", left=52, bottom=44)
    axes.axhline(max(spot.dense for spot in ordered), color=COLORS["dense"], ls=(0, (4, 3)), lw=1.2)
    colors: dict[Spot, str] = {}  # of spots on the front of their sweep
    sweeps = sorted({spot.sweep for spot in ordered})
    for i, sweep in enumerate(sweeps):
        best = front([spot for spot in ordered if spot.sweep == sweep])
        line = [spot.size for spot in best], [spot.accuracy for spot in best]
        axes.plot(*line, color=line_color(i), lw=1.4, label=sweep)
        colors |= dict.fromkeys(best, line_color(i))
    if len(sweeps) > 1:
        axes.legend(frameon=False, loc="lower right")
    for spot in ordered:
        color = colors.get(spot, QUIET)
        axes.errorbar(
            spot.size, spot.accuracy, spot.spread or None, fmt="o", ms=7, color=color, mec="white",
            capsize=3, elinewidth=1.4,
        )  # fmt: skip
        axes.annotate(
            f"{spot.ratio:.1f}×", (spot.size, spot.accuracy), (0, -16), textcoords="offset points",
            ha="center", color=INK, size=10,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.15)
    axes.set_xlabel("bytes of model.sqs; dashed: the dense network")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: ""))
    return svg(picture, "frontier", "accuracy against bytes")


def write_frontier(page: Path, results: list[dict[str, Any]]) -> Path:
    """Write the page of finished runs, and return its path.

    Args:
      page: Path of the page.
      results: Finished runs, each with "settings", "command", "evaluation" and, of several sweeps,
        "sweep".
    """
    ordered = spots(results)
    best = front(ordered)
    sweeps = sorted({spot.sweep for spot in ordered if spot.sweep})

    def row(spot: Spot) -> list[str]:
        spread = f" ± {spot.spread:.2f}" if len(spot.commands) > 1 else ""
        commands = "<br>".join(f"<code>{escape(command)}</code>" for command in spot.commands)
        return [
            escape(f"{spot.sweep}: {spot.label}" if spot.sweep else spot.label),
            f"{spot.size:,.0f}", f"{spot.ratio:.1f}",
            f"{spot.accuracy:.2f}{spread}", f"{spot.dense:.2f}", f"{spot.lost:.2f}",
            str(len(spot.commands)), commands,
        ]  # fmt: skip

    columns = [
        "settings", "bytes", "smaller by", "accuracy, %", "dense, %", "points lost", "seeds",
        "command",
    ]  # fmt: skip
    intro = (
        f"{len(results)} finished runs. Bytes are those of the whole file, model.sqs; accuracy is "
        "what a fresh process measures with it. Error bars and ± are standard deviations over "
        "seeds; the line joins what no smaller file beats."
    )
    return write_page(
        page,
        f"Frontier: {', '.join(sweeps) or page.resolve().parent.name}",
        intro,
        figure(ordered),
        table(columns, map(row, ordered), [i for i, spot in enumerate(ordered) if spot in best]),
    )
