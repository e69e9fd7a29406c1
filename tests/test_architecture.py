"""The arrows between the folders, read from the source: who may import whom; files stay short.

docs/architecture.md draws the picture; `forbidden` below is its machine-readable form.
"""

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("sqs_jax", "experiments", "benchmarks", "tests")
FILES = sorted(p.relative_to(ROOT).as_posix() for f in FOLDERS for p in (ROOT / f).rglob("*.py"))
MAX_LINES = 500

PUBLIC = {
    "sqs_jax.baselines",
    "sqs_jax.budget",
    "sqs_jax.checkpoints",
    "sqs_jax.linen",
    "sqs_jax.nnx",
    "sqs_jax.progress",
}
INTERNAL = {
    "sqs_jax.artifact",
    "sqs_jax.calibration",
    "sqs_jax.cli",
    "sqs_jax.distribution",
    "sqs_jax.transform",
}
# What each floor may use of sqs_jax.
FLOORS = {
    "sqs_jax/distribution/": {"sqs_jax.distribution"},
    "sqs_jax/artifact/": {"sqs_jax.artifact"},
    "sqs_jax/checkpoints/": {"sqs_jax.artifact", "sqs_jax.checkpoints"},
    "sqs_jax/budget/": {
        "sqs_jax.distribution", "sqs_jax.artifact", "sqs_jax.budget", "sqs_jax.transform.rules",
    },
    "sqs_jax/transform/": {"sqs_jax.distribution", "sqs_jax.artifact", "sqs_jax.transform"},
    "sqs_jax/calibration/": {
        "sqs_jax.distribution", "sqs_jax.artifact", "sqs_jax.budget", "sqs_jax.transform",
        "sqs_jax.calibration",
    },
}  # fmt: skip
# The two files that may use flax, and the parts of it that each leaves to another.
FLAX = {
    "sqs_jax/linen.py": {"flax.nnx", "flax.serialization"},
    "sqs_jax/nnx.py": {"flax.linen", "flax.serialization"},
}
# The one that reads what flax.serialization writes, and the two that use orbax.
MSGPACK = "sqs_jax/checkpoints/msgpack_file.py"
ORBAX = ("experiments/training/checkpoints.py", "sqs_jax/checkpoints/orbax_folder.py")
TREES = {"jax.flatten_util", "jax.tree", "jax.tree_util"}
# What is left to those who walk no trees of weights: their own tuples of arrays.
OWN_TREES = {
    "jax.tree.leaves",
    "jax.tree.map",
    "jax.tree_util",
    "jax.tree_util.register_dataclass",
    "jax.tree_util.register_static",
}


def within(name: str, modules: set[str]) -> bool:
    """Whether a dotted name is one of the modules or lies in one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def forbidden(path: str, name: str) -> str | None:
    """Why the file must not reach the dotted name; None where it may."""
    if within(name, {"pickle"}):
        return "a pickle runs code when it is loaded"
    if path.startswith("tests/"):
        return None
    if within(name, {"orbax"}) and path not in ORBAX:
        return f"only {' and '.join(ORBAX)} use orbax"
    if not path.startswith("sqs_jax/"):
        return f"{path.split('/')[0]}/ uses public names only" if within(name, INTERNAL) else None

    if within(name, {"experiments", "benchmarks", "tests"}):
        return "the library does not know its users"
    for floor, below in FLOORS.items():
        if path.startswith(floor) and within(name, {"sqs_jax"}) and not within(name, below):
            return f"{floor} uses only {', '.join(sorted(below))} of the library"
    reads = path == MSGPACK and within(name, {"flax.serialization"})
    if within(name, FLAX.get(path, {"flax"})) and not reads:
        return (
            "flax.linen is for sqs_jax/linen.py, flax.nnx for sqs_jax/nnx.py, flax.serialization "
            f"for {MSGPACK}, flax for no other"
        )
    if path.startswith("sqs_jax/distribution/") and within(name, TREES) and name not in OWN_TREES:
        return "sqs_jax/distribution/ knows tensors and tuples of its own, no trees of weights"
    return None


def reached(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of all that a file imports, or uses as an attribute of an import."""
    package = PurePosixPath(path).parts[:-1]
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                bound[alias.asname or root] = alias.name if alias.asname else root
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else ()
            module = [*parents, node.module] if node.module else parents
            for alias in node.names:
                bound[alias.asname or alias.name] = name = ".".join([*module, alias.name])
                yield node.lineno, name

    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        attributes, base = [], node
        while isinstance(base, ast.Attribute) and id(node) not in inner:
            attributes.insert(0, base.attr)
            base = base.value
        if attributes and isinstance(base, ast.Name) and base.id in bound:
            yield node.lineno, ".".join([bound[base.id], *attributes])


