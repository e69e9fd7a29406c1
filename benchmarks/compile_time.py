"""Time to trace and compile the gradients of a model of many tensors, seconds.

The model has the 57 matrices of a small Llama, 9.1 M weights, K = 16. Compilation runs without a
cache, in this process alone.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import training
from benchmarks.timing import judged

_LAYERS, _WIDTH, _HIDDEN, _VOCABULARY = 8, 288, 768, 4000
_MATRICES = {
    ("query", "key", "value", "output"): (_WIDTH, _WIDTH),
    ("gate", "up"): (_WIDTH, _HIDDEN),
    ("down",): (_HIDDEN, _WIDTH),
}
_COMPONENTS = 16
_BARS = {"mean": 25.0, "mode": 20.0}  # seconds on two CPU cores


def run(workdir: Path, data: Path) -> dict[str, Any]:
    """Print the seconds of the gradient of `mean` and `mode`, each with its KL; return them."""
    sqs = training.transform(_COMPONENTS)
    posterior = training.start(sqs, llama_weights())
    count = sum(leaf.size for leaf in jax.tree.leaves(llama_weights()))
    print(f"{len(jax.tree.leaves(llama_weights()))} tensors, {count:,} weights, K = {_COMPONENTS}")
    print(f"{'gradient of':>16} {'trace':>8} {'compile':>8} {'total':>8} {'bar':>8}")
    rows: list[dict[str, Any]] = []
    functions = {"mean": sqs.mean_and_kl, "mode": sqs.mode_and_kl}
    for name, weights_and_kl in functions.items():
        trace, compile_ = seconds(gradient(weights_and_kl), posterior)
        total, bar = trace + compile_, _BARS[name]
        rows.append({"gradient_of": name, "trace": trace, "compile": compile_, "bar": bar})
        print(
            f"{name + ' + KL':>16} {trace:>8.1f} {compile_:>8.1f} {judged(total, bar)}", flush=True
        )
    return {"weights": count, "rows": rows}


def llama_weights() -> dict[str, jax.Array]:
    """Return random weights in the shapes of a small Llama."""
    shapes = {"embedding/kernel": (_VOCABULARY, _WIDTH)}
    for layer in range(_LAYERS):
        for names, shape in _MATRICES.items():
            shapes |= {f"layer_{layer}/{name}/kernel": shape for name in names}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: 0.02 * jax.random.t(key, 5.0, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def gradient(weights_and_kl: Callable[..., Any] | None) -> Callable[[Any], Any]:
    """Return the gradient of a function of the weights plus their KL."""
    assert weights_and_kl is not None

    def loss(posterior: Any) -> jax.Array:
        weights, kl = weights_and_kl(posterior)
        return sum(jnp.sum(jnp.sin(w)) for w in jax.tree.leaves(weights)) + kl

    return jax.grad(loss, allow_int=True)


def seconds(function: Callable[[Any], Any], posterior: Any) -> tuple[float, float]:
    """Return the seconds to trace and lower a function, and to compile it."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(function).lower(posterior)
    traced = time.perf_counter()
    lowered.compile()
    return traced - start, time.perf_counter() - traced
