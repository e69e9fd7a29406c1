"""Time of a training step over that of the dense step, by estimator and K."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import training
from benchmarks.models import Decoder, ResNet
from benchmarks.timing import compare, judged, least_seconds

PAIRS = 21
COMPONENTS = (16, 64)


class Case(NamedTuple):
    """Network with bars for the time of a step.

    Attributes:
        problem: Network and batch.
        bars: Largest ratio of the SQS step to the dense step, by (estimator, K).
        stacked: Whether layers are stacked.
    """

    problem: training.Problem
    bars: dict[tuple[str, int], float]
    stacked: bool = False


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Print and return a row per network, estimator and K."""
    rows = []
    print(f"median and quartiles of the ratios of {PAIRS} pairs of steps; Adam, KL included")
    print(f"{'network':>30} {'estimator':>9} {'K':>3} {'dense ms':>9} {'SQS ms':>9} "
          f"{'ratio':>7} {'bar':>7}    quartiles")  # fmt: skip
    for case in cases():
        # One network at a time, because of the memory of large networks.
        dense = training.steps(
            training.dense_step(case.problem), training.dense_state(case.problem), case.problem
        )
        for estimator in training.TRAIN:
            for components in COMPONENTS:
                rows.append(measure(case, dense, estimator, components, pairs=PAIRS))
                print(_line(rows[-1]), flush=True)
    return rows


def cases() -> list[Case]:
    """Return the networks of this backend; on CPUs, small networks."""
    on_cpu = jax.default_backend() == "cpu"
    return [decoder(), resnet20()] if on_cpu else [resnet18(), llama()]


def measure(
    case: Case, dense: training.Run, estimator: str, components: int, *, pairs: int
) -> dict[str, Any]:
    """Compare the SQS step with the dense step; return a row."""
    sqs = training.transform(components, stacked=case.stacked)
    state = training.sqs_state(case.problem, sqs, estimator)
    step = training.steps(training.sqs_step(case.problem, sqs, estimator), state, case.problem)
    timing = compare(dense, step, pairs=pairs, least_seconds=least_seconds())
    return {
        "network": case.problem.name,
        "estimator": estimator,
        "components": components,
        "bar": case.bars.get((estimator, components)),
        **timing._asdict(),
    }


def decoder() -> Case:
    """Return a decoder of 6.2 M weights, nearly all compressed, with 8 x 256 tokens."""
    model = Decoder(vocabulary=4096, width=256, layers=6, heads=4, kv_heads=4, hidden=768)
    bars = {("mean", 16): 1.25, ("mean", 64): 1.30, ("mode", 16): 1.15, ("mode", 64): 1.15}
    return Case(_text("Transformer, 2,048 tokens", model, 8, 256), bars)


def llama() -> Case:
    """Return a decoder of 1.0e9 weights in bfloat16 arithmetic, with 4 x 2,048 tokens.

    Shapes are those of Llama 3.2 1B, except for the vocabulary.
    """
    model = Decoder(
        vocabulary=32_768, width=2048, layers=16, heads=32, kv_heads=8, hidden=8192,
        dtype=jnp.bfloat16, scan=True,
        attention="cudnn" if jax.default_backend() == "gpu" else None,
    )  # fmt: skip
    return Case(_text("Llama, 1e9, 8,192 tokens", model, 4, 2048), _accelerator(), stacked=True)


def resnet20() -> Case:
    """Return ResNet-20, 0.27 M weights, with 128 images."""
    model = ResNet(widths=(16, 32, 64), blocks=3)
    bars = {(estimator, k): 1.10 for estimator in training.TRAIN for k in COMPONENTS}
    return Case(_images("ResNet-20, 128 images", model, 128), bars)


def resnet18() -> Case:
    """Return ResNet-18, 11 M weights in bfloat16 arithmetic, with 256 images."""
    model = ResNet(widths=(64, 128, 256, 512), blocks=2, dtype=jnp.bfloat16)
    return Case(_images("ResNet-18, 256 images", model, 256), _accelerator())


def _accelerator() -> dict[tuple[str, int], float]:
    both = {"mean": 1.15, "mode": 1.08}
    return {(estimator, k): bar for estimator, bar in both.items() for k in COMPONENTS}


def _text(name: str, model: Decoder, batch: int, length: int) -> training.Problem:
    tokens = jax.random.randint(jax.random.key(1), (batch, length + 1), 0, model.vocabulary)
    return training.Problem(name, model, tokens[:, :-1], tokens[:, 1:])


def _images(name: str, model: ResNet, batch: int) -> training.Problem:
    images = jax.random.normal(jax.random.key(1), (batch, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(2), (batch,), 0, model.classes)
    return training.Problem(name, model, images, labels)


def _line(row: dict[str, Any]) -> str:
    dense, seconds = 1e3 * row["base_seconds"], 1e3 * row["seconds"]
    return (
        f"{row['network']:>30} {row['estimator']:>9} {row['components']:>3} {dense:>9.1f} "
        f"{seconds:>9.1f} {judged(row['ratio'], row['bar'])}  "
        f"{row['lower']:.2f} to {row['upper']:.2f}"
    )
