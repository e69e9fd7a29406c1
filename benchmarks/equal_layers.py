"""Network of many equal layers, for measurements of memory."""

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
    """Square layers without biases, with tanh between layers.

    Attributes:
        width: Inputs and outputs of each layer.
        layers: Number of layers. With many layers, a tensor is a small share of the weights.
    """

    width: int
    layers: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, width] to logits [B, width]."""
        for i in range(self.layers):
            x = nn.Dense(self.width, use_bias=False, name=f"layer_{i}")(jnp.tanh(x))
        return x


class Training(NamedTuple):
    """Training of the network in a setting of the memory model.

    Attributes:
        setting: Setting of the memory model.
        step: Jitted training step.
        state: Function that returns the initial state.
        bar: Bound of the bytes per weight above dense training, or None.
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


def trainings(problem: training.Problem) -> dict[str, Training]:
    """Return the trainings of a network, by name."""
    frozen = tuple(name for name in training.TRAIN["mean"] if name != "loc")
    half = {"gate_dtype": jnp.bfloat16}
    return {
        "dense": Training(
            Setting("dense"),
            training.dense_step(problem),
            lambda: training.dense_state(problem),
        ),
        "mean": _training(problem, Setting("mean"), bar=21),
        "mean, θ frozen": _training(problem, Setting("mean", train_loc=False), frozen),
        "sample": _training(problem, Setting("sample")),
        "mode, float32 gates": _training(problem, Setting("mode", train_gates=False)),
        "mode": _training(problem, Setting("mode", gate_bytes=2, train_gates=False), bar=7, **half),
        "mode, float8 gates": _training(
            problem,
            Setting("mode", gate_bytes=1, train_gates=False),
            bar=7,
            gate_dtype=jnp.float8_e4m3fn,
        ),
    }


def _training(
    problem: training.Problem,
    setting: Setting,
    train: tuple[str, ...] = (),
    bar: float | None = None,
    **options: Any,
) -> Training:
    sqs = training.transform(_COMPONENTS, **options)
    return Training(
        setting,
        training.sqs_step(problem, sqs, setting.estimator, train),
        lambda: training.sqs_state(problem, sqs, setting.estimator, train),
        bar,
    )
