"""Perplexity at equal bytes without training: SQS, round-to-nearest and GPTQ.

The network is stories260K. Methods calibrate on the first half of tinystories_cased_a; the
perplexity is that of the second half, in windows of 256 tokens at a stride of 128. `save` writes
all files. A peer has the largest number of levels whose file fits in the budget.
"""

import lzma
import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import sqs_jax
from experiments.calibration.bit_allocation import allocate, compress
from experiments.calibration.blockwise import recode_stages
from experiments.configs import stories260k
from experiments.data import Dataset, text
from experiments.importers import language_model
from experiments.models.decoder import Decoder
from experiments.scores import metrics
from experiments.task.load import described
from experiments.task.prediction import predict, probabilities
from sqs_jax.baselines import gptq, round_to_nearest

_BITS = (6, 5, 4, 3)  # per weight, of the whole file
_GROUP = 32  # inputs per group, or the nearest divisor of their number


class Network(NamedTuple):
    """Language model with its data.

    Attributes:
        model: Decoder.
        params: Weights of the decoder.
        calibration: Token windows for calibration.
        test: Token windows for the perplexity.
        config: Config of the experiment.
    """

    model: Decoder
    params: Any
    calibration: Dataset
    test: Dataset
    config: Any


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Print and return a row for each budget and method."""
    network = load(data)
    dense = _perplexity(network, network.params)
    weights = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    print(f"dense: perplexity {dense:.3f}, {4 * weights:,} bytes in float32")
    head = f"{'bits':>4} {'method':<32} {'bytes':>8} {'perplexity':>10} {'above dense':>11}"
    print(f"{head} {'KL':>8} {'s':>5}")
    methods: dict[str, Callable[[Network, int], Any]] = {
        "ours, allocation alone": partial(_ours, blocks=False),
        "ours": partial(_ours, blocks=True),
        **{
            f"{name}, {'channel' if group is None else f'groups of {group}'}": partial(
                _peer, group=group, feedback=feedback
            )
            for name, feedback in (("round to nearest", False), ("GPTQ", True))
            for group in (None, _GROUP)
        },
    }
    rows = []
    for bits in _BITS:
        budget = bits * weights // 8
        for name, method in methods.items():
            started = time.monotonic()
            compressed = method(network, budget)
            params = sqs_jax.materialize(compressed)
            perplexity = _perplexity(network, params)
            row: dict[str, Any] = {
                "bits": bits,
                "method": name,
                "bytes": file_bytes(compressed),
                "perplexity": perplexity,
                "above_dense": perplexity / dense - 1,
                "divergence": divergence(network, params),
                "seconds": time.monotonic() - started,
            }
            rows.append(row)
            print(
                f"{bits:4} {name:<32} {row['bytes']:8,} {perplexity:10.3f} "
                f"{100 * row['above_dense']:9.2f} % "
                f"{row['divergence']:8.4f} {row['seconds']:5.0f}",
                flush=True,
            )
    return rows


def load(data: Path) -> Network:
    """Read the network and its texts from a folder."""
    config = stories260k.get_config()
    config.model.weights = str(data / "stories260K.bin")
    config = described(config)
    source = language_model.open_language_model(Path(config.model.weights))
    model = Decoder(language_model.huggingface.decoder_config(source.config))
    tokens = np.zeros((1, 1), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    params = jax.tree.map(np.asarray, language_model.weights_of(source, shapes))
    tokenizer = language_model.read_tokenizer(data / "tok512.bin")
    (start,) = tokenizer.encode("").ids
    packed = data / "tinystories_cased_a.txt.xz"
    story = lzma.decompress(packed.read_bytes()).decode()
    half = story.index("\n\n", len(story) // 2)

    def dataset(part: str, stride: int) -> Dataset:
        ids = np.asarray(tokenizer.encode(part, add_special_tokens=False).ids)
        return Dataset(*text.windows(ids, config.data.length, stride, start), None, None)

    first, second = dataset(story[:half], config.data.length), dataset(story[half:], 128)
    return Network(model, params, first, second, config)


def _perplexity(network: Network, params: Any) -> float:
    predictions = predict(network.model, [{"params": params}], network.test)
    return math.exp(metrics(predictions)["nll"])


def divergence(network: Network, params: Any) -> float:
    """Compute KL(dense || compressed) of the next token's distribution, nats per token."""
    parts = [
        probabilities(network.model, {"params": p}, network.test) for p in (network.params, params)
    ]
    total, labeled = 0.0, network.test.labels >= 0
    for (rows, p), (_, q) in zip(*parts, strict=True):
        log_ratio = jnp.log(jnp.maximum(p, 1e-30)) - jnp.log(jnp.maximum(q, 1e-30))
        tokens = jnp.sum(p * log_ratio, -1)
        total += float(np.asarray(tokens)[labeled[rows]].sum())
    return total / network.test.units


def file_bytes(compressed: Any) -> int:
    """Return the size of the file with dense leaves in float16."""
    return sqs_jax.summarize(compressed, dense_dtype="float16").file_bytes


def _ours(network: Network, budget: int, blocks: bool) -> Any:
    config = network.config.copy_and_resolve_references()
    config.sqs.target_bytes = budget
    variables = {"params": network.params}
    with tempfile.TemporaryDirectory() as folder:
        arguments = network.model, variables, network.calibration
        if blocks:
            return compress(*arguments, _batches(network), config, Path(folder))
        return allocate(*arguments, config, Path(folder), budget)


def _peer(network: Network, budget: int, group: int | None, feedback: bool) -> Any:
    """Compress by a peer with the largest number of levels whose file fits."""
    nearest = partial(_nearest, network.params, group)
    low, high = 2, 256  # `low` fits, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if file_bytes(nearest(middle)) <= budget else (low, middle)
    if not feedback:
        return nearest(low)
    for levels in range(low + 1, 1, -1):  # error compensation may add a few bytes
        with tempfile.TemporaryDirectory() as folder:
            compressed = recode_stages(
                network.model,
                {"params": network.params},
                nearest(levels),
                _batches(network),
                Path(folder),
                partial(_gptq, levels, group),
            )
        if file_bytes(compressed) <= budget:
            return compressed
    raise ValueError(f"GPTQ does not fit in {budget} bytes.")


def _nearest(params: Any, group: int | None, levels: int) -> Any:
    def compress_leaf(leaf: np.ndarray) -> Any:
        if leaf.ndim < 2:
            return leaf
        size = group and _divisor(leaf.shape[0], group)
        return round_to_nearest.compress({"_": leaf}, levels=levels, group=size)["_"]

    return jax.tree.map(compress_leaf, params)


def _gptq(levels: int, group: int | None, _: Any, weights: Any, moments: Any) -> Any:
    rows = next(iter(weights.values())).shape[0]
    size = group and _divisor(rows, group)
    return gptq.compress(weights, levels=levels, calibration=moments, group=size)


def _divisor(count: int, target: int) -> int:
    """Return the divisor of a count that is nearest to a target by ratio."""
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    return min(divisors, key=lambda d: abs(math.log(d / target)))


def _batches(network: Network) -> list[np.ndarray]:
    examples = network.calibration.examples
    return [np.asarray(examples[i : i + 16]) for i in range(0, len(examples), 16)]
