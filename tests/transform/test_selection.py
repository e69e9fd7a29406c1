import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.transform import selection

ROOT = Path(__file__).resolve().parents[2]


def test_eight_devices_give_the_masks_and_files_of_a_single_device(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    }
    script = Path(__file__).with_name("eight_devices.py")
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    result = json.loads(run.stdout.splitlines()[-1])
    for sparsity in (0.3, 0.55, 0.9):
        single, eight = (result["results"][f"{name} {sparsity}"] for name in ("one", "eight"))
        assert single == eight
        assert single[2] == round(sparsity * result["count"])
    assert result["largest_gathered"] < 64  # devices exchange counts only


@pytest.mark.parametrize("number", [0, 1, 65_535, 65_536, 65_537, 99_999, 100_000])
def test_counts_near_the_limit_of_a_limb(number):
    scores = jnp.asarray(np.random.default_rng(0).permutation(100_000), jnp.float32)
    parts = scores[:70_000].reshape(7, -1), scores[70_000:]
    kept = jnp.concatenate([mask.ravel() for mask in selection.keep_highest(parts, number)])
    np.testing.assert_array_equal(kept, scores >= number)


def test_counts_above_32_bits_are_compared_and_subtracted():
    big, small = 3 * 2**32 + 5, 2**32 + 70_000

    def split(number):
        return jnp.uint32(number >> 16), jnp.uint32(number % 65_536)

    assert bool(selection._less(split(small), split(big)))
    assert not bool(selection._less(split(big), split(big)))
    high, low = selection._minus(split(big), split(small))
    assert int(high) * 65_536 + int(low) == big - small
