"""A network of equal layers, so that one tensor is a small part of it; for memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import training
from benchmarks.footprint import Setting

_BATCH = 8
_COMPONENTS = 16


class EqualLayers(nn.Module):
    """Square layers without biases, tanh between them."""

    width: int
    layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, width] to logits [B, width]."""
        for i in range(self.layers):
            x = nn.Dense(self.width, use_bias=False, name=f"layer_{i}")(jnp.tanh(x))
        return x


class Way(NamedTuple):
    """A way to train it.

    Attributes:
      setting: what the model of the memory says of it.
      step: the jitted training step.
      state: makes the state to start from.
      bar: bytes per weight that it may take more than dense training; None if there is none.
    """

    setting: Setting
    step: Any
    state: Callable[[], training.State]
    bar: float | None = None


def problem(width: int, layers: int) -> training.Problem:
    """Return the network and a small batch."""
    inputs = jax.random.normal(jax.random.key(1), (_BATCH, width))
    labels = jax.random.randint(jax.random.key(2), (_BATCH,), 0, width)
    return training.Problem("equal layers", EqualLayers(width, layers), inputs, labels)


def ways(problem: training.Problem) -> dict[str, Way]:
    """Return the ways to train it, by name."""
    frozen = tuple(name for name in training.TRAIN["mean"] if name != "loc")
    half = {"gate_dtype": jnp.bfloat16}
    return {
        "dense": Way(
            Setting("dense"),
            training.dense_step(problem),
            lambda: training.dense_state(problem),
        ),
        "mean": _way(problem, Setting("mean"), bar=21),
        "mean, θ frozen": _way(problem, Setting("mean", train_loc=False), frozen),
        "sample": _way(problem, Setting("sample")),
        "mode, float32 gates": _way(problem, Setting("mode", train_gates=False)),
        "mode": _way(problem, Setting("mode", gate_bytes=2, train_gates=False), bar=7, **half),
        "mode, float8 gates": _way(
            problem,
            Setting("mode", gate_bytes=1, train_gates=False),
            bar=7,
            gate_dtype=jnp.float8_e4m3fn,
        ),
    }


def _way(
    problem: training.Problem,
    setting: Setting,
    train: tuple[str, ...] = (),
    bar: float | None = None,
    **options: Any,
) -> Way:
    sqs = training.transform(_COMPONENTS, **options)
    return Way(
        setting,
        training.sqs_step(problem, sqs, setting.estimator, train),
        lambda: training.sqs_state(problem, sqs, setting.estimator, train),
        bar,
    )
