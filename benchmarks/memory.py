"""Memory of training: temporaries, whole steps, measured peaks, and large models.

No buffer has N x K numbers for any estimator. `footprint` predicts the difference between a step
and a dense step.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import sqs_jax
from benchmarks import equal_layers, footprint, peak_memory, training
from benchmarks.timing import judged

_SIZE = 1 << 22  # N, weights of one tensor
_COMPONENTS = (16, 64)
_WIDTH, _LAYERS = 512, 12
_TENSOR_BAR = footprint.TRANSIENT / 4  # floats per weight
_PEAKS = ("dense", "mean", "mode")
_FRUGAL = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def run(workdir: Path, data: Path) -> dict[str, list[dict[str, Any]]]:
    """Print four tables; return the rows."""
    return {
        "transient": _transient(),
        "tensor": _tensor(),
        "steps": steps(_WIDTH, _LAYERS),
        "paper": paper(),
    }


def _transient() -> list[dict[str, Any]]:
    rows = []
    print(f"N = {_SIZE:,} weights, value and gradient of the ELBO of a linear model")
    print(f"{'estimator':>10} {'K':>4} {'transient MB':>13} {'floats per weight':>18}")
    for estimator in ("mean", "sample", "mode"):
        for components in _COMPONENTS:
            size = transient_bytes(_SIZE, components, estimator)
            row = {
                "estimator": estimator,
                "components": components,
                "transient_bytes": size,
                "floats_per_weight": size / (4 * _SIZE),
            }
            rows.append(row)
            print(
                f"{estimator:>10} {components:>4} {size / 1e6:>13.1f} "
                f"{row['floats_per_weight']:>18.2f}",
                flush=True,
            )
    return rows


def transient_bytes(size: int, components: int, estimator: Any) -> int:
    """Return the bytes of temporary buffers of a compiled training step.

    Args:
        size: Number N of weights, a multiple of 1,024.
        components: Number K of components.
        estimator: Estimator of `sqs_jax.elbo`.
    """
    sqs = training.transform(components)
    loss_fn = sqs_jax.elbo(
        sqs,
        lambda params, batch: (jnp.mean(jnp.sin(batch @ params["kernel"])), None),
        num_data=1000,
        estimator=estimator,
        temperature=0.5,
    )

    def step(posterior: Any, batch: jax.Array, key: jax.Array) -> Any:
        return jax.value_and_grad(loss_fn, has_aux=True, allow_int=True)(posterior, batch, key, 0)

    batch = jax.ShapeDtypeStruct((8, 1024), jnp.float32)
    return _analysis(step, _posterior(sqs, size), batch, jax.random.key(0)).temp_size_in_bytes


def _tensor() -> list[dict[str, Any]]:
    rows = []
    print("\nthe soft weights of that tensor alone, and their gradient: temporaries")
    print(f"{'K':>4} {'floats per weight':>18}")
    for components in _COMPONENTS:
        floats = tensor_bytes(_SIZE, components) / (4 * _SIZE)
        rows.append({"components": components, "floats_per_weight": floats, "bar": _TENSOR_BAR})
        print(f"{components:>4} {judged(floats, _TENSOR_BAR):>18}", flush=True)
    return rows


def tensor_bytes(size: int, components: int) -> int:
    """Return the bytes of temporary buffers of `mean` and its gradient, compiled.

    Args:
        size: Number N of weights, a multiple of 1,024.
        components: Number K of components.
    """
    sqs = training.transform(components)

    def both(posterior: Any, temperature: jax.Array, cotangent: jax.Array) -> Any:
        trained, fixed = sqs_jax.partition(posterior, train=("loc", "gate", "means"))
        weights, pull = jax.vjp(
            lambda part: sqs.mean(sqs_jax.combine(part, fixed), temperature=temperature)["kernel"],
            trained,
        )
        return weights, pull(cotangent)

    posterior = _posterior(sqs, size)
    temperature = jax.ShapeDtypeStruct((), jnp.float32)
    return _analysis(both, posterior, temperature, posterior["kernel"].loc).temp_size_in_bytes


def steps(width: int, layers: int) -> list[dict[str, Any]]:
    """Compare compiled and measured steps with the memory model `footprint`.

    Args:
        width: Inputs and outputs of each layer.
        layers: Number of layers.

    Returns:
        Row per training, bytes per weight.
    """
    problem = equal_layers.problem(width, layers)
    trainings = equal_layers.trainings(problem)
    weights = width * width * layers
    slack = footprint.TRANSIENT / layers
    print(f"\nAdam steps of {layers} layers of {width} x {width}, bytes per weight above the dense "
          f"step; one tensor's temporaries may add {slack:.1f}")  # fmt: skip
    print(f"{'':>20} {'model':>6} {'compiled':>8} {'bar':>8}  {'frugal':>8} {'bar':>8}  "
          f"{'measured':>8}")  # fmt: skip
    rows: list[dict[str, Any]] = []
    frugal = _frugal(width, layers)
    for name, variant in trainings.items():
        compiled = step_bytes(variant, problem) / weights
        measured = peak_memory.measure(name, width, layers) if name in _PEAKS else None
        row = {
            "way": name,
            "model": footprint.per_weight(variant.setting).total,
            "compiled": compiled,
            "frugal": frugal[name] / weights,
            "measured": None if measured is None else measured / weights,
            "bar": variant.bar,
        }
        rows.append(row)
        print(_above(row, rows[0]), flush=True)
    return rows


def step_bytes(variant: equal_layers.Training, problem: training.Problem) -> int:
    """Return the bytes of a compiled step: arguments, new outputs and temporaries."""
    state = jax.eval_shape(variant.state)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    compiled = variant.step.lower(state, problem.inputs, problem.labels, step).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    new_outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + new_outputs + analysis.temp_size_in_bytes


def _frugal(width: int, layers: int) -> dict[str, int]:
    """Return `step_bytes` of every training with XLA's memory-saving schedule.

    XLA's default schedule on CPUs runs operations concurrently, and holds the temporaries of all.
    A separate process sets the flag. The schedule on accelerators saves memory by default.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_FRUGAL}" if _on_cpu() else None
    environment = {**os.environ, **({"XLA_FLAGS": flags} if flags else {})}
    command = [sys.executable, "-m", "benchmarks.memory", str(width), str(layers)]
    run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def paper() -> list[dict[str, Any]]:
    """Print the predicted bytes per device of large models, and whether devices suffice."""
    rows = []
    counts = [f"{count} devices" for count in footprint.COUNTS]
    names = "  ".join(f"{'fits ' + device.name:<14}" for device in footprint.DEVICES)
    print(f"\non paper: GB per device, all sharded evenly; fits: in {footprint.SHARE:.0%} of it")
    print(f"{'network':>11} {'setting':>24} {'B/weight':>8} "
          f"{' '.join(f'{count:>10}' for count in counts)}  {names}")  # fmt: skip
    for network in footprint.NETWORKS:
        for name, setting in footprint.SETTINGS.items():
            row: dict[str, Any] = {
                "network": network.name,
                "setting": name,
                "bytes_per_weight": footprint.per_weight(setting).total,
                "devices": footprint.COUNTS,
                "bytes": [footprint.per_device(network, setting, n) for n in footprint.COUNTS],
                "fits": {
                    device.name: [footprint.fits(network, setting, device, n)
                                  for n in footprint.COUNTS]
                    for device in footprint.DEVICES
                },
            }  # fmt: skip
            rows.append(row)
            sizes = " ".join(f"{size / 1e9:>10.1f}" for size in row["bytes"])
            fits = "  ".join(
                f"{' '.join('yes' if fit else 'no ' for fit in fitting):<14}"
                for fitting in row["fits"].values()
            )
            print(f"{network.name:>11} {name:>24} {row['bytes_per_weight']:>8} {sizes}  {fits}")
    return rows


