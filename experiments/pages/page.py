"""Self-contained HTML page of figures and tables."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from experiments.files import write_text

_TEMPLATE = Path(__file__).with_name("page_template.html")


def write_page(path: Path, title: str, intro: str, *sections: str) -> Path:
    """Write a page atomically, and return its path.

    Args:
      path: Path of the page.
      title: Title, plain text.
      intro: First paragraph, HTML.
      *sections: Figures and tables, HTML.
    """
    parts = "\n".join(f"<section>{section}</section>" for section in sections)
    text = Template(_TEMPLATE.read_text()).substitute(
        title=escape(title), body=f"<p>{intro}</p>\n{parts}"
    )
    write_text(path, text)
    return path


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], best: Iterable[int] = ()) -> str:
    """Return a table as HTML, with all columns but the first aligned to the right.

    Args:
      columns: Names of the columns, HTML.
      rows: Cells of each row, HTML.
      best: Indices of the rows to highlight.
    """
    highlighted = set(best)

    def line(number: int, cells: Sequence[str]) -> str:
        first, *rest = cells
        body = "".join(f'<td class="n">{cell}</td>' for cell in rest)
        mark = ' class="best"' if number in highlighted else ""
        return f'<tr{mark}><th scope="row">{first}</th>{body}</tr>'

    first, *rest = columns
    head = f"<th>{first}</th>" + "".join(f'<th class="n">{name}</th>' for name in rest)
    lines = "\n".join(line(i, cells) for i, cells in enumerate(rows))
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n'
        "</tbody></table></div>"
    )
