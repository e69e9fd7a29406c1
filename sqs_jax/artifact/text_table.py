"""Plain-text tables for a terminal."""

from collections.abc import Iterable, Sequence

__all__ = ["format_table", "printable"]


def format_table(
    head: Sequence[str], rows: Iterable[list[str]], left: int, total: list[str] | None = None
) -> str:
    """Return rows of cells as an aligned plain-text table.

    Args:
        head: Titles of the columns.
        rows: Cells of each row, as many as `head` has.
        left: Number of leading columns that are left-aligned; the others are right-aligned.
        total: Cells of a last row, set off by a rule; None for no such row.
    """
    table = [list(head), *rows, *([total] if total else [])]
    table = [list(map(printable, row)) for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    rule = "-" * max(map(len, lines))
    lines[1:1] = [rule]
    if total:
        lines[-1:-1] = [rule]
    return "\n".join(lines)


def printable(text: str) -> str:
    """Escape control characters, which names in an untrusted file may contain."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
