"""Sphinx extension that converts docstrings to reStructuredText.

The conversion runs before napoleon. Docstrings are plain text with code in single backticks;
`|x|`, `*S` and `theta_` mean themselves.
"""

import re
from collections.abc import Iterator
from typing import Any

_DOCTEST = re.compile(r"^[ ]*>>>.*(?:\n(?!\s*$).*)*", re.MULTILINE)
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)(\w?)")
_MARKUP = re.compile(r"(?<!\\)[*|](?!\s)|(?<=\w)_(?!\w)")


def to_restructured_text(text: str) -> str:
    """Convert names to references, other code to literals and symbols to themselves."""
    return "".join(_converted(text))


def _converted(text: str) -> Iterator[str]:
    start = 0
    for example in _DOCTEST.finditer(text):
        yield _prose(text[start : example.start()])
        yield example.group()
        start = example.end()
    yield _prose(text[start:])


def _prose(text: str) -> str:
    parts, start = [], 0
    for code in _CODE.finditer(text):
        parts.append(_MARKUP.sub(r"\\\g<0>", text[start : code.start()]))
        words, after = " ".join(code[1].split()), code[2]
        is_name = re.fullmatch(r"[A-Za-z][\w.]*", words)
        parts.append(f"`{words}`" if is_name else f"``{words}``")
        parts.append(f"\\ {after}" if after else "")
        start = code.end()
    parts.append(_MARKUP.sub(r"\\\g<0>", text[start:]))
    return "".join(parts)


def _process_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = to_restructured_text("\n".join(lines)).split("\n")


def setup(app: Any) -> None:
    app.setup_extension("sphinx.ext.autodoc")
    # Before napoleon, which adds markup of its own.
    app.connect("autodoc-process-docstring", _process_docstring, priority=100)
