"""Bayesian averages of K-level draws: accuracy, likelihood and calibration."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sqs_jax
from experiments.data import Dataset
from experiments.data.corruptions import CORRUPTIONS, corrupt
from experiments.evaluate import probabilities
from experiments.export import as_stored, codes_of, deployed, shipped
from experiments.scores import calibration, judge, metrics
from experiments.training.layout import fetch
from experiments.training.run import Trained
from sqs_jax.progress import track

CLEAN = "clean"


def counts(largest: int) -> list[int]:
    """Return the powers of two up to `largest`, and `largest`."""
    return sorted({2**i for i in range(largest.bit_length())} | {largest})


def study(
    trained: Trained, config: Any, samples: int, temperatures: list[float], images: int, seed: int
) -> dict[str, Any]:
    """Measure the deployed network and averages of draws.

    Args:
      trained: Finished training.
      config: Config of the run.
      samples: Largest number of networks to average.
      temperatures: Temperatures of the draws, positive.
      images: Number of held-out images; 0 for all.
      seed: Seed of the draws and of the noise.

    Returns:
      "rows", with network, temperature, passes, bytes, condition and metrics; and "reliability",
      [confidence, accuracy, share] of each bin on the clean images, by network.

    Raises:
      ValueError: If the posterior of the run has no draws.
    """
    model, splits, phase, state = trained.model, trained.splits, trained.phase, trained.state
    holdout = splits.holdout
    if images:
        holdout = holdout._replace(
            examples=holdout.examples[:images], labels=holdout.labels[:images]
        )
    conditions = {CLEAN: holdout}
    conditions |= {name: corrupt(holdout, name, seed) for name in CORRUPTIONS}
    model_state = fetch(state.model_state)
    compressed = fetch(phase.transform.compress(state.posterior))
    draw = phase.transform.sample
    if draw is None:
        raise ValueError(
            "This run has nothing to draw from: codes that stay, and DGMS, have one network each."
        )
    rows: list[dict[str, Any]] = []
    reliability: dict[str, Any] = {}

    def add(network: str, passes: int, size: int, predictions: dict[str, Any], **more: Any) -> None:
        judged = {
            name: judge(probability, conditions[name].labels)
            for name, probability in predictions.items()
        }
        for condition, judgement in judged.items():
            row = {"network": network, "passes": passes, "bytes": size, "condition": condition}
            rows.append({**row, **more, **metrics(judgement)})
        reliability[f"{network}, M = {passes}"] = calibration(judged[CLEAN])

    def predicted(variables: Any, dataset: Dataset) -> np.ndarray:
        return np.concatenate([batch for _, batch in probabilities(model, variables, dataset)])

    def size_of(tree: Any) -> int:
        return sqs_jax.summarize(tree, **options).file_bytes

    tree, options = shipped(compressed, model_state, config)
    mode = deployed(phase, state, config)
    predictions = {name: predicted(mode, dataset) for name, dataset in conditions.items()}
    add("mode", 1, size_of(tree), predictions, temperature=0.0)
    sample = jax.jit(lambda key, t: draw(state.posterior, key, temperature=t, hard=True))
    sizes = counts(samples)
    for temperature in temperatures:
        network, drawn = f"averaged at {temperature:g}", []
        total: dict[str, Any] = dict.fromkeys(conditions, 0.0)
        for i in track(range(samples), network, keep=True):
            key = jax.random.fold_in(jax.random.key(seed), i)
            drawn.append(codes_of(fetch(sample(key, jnp.float32(temperature))), compressed))
            weights = sqs_jax.materialize(drawn[-1])
            variables = as_stored({"params": weights, **model_state}, options["dense_dtype"])
            for name, dataset in conditions.items():
                total[name] = total[name] + predicted(variables, dataset)
            if i + 1 in sizes:
                mean = {name: summed / (i + 1) for name, summed in total.items()}
                size = size_of({"draws": drawn, **model_state})
                add(network, i + 1, size, mean, temperature=temperature)
    return {"rows": rows, "reliability": reliability}
