"""Figures of a report as separate SVG panels, which a narrow page stacks."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

import sqs_jax
from experiments.pages.panels import (
    COLORS,
    INK,
    PALE,
    QUIET,
    TINT,
    beside,
    name_rows,
    over,
    panel,
    shorten,
    smooth,
    spread,
    styled,
    svg,
)

_THIRD, _HALF = 340, 400  # widths of panels of which three or two share a row, pixels
_MAX_LABELS = 8  # largest codebook whose values are labeled
_MAX_POINTS = 300  # points per curve


class Distribution(NamedTuple):
    """Latent weights, mixture and codebook of a compressed tensor.

    Attributes:
      edges: Edges of the histograms' bins, [bins + 1].
      all: Histogram of all latent weights, [bins].
      kept: Histogram of the weights that are not pruned, [bins].
      means: Means of the components, [K].
      scales: Standard deviations of the components, [K].
      counts: Expected number of kept weights of each component, [K].
      values: Codebook of model.sqs, [levels].
      users: Number of weights with each value, [levels].
    """

    edges: np.ndarray
    all: np.ndarray
    kept: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    counts: np.ndarray
    values: np.ndarray
    users: np.ndarray


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of the fraction correct / count (Wilson, 1927)."""
    z = 1.959964
    center = (correct + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(correct * (count - correct) / count + z * z / 4)
    return max(center - half, 0.0), min(center + half, 1.0)


@styled
def comparison(evaluation: dict[str, Any], names: dict[str, str]) -> list[str]:
    """Draw accuracy with its interval, NLL and calibration error of every network.

    Args:
      evaluation: Scores by network.
      names: Labels of the networks to draw, by network.

    Returns:
      One SVG panel per score.
    """
    panels = []
    titles = {
        "accuracy": ("Accuracy, %", "more is better", 100),
        "nll": ("Negative log-likelihood, nats", "less is better", 1),
        "calibration_error": ("Calibration error, points", "less is better", 100),
    }
    for field, (title, direction, unit) in titles.items():
        figure, axes = panel(_THIRD, 196, f"{title}: {direction}", left=78)
        axes.grid(axis="y", visible=False)
        for row, (name, label) in enumerate(names.items()):
            scores, color = evaluation[name], COLORS[name]
            axes.text(-8, row, label, ha="right", va="center", transform=beside(axes))
            if field == "accuracy":
                low, high = wilson(scores["correct"], scores["count"])
                axes.plot([unit * low, unit * high], [row, row], color=color, lw=2.5)
            axes.plot(unit * scores[field], row, "o", color=color, ms=8, mec="white", mew=1)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks([])
        if field != "accuracy":
            finite = [v for v in (evaluation[name][field] for name in names) if math.isfinite(v)]
            axes.set_xlim(0, 1.15 * unit * max(finite, default=1) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        panels.append(svg(figure, f"comparison-{field}", f"{title} of {', '.join(names)}"))
    return panels


@styled
def sizes(report: sqs_jax.SizeReport) -> list[str]:
    """Draw the whole model's bytes by each measure, with and without the dense network."""
    rows = [
        ("dense network", report.original_bytes, COLORS["dense"]),
        ("fixed-length codes", report.fixed_bits / 8, TINT),
        ("entropy of the codes", report.entropy_bits / 8, TINT),
        ("the file, model.sqs", report.file_bytes, COLORS["mode"]),
        ("published formula", report.paper_bits / 8, "none"),
    ]
    panels = []
    for name, title, shown in (
        ("all", "Bytes of the whole model", rows),
        ("zoom", "The same without the dense network, enlarged", rows[1:]),
    ):
        figure, axes = panel(_HALF, 38 + 45 * len(shown), title, left=2, bottom=4)
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        widest = max(size for _, size, _ in shown)
        for row, (label, size, color) in enumerate(shown):
            weight = "bold" if label.startswith("the file") else "normal"
            ratio = f"{report.original_bytes / size:.1f}×" if size else "–"
            # The published formula is drawn without color, because no file can have this size.
            edge: dict[str, Any] = (
                {"edgecolor": QUIET, "ls": (0, (3, 2))} if color == "none" else {}
            )
            axes.barh(row, size, 0.38, color=color, **edge)
            axes.text(0.008 * widest, row - 0.4, label, va="center", weight=weight)
            for right, text in ((0.86, f"{size:,.0f} bytes"), (1, ratio)):
                axes.text(right * widest, row - 0.4, text, va="center", ha="right", weight=weight)
        axes.set(xlim=(0, widest), ylim=(len(shown) - 0.7, -0.75), xticks=[], yticks=[])
        text = "; ".join(f"{label} {size:,.0f}" for label, size, _ in shown)
        panels.append(svg(figure, f"sizes-{name}", f"{title}: {text}"))
    return panels


@styled
def histogram(name: str, path: str, tensor: Distribution) -> str:
    """Draw a tensor's latent weights, mixture and codebook.

    Args:
      name: Prefix of the SVG's ids.
      path: Path of the tensor, the title.
      tensor: Data to draw.
    """
    figure, axes = panel(_THIRD, 248, shorten(path, 46), left=46, top=58)
    axes.set_yscale("log")
    axes.stairs(tensor.all, tensor.edges, fill=True, baseline=0.5, color=PALE)
    axes.stairs(tensor.kept, tensor.edges, fill=True, baseline=0.5, color=COLORS["dense"])
    grid = np.linspace(tensor.edges[0], tensor.edges[-1], 241)
    deviations = (grid[:, None] - tensor.means) / tensor.scales
    density = np.exp(-(deviations**2) / 2) / (tensor.scales * math.sqrt(2 * math.pi))
    expected = density @ tensor.counts * (tensor.edges[1] - tensor.edges[0])
    expected[expected < 0.5] = np.nan  # below the axis
    axes.plot(grid, expected, color=INK, lw=1.8)
    axes.set_ylim(0.5, 2 * max(tensor.all.max(), 1))
    values = tensor.values
    low = min(tensor.edges[0], values.min())
    high = max(tensor.edges[-1], values.max())
    margin = 0.02 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.axvline(0, color=QUIET, lw=0.9, ls=(0, (2, 2)))
    accent = COLORS["mode"]
    for value in values:
        axes.axvline(value, color=accent, lw=1.3)
    if len(values) <= _MAX_LABELS:
        order = np.argsort(values)
        width = _THIRD - 46 - 14
        positions = (values[order] - low + margin) / (high - low + 2 * margin) * width
        labels = spread(positions, 39, 8, width - 8)
        for position, label, i in zip(positions, labels, order, strict=True):
            top = axes.bbox.height
            axes.plot([position, label], [top, top + 7], color=accent, lw=1, **over(axes))
            share = tensor.users[i] / max(tensor.users.sum(), 1)
            share_text = "<1 %" if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")
            text = f"{values[i]:.3f}".replace("-", "−")
            for lift, line in ((19, text), (8, share_text)):
                axes.text(
                    label, top + lift, line, color=accent, size=9.5, ha="center", **over(axes)
                )
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    listed = ", ".join(f"{value:.3f}" for value in sorted(values))
    return svg(figure, name, f"Histogram of {path}; codebook values {listed}")


@styled
def layers(report: sqs_jax.SizeReport) -> list[str]:
    """Draw sparsity, and bits per weight by file and entropy, of each compressed leaf."""
    leaves = [leaf for leaf in report.leaves if leaf.compressed]
    labels = [shorten(leaf.path.removeprefix("params/"), 22) for leaf in leaves]
    left = 16 + 6.2 * max(map(len, labels), default=0)
    height = 62 + 24 * len(leaves)
    figure, axes = panel(_HALF, height, "Sparsity, % of the layer's weights pruned", left=left)
    rows = range(len(leaves))
    axes.barh(rows, [100 * leaf.sparsity for leaf in leaves], 0.55, color=COLORS["mode"])
    axes.axvline(100 * report.sparsity, color=INK, lw=1, ls=(0, (3, 2)))
    for row, leaf in enumerate(leaves):
        axes.text(114, row, f"{100 * leaf.sparsity:.1f}", va="center", ha="right")
    axes.set(xlim=(0, 114), xticks=range(0, 101, 20))
    name_rows(axes, labels)
    sparsity_panel = svg(figure, "layers-sparsity", "Sparsity per layer")

    figure, axes = panel(_HALF, height, "Bits per weight: entropy (light), file (dark)", left=left)
    entropy = [leaf.entropy_bits_per_weight for leaf in leaves]
    file = [leaf.file_bits_per_weight for leaf in leaves]
    axes.hlines(rows, entropy, file, color=COLORS["mode"], lw=2)
    axes.plot(entropy, rows, "o", color=TINT, ms=9, mec="white")
    axes.plot(file, rows, "D", color=COLORS["mode"], ms=6, mec="white")
    axes.set_xlim(0, 1.12 * max([*entropy, *file], default=1))
    name_rows(axes, labels)
    return [sparsity_panel, svg(figure, "layers-bits", "Bits per weight per layer")]


@styled
def curves(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """Draw loss, accuracy, sparsity and temperature by training step.

    Compression and the finetuning of the dense network both start at the last step of `dense`.

    Args:
      metrics: Lines of metrics.jsonl.
    """
    colors = {"dense": COLORS["dense"], "finetune": COLORS["finetune"], "sqs": COLORS["mode"]}
    phases = {name: [line for line in metrics if line["phase"] == name] for name in colors}
    start = max((line["step"] for line in phases["dense"]), default=0)
    titles = {
        "nll": ("Training loss per image, nats", tuple(colors)),
        "accuracy": ("Accuracy on the training batch, %", tuple(colors)),
        "sparsity": ("Sparsity of the compressed layers, %", ("sqs",)),
        "temperature": ("Temperature of the responsibilities", ("sqs",)),
    }
    panels = []
    for field, (title, shown) in titles.items():
        figure, axes = panel(_HALF, 210, title, left=48, bottom=40)
        percent = 100 if field in ("accuracy", "sparsity") else 1
        for name in shown:
            steps = [line["step"] + (0 if name == "dense" else start) for line in phases[name]]
            values = percent * np.array([line[field] for line in phases[name]], float)
            pale: dict[str, Any] = {} if len(shown) == 1 else {"alpha": 0.3, "lw": 1}
            # A long run is drawn at a subset of its steps, but smoothed over all steps.
            every = 1 + len(steps) // _MAX_POINTS
            subset = slice((len(steps) - 1) % every, None, every)
            axes.plot(steps[subset], values[subset], color=colors[name], **pale)
            if pale:
                smoothed = smooth(values, max(3, len(steps) // 60))
                axes.plot(steps[subset], smoothed[subset], color=colors[name], lw=1.8)
        if field == "sparsity":
            axes.set_ylim(0, 100)
        if field in ("nll", "temperature"):
            axes.set_yscale("log", nonpositive="mask")
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        if start:
            axes.axvline(start, color=QUIET, lw=1, ls=(0, (3, 2)))
        axes.set_xlim(0, start + max((m["step"] for m in phases["sqs"]), default=0) or 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.set_xlabel("training step")
        panels.append(svg(figure, f"curves-{field}", f"{title}, by step"))
    return panels
