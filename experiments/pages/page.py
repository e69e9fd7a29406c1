"""A page of figures and tables that opens in any browser, alone."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from experiments.atomic_files import write_text

_TEMPLATE = Path(__file__).with_name("page_template.html")


def write_page(path: Path, title: str, intro: str, *sections: str) -> Path:
    """Write a page at once; returns its path.

    Args:
      path: of the page.
      title: plain text.
      intro: HTML of its first paragraph.
      *sections: HTML, a figure or a table each.
    """
    parts = "\n".join(f"<section>{section}</section>" for section in sections)
    text = Template(_TEMPLATE.read_text()).substitute(
        title=escape(title), body=f"<p>{intro}</p>\n{parts}"
    )
    write_text(path, text)
    return path


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], best: Iterable[int] = ()) -> str:
    """Return a table, its first column on the left, the others on the right; a tinted row is best.

    Args:
      columns: names, HTML.
      rows: of cells, HTML.
      best: numbers of the rows that are tinted.
    """
    tinted = set(best)

    def line(number: int, cells: Sequence[str]) -> str:
        first, *rest = cells
        body = "".join(f'<td class="n">{cell}</td>' for cell in rest)
        mark = ' class="best"' if number in tinted else ""
        return f'<tr{mark}><th scope="row">{first}</th>{body}</tr>'

    first, *others = columns
    head = f"<th>{first}</th>" + "".join(f'<th class="n">{name}</th>' for name in others)
    lines = "\n".join(line(i, cells) for i, cells in enumerate(rows))
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n'
        "</tbody></table></div>"
    )
