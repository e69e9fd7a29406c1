"""Page of a comparison: figures and tables of scores at equal sizes."""

import io
import statistics
from html import escape
from pathlib import Path
from typing import Any

from scipy import stats

from experiments.comparison.figure import draw
from experiments.files import write_text
from experiments.pages.page import table, write_page
from experiments.pages.panels import styled, svg

# The settings are those of post_training.PEERS and compression_aware_training.SETTINGS.
_TOO_LARGE = "no setting is so small"


@styled
def write_comparison(page: Path, results: list[dict[str, Any]]) -> Path:
    """Write the page, the figures as SVG files, and the tables as Markdown.

    Args:
      page: Path of the page; the other files are in the same folder.
      results: Results of `run_point` with "command"; one has the method "dense".

    Returns:
      Path of the page.
    """
    dense = next(result for result in results if result["method"] == "dense")
    rows = [result for result in results if result["method"] != "dense"]
    budgets = sorted({row["budget"] for row in rows}, reverse=True)
    lines: list[list[str]] = []
    best, figures, texts = [], [], []
    for trained, title in ((False, "Without training"), (True, "Trained alike")):
        group = [row for row in rows if row["method"].endswith("-trained") == trained]
        if any(row["bytes"] for row in group):
            picture = draw(group, dense, title)
            name = "trained" if trained else "untrained"
            buffer = io.StringIO()
            picture.savefig(buffer, format="svg", metadata={"Date": None})
            write_text(page.with_name(f"comparison_{name}.svg"), buffer.getvalue())
            figures.append(svg(picture, name, f"{title}: scores against bytes"))
            texts.append(f"### {title}\n\n{_markdown(group, budgets, dense)}")
        for budget in budgets:
            ordered = _ordered(group, budget, dense)
            if ordered:
                best.append(len(lines))
            lines += [_row(row, dense) for row in ordered]
    write_text(page.with_suffix(".md"), "\n".join(texts))
    columns = [
        "method", "budget", "bytes", _name(dense), "lost", "largest layer error", "seconds",
        "peak MB", "bits per weight: fixed, entropy, file", "settings", "command",
    ]  # fmt: skip
    intro = (
        f"The dense network: {_name(dense)} {_shown(dense)}, {dense['bytes']:,} bytes. Bytes are "
        "of the whole file, by one coder for all; scores are measured with what is loaded from it. "
        "First what needs no training, then what is trained, all with the same data and steps; the "
        "best of each size is tinted."
    )
    return write_page(
        page,
        f"Comparison: {page.resolve().parent.name}",
        intro,
        *figures,
        table(columns, lines, best),
    )


def _name(result: dict[str, Any]) -> str:
    return "perplexity" if "perplexity" in result["scores"] else "accuracy, %"


def _score(result: dict[str, Any]) -> float:
    scores = result["scores"]
    return scores.get("perplexity", 100 * scores["accuracy"])


def _shown(result: dict[str, Any]) -> str:
    return f"{_score(result):.{3 if _name(result) == 'perplexity' else 2}f}"


def lost(result: dict[str, Any], dense: dict[str, Any]) -> float:
    """Return the loss against dense, percent of perplexity or points of accuracy."""
    if _name(dense) == "perplexity":
        return 100 * (_score(result) / _score(dense) - 1)
    return _score(dense) - _score(result)


def _ordered(rows: list[Any], budget: int, dense: Any) -> list[Any]:
    """Return the rows of a budget, best first; rows without a file are last."""
    matching = [row for row in rows if row["budget"] == budget]
    return sorted(matching, key=lambda row: lost(row, dense) if row["bytes"] else float("inf"))


def _markdown(rows: list[dict[str, Any]], budgets: list[int], dense: dict[str, Any]) -> str:
    """Return a Markdown table with a row per method and budget, joined over seeds."""
    unit = "%" if "perplexity" in dense["scores"] else "points"
    columns = ["budget", "method", "bytes", _name(dense), f"lost, {unit}", "settings", "seconds"]
    lines = [columns, ["---"] * len(columns)]
    for budget in budgets:
        runs: dict[str, list[dict[str, Any]]] = {}
        for row in _ordered(rows, budget, dense):
            runs.setdefault(row["method"], []).append(row)
        fitting = {name: [run for run in seeds if run["bytes"]] for name, seeds in runs.items()}
        order = sorted(fitting, key=lambda name: _mean_lost(fitting[name], dense))
        for name in order:
            lines.append([f"{budget:,}", f"`{name}`", *_cells(fitting[name], dense)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _mean_lost(runs: list[dict[str, Any]], dense: dict[str, Any]) -> float:
    return statistics.mean(lost(run, dense) for run in runs) if runs else float("inf")


def _cells(runs: list[dict[str, Any]], dense: dict[str, Any]) -> list[str]:
    """Return the cells of a method at a budget: means over seeds and the largest file."""
    if not runs:
        return [_TOO_LARGE, *[""] * 4]
    digits = 3 if "perplexity" in dense["scores"] else 2
    score = f"{statistics.mean(map(_score, runs)):.{digits}f}"
    if len(runs) > 1:
        score += f" ± {_interval([_score(run) for run in runs]):.{digits}f}"
    settings = [_settings(run) for run in runs]
    if len(runs) > 1:
        settings = [f"{len(runs)} seeds", *dict.fromkeys(filter(None, settings))]
    times = [run["seconds"] for run in runs if run["seconds"] is not None]
    return [
        f"{max(run['bytes'] for run in runs):,}",
        score,
        f"{_mean_lost(runs, dense):.2f}".replace("-", "\N{MINUS SIGN}"),
        "; ".join(settings),
        f"{statistics.mean(times):.0f}" if times else "",
    ]


def _interval(values: list[float]) -> float:
    """Return the half-width of the mean's 95 % confidence interval by Student's t."""
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return float(quantile * statistics.stdev(values) / len(values) ** 0.5)


def _settings(row: dict[str, Any]) -> str:
    items = (row.get("settings") or {}).items()
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in items)


def _row(row: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    head = [escape(row["method"]), f"{row['budget']:,}"]
    command = f"<code>{escape(row['command'])}</code>"
    if not row["bytes"]:
        return [*head, _TOO_LARGE, *[""] * 7, command]
    bits = row["bits_per_weight"]
    errors = row.get("layer_errors")  # absent after training, which moves the weights
    largest = f"{max(errors.values(), default=0.0):.3f}" if errors else ""
    return [
        *head, f"{row['bytes']:,}", _shown(row), f"{lost(row, dense):.2f}",
        largest, "" if row["seconds"] is None else f"{row['seconds']:.0f}",
        f"{row['peak_bytes'] / 1e6:,.0f}",
        ", ".join(f"{bits[name]:.2f}" for name in ("fixed", "entropy", "file")),
        escape(_settings(row)), command,
    ]  # fmt: skip
