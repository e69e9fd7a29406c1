"""Time of the soft weights of a tensor, forward and backward, in passes over memory.

A pass is a jitted multiply-add of the weights with a new output. Passes and measured calls
alternate. The peers are a dense softmax over [N, K] in JAX, and the published layer in PyTorch.
"""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import sqs_jax
from benchmarks import dense_softmax, training
from benchmarks.timing import Comparison, Run, calls, compare, judged, least_seconds

PAIRS, PEER_PAIRS = 21, 5  # fewer pairs of the peers, whose softmax takes seconds
COMPONENTS = (4, 16, 64)
PEER_COMPONENTS = (16, 64)  # on accelerators N is larger, and [N, 64] does not fit
TEMPERATURES = (1.0, 0.5, 0.05, 1e-3)
EVALUATIONS = ("table", "loop")
_COPIED = 1 << 26  # floats; larger than any cache
_MOVED = 4 + 4 + 1 + 4  # bytes per weight of the forward pass: loc, gate, kept; the output
_FIELDS = ("loc", "gate_logits", "means", "log_scales", "mixture_logits")
# Bars in passes, on a CPU. Bars at K = 64 are multiples of the passes at K = 16.
_PASSES = {"forward": 8.0, "both": 40.0}
_GROWTH = 1.5
_BANDWIDTH = {4: 0.60, 16: 0.25}  # bars on accelerators, as a share of a copy's bandwidth


def run(workdir: Path, data: Path) -> dict[str, Any]:
    """Print a row per method, K and temperature; return the rows and the bandwidth."""
    # On accelerators 4 M weights fit in the cache, which would be measured instead of the memory.
    side = 2048 if _on_cpu() else 8192
    copied = bandwidth()
    print(f"N = {side * side:,} weights, float32; copying moves {copied / 1e9:.1f} GB/s; "
          f"median of {PAIRS} pairs, {PEER_PAIRS} of the peers")  # fmt: skip
    print(f"{'':>14} {'':>3} {'':>11} {'forward':>34}   {'forward + backward':>27}")
    print(f"{'way':>14} {'K':>3} {'temperature':>11} {'ms':>8} {'passes':>7} {'bar':>8}  "
          f"{'bandwidth':>9} {'bar':>8}   {'ms':>8} {'passes':>7} {'bar':>8}")  # fmt: skip
    rows: list[dict[str, Any]] = []
    for components in COMPONENTS:
        for method, temperature, forward, both, pairs in methods(side, components):
            timings = measure(side, forward, both, pairs)
            row: dict[str, Any] = {
                "way": method,
                "components": components,
                "temperature": temperature,
                "of_bandwidth": side * side * _MOVED / timings["forward"]["seconds"] / copied,
                **timings,
            }
            row["bars"] = _bars(row, rows)
            rows.append(row)
            print(_line(row), flush=True)
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed (pip install -e '.[peers]'): no row of it")
    return {"weights": side * side, "copy_bytes_per_second": copied, "rows": rows}


def methods(side: int, components: int) -> Iterator[tuple[str, float, Run, Run, int]]:
    """Yield (method, temperature, forward, forward and backward, pairs) for a tensor."""
    weights = 0.02 * jax.random.t(jax.random.key(0), 5.0, (side, side))
    for evaluation in EVALUATIONS:
        sqs = training.transform(components, evaluation=evaluation)
        posterior = training.start(sqs, {"kernel": weights})
        for temperature in TEMPERATURES:
            yield evaluation, temperature, *runs(sqs, posterior, temperature), PAIRS
    if components not in (PEER_COMPONENTS if _on_cpu() else PEER_COMPONENTS[:1]):
        return
    leaf = posterior["kernel"]
    fields = {name: getattr(leaf, name) for name in _FIELDS}
    fields |= {name: fields[name][0] for name in _FIELDS[2:]}  # of the single window
    yield "JAX, [N, K]", 1.0, *dense_runs(fields, 1.0), PEER_PAIRS
    if importlib.util.find_spec("torch") is not None:
        from benchmarks import torch_layer

        yield "PyTorch", 1.0, *torch_layer.runs(fields, 1.0), PEER_PAIRS


