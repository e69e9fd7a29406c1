"""The documentation site has every public name and every page in its index."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from test_examples import public_names

DOCS = Path(__file__).parents[1] / "docs"


def documented() -> set[str]:
    """Return the dotted names of the autodoc directives in docs/reference."""
    names = set()
    for page in (DOCS / "reference").glob("*.rst"):
        module = ""
        for kind, name in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(), flags=re.MULTILINE):
            if kind == "currentmodule":
                module = name
            elif kind.startswith("auto"):
                names.add(name if kind == "automodule" else f"{module}.{name}")
    return names


def test_every_public_name_is_in_the_reference() -> None:
    assert set(public_names()) <= documented()


def test_every_method_beside_ours_is_in_the_reference() -> None:
    import sqs_jax.baselines

    assert {f"sqs_jax.baselines.{name}" for name in sqs_jax.baselines.__all__} <= documented()


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for page in (DOCS / "index.md", DOCS / "reference" / "index.md"):
        for toctree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), flags=re.DOTALL):
            entries = [line for line in toctree.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / entry).relative_to(DOCS).as_posix() for entry in entries}
    pages = {
        path.relative_to(DOCS).with_suffix("").as_posix()
        for path in DOCS.rglob("*")
        if path.suffix in {".md", ".rst", ".ipynb"} and "_build" not in path.parts
    }
    assert pages - {"index"} == listed


def test_tutorial_is_stored_without_outputs() -> None:
    cells = json.loads((DOCS / "tutorials" / "digits.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


def test_results_are_short() -> None:
    assert len((DOCS / "results.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    ("docstring", "converted"),
    [
        ("Leaf `[*S, W, K]` of a `Rule`.", "Leaf ``[*S, W, K]`` of a `Rule`."),
        ("Some `CompressedLeaf`s.", "Some `CompressedLeaf`\\ s."),
        ("The score |x| of *S axes.", "The score \\|x| of \\*S axes."),
        ("  * kept * log2 K", "  * kept * log2 K"),
        ("Call `f(a,\n    b)`.", "Call ``f(a, b)``."),
        (
            "Example:\n    >>> a | b\n    `c`\n\nThen `d`",
            "Example:\n    >>> a | b\n    `c`\n\nThen `d`",
        ),
    ],
)
def test_docstrings_become_restructured_text(docstring: str, converted: str) -> None:
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    assert spec is not None and spec.loader is not None
    docstrings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docstrings)
    assert docstrings.to_restructured_text(docstring) == converted
