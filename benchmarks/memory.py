"""Memory of training: of one tensor's pass, of whole steps, measured peaks, and on paper.

No buffer of N x K exists, whatever the estimator; what a step takes more than a dense one is what
`footprint` says it is.
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
from benchmarks import equal_layers, footprint, peak, training
from benchmarks.timing import judged

_SIZE = 1 << 22  # N, weights of one tensor
_COMPONENTS = (16, 64)
_WIDTH, _LAYERS = 512, 12
_TENSOR_BAR = footprint.TRANSIENT / 4  # floats per weight
_PEAKS = ("dense", "mean", "mode")
_FRUGAL = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def run(workdir: Path, data: Path) -> dict[str, list[dict[str, Any]]]:
    """Print four tables; returns their rows."""
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
    """Compile one training step and return the bytes of its temporary buffers.

    Args:
      size: N, a multiple of 1,024.
      components: K.
      estimator: of `sqs_jax.elbo`.
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
    """Compile the transform's `mean` and its gradient; return the bytes of temporary buffers.

    Args:
      size: N, a multiple of 1,024.
      components: K.
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
    """Compare whole steps with what `footprint` says of them.

    Args:
      width: of each layer.
      layers: how many; one is a small part of all if they are many.
    """
    problem = equal_layers.problem(width, layers)
    ways = equal_layers.ways(problem)
    weights = width * width * layers
    slack = footprint.TRANSIENT / layers
    print(f"\nAdam steps of {layers} layers of {width} x {width}, bytes per weight above the dense "
          f"step; one tensor's temporaries may add {slack:.1f}")  # fmt: skip
    print(f"{'':>20} {'model':>6} {'compiled':>8} {'bar':>8}  {'frugal':>8} {'bar':>8}  "
          f"{'measured':>8}")  # fmt: skip
    rows: list[dict[str, Any]] = []
    frugal = _frugal(width, layers)
    for name, way in ways.items():
        compiled = step_bytes(way, problem) / weights
        measured = peak.measure(name, width, layers) if name in _PEAKS else None
        row = {
            "way": name,
            "model": footprint.per_weight(way.setting).total,
            "compiled": compiled,
            "frugal": frugal[name] / weights,
            "measured": None if measured is None else measured / weights,
            "bar": way.bar,
        }
        rows.append(row)
        print(_above(row, rows[0]), flush=True)
    return rows


def step_bytes(way: equal_layers.Way, problem: training.Problem) -> int:
    """Compile a step and return the bytes it holds: arguments, new outputs, temporaries."""
    state = jax.eval_shape(way.state)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    analysis = way.step.lower(state, problem.inputs, problem.labels, step).compile()
    found = analysis.memory_analysis()
    assert found is not None
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + new + found.temp_size_in_bytes


def _frugal(width: int, layers: int) -> dict[str, int]:
    """Return `step_bytes` of every way where XLA minds memory, in a process that tells it to.

    It orders a CPU's work so that much can run side by side, and holds the temporaries of all of
    that; on accelerators its schedule minds memory by itself.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_FRUGAL}" if _on_cpu() else None
    environment = {**os.environ, **({"XLA_FLAGS": flags} if flags else {})}
    command = [sys.executable, "-m", "benchmarks.memory", str(width), str(layers)]
    run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def paper() -> list[dict[str, Any]]:
    """Print, per network and setting, the bytes on each of 1, 8 and 64 devices, and if they fit."""
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
    """Write a row as differences from the dense one; that one as it is."""
    base = dict.fromkeys(dense, 0) if row is dense else dense
    measured = "" if row["measured"] is None else f"{row['measured'] - base['measured']:>8.2f}"
    name = "dense, in all" if row is dense else row["way"]
    compiled, frugal = (judged(row[n] - base[n], row["bar"]) for n in ("compiled", "frugal"))
    return f"{name:>20} {row['model'] - base['model']:>6} {compiled}  {frugal}  {measured:>8}"


def _posterior(sqs: sqs_jax.Transform, size: int) -> Any:
    """Return the shapes of the posterior of one tensor."""
    params = jax.ShapeDtypeStruct((1024, size // 1024), jnp.float32)
    return jax.eval_shape(sqs.init, {"kernel": params})


def _analysis(function: Callable[..., Any], *arguments: Any) -> Any:
    analysis = jax.jit(function).lower(*arguments).compile().memory_analysis()
    assert analysis is not None  # CPU, GPU and TPU backends have one
    return analysis


if __name__ == "__main__":  # python -m benchmarks.memory WIDTH LAYERS
    _width, _layers = map(int, sys.argv[1:])
    _problem = equal_layers.problem(_width, _layers)
    _ways = equal_layers.ways(_problem)
    print(json.dumps({name: step_bytes(way, _problem) for name, way in _ways.items()}))
