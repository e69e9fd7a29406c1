"""Two CPU devices, no silent promotion, and no test that quietly lacks its data."""

import atexit
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Nearly all the time of these tests is LLVM's: its optimisations would double it for small arrays.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=2"
    + " --xla_backend_optimization_level=0"
)

import jax
import pytest

# What one process has compiled the next need not, a worker of pytest-xdist or one that a test
# starts: they have the folder from the process that starts them. Entries are not written at once,
# so that another may read half of one: it says so, and compiles; pyproject.toml lets it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
# What tests with these markers need and do not find here.
LACKING = {
    marker: reason
    for marker, there, reason in (
        ("real_data", REAL_DATA.is_dir(), f"no {REAL_DATA}"),
        ("torch", importlib.util.find_spec("torch"), "PyTorch, the extra `peers`, not installed"),
    )
    if not there
}
LACKING["scale"] = "minutes of several processes; `make test-scale` runs them"
_COUNTS = pytest.StashKey[dict[str, int]]()


def pytest_collection_modifyitems(config, items):
    """Deselect the tests that need what is not here, and start with the folders of long files.

    Workers take whole files in this order: a long one at the end would leave the others idle.
    """
    long = ("/tests/experiments/", "/tests/transform/")  # the longest first
    paths = {item: item.path.as_posix() for item in items}
    items.sort(key=lambda item: [folder not in paths[item] for folder in long])
    counts = config.stash[_COUNTS] = {}
    if "scale" in config.option.markexpr:
        LACKING.pop("scale", None)
    for marker in LACKING:
        lacking = [item for item in items if item.get_closest_marker(marker)]
        if lacking:
            config.hook.pytest_deselected(items=lacking)
            items[:] = [item for item in items if item not in lacking]
            counts[marker] = len(lacking)


def pytest_terminal_summary(terminalreporter, config):
    """Say why; under pytest-xdist the workers collect, and the number stays with them."""
    counts = config.stash.get(_COUNTS, {})
    for marker, reason in LACKING.items():
        terminalreporter.section(f"{marker} deselected")
        count = counts.get(marker, "any")
        terminalreporter.line(f"Deselected {count} tests marked {marker}: {reason}.")
