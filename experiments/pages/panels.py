"""One panel of a figure: axes of the report's style, and the inline SVG they become.

No global state, and the same data give the same bytes. Lengths are CSS pixels.
"""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D, blended_transform_factory

# Told apart by lightness too, for readers who do not see colours and for print.
COLORS = {
    "dense": "#9aa3ad",
    "finetune": "#5f6873",
    "mean": "#62b0e0",
    "mode": "#0a5a9c",
    "averaged": "#d08700",
}
_LINES = (COLORS["mode"], COLORS["averaged"], COLORS["mean"], COLORS["dense"], COLORS["finetune"])
INK, QUIET, _GRID, PALE = "#1d2733", "#5f6873", "#e3e7ec", "#d5dae0"
TINT = "#a9c6de"  # of the colour of mode, for sizes that are not a file's
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sqs_jax",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # measured with a wide font; the page sets its own
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.unicode_minus": True,
    "text.parse_math": False,
    "savefig.transparent": True,
}
styled = matplotlib.rc_context(_STYLE)


def line_color(number: int) -> str:
    """Return the colour of a figure's line, by its place."""
    return _LINES[number % len(_LINES)]


def panel(
    width: int, height: int, title: str, left: float, top: int = 34, bottom: int = 28
) -> tuple[Figure, Axes]:
    """Make axes with a title at the picture's left edge; margins in pixels."""
    figure = Figure((width / 72, height / 72), dpi=72)  # an SVG user unit is 1/72 inch
    box = (
        left / width,
        bottom / height,
        (width - left - 14) / width,
        (height - top - bottom) / height,
    )
    axes = figure.add_axes(box)
    figure.text(2 / width, 1 - 14 / height, title, weight="bold", size=12)
    return figure, axes


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def beside(axes: Axes) -> Any:
    """Return a transform: x in pixels from the axes' left, y in data."""
    shift = Affine2D().translate(axes.bbox.x0, 0)
    return blended_transform_factory(shift, axes.transData)


def over(axes: Axes) -> dict[str, Any]:
    """Return options to draw in pixels from the axes' lower left corner, outside too."""
    shift = Affine2D().translate(axes.bbox.x0, axes.bbox.y0)
    return {"transform": shift, "clip_on": False}


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Move ascending positions apart to at least `gap`, as near to where they were as that allows.

    With i·gap taken off, "at least a gap apart" is "not descending": an isotonic regression.
    """
    offsets = gap * np.arange(len(wanted))
    blocks: list[list[float]] = []
    for value in wanted - offsets:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    flat = np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])
    return np.clip(flat, low, max(high - offsets[-1], low)) + offsets


def smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Average over a centred window of up to 2·reach + 1 values."""
    sides = [(max(i - reach, 0), i + reach + 1) for i in range(len(values))]
    return np.array([values[low:high].mean() for low, high in sides])


def shorten(path: str, length: int) -> str:
    return path if len(path) <= length else "…" + path[1 - length :]


def svg(figure: Figure, name: str, label: str) -> str:
    """Write a figure for the inside of a page: ids of its own, no style or size of its own."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<style.*?</style>|<!--.*?-->|font-family: [^;]*; ?", "", text, flags=re.S)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(?:xlink:href="|url\()#', lambda m: f"{m[0][:-1]}#{name}-", text)
    text = text.replace("xlink:href", "href")
    width, height = (round(72 * side) for side in figure.get_size_inches())
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r">\s+<", "><", body).strip()
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="max-width:{1.3 * width:.0f}px">{body}'
    )
