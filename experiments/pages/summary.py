"""Summary of a run at the top of its report."""

from html import escape
from pathlib import Path
from typing import Any

from experiments.pages import figures
from experiments.pages.run_files import Run
from experiments.pages.tables import percent, plural, points


def summary(run: Run) -> dict[str, str]:
    """Return the texts at the top of the page: headline, tiles, notice.

    Args:
      run: Finished run.

    Returns:
      HTML by the name of the template's field.
    """
    size, scores = run.size, run.evaluation
    mode = scores["mode"]
    baselines = [n for n in ("dense", "finetune") if n in scores]
    name = max(baselines, key=lambda n: (scores[n]["accuracy"], -scores[n]["nll"]))
    dense, other = scores[name], next((scores[n] for n in baselines if n != name), None)
    count, missed = mode["count"], dense["correct"] - mode["correct"]
    unit = run.unit
    part = f"{run.config['data']['holdout']} {unit}s"
    accuracy, difference = percent(mode["accuracy"], count), points(dense, mode)
    dtypes = " and ".join(sorted({leaf.dtype for leaf in size.leaves}))
    headline = (
        f"<b>{accuracy} accuracy in {size.file_bytes:,} bytes</b>: {size.ratio:.1f} times smaller "
        f"than the dense network’s {size.original_bytes:,} bytes of {dtypes}, "
    )
    if unit == "token":
        above = 100 * (mode["perplexity"] / dense["perplexity"] - 1)
        headline = headline.replace(
            f"{accuracy} accuracy", f"A perplexity of {mode['perplexity']:.3f}"
        )
        headline += f"{above:.2f} % above its {dense['perplexity']:.3f}."
    elif missed:
        headline += f"{difference} points {'below' if missed > 0 else 'above'} it."
    else:
        headline += "at the same accuracy."
    weights = run.config["model"].get("weights")
    origin = f"imported from {escape(Path(weights).name)}" if weights else "trained from scratch"
    label = {"dense": origin, "finetune": "trained on (finetuned)"}[name]
    if other is None:
        chosen = "which was not trained on"
    elif dense["correct"] != other["correct"]:
        chosen = "the better of the two in accuracy"
    else:
        chosen = "with the lower loss of the two, which tie in accuracy"
    subline = (
        f"Measured on {count:,} {part}, of which one is worth {100 / count:.2g} points. The dense "
        f"network here is the one {label}, {chosen}: {percent(dense['accuracy'], count)}. The file "
        "holds everything a fresh process needs to run."
    )
    data = escape(run.config["data"]["name"])
    return {
        "title": f"{accuracy} in {size.file_bytes:,} bytes: SQS on {data}",
        "kicker": f"SQS report · {data} · {size.weights:,} weights",
        "headline": headline,
        "subline": subline,
        "notice": _notice(run),
        "tiles": "\n".join(
            f'<div class="tile"><dt>{label}</dt><dd class="value">{value}</dd><dd>{note}</dd></div>'
            for label, value, note in _tiles(run, dense)
        ),
        "count": f"{count:,}",
        "examples": part,
    }


def _tiles(run: Run, dense: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (label, value, note) of each tile.

    Args:
      run: Finished run.
      dense: Scores of the better dense network.
    """
    size, mode = run.size, run.evaluation["mode"]
    count, missed = mode["count"], dense["correct"] - mode["correct"]
    accuracy, difference = percent(mode["accuracy"], count), points(dense, mode)
    low, high = figures.wilson(mode["correct"], count)
    sign = "−" if missed > 0 else "+" if missed else ""
    return [
        ("The file", f"{size.file_bytes:,} bytes", f"{size.file_bits_per_weight:.2f} bits/weight"),
        ("Smaller by", f"{size.ratio:.1f}×", f"from {size.original_bytes:,} bytes"),
        ("Accuracy, deployed", accuracy, f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"),
        (
            "Against dense",
            f"{sign}{difference} points",
            f"{plural(abs(missed), run.unit)} of {count:,}",
        ),
        (
            "Sparsity",
            f"{100 * size.sparsity:.1f} %",
            f"{size.kept:,} of {size.compressed_weights:,} kept",
        ),
    ]


def _notice(run: Run) -> str:
    """Return a warning if the scores are of the validation part, or ""."""
    if run.config["data"]["holdout"] != "validation":
        return ""
    return (
        '<p class="notice"><strong>Validation, not test.</strong> These numbers come from a '
        "part of the training data that was held out to choose settings by; the test data was "
        "not read. Train with <code>--config.data.holdout=test</code> for numbers to "
        "publish.</p>"
    )
