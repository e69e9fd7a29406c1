"""Tables of a report as HTML, and the format of numbers."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from flax.traverse_util import flatten_dict

import sqs_jax
from experiments.pages.panels import COLORS

NETWORKS = {
    "dense": ("dense", "where compression starts"),
    "finetune": ("finetuned", "dense, trained on for as long as compression takes"),
    "mean": ("mean", "every weight at its average"),
    "mode": ("mode", "what ships: zero or one of K values"),
    "averaged": ("averaged", "predictions of several drawn networks, averaged"),
}
_FIGURES = ("paper", "fixed", "entropy", "file")


def percent(fraction: float, count: int) -> str:
    """Format a fraction in percent with as many decimals as `count` examples support."""
    return f"{100 * fraction:.{_decimals(count)}f} %"


def points(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Format the absolute difference of two networks' accuracies in percentage points."""
    difference = 100 * abs(first["correct"] - second["correct"]) / first["count"]
    return f"{difference:.{_decimals(first['count'])}f}"


def plural(count: int, noun: str) -> str:
    """Format a count and a noun: "1 image", "2 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def networks_table(evaluation: dict[str, Any], *, perplexity: bool = False) -> str:
    """Return the scores of all networks as a table.

    Args:
      evaluation: Scores by network.
      perplexity: Whether to show the perplexity, for language models.
    """
    head = [
        "network",
        "",
        "accuracy",
        "correct",
        "NLL, nats",
        "calibration error",
        "bytes",
        "passes",
    ]
    if perplexity:
        head.insert(2, "perplexity")
    rows = []
    for name, (label, description) in NETWORKS.items():
        if name not in evaluation:
            continue  # "finetune" without config.finetune
        scores = evaluation[name]
        row = [
            f'<i class="key" style="background:{COLORS[name]}"></i>{label}',
            description,
            percent(scores["accuracy"], scores["count"]),
            f"{scores['correct']:,}/{scores['count']:,}",
            f"{scores['nll']:.4f}",
            f"{100 * scores['calibration_error']:.2f} %",
            f"{scores['bytes']:,}",
            f"{scores['passes']}",
        ]
        if perplexity:
            row.insert(2, f"{scores['perplexity']:.3f}")
        rows.append(_row(row, "what", ' class="ships"' if name == "mode" else ""))
    return _table(_row(head, "what", cell="th"), rows)


def leaves_table(report: sqs_jax.SizeReport) -> str:
    """Return the four sizes of every leaf, and the size of header and index, as a table."""
    head = ["leaf", "shape", "weights", "sparsity", "W × K", "published", "fixed", "entropy"]
    head += ["file", "bytes", "share"]
    rows = []
    for leaf in report.leaves:
        codebook = f"{leaf.windows} × {leaf.components}" if leaf.compressed else "dense"
        pruned = f"{100 * leaf.sparsity:.1f} %" if leaf.compressed else "–"
        rates = _rates(leaf) if leaf.compressed else ["–", *_rates(leaf)[1:]]
        size = leaf.file_bits / 8
        rows.append(
            _row(
                [
                    escape(leaf.path).replace("/", "/<wbr>") or "(root)",
                    "×".join(map(str, leaf.shape)) or "scalar",
                    f"{leaf.weights:,}",
                    pruned,
                    codebook,
                    *rates,
                    f"{size:,.0f}",
                    f"{100 * size / report.file_bytes:.1f} %",
                ],
                "",
            )
        )
    rest = report.file_bytes - sum(leaf.file_bits for leaf in report.leaves) / 8
    share = f"{100 * rest / report.file_bytes:.1f} %"
    rows.append(_row(["header and index", *[""] * 8, f"{rest:,.0f}", share], ""))
    total = ["whole model", "", f"{report.weights:,}", f"{100 * report.sparsity:.1f} %", ""]
    total += [*_rates(report), f"{report.file_bytes:,}", "100 %"]
    over = (
        '<tr><th colspan="5"></th><th class="n" colspan="4" scope="colgroup">bits per weight</th>'
        '<th class="n" colspan="2" scope="colgroup">in the file</th></tr>'
    )
    return _table(over + _row(head, "", cell="th"), rows, _row(total, ""))


def config_table(config: dict[str, Any]) -> str:
    """Return every field of a config as a table."""
    rows = [
        f"<tr><th scope='row'>{escape(name)}</th><td><code>{escape(str(value))}</code></td></tr>"
        for name, value in flatten_dict(config, sep=".").items()
    ]
    return _table("<tr><th>field</th><th>value</th></tr>", rows)


def _rates(size: Any) -> list[str]:
    return [f"{getattr(size, f'{figure}_bits_per_weight'):.3f}" for figure in _FIGURES]


def _decimals(count: int) -> int:
    return 1 if count < 5000 else 2


def _row(cells: Sequence[str], second: str, attributes: str = "", cell: str = "td") -> str:
    """Return a row of a heading, a cell of class `second`, and numbers."""
    scope = "col" if cell == "th" else "row"
    first, text, *numbers = cells
    kind = f' class="{second}"' if second else ""
    body = "".join(f'<{cell} class="n">{number}</{cell}>' for number in numbers)
    return (
        f'<tr{attributes}><th scope="{scope}">{first}</th><{cell}{kind}>{text}</{cell}>{body}</tr>'
    )


def _table(head: str, rows: Iterable[str], foot: str = "") -> str:
    end = f"<tfoot>{foot}</tfoot>" if foot else ""
    body = "\n".join(rows)
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>{end}\n</table>"
