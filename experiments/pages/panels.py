"""Panels of figures: axes in the report's style, rendered as inline SVG.

The functions have no global state, and equal data give equal bytes. Lengths are CSS pixels.
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

# The colors differ in lightness too, for readers with color blindness and for print.
COLORS = {
    "dense": "#9aa3ad",
    "finetune": "#5f6873",
    "mean": "#62b0e0",
    "mode": "#0a5a9c",
    "averaged": "#d08700",
}
_LINES = (COLORS["mode"], COLORS["averaged"], COLORS["mean"], COLORS["dense"], COLORS["finetune"])
INK, QUIET, _GRID, PALE = "#1d2733", "#5f6873", "#e3e7ec", "#d5dae0"
TINT = "#a9c6de"  # lighter shade of the color of mode, for sizes other than the file's
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sqs_jax",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # a wide font, because the page sets another one
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
    """Return the color of a figure's line by the line's index."""
    return _LINES[number % len(_LINES)]


def panel(
    width: int, height: int, title: str, left: float, top: int = 34, bottom: int = 28
) -> tuple[Figure, Axes]:
    """Return a figure with axes and a title at the left edge.

    Args:
      width: Width of the figure, pixels.
      height: Height of the figure, pixels.
      title: Title of the panel.
      left: Left margin, pixels.
      top: Top margin, pixels.
      bottom: Bottom margin, pixels.
    """
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
    """Label the rows of horizontal bars, the first row at the top."""
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def beside(axes: Axes) -> Any:
    """Return a transform of x in pixels from the axes' left edge and y in data units."""
    shift = Affine2D().translate(axes.bbox.x0, 0)
    return blended_transform_factory(shift, axes.transData)


def over(axes: Axes) -> dict[str, Any]:
    """Return options to draw in pixels from the axes' lower left corner, unclipped."""
    shift = Affine2D().translate(axes.bbox.x0, axes.bbox.y0)
    return {"transform": shift, "clip_on": False}


def spread(positions: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Move positions apart to at least `gap` with the least squared displacement.

    After subtracting i·gap from position i, the constraint is that positions do not descend: the
    problem is isotonic regression.

    Args:
      positions: Ascending positions [n].
      gap: Least distance of neighbors.
      low: Lower bound of the result.
      high: Upper bound of the result, if n - 1 gaps fit in.
    """
    offsets = gap * np.arange(len(positions))
    blocks: list[list[float]] = []
    for value in positions - offsets:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    flat = np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])
    return np.clip(flat, low, max(high - offsets[-1], low)) + offsets


def smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Average over a centered window of up to 2·reach + 1 values."""
    sides = [(max(i - reach, 0), i + reach + 1) for i in range(len(values))]
    return np.array([values[low:high].mean() for low, high in sides])


def shorten(path: str, length: int) -> str:
    """Cut the beginning of a path that is longer than `length` characters."""
    return path if len(path) <= length else "…" + path[1 - length :]


def svg(figure: Figure, name: str, label: str) -> str:
    """Return a figure as SVG to be embedded in a page.

    Ids have the prefix `name`, and the page determines fonts and size.

    Args:
      figure: Figure to render.
      name: Prefix of the ids, unique in the page.
      label: Description for screen readers.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=no_metadata)
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