def runs(sqs: sqs_jax.Transform, posterior: Any, temperature: float) -> tuple[Run, Run]:
    """Return runs of the transform's `mean`: forward, and forward and backward.

    The gradients are those of loc, gate logits and means.

    Args:
        sqs: Transform of the benchmark.
        posterior: Posterior of a tensor at the path "kernel".
        temperature: Softmax temperature of the responsibilities; positive scalar.

    Returns:
        Pair of runs.
    """

    def mean(trained: Any, fixed: Any, at: jax.Array) -> jax.Array:
        return sqs.mean(sqs_jax.combine(trained, fixed), temperature=at)["kernel"]

    parts = sqs_jax.partition(posterior, train=("loc", "gate", "means"))
    return _runs(mean, *parts, jnp.float32(temperature))


def dense_runs(fields: dict[str, jax.Array], temperature: float) -> tuple[Run, Run]:
    """Return the runs of `runs`, for a dense softmax over [N, K]."""

    def mean(trained: Any, fixed: Any, at: jax.Array) -> jax.Array:
        return dense_softmax.mean(**trained, **fixed, temperature=at)

    trained, fixed = ({name: fields[name] for name in part} for part in (_FIELDS[:3], _FIELDS[3:]))
    return _runs(mean, trained, fixed, jnp.float32(temperature))


def _runs(mean: Callable[..., jax.Array], trained: Any, fixed: Any, at: Any) -> tuple[Run, Run]:
    def both(trained: Any, fixed: Any, at: jax.Array, cotangent: jax.Array) -> Any:
        weights, pull = jax.vjp(lambda part: mean(part, fixed, at), trained)
        return weights, pull(cotangent)

    cotangent = jax.eval_shape(mean, trained, fixed, at)
    return (
        calls(jax.jit(mean), trained, fixed, at),
        calls(jax.jit(both), trained, fixed, at, jnp.ones(cotangent.shape, cotangent.dtype)),
    )


def measure(side: int, forward: Run, both: Run, pairs: int) -> dict[str, dict[str, float]]:
    """Compare both runs with the multiply-add pass."""
    x = jnp.ones((side, side))
    one_pass = calls(jax.jit(lambda x, a, b: x * a + b), x, jnp.float32(2), jnp.float32(1))

    def timed(run: Run) -> Comparison:
        return compare(one_pass, run, pairs=pairs, least_seconds=least_seconds())

    return {"forward": timed(forward)._asdict(), "both": timed(both)._asdict()}


def bandwidth() -> float:
    """Return the bandwidth of a copy, bytes read and written per second."""
    # XLA may elide a plain copy, so that this is a negation, into a donated buffer.
    negate = jax.jit(lambda source, _: -source, donate_argnums=1, keep_unused=True)
    source, target = jnp.ones(_COPIED), jnp.ones(_COPIED)

    def copy(count: int) -> None:
        nonlocal target
        for _ in range(count):
            target = negate(source, target)
        jax.block_until_ready(target)

    timing = compare(copy, copy, pairs=PAIRS, least_seconds=least_seconds())
    return 2 * 4 * _COPIED / timing.seconds


def _bars(row: dict[str, Any], before: list[dict[str, Any]]) -> dict[str, float]:
    """Return the bars of a row on this backend; empty without bars."""
    if row["way"] != ("table" if _on_cpu() else "loop"):
        return {}
    if not _on_cpu():
        share = _BANDWIDTH.get(row["components"])
        return {} if share is None else {"of_bandwidth": share}
    if row["components"] == 16:
        return dict(_PASSES)
    same = ("way", "temperature")
    for at_16 in before:
        if at_16["components"] == 16 and all(at_16[name] == row[name] for name in same):
            return {name: _GROWTH * at_16[name]["ratio"] for name in _PASSES}
    return {}


def _line(row: dict[str, Any]) -> str:
    forward, both, bars = row["forward"], row["both"], row["bars"]
    return (
        f"{row['way']:>14} {row['components']:>3} {row['temperature']:>11g} "
        f"{1e3 * forward['seconds']:>8.2f} {judged(forward['ratio'], bars.get('forward'))}"
        f"{judged(row['of_bandwidth'], bars.get('of_bandwidth'), at_least=True)}  "
        f"{1e3 * both['seconds']:>8.2f} {judged(both['ratio'], bars.get('both'))}"
    )


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"