def _above(row: dict[str, Any], dense: dict[str, Any]) -> str:
    """Return a line with differences from the dense row; the dense row has totals."""
    is_dense = row["way"] == dense["way"]
    base = dict.fromkeys(dense, 0) if is_dense else dense
    measured = "" if row["measured"] is None else f"{row['measured'] - base['measured']:>8.2f}"
    name = "dense, in all" if is_dense else row["way"]
    compiled, frugal = (judged(row[n] - base[n], row["bar"]) for n in ("compiled", "frugal"))
    return f"{name:>20} {row['model'] - base['model']:>6} {compiled}  {frugal}  {measured:>8}"


def _posterior(sqs: sqs_jax.Transform, size: int) -> Any:
    """Return the shapes of the posterior of a tensor."""
    params = jax.ShapeDtypeStruct((1024, size // 1024), jnp.float32)
    return jax.eval_shape(sqs.init, {"kernel": params})


def _analysis(function: Callable[..., Any], *arguments: Any) -> Any:
    analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
    assert analysis is not None  # CPU, GPU and TPU backends have the analysis
    return analysis


if __name__ == "__main__":  # python -m benchmarks.memory WIDTH LAYERS
    _width, _layers = map(int, sys.argv[1:])
    _problem = equal_layers.problem(_width, _layers)
    _trainings = equal_layers.trainings(_problem)
    _bytes = {name: step_bytes(variant, _problem) for name, variant in _trainings.items()}
    print(json.dumps(_bytes))
