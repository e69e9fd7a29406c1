"""Figure of a comparison: score against bytes, a line per method."""

import statistics
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.pages.panels import COLORS, QUIET, line_color, over, panel, spread

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 860, 520, 52, 44  # pixels
_NAME_WIDTH, _NAME_HEIGHT = 150, 14  # space for a line's name, pixels
_PEER_COLORS = 4  # colors after the first of `line_color`, which is ours
_MAX_RATIO = 4  # largest score that is drawn, times the dense network's score


def draw(rows: list[dict[str, Any]], dense: dict[str, Any], title: str) -> Figure:
    """Draw the scores of methods against the bytes of their files, on log axes.

    Args:
      rows: Results of the methods; "ours" and "ours-trained" have wider lines.
      dense: Result of the dense network, a dashed line.
      title: Title of the figure.

    Returns:
      Figure of perplexities or error rates in percent; save it inside the same style.
    """
    unit = "perplexity" if "perplexity" in dense["scores"] else "% wrong"
    figure, axes = panel(_WIDTH, _HEIGHT, f"{title}: {unit} against bytes", _LEFT, bottom=_BOTTOM)
    box = axes.get_position()
    axes.set_position((box.x0, box.y0, box.width - _NAME_WIDTH / _WIDTH, box.height))
    lines = {name: line for name in _names(rows) if (line := _points(rows, name))}
    for i, (name, line) in enumerate(lines.items()):
        axes.plot(*zip(*line, strict=True), **_look(i, name))
    axes.axhline(_level(dense), color=QUIET, ls=(0, (2, 3)), lw=1)
    axes.set_yscale("log")
    axes.set_xscale("log")
    shown = [score for name, line in lines.items() if _is_ours(name) for _, score in line]
    least = min([_level(dense), *(score for line in lines.values() for _, score in line)])
    axes.set_ylim(0.95 * least, max(_MAX_RATIO * _level(dense), 1.1 * max(shown, default=0.0)))
    axes.set_xlabel("bytes of the whole file")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_xticks(sorted({row["budget"] for row in rows if row["bytes"]}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    _name_lines(axes, lines)
    return figure


def _names(rows: list[dict[str, Any]]) -> list[str]:
    """Return the names of the methods, ours first, so that ours gets the first color."""
    names = dict.fromkeys(row["method"] for row in rows)
    return sorted(names, key=lambda name: not name.startswith("ours"))


def _is_ours(name: str) -> bool:
    return name in ("ours", "ours-trained")


def _look(number: int, name: str) -> dict[str, Any]:
    highlighted = _is_ours(name)
    cycle, color = divmod(number, _PEER_COLORS)
    dashes = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))[cycle % 4]
    return {
        "color": COLORS["mode"] if highlighted else line_color(1 + color),
        "ls": "-" if highlighted else dashes,
        "lw": 2.6 if highlighted else 1.2,
        "marker": "osD^v"[cycle % 5],
        "ms": 6 if highlighted else 4,
        "zorder": 3 if highlighted else 2,
    }


def _level(result: dict[str, Any]) -> float:
    scores = result["scores"]
    return float(scores.get("perplexity", max(100 * (1 - scores["accuracy"]), 0.01)))


def _points(rows: list[dict[str, Any]], method: str) -> list[tuple[float, float]]:
    """Return (bytes, score) of a method at each budget, means over seeds."""
    sizes: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["method"] == method and row["bytes"]:
            sizes.setdefault(row["budget"], []).append(row)
    return [
        (statistics.mean(run["bytes"] for run in runs), statistics.mean(map(_level, runs)))
        for _, runs in sorted(sizes.items())
    ]


def _name_lines(axes: Any, lines: dict[str, list[tuple[float, float]]]) -> None:
    """Write each method's name beside the right end of the line, without overlaps."""
    top = axes.get_ylim()[1]
    ends = {
        name: axes.transData.transform((line[-1][0], min(line[-1][1], top)))
        for name, line in lines.items()
    }
    order = sorted(ends, key=lambda name: float(ends[name][1]))
    corner = np.array([axes.bbox.x0, axes.bbox.y0])
    end_heights = np.array([ends[name][1] - corner[1] for name in order])
    heights = spread(end_heights, _NAME_HEIGHT, 0, axes.bbox.height + _BOTTOM / 2)
    for name, height in zip(order, heights, strict=True):
        x, y = ends[name] - corner
        look = _look(list(lines).index(name), name)
        across = (x + 5, axes.bbox.width + 4, axes.bbox.width + 14)
        axes.plot(across, (y, height, height), color=look["color"], lw=0.5, **over(axes))
        axes.text(
            axes.bbox.width + 18, height, name, va="center", size=9.5,
            weight="bold" if look["lw"] > 2 else "normal", **over(axes),
        )  # fmt: skip
