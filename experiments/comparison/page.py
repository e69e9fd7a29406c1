"""The page of a comparison: what each method makes of so many bytes."""

import statistics
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter

from experiments.pages.page import table, write_page
from experiments.pages.panels import COLORS, line_color, panel, styled, svg

_OURS = "ours"


def write_comparison(page: Path, results: list[dict[str, Any]]) -> Path:
    """Write the page; returns its path.

    Args:
      page: its file.
      results: as `experiments.compare.run_point` returns them, with a command; one is "dense".
    """
    dense = next(each for each in results if each["method"] == "dense")
    rows = [each for each in results if each["method"] != "dense"]
    budgets = sorted({each["budget"] for each in rows}, reverse=True)
    found: list[list[str]] = []
    best = []
    for budget in budgets:
        best.append(len(found))
        found += [_row(each, dense) for each in _ordered(rows, budget, dense)]
    columns = [
        "method", "budget", "bytes", _name(dense), "lost", "largest layer error", "seconds",
        "peak MB", "bits per weight: fixed, entropy, file", "settings", "command",
    ]  # fmt: skip
    intro = (
        f"The dense network: {_name(dense)} {_shown(dense)}, {dense['bytes']:,} bytes. Bytes are "
        "of the whole file, by one coder for all; scores are measured with what is loaded from it."
    )
    return write_page(
        page,
        f"Comparison: {page.resolve().parent.name}",
        intro,
        figure(rows, dense),
        table(columns, found, best),
    )


def _name(result: dict[str, Any]) -> str:
    return "perplexity" if "perplexity" in result["scores"] else "accuracy, %"


def _score(result: dict[str, Any]) -> float:
    scores = result["scores"]
    return scores.get("perplexity", 100 * scores["accuracy"])


def _shown(result: dict[str, Any]) -> str:
    return f"{_score(result):.{3 if _name(result) == 'perplexity' else 2}f}"


def lost(result: dict[str, Any], dense: dict[str, Any]) -> float:
    """Return by how much a result is worse: percent of the perplexity, points of accuracy."""
    if _name(dense) == "perplexity":
        return 100 * (_score(result) / _score(dense) - 1)
    return _score(dense) - _score(result)


def _ordered(rows: list[Any], budget: int, dense: Any) -> list[Any]:
    """Return the rows of a budget, best first; last what could not be made so small."""
    here = [each for each in rows if each["budget"] == budget]
    return sorted(here, key=lambda e: lost(e, dense) if e["bytes"] else float("inf"))


def _row(each: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    head = [escape(each["method"]), f"{each['budget']:,}"]
    command = f"<code>{escape(each['command'])}</code>"
    if not each["bytes"]:
        return [*head, "cannot be made so small", *[""] * 7, command]
    bits = each["bits_per_weight"]
    settings, errors = each.get("settings") or {}, each.get("layer_errors")
    largest = f"{max(errors.values(), default=0.0):.3f}" if errors else ""  # trained weights move
    return [
        *head, f"{each['bytes']:,}", _shown(each), f"{lost(each, dense):.2f}",
        largest, "" if each["seconds"] is None else f"{each['seconds']:.0f}",
        f"{each['peak_bytes'] / 1e6:,.0f}",
        ", ".join(f"{bits[name]:.2f}" for name in ("fixed", "entropy", "file")),
        escape(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                         for k, v in settings.items())), command,
    ]  # fmt: skip


@styled
def figure(rows: list[dict[str, Any]], dense: dict[str, Any]) -> str:
    """Draw what is lost against bytes, a line for each method."""
    unit = "% of the perplexity" if _name(dense) == "perplexity" else "points of accuracy"
    picture, axes = panel(760, 460, f"Lost against bytes of the file, {unit}", left=52, bottom=44)
    methods = list(dict.fromkeys(each["method"] for each in rows))
    for i, method in enumerate(methods):
        sizes: dict[int, list[dict[str, Any]]] = {}
        for each in rows:
            if each["method"] == method and each["bytes"]:
                sizes.setdefault(each["budget"], []).append(each)
        points = [
            (
                statistics.mean(e["bytes"] for e in runs),
                max(statistics.mean(lost(e, dense) for e in runs), 0.01),
            )
            for _, runs in sorted(sizes.items())
        ]
        if points:
            ours = method == _OURS
            axes.plot(
                *zip(*points, strict=True), marker="o", ms=5, lw=2.4 if ours else 1.2, label=method,
                color=COLORS["mode"] if ours else line_color(i),
                ls="-" if i < 6 else (0, (4, 2)), zorder=3 if ours else 2,
            )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("bytes of model.sqs")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.legend(frameon=False, fontsize=9)
    return svg(picture, "comparison", "what is lost against bytes")
