"""The page of a sweep: accuracy against bytes on disk, and the command of every point.

    python -m experiments.frontier --sweeps=runs/ours,runs/paper --page=runs/frontier.html

draws finished points of several sweeps on the same axes: of recipes, or of networks.
"""

import json
import statistics
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from matplotlib.ticker import FuncFormatter

from experiments.pages.page import table, write_page
from experiments.pages.panels import COLORS, INK, QUIET, line_color, panel, styled, svg


class Spot(NamedTuple):
    """A point of the frontier: runs that differ in their seed alone.

    Attributes:
      sweep: its name; empty where there is but one.
      label: its settings, the seed left out.
      size: bytes of model.sqs, mean over the runs.
      ratio: of dense.sqs to that.
      accuracy, spread: of the deployed network, mean and standard deviation over the runs, percent.
      dense: accuracy of the better dense network, mean, percent.
      commands: of the runs.
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
        """Points below the dense network."""
        return self.dense - self.accuracy


def spots(results: list[dict[str, Any]]) -> list[Spot]:
    """Join the runs that differ in their seed alone; the smallest file first."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for each in results:
        settings = {k: v for k, v in each["settings"].items() if k != "seed"}
        label = ", ".join(f"{field} = {value}" for field, value in settings.items())
        groups.setdefault((each.get("sweep", ""), label or "all seeds"), []).append(each)
    found = []
    for (sweep, label), runs in groups.items():
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
                sweep, label, size, whole / size, statistics.mean(accuracy),
                statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
                statistics.mean(dense), tuple(run["command"] for run in runs),
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
    """Draw accuracy against bytes, on a logarithmic axis, with fronts and the dense network."""
    picture, axes = panel(760, 420, "Accuracy against bytes of the file, %", left=52, bottom=44)
    axes.axhline(max(s.dense for s in found), color=COLORS["dense"], ls=(0, (4, 3)), lw=1.2)
    colors: dict[Spot, str] = {}  # of what is on the front of its sweep
    sweeps = sorted({spot.sweep for spot in found})
    for i, sweep in enumerate(sweeps):
        best = front([spot for spot in found if spot.sweep == sweep])
        line = [spot.size for spot in best], [spot.accuracy for spot in best]
        axes.plot(*line, color=line_color(i), lw=1.4, label=sweep)
        colors |= dict.fromkeys(best, line_color(i))
    if len(sweeps) > 1:
        axes.legend(frameon=False, loc="lower right")
    for spot in found:
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
    """Write the page; returns its path.

    Args:
      page: its file.
      results: of finished runs: settings, command, evaluation, and the sweep if there are several.
    """
    found = spots(results)
    best = front(found)
    sweeps = sorted({spot.sweep for spot in found if spot.sweep})

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
        figure(found),
        table(columns, map(row, found), [i for i, spot in enumerate(found) if spot in best]),
    )


def read_sweeps(folders: list[Path]) -> list[dict[str, Any]]:
    """Return the results of several sweeps, each with its sweep's name.

    Raises:
      FileNotFoundError: listing every folder that has no results.
    """
    files = {folder: folder / "results.json" for folder in folders}
    missing = [str(folder) for folder, file in files.items() if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)}: no results.json there; experiments.sweep writes it."
        )
    return [
        each | {"sweep": str(folder)}
        for folder, file in files.items()
        for each in json.loads(file.read_text())
    ]


def main(_: Any) -> None:
    results = read_sweeps([Path(name) for name in flags.FLAGS.sweeps])
    if not results:
        raise app.UsageError(f"--sweeps={','.join(flags.FLAGS.sweeps)}: no point is finished.")
    print(f"frontier: {write_frontier(Path(flags.FLAGS.page), results)}")


if __name__ == "__main__":
    flags.DEFINE_list("sweeps", None, "Folders of sweeps.", required=True)
    flags.DEFINE_string("page", "frontier.html", "The page that is written.")
    app.run(main)
