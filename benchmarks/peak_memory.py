"""Peak memory of training steps, measured in a separate process.

python -m benchmarks.peak_memory dense|mean|mode WIDTH LAYERS      # prints bytes, or "null"
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import equal_layers

_STEPS = 3
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(name: str, width: int, layers: int) -> int | None:
    """Return the peak bytes of a training's steps; None where unknown."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", name, str(width), str(layers)]
    # With this threshold the allocator returns freed buffers to the system immediately.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    name, width, layers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    problem = equal_layers.problem(width, layers)
    variant = equal_layers.trainings(problem)[name]
    batch = problem.inputs, problem.labels
    # Compile before the measurement, because compilers use memory too.
    compiled = variant.step.lower(jax.eval_shape(variant.state), *batch, jnp.int32(0)).compile()
    before = _memory("VmRSS", "bytes_in_use")
    state = variant.state()
    measurable = _reset_peak()
    for i in range(_STEPS):
        state = jax.block_until_ready(compiled(state, *batch, jnp.int32(i)))
    peak = _memory("VmHWM", "peak_bytes_in_use")
    if not measurable or before is None or peak is None:
        print(json.dumps(None))
    else:
        print(json.dumps(peak - before))


def _reset_peak() -> bool:
    """Reset the system's peak, which the initialization of the state may have raised.

    Returns:
        Whether the peak after the call is that of the steps. The peak of an accelerator cannot be
        reset, but steps take more memory than the initialization.
    """
    if jax.local_devices()[0].memory_stats():
        return True
    try:
        _CLEAR.write_text("5")
    except OSError:  # not on Linux, or without permission
        return False
    return True


def _memory(line: str, statistic: str) -> int | None:
    """Return a memory statistic of the device's allocator, or else of the system, bytes."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics:
        return statistics[statistic]
    if not _STATUS.exists():
        return None
    match = re.search(rf"{line}:\s+(\d+) kB", _STATUS.read_text())
    return int(match[1]) * 1024 if match else None


if __name__ == "__main__":
    main()
