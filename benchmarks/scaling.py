"""Weak scaling on emulated devices: relative cost of SQS on 8 devices and on 1.

Every device has a batch of equal size, and all devices share the host's cores. A device's share of
the work is constant, so that growth is communication and repeated work. Each number of devices runs
in a separate process on the CPU.

python -m benchmarks.scaling DEVICES replicated|sharded      # prints a layout's ratios as JSON
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

import sqs_jax
from benchmarks import training
from benchmarks.models import Decoder
from benchmarks.timing import Run, compare, judged

PAIRS = 21
DEVICES = 8
BAR = 1.10
_COMPONENTS = 16
_ESTIMATORS = ("mean", "mode")
_BATCH, _LENGTH = 4, 128  # sequences per device; tokens
_AXIS = "data"


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Print and return a row per layout and estimator."""
    rows = []
    print(f"SQS step / dense step on 1 and on {DEVICES} emulated devices, median and quartiles of "
          f"{PAIRS} pairs; K = {_COMPONENTS}")  # fmt: skip
    print(f"{'weights':>10} {'estimator':>9} {'on 1':>21} {f'on {DEVICES}':>21} {'growth':>7} bar")
    for layout in ("replicated", "sharded"):
        single, many = (_in_process(count, layout) for count in (1, DEVICES))
        for estimator in _ESTIMATORS:
            growth = many[estimator]["ratio"] / single[estimator]["ratio"]
            rows.append({"weights": layout, "estimator": estimator, "growth": growth, "bar": BAR,
                         "one": single[estimator], "many": many[estimator]})  # fmt: skip
            print(f"{layout:>10} {estimator:>9} {_spread(single[estimator])} "
                  f"{_spread(many[estimator])} {judged(growth, BAR)}", flush=True)  # fmt: skip
    return rows


def _in_process(devices: int, layout: str) -> dict[str, dict[str, float]]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", str(devices), layout],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def measure(devices: int, layout: str, *, pairs: int) -> dict[str, dict[str, float]]:
    """Time alternating dense and SQS steps on the devices of this process.

    Args:
        devices: Number of devices.
        layout: "replicated" or "sharded", the layout of arrays in the shape of the weights.
        pairs: Number of pairs of steps.

    Returns:
        Fields of a `Comparison`, by estimator.
    """
    mesh = jax.make_mesh((devices,), (_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec(_AXIS))
    model = Decoder(vocabulary=1024, width=256, layers=1, heads=4, kv_heads=4, hidden=512)
    tokens = jax.random.randint(
        jax.random.key(1), (devices * _BATCH, _LENGTH + 1), 0, model.vocabulary
    )
    inputs, labels = (jax.device_put(x, split) for x in (tokens[:, :-1], tokens[:, 1:]))
    problem = training.Problem("decoder", model, inputs, labels)

    def placed(state: training.State) -> tuple[training.State, Any]:
        """Return a state on its devices, and the shardings."""
        shardings = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), state)
        if layout == "sharded":
            weights = sqs_jax.fully_sharded(state.weights, mesh, axis=_AXIS)
            shardings = sqs_jax.state_shardings(state, state.weights, weights)
        return jax.device_put(state, shardings), shardings

    state, shardings = placed(training.dense_state(problem))
    dense = training.steps(training.dense_step(problem, shardings), state, problem)
    sqs = training.transform(_COMPONENTS)

    def sqs_run(estimator: str) -> Run:
        state, shardings = placed(training.sqs_state(problem, sqs, estimator))
        step = training.sqs_step(problem, sqs, estimator, layout=shardings)
        return training.steps(step, state, problem)

    return {
        estimator: compare(dense, sqs_run(estimator), pairs=pairs)._asdict()
        for estimator in _ESTIMATORS
    }


def _spread(timing: dict[str, float]) -> str:
    return f"{timing['ratio']:>5.2f} ({timing['lower']:.2f} to {timing['upper']:.2f})"


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2], pairs=PAIRS)))
