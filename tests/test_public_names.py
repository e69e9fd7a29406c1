"""Public names of earlier releases still import, and the version is the package's."""

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

import sqs_jax

ROOT = Path(__file__).parents[1]
# `sqs_jax.__all__` as it was before 0.6.0; a name that moves stays importable, with a warning.
EARLIER_NAMES = [
    "DEFAULT_RULES",
    "BudgetError",
    "CompressedLeaf",
    "ElboAux",
    "GridLeaf",
    "InputMoments",
    "OverlayLeaf",
    "ProductLeaf",
    "Rule",
    "ScaledLeaf",
    "SizeReport",
    "SpikeSlabPrior",
    "SqsFile",
    "SqsFileError",
    "SubDistribution",
    "Transform",
    "TransposedLeaf",
    "Windows",
    "at_price",
    "bayesian_average",
    "code_length",
    "combine",
    "compress_to_budget",
    "elbo",
    "fold_batch_norm",
    "fully_sharded",
    "inspect",
    "is_compressed",
    "load",
    "materialize",
    "param_labels",
    "partition",
    "predicted_loss",
    "prune",
    "read_attachments",
    "read_metadata",
    "recode",
    "refit",
    "revive",
    "round_to_tolerance",
    "rules_for",
    "saliency",
    "save",
    "shardings",
    "spike_slab_gmm",
    "state_shardings",
    "summarize",
]


def project_version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def moved_names() -> list[tuple[str, str, str]]:
    """Return (old, new, removed in) of the changelog's table of moved names."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    table = changelog.split("## Moved or respelled names", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", table, flags=re.MULTILINE)
    return [row for row in rows if row[0] != "old" and "---" not in row[0]]


def resolve(dotted: str) -> object:
    """Import the longest prefix of a dotted name that is a module, and look up the rest."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            value = getattr(value, name)
        return value
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("name", EARLIER_NAMES)
def test_earlier_public_name_imports(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert getattr(sqs_jax, name) is not None


def test_all_lists_names_that_exist_once_each() -> None:
    assert len(sqs_jax.__all__) == len(set(sqs_jax.__all__))
    assert all(hasattr(sqs_jax, name) for name in sqs_jax.__all__)


def test_table_of_moved_names_is_true() -> None:
    rows = moved_names()
    assert rows
    for old, new, removed_in in rows:
        assert re.fullmatch(r"\d+\.\d+\.\d+", removed_in), f"{old}: {removed_in} is no version"
        if not old.startswith("`sqs_jax."):
            continue  # a method or flag of a command: the command's tests cover it
        assert resolve(new.strip("`")) is not None
        removed = tuple(map(int, removed_in.split(".")))
        if tuple(map(int, project_version().split(".")[:3])) < removed:
            with pytest.warns(DeprecationWarning):
                resolve(old.strip("`"))


def test_changelog_begins_with_the_version_of_the_project() -> None:
    versions = re.findall(r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", changelog(), flags=re.MULTILINE)
    assert versions[0] == project_version()
    assert versions == sorted(versions, key=lambda v: tuple(map(int, v.split("."))), reverse=True)


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text()


def test_version_is_that_of_the_installed_package() -> None:
    assert sqs_jax.__version__ == importlib.metadata.version("sqs_jax")


def test_version_of_a_package_that_is_not_installed_says_so() -> None:
    code = (
        "import importlib.metadata as m, sys\n"
        "version = m.version\n"
        "def without_ours(name):\n"
        "    if name == 'sqs_jax': raise m.PackageNotFoundError(name)\n"
        "    return version(name)\n"
        "m.version = without_ours\n"
        "import sqs_jax\n"
        "print(sqs_jax.__version__)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "0.0.0+not.installed\n", run.stderr
