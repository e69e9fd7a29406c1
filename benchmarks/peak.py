"""The peak memory of training steps, measured in a process of its own.

python -m benchmarks.peak dense|mean|mode WIDTH LAYERS      # prints bytes, or "null"
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
    """Run `name`'s steps in a fresh process; returns their peak in bytes, None if unknown here."""
    command = [sys.executable, "-m", "benchmarks.peak", name, str(width), str(layers)]
    # the allocator then returns freed buffers to the system at once
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    name, width, layers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    problem = equal_layers.problem(width, layers)
    way = equal_layers.ways(problem)[name]
    batch = problem.inputs, problem.labels
    # compiled before anything is measured: compilers take memory too
    compiled = way.step.lower(jax.eval_shape(way.state), *batch, jnp.int32(0)).compile()
    before = _memory("VmRSS", "bytes_in_use")
    state = way.state()
    known = _restart_peak()
    for i in range(_STEPS):
        state = jax.block_until_ready(compiled(state, *batch, jnp.int32(i)))
    peak = _memory("VmHWM", "peak_bytes_in_use")
    print(json.dumps(peak - before if known and before is not None and peak is not None else None))


def _restart_peak() -> bool:
    """Let the system's peak start anew, as making the state may have taken more.

    Returns:
      Whether that can be done; an accelerator's peak stays, and steps take more than their state.
    """
    if jax.local_devices()[0].memory_stats():
        return True
    try:
        _CLEAR.write_text("5")
    except OSError:  # no Linux, or not allowed
        return False
    return True


def _memory(line: str, statistic: str) -> int | None:
    """Read what the device's allocator says, or, where it has none, what the system says."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics:
        return statistics[statistic]
    if not _STATUS.exists():
        return None
    found = re.search(rf"{line}:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    main()
