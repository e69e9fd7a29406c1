"""The page of a comparison: what each method makes of so many bytes."""

import io
import statistics
from html import escape
from pathlib import Path
from typing import Any

from scipy import stats

from experiments.atomic_files import write_text
from experiments.comparison.figure import draw
from experiments.pages.page import table, write_page
from experiments.pages.panels import styled, svg

_TOO_LARGE = "no setting is so small"  # of those there are: peers.PEERS, trained.SETTINGS


@styled
def write_comparison(page: Path, results: list[dict[str, Any]]) -> Path:
    """Write the page, beside it its figures as SVG files and its tables as Markdown.

    Args:
      page: its file.
      results: as `experiments.compare.run_point` returns them, with a command; one is "dense".

    Returns:
      The page's path.
    """
    dense = next(each for each in results if each["method"] == "dense")
    rows = [each for each in results if each["method"] != "dense"]
    budgets = sorted({each["budget"] for each in rows}, reverse=True)
    found: list[list[str]] = []
    best, figures, texts = [], [], []
    for trained, title in ((False, "Without training"), (True, "Trained alike")):
        alike = [each for each in rows if each["method"].endswith("-trained") == trained]
        if any(each["bytes"] for each in alike):
            picture = draw(alike, dense, title)
            name = "trained" if trained else "untrained"
            drawn = io.StringIO()
            picture.savefig(drawn, format="svg", metadata={"Date": None})
            write_text(page.with_name(f"comparison_{name}.svg"), drawn.getvalue())
            figures.append(svg(picture, name, f"{title}: scores against bytes"))
            texts.append(f"### {title}\n\n{_markdown(alike, budgets, dense)}")
        for budget in budgets:
            ordered = _ordered(alike, budget, dense)
            if ordered:
                best.append(len(found))
            found += [_row(each, dense) for each in ordered]
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


def _markdown(rows: list[dict[str, Any]], budgets: list[int], dense: dict[str, Any]) -> str:
    """Write a table: a row for each method and budget, of all its seeds together."""
    unit = "%" if "perplexity" in dense["scores"] else "points"
    columns = ["budget", "method", "bytes", _name(dense), f"lost, {unit}", "settings", "seconds"]
    lines = [columns, ["---"] * len(columns)]
    for budget in budgets:
        runs: dict[str, list[dict[str, Any]]] = {}
        for each in _ordered(rows, budget, dense):
            runs.setdefault(each["method"], []).append(each)
        made = {name: [e for e in seeds if e["bytes"]] for name, seeds in runs.items()}
        order = sorted(made, key=lambda name: _mean_lost(made[name], dense))
        for name in order:
            lines.append([f"{budget:,}", f"`{name}`", *_cells(made[name], dense)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _mean_lost(runs: list[dict[str, Any]], dense: dict[str, Any]) -> float:
    return statistics.mean(lost(each, dense) for each in runs) if runs else float("inf")


def _cells(runs: list[dict[str, Any]], dense: dict[str, Any]) -> list[str]:
    """Return the cells of a method at a budget; of several seeds means, and the largest file."""
    if not runs:
        return [_TOO_LARGE, *[""] * 4]
    digits = 3 if "perplexity" in dense["scores"] else 2
    score = f"{statistics.mean(map(_score, runs)):.{digits}f}"
    if len(runs) > 1:
        score += f" ± {_interval([_score(each) for each in runs]):.{digits}f}"
    told = [_settings(each) for each in runs]
    if len(runs) > 1:
        told = [f"{len(runs)} seeds", *dict.fromkeys(filter(None, told))]
    times = [each["seconds"] for each in runs if each["seconds"] is not None]
    return [
        f"{max(each['bytes'] for each in runs):,}",
        score,
        f"{_mean_lost(runs, dense):.2f}".replace("-", "\N{MINUS SIGN}"),
        "; ".join(told),
        f"{statistics.mean(times):.0f}" if times else "",
    ]


def _interval(values: list[float]) -> float:
    """Return half of the 95 % interval of a mean, by Student's t."""
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return float(quantile * statistics.stdev(values) / len(values) ** 0.5)


def _settings(each: dict[str, Any]) -> str:
    told = (each.get("settings") or {}).items()
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in told)


def _row(each: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    head = [escape(each["method"]), f"{each['budget']:,}"]
    command = f"<code>{escape(each['command'])}</code>"
    if not each["bytes"]:
        return [*head, _TOO_LARGE, *[""] * 7, command]
    bits = each["bits_per_weight"]
    errors = each.get("layer_errors")
    largest = f"{max(errors.values(), default=0.0):.3f}" if errors else ""  # trained weights move
    return [
        *head, f"{each['bytes']:,}", _shown(each), f"{lost(each, dense):.2f}",
        largest, "" if each["seconds"] is None else f"{each['seconds']:.0f}",
        f"{each['peak_bytes'] / 1e6:,.0f}",
        ", ".join(f"{bits[name]:.2f}" for name in ("fixed", "entropy", "file")),
        escape(_settings(each)), command,
    ]  # fmt: skip