def violations(path: str, source: str) -> list[str]:
    """One line for each rule that the file breaks."""
    found = sorted(set(reached(path, ast.parse(source))))
    broken = [
        f"{path}:{line}: {name}: {why}" for line, name in found if (why := forbidden(path, name))
    ]
    length = source.count("\n")
    if length > MAX_LINES:
        broken.append(f"{path}: {length} lines, more than {MAX_LINES}: is there a seam?")
    return broken


def imports(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the modules that each module imports, under TYPE_CHECKING included.

    An import of a module counts for that module, not for the packages around it: a package that
    lists its modules would always close a circle.
    """
    modules = {
        path: path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in sources
    }
    graph = {}
    for path, source in sources.items():
        used = set()
        for _, name in reached(path, ast.parse(source)):
            prefixes = (name.rsplit(".", i)[0] for i in range(name.count(".") + 1))
            used.add(next((prefix for prefix in prefixes if prefix in modules.values()), None))
        graph[modules[path]] = {module for module in used - {modules[path]} if module}
    return graph


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of an import circle; an empty list if there is no circle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("path", FILES)
def test_file_keeps_to_its_floor(path: str) -> None:
    broken = violations(path, (ROOT / path).read_text(encoding="utf-8"))
    assert not broken, "\n".join(broken)


def test_every_module_of_the_library_has_a_floor() -> None:
    modules = {
        "sqs_jax." + p.split("/")[1].removesuffix(".py") for p in FILES if p.startswith("sqs_jax/")
    }
    unknown = modules - PUBLIC - INTERNAL - {"sqs_jax.__init__"}
    assert not unknown, f"{sorted(unknown)}: add each to PUBLIC or INTERNAL above"


def test_no_module_of_the_library_imports_itself_by_way_of_others() -> None:
    library = [path for path in FILES if path.startswith("sqs_jax/")]
    graph = imports({path: (ROOT / path).read_text(encoding="utf-8") for path in library})
    assert not circle(graph), " <- ".join(circle(graph))


def test_the_check_sees_a_circle() -> None:
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sqs_jax.a.x import X"
    inside = "def f():\n    from sqs_jax import a\n    return a.x.X"
    straight = {"sqs_jax/a/__init__.py": "from sqs_jax.a.x import X", "sqs_jax/a/x.py": "X = 1"}
    for closing in (guarded, inside):
        sources = {**straight, "sqs_jax/b.py": closing}
        assert not circle(imports(sources))
        sources["sqs_jax/a/x.py"] = "from ..b import f"
        assert "sqs_jax.b" in circle(imports(sources))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sqs_jax/distribution/kl.py", "from ..transform import rules"),
        ("sqs_jax/distribution/kl.py", "from .. import artifact"),
        ("sqs_jax/distribution/__init__.py", "from ..artifact.file import save"),
        ("sqs_jax/distribution/kl.py", "import sqs_jax"),
        ("sqs_jax/distribution/kl.py", "import jax\ndef f(t): return jax.tree.flatten(t)[0]"),
        ("sqs_jax/distribution/kl.py", "import jax.tree_util as jtu\njtu.tree_map(abs, [])"),
        ("sqs_jax/distribution/kl.py", "from jax.tree_util import tree_leaves"),
        ("sqs_jax/distribution/kl.py", "from jax import tree as trees"),
        ("sqs_jax/artifact/file.py", "import sqs_jax.distribution.kl"),
        ("sqs_jax/artifact/file.py", "def f():\n    import pickle"),
        ("sqs_jax/budget/options.py", "from ..transform import pruning"),
        ("sqs_jax/transform/rules.py", "from ..budget import BudgetError"),
        ("sqs_jax/budget/options.py", "from ..calibration import InputMoments"),
        ("sqs_jax/transform/rules.py", "from ..linen import Dense"),
        ("sqs_jax/transform/rules.py", "from flax import traverse_util"),
        (
            "sqs_jax/transform/rules.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sqs_jax import Rule",
        ),
        ("sqs_jax/checkpoints/npz_file.py", "from ..transform import rules"),
        ("sqs_jax/checkpoints/npz_file.py", "from sqs_jax import CompressedLeaf"),
        ("sqs_jax/checkpoints/npz_file.py", "from flax import serialization"),
        ("sqs_jax/checkpoints/npz_file.py", "def f():\n    import orbax.checkpoint"),
        ("sqs_jax/checkpoints/msgpack_file.py", "def f():\n    from flax import traverse_util"),
        ("sqs_jax/checkpoints/msgpack_file.py", "import orbax.checkpoint as ocp"),
        ("sqs_jax/artifact/file.py", "from ..checkpoints import open_checkpoint"),
        ("sqs_jax/linen.py", "from flax.serialization import msgpack_restore"),
        ("sqs_jax/linen.py", "from flax import nnx"),
        ("sqs_jax/nnx.py", "import flax\nx = flax.linen.Dense"),
        ("sqs_jax/cli.py", "from experiments import train"),
        ("sqs_jax/cli.py", "import orbax.checkpoint as ocp"),
        ("experiments/training/loop.py", "import orbax.checkpoint as ocp"),
        ("experiments/training/loop.py", "from sqs_jax.transform import elbo"),
        ("experiments/training/loop.py", "from sqs_jax import distribution"),
        ("experiments/training/loop.py", "from sqs_jax.artifact import load"),
        ("benchmarks/speed.py", "import sqs_jax\nsqs_jax.transform.rules.Rule()"),
        ("tests/test_x.py", "from pickle import loads"),
        ("tests/test_x.py", "x = 1\n" * (MAX_LINES + 1)),
    ],
)
def test_the_check_sees_a_breach(path: str, source: str) -> None:
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("sqs_jax/__init__.py", "from .transform import elbo\nfrom .artifact.file import save"),
        ("sqs_jax/distribution/kl.py", "from . import mixture\nfrom .mixture import soft_weight"),
        ("sqs_jax/distribution/__init__.py", "from .kl import kl"),
        ("sqs_jax/distribution/kl.py", "import jax\n@jax.tree_util.register_dataclass\nclass A: 0"),
        ("sqs_jax/distribution/kl.py", "from jax.tree_util import register_dataclass"),
        (
            "sqs_jax/transform/rules.py",
            "import jax\nfrom ..artifact import spec\njax.tree.map(0)",
        ),
        ("sqs_jax/budget/options.py", "from ..transform.rules import Rule"),
        ("sqs_jax/checkpoints/npz_file.py", "from sqs_jax.artifact.dtypes import DTYPES"),
        ("sqs_jax/checkpoints/msgpack_file.py", "def f():\n    from flax import serialization"),
        ("sqs_jax/checkpoints/orbax_folder.py", "def f():\n    import orbax.checkpoint as ocp"),
        ("sqs_jax/linen.py", "import flax.linen as nn\nfrom .distribution import x\nnn.Dense(1)"),
        ("sqs_jax/nnx.py", "from flax import nnx"),
        ("experiments/training/checkpoints.py", "import orbax.checkpoint as ocp"),
        ("experiments/training/loop.py", "import sqs_jax, sqs_jax.nnx\nsqs_jax.saliency.gate(0)"),
        ("experiments/training/loop.py", "from flax import nnx\nfrom sqs_jax.linen import Dense"),
        ("tests/test_x.py", "from sqs_jax.distribution import kl\n" + "x = 1\n" * (MAX_LINES - 1)),
    ],
)
def test_the_check_lets_the_allowed_pass(path: str, source: str) -> None:
    assert not violations(path, source)
