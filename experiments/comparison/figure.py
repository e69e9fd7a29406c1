"""The figure of a comparison: a line for each method, from few bytes to many."""

import statistics
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.pages.panels import COLORS, QUIET, line_color, over, panel, spread

_WIDTH, _HEIGHT, _LEFT, _NAMES, _APART = 860, 520, 52, 150, 14
_BOTTOM = 44
_PEERS = 4  # colours, the first of `line_color` being ours
_MOST = 4  # times what the dense network scores, or ours if that is more: worse is not told apart


def draw(rows: list[dict[str, Any]], dense: dict[str, Any], title: str) -> Figure:
    """Draw what methods score against the bytes of their files, both logarithmic.

    Args:
      rows: results; those of "ours" and "ours-trained" are drawn wider.
      dense: the result of the dense network, a dashed line.
      title: what the methods have in common.

    Returns:
      The figure, perplexities or percentages of wrong answers, to be written in the same style.
    """
    unit = "perplexity" if "perplexity" in dense["scores"] else "% wrong"
    figure, axes = panel(_WIDTH, _HEIGHT, f"{title}: {unit} against bytes", _LEFT, bottom=_BOTTOM)
    box = axes.get_position()
    axes.set_position((box.x0, box.y0, box.width - _NAMES / _WIDTH, box.height))
    lines = {name: line for name in _names(rows) if (line := _points(rows, name))}
    for i, (name, line) in enumerate(lines.items()):
        axes.plot(*zip(*line, strict=True), **_look(i, name))
    axes.axhline(_level(dense), color=QUIET, ls=(0, (2, 3)), lw=1)
    axes.set_yscale("log")
    axes.set_xscale("log")
    shown = [score for name, line in lines.items() if _is_ours(name) for _, score in line]
    least = min([_level(dense), *(score for line in lines.values() for _, score in line)])
    axes.set_ylim(0.95 * least, max(_MOST * _level(dense), 1.1 * max(shown, default=0.0)))
    axes.set_xlabel("bytes of the whole file")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_xticks(sorted({each["budget"] for each in rows if each["bytes"]}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    _name_lines(axes, lines)
    return figure


def _names(rows: list[dict[str, Any]]) -> list[str]:
    """Return the methods, ours first: colours then tell it apart."""
    found = dict.fromkeys(each["method"] for each in rows)
    return sorted(found, key=lambda name: not name.startswith("ours"))


def _is_ours(name: str) -> bool:
    return name in ("ours", "ours-trained")


def _look(number: int, name: str) -> dict[str, Any]:
    ours = _is_ours(name)
    turn, color = divmod(number, _PEERS)
    dashes = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))[turn % 4]
    return {
        "color": COLORS["mode"] if ours else line_color(1 + color),
        "ls": "-" if ours else dashes,
        "lw": 2.6 if ours else 1.2,
        "marker": "osD^v"[turn % 5],
        "ms": 6 if ours else 4,
        "zorder": 3 if ours else 2,
    }


def _level(result: dict[str, Any]) -> float:
    scores = result["scores"]
    return float(scores.get("perplexity", max(100 * (1 - scores["accuracy"]), 0.01)))


def _points(rows: list[dict[str, Any]], method: str) -> list[tuple[float, float]]:
    """Return (bytes, score) of a method by its budgets, means over seeds."""
    sizes: dict[int, list[dict[str, Any]]] = {}
    for each in rows:
        if each["method"] == method and each["bytes"]:
            sizes.setdefault(each["budget"], []).append(each)
    return [
        (statistics.mean(e["bytes"] for e in runs), statistics.mean(map(_level, runs)))
        for _, runs in sorted(sizes.items())
    ]


def _name_lines(axes: Any, lines: dict[str, list[tuple[float, float]]]) -> None:
    """Write each method's name beside the right end of its line, none over another."""
    most = axes.get_ylim()[1]
    ends = {
        name: axes.transData.transform((line[-1][0], min(line[-1][1], most)))
        for name, line in lines.items()
    }
    order = sorted(ends, key=lambda name: float(ends[name][1]))
    corner = np.array([axes.bbox.x0, axes.bbox.y0])
    wanted = np.array([ends[name][1] - corner[1] for name in order])
    heights = spread(wanted, _APART, 0, axes.bbox.height + _BOTTOM / 2)
    for name, height in zip(order, heights, strict=True):
        x, y = ends[name] - corner
        look = _look(list(lines).index(name), name)
        across = (x + 5, axes.bbox.width + 4, axes.bbox.width + 14)
        axes.plot(across, (y, height, height), color=look["color"], lw=0.5, **over(axes))
        axes.text(
            axes.bbox.width + 18, height, name, va="center", size=9.5,
            weight="bold" if look["lw"] > 2 else "normal", **over(axes),
        )  # fmt: skip
