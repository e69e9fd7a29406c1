"""Two CPU devices, no silent promotion, and no test that quietly lacks its data."""

import os
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

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_COUNT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config, items):
    """Deselect the tests that need the real data where there is none."""
    if REAL_DATA.is_dir():
        return
    lacking = [item for item in items if item.get_closest_marker("real_data")]
    if lacking:
        config.hook.pytest_deselected(items=lacking)
        items[:] = [item for item in items if item not in lacking]
        config.stash[_COUNT] = len(lacking)


def pytest_terminal_summary(terminalreporter, config):
    """Say why; under pytest-xdist the workers collect, and the number stays with them."""
    if not REAL_DATA.is_dir():
        count = config.stash.get(_COUNT, "any")
        terminalreporter.section("real data absent")
        terminalreporter.line(f"Deselected {count} tests marked real_data: no {REAL_DATA}.")
