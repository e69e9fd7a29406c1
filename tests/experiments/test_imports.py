"""Imports in experiments/ have no circle, even through imports for types."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path, package: str) -> dict[str, set[str]]:
    """Map each module of a package to its imports within the package."""
    sources = {module_name(path, root): path for path in (root / package).rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in sources.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: write imports within {package} in full"
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    imported.add(full if full in sources else str(node.module))
        graph[name] = imported & sources.keys() - {name}
    return graph


def test_no_import_circle() -> None:
    try:
        TopologicalSorter(import_graph(ROOT, "experiments")).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_a_circle_through_imports_for_types_is_seen(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.py").write_text("from p import b")
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import X"
    (tmp_path / "p/b.py").write_text(source)
    with pytest.raises(CycleError):
        TopologicalSorter(import_graph(tmp_path, "p")).prepare()
