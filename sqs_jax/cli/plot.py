"""sqs plot: draw the sizes of the tensors of a file as an image or an HTML page."""

import argparse
import html
import io
import os
from typing import Any

from sqs_jax.artifact import SizeReport
from sqs_jax.artifact.atomic import write_atomically
from sqs_jax.artifact.text_table import printable
from sqs_jax.cli.common import add_command, counted, open_sqs, print_json
from sqs_jax.cli.console import say
from sqs_jax.cli.outputs import check_output

__all__ = ["add_plot"]

_MOST_BARS = 40
_FIGURES = {
    "fixed": "fixed-length codes",
    "entropy": "entropy of the codes",
    "file": "in the file",
}


def add_plot(commands: Any) -> None:
    """Add `sqs plot`."""
    help = "draw the size of each tensor in a file"
    parser = add_command(commands, "plot", _plot, help, "sqs plot model.sqs -o model.html")
    parser.add_argument("file", help="an sqs file, or a folder with one")
    parser.add_argument("-o", "--output", required=True, help="a .png, .svg or .html file")


def _plot(args: argparse.Namespace) -> int:
    kind = os.path.splitext(args.output)[1].lower()
    if kind not in (".png", ".svg", ".html"):
        raise ValueError(f"--output is {args.output!r}; it must end in .png, .svg or .html")
    with open_sqs(args.file) as file:
        check_output(args.output, [file.path])
        file.check()
        report = file.report()
    if kind == ".html":
        picture = _draw(report, args.file, "svg").decode()
        picture = picture[picture.index("<svg") :]
        data = _page(report, args.file, picture).encode()
    else:
        data = _draw(report, args.file, kind[1:])
    write_atomically(args.output, data)
    if args.json:
        print_json({"output": args.output, "bytes": len(data)})
    else:
        say(printable(args.output))
    return 0


def _draw(report: SizeReport, name: str, format: str) -> bytes:
    """Draw bytes and bits per weight of each tensor, in descending order of size."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install 'sqs_jax[plot]'") from error
    leaves = sorted(report.leaves, key=lambda leaf: -leaf.file_bits)
    shown, rest = leaves[:_MOST_BARS], leaves[_MOST_BARS:]
    figure = Figure(figsize=(11, 2 + 0.22 * (len(shown) + bool(rest))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    labels = [f"{leaf.path or '(root)'}  {'x'.join(map(str, leaf.shape))}" for leaf in shown]
    sizes = [leaf.file_bits / 8 for leaf in shown]
    if rest:
        labels.append(counted(len(rest), "smaller tensor"))
        sizes.append(sum(leaf.file_bits for leaf in rest) / 8)
    places = range(len(labels))
    left.barh(places, sizes, color="#3465a4")
    left.set_yticks(places, labels, fontsize=7)
    left.margins(y=0.01)
    left.invert_yaxis()
    left.set_xlabel("bytes in the file")
    compressed = [(place, leaf) for place, leaf in enumerate(shown) if leaf.compressed]
    for (figure_name, label), marker in zip(_FIGURES.items(), "|xo", strict=True):
        bits = [getattr(leaf, f"{figure_name}_bits_per_weight") for _, leaf in compressed]
        right.plot(bits, [place for place, _ in compressed], marker, label=label, markersize=4)
    right.set_xlabel("bits per weight (compressed tensors)")
    right.set_xlim(left=0)
    if compressed:
        right.legend(fontsize=7)
    figure.suptitle(
        f"{os.path.basename(name)}: {report.file_bytes:,} bytes, {report.ratio:.1f}x smaller, "
        f"{report.sparsity:.1%} of the compressed weights are zero",
        fontsize=10,
    )
    stream = io.BytesIO()
    # A fixed salt and no date, so that the same file gives the same picture.
    with rc_context({"svg.hashsalt": "sqs"}):
        figure.savefig(
            stream, format=format, dpi=150, metadata={"Date": None} if format == "svg" else None
        )
    return stream.getvalue()


def _page(report: SizeReport, name: str, picture: str) -> str:
    """Return a self-contained HTML page with the picture and the table of inspect."""
    title = html.escape(os.path.basename(name))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font-family: sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; }}
svg {{ max-width: 100%; height: auto; }}
pre {{ overflow-x: auto; font-size: 12px; }}
</style></head><body>
<h1>{title}</h1>
{picture}
<pre>{html.escape(str(report))}</pre>
</body></html>
"""
