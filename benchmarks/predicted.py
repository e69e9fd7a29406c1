"""Accuracy of `sqs_jax.predicted_loss` for compression without data.

Four networks at eight ratios: the published ResNet-20 and ResNet-56 (all test images of CIFAR-10),
stories260K (perplexity), and the encoder all-MiniLM-L6-v2 (sentences of SST-2). DATA/minilm is the
encoder's Hugging Face folder. The bar of a network is the largest acceptable loss.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import sqs_jax
from benchmarks.networks import load_network
from experiments.data.text import read_sentences
from experiments.importers import language_model
from experiments.importers.huggingface import encoder_config
from experiments.models.encoder import Blocks, Embeddings, EncoderConfig
from experiments.models.layers import Layers

_WARNING = 0.08  # above this predicted loss `sqs compress` warns
_RATIOS = (4, 6, 8, 10, 12, 16, 20, 24)
_IMAGES = 10_000
_SENTENCES, _LENGTH = 256, 64  # sentences of SST-2's dev part; tokens per sentence
_MARKS = {"cifar10_resnet20": "o", "cifar10_resnet56": "s", "stories260K": "^", "MiniLM-L6": "D"}


class Case(NamedTuple):
    """Network with a measure of loss.

    Attributes:
        weights: Tree of weights.
        loss: Function from compressed weights to the loss, in `unit`.
        unit: Unit of the loss.
        bar: Largest acceptable loss.
    """

    weights: Any
    loss: Callable[[Any], float]
    unit: str
    bar: float


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Print a row per network and ratio, and draw predicted_loss.svg."""
    rows: list[dict[str, Any]] = []
    print(f"{'network':>17} {'ratio':>5} {'predicted':>9} {'measured':>9}  unit, its bar")
    for name in _MARKS:
        case = _load(name, data)
        for ratio in _RATIOS:
            compressed = sqs_jax.compress_to_budget(case.weights, target_ratio=ratio)
            predicted = sqs_jax.predicted_loss(case.weights, compressed)
            measured = case.loss(sqs_jax.materialize(compressed))
            verdict = _verdict(predicted, measured, case.bar)
            rows.append({"network": name, "ratio": ratio, "predicted": predicted,
                         "measured": measured, "bar": case.bar, "verdict": verdict})  # fmt: skip
            print(f"{name:>17} {ratio:>5} {predicted:>9.4f} {measured:>9.4f}  {case.unit}, "
                  f"{case.bar:g}{f'  ({verdict})' if verdict else ''}", flush=True)  # fmt: skip
    _draw(rows, workdir / "predicted_loss.svg")
    print(f"figure: {workdir / 'predicted_loss.svg'}")
    return rows


def _verdict(predicted: float, measured: float, bar: float) -> str:
    if (predicted > _WARNING) == (measured > bar):
        return ""
    return "a warning for nothing" if predicted > _WARNING else "no warning"


def _load(name: str, data: Path) -> Case:
    if name == "MiniLM-L6":
        return _load_encoder(data)
    network = load_network(name, data, images=_IMAGES)
    dense = network.quality(network.weights)
    if network.quality_name == "accuracy":
        return Case(network.weights, lambda w: 100 * (dense - network.quality(w)), "points", 1.0)
    return Case(
        network.weights,
        lambda w: 100 * math.expm1(network.quality(w) - dense),
        "% of perplexity",
        5.0,
    )


class _Sentences(nn.Module):
    """Unit vectors of sentences: normalized means of the last block's outputs."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        layers, real = Layers(None, jnp.float32), tokens != self.config.padding
        x = Embeddings(self.config, layers, name="embeddings")(tokens)
        x = Blocks(self.config, layers, False, False, name="encoder")(x, real)
        mean = jnp.sum(x, axis=1, where=real[..., None]) / real.sum(1, keepdims=True)
        return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def _load_encoder(data: Path) -> Case:
    from tokenizers import Tokenizer  # extra llm

    source = language_model.open_language_model(data / "minilm")
    tokenizer = Tokenizer.from_file(str(data / "minilm" / "tokenizer.json"))
    tokenizer.enable_truncation(_LENGTH)
    tokenizer.enable_padding(length=_LENGTH)
    sentences, _ = read_sentences(data / "sst2_dev.tsv")
    encoded = tokenizer.encode_batch(sentences[:_SENTENCES])
    tokens = np.asarray([encoding.ids for encoding in encoded], np.int32)
    separator: Any = tokenizer.token_to_id("[SEP]")
    model = _Sentences(encoder_config(source.config, separator))

    def init() -> Any:
        return model.init(jax.random.key(0), tokens[:1])

    weights = language_model.weights_of(source, jax.eval_shape(init)["params"], fresh=init)
    weights = jax.tree.map(np.asarray, weights)
    embed = jax.jit(lambda params: model.apply({"params": params}, tokens))
    dense = np.asarray(embed(weights))

    def loss(params: Any) -> float:
        return float(np.mean(1 - np.sum(dense * np.asarray(embed(params)), -1)))

    return Case(weights, loss, "1 - cosine", 0.02)


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot measured losses over the bars against predicted losses, on log axes."""
    with matplotlib.rc_context({"font.size": 11, "svg.hashsalt": "sqs_jax"}):
        figure = Figure((7.5, 4.6), layout="constrained")
        axes = figure.subplots()
        for name, mark in _MARKS.items():
            points = [row for row in rows if row["network"] == name]
            floor = 0.01  # smaller losses are noise
            axes.plot([row["predicted"] for row in points],
                      [max(row["measured"] / row["bar"], floor) for row in points],
                      mark + "-", label=name, lw=1, ms=5)  # fmt: skip
        axes.axvline(_WARNING, color="#5f6873", lw=1, ls="--")
        axes.axhline(1, color="#5f6873", lw=1, ls="--")
        axes.set(xscale="log", yscale="log", xlabel="predicted loss",
                 ylabel="measured loss / the network's bar")  # fmt: skip
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})
