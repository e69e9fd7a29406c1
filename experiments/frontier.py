"""The page of a sweep: accuracy against bytes on disk, and the command of every point."""

import statistics
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.ticker import FuncFormatter

from experiments.page import table, write_page
from experiments.panels import COLORS, INK, QUIET, panel, styled, svg


class Spot(NamedTuple):
    """A point of the frontier: runs that differ in their seed alone.

    Attributes:
      label: its settings, the seed left out.
      size: bytes of model.sqs, mean over the runs.
      ratio: of dense.sqs to that.
      accuracy, spread: of the deployed network, mean and standard deviation over the runs, percent.
      dense: accuracy of the better dense network, mean, percent.
      commands: of the runs.
    """

    label: str
    size: float
    ratio: float
    accuracy: float
    spread: float
    dense: float
    commands: list[str]

    @property
    def lost(self) -> float:
        """Points below the dense network."""
        return self.dense - self.accuracy


def spots(results: list[dict[str, Any]]) -> list[Spot]:
    """Join the runs that differ in their seed alone; the smallest file first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in results:
        settings = {k: v for k, v in each["settings"].items() if k != "seed"}
        label = ", ".join(f"{field} = {value}" for field, value in settings.items())
        groups.setdefault(label or "all seeds", []).append(each)
    found = []
    for label, runs in groups.items():
        scores = [run["evaluation"] for run in runs]
        accuracy = [100 * s["mode"]["accuracy"] for s in scores]
        dense = [
            100 * max(s[name]["accuracy"] for name in ("dense", "finetune") if name in s)
            for s in scores
        ]
        size = statistics.mean(s["mode"]["bytes"] for s in scores)
        whole = statistics.mean(s["dense"]["bytes"] for s in scores)
        found.append(
            Spot(
                label, size, whole / size, statistics.mean(accuracy),
                statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
                statistics.mean(dense), [run["command"] for run in runs],
            )
        )  # fmt: skip
    return sorted(found, key=lambda spot: (spot.size, -spot.accuracy))


def front(found: list[Spot]) -> list[Spot]:
    """Return the points that no smaller or equal file beats in accuracy."""
    best, kept = float("-inf"), []
    for spot in found:
        if spot.accuracy > best:
            kept.append(spot)
            best = spot.accuracy
    return kept


@styled
def figure(found: list[Spot]) -> str:
    """Draw accuracy against bytes, on a logarithmic axis, with the front and the dense network."""
    picture, axes = panel(760, 420, "Accuracy against bytes of the file, %", left=52, bottom=44)
    best = front(found)
    axes.axhline(max(s.dense for s in found), color=COLORS["dense"], ls=(0, (4, 3)), lw=1.2)
    axes.plot([s.size for s in best], [s.accuracy for s in best], color=COLORS["mode"], lw=1.4)
    for spot in found:
        color = COLORS["mode"] if spot in best else QUIET
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


def write_frontier(workdir: Path, results: list[dict[str, Any]]) -> Path:
    """Write frontier.html; returns its path.

    Args:
      workdir: of the sweep.
      results: of its finished runs: settings, command, evaluation.
    """
    found = spots(results)
    best = front(found)

    def row(spot: Spot) -> list[str]:
        spread = f" ± {spot.spread:.2f}" if len(spot.commands) > 1 else ""
        commands = "<br>".join(f"<code>{escape(command)}</code>" for command in spot.commands)
        return [
            escape(spot.label), f"{spot.size:,.0f}", f"{spot.ratio:.1f}",
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
        workdir / "frontier.html",
        f"Frontier: {workdir.resolve().name}",
        intro,
        figure(found),
        table(columns, map(row, found), [i for i, spot in enumerate(found) if spot in best]),
    )
