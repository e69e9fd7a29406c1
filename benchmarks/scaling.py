"""Weak scaling on emulated devices: what SQS costs on 8, over what it costs on 1.

Every device has the same batch, and the host's cores are shared by all: a device's share of the
work does not change, so what grows is communication and what is done more than once. Each number
of devices is a process of its own, on the CPU.

python -m benchmarks.scaling DEVICES replicated|sharded      # one of these, as JSON
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
_BATCH, _LENGTH = 4, 128  # of each device
_AXIS = "data"


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Print a row per layout and estimator; returns the rows."""
    rows = []
    print(f"SQS step / dense step on 1 and on {DEVICES} emulated devices, median and quartiles of "
          f"{PAIRS} pairs; K = {_COMPONENTS}")  # fmt: skip
    print(f"{'weights':>10} {'estimator':>9} {'on 1':>21} {f'on {DEVICES}':>21} {'growth':>7} bar")
    for layout in ("replicated", "sharded"):
        one, many = (_in_process(count, layout) for count in (1, DEVICES))
        for estimator in _ESTIMATORS:
            growth = many[estimator]["ratio"] / one[estimator]["ratio"]
            rows.append({"weights": layout, "estimator": estimator, "growth": growth, "bar": BAR,
                         "one": one[estimator], "many": many[estimator]})  # fmt: skip
            print(f"{layout:>10} {estimator:>9} {_spread(one[estimator])} "
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
    """Time dense and SQS steps in turn on this process's devices.

    Args:
      devices: how many of them.
      layout: of the weights and all that is shaped like them, "replicated" or "sharded".
      pairs: of steps.

    Returns:
      Per estimator, the fields of a Comparison.
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
        """Put a state where it belongs, and say where that is."""
        where = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), state)
        if layout == "sharded":
            weights = sqs_jax.fully_sharded(state.weights, mesh, axis=_AXIS)
            where = sqs_jax.state_shardings(state, state.weights, weights)
        return jax.device_put(state, where), where

    state, where = placed(training.dense_state(problem))
    dense = training.steps(training.dense_step(problem, where), state, problem)
    sqs = training.transform(_COMPONENTS)

    def sqs_run(estimator: str) -> Run:
        state, where = placed(training.sqs_state(problem, sqs, estimator))
        step = training.sqs_step(problem, sqs, estimator, layout=where)
        return training.steps(step, state, problem)

    return {
        estimator: compare(dense, sqs_run(estimator), pairs=pairs)._asdict()
        for estimator in _ESTIMATORS
    }


def _spread(found: dict[str, float]) -> str:
    return f"{found['ratio']:>5.2f} ({found['lower']:.2f} to {found['upper']:.2f})"


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2], pairs=PAIRS)))
