"""Validation of a config before any work: values, unused fields, contradictions."""

from collections.abc import Iterator
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from experiments.configs import sqs_fields
from experiments.configs.sqs_fields import (
    BELOW_ONE,
    COUNT,
    COUNT_OR_ZERO,
    NOT_NEGATIVE,
    PEERS,
    POSITIVE,
    one_of,
)

# Constraints of fields outside of config.sqs, whose constraints are in sqs_fields.py.
_CONSTRAINTS = {
    "batch_size": COUNT,
    "accumulate": COUNT,
    "checkpoint_every": COUNT,
    "dense.epochs": POSITIVE,
    "dense.optimizer": one_of("adamw", "sgd"),
    "dense.learning_rate": NOT_NEGATIVE,
    "dense.weight_decay": NOT_NEGATIVE,
    "dense.warmup": BELOW_ONE,
    "evaluation.temperature": POSITIVE,
    "evaluation.average_samples": COUNT_OR_ZERO,
    "evaluation.average_temperature": POSITIVE,
}


def require_trainable(config: Any, num_train: int | None = None) -> None:
    """Raise ValueError if settings are out of range, unused, or contradict each other.

    Args:
      config: Config of an experiment, see experiments/configs/base.py.
      num_train: Number of training examples; None before the data are loaded, which skips the
        check of the batch size.

    Raises:
      ValueError: The message lists every problem with its remedy.
    """
    problems = [*_out_of_range(config), *sqs_fields.problems(config.sqs)]
    has_all = _CONSTRAINTS.keys() <= flatten_dict(config.to_dict(), sep=".").keys()
    if has_all and sqs_fields.is_complete(config.sqs):
        problems += _contradictions(config)
    if num_train is not None and config.batch_size > num_train:
        problems.append(
            f"config.batch_size is {config.batch_size}, but there are {num_train} examples."
        )
    if problems:
        raise ValueError("This cannot be trained:\n  " + "\n  ".join(problems))


def _out_of_range(config: Any) -> Iterator[str]:
    values = flatten_dict(config.to_dict(), sep=".")
    for field, constraint in _CONSTRAINTS.items():
        if field not in values:
            yield f"config.{field} is missing; it must {constraint.requirement}."
        elif not constraint.fits(values[field]):
            yield f"config.{field} is {values[field]!r}; it must {constraint.requirement}."


def _contradictions(config: Any) -> Iterator[str]:
    sqs = config.sqs
    if config.accumulate > 1 and config.batch_size % config.accumulate:
        yield (
            f"config.accumulate is {config.accumulate}, which does not divide config.batch_size, "
            f"{config.batch_size}."
        )
    for name in ("latent_end", "gate_end"):
        if not sqs.warmup < sqs[name] <= 1:
            yield (
                f"config.sqs.warmup and {name} must ascend within [0, 1]; they are {sqs.warmup} "
                f"and {sqs[name]}."
            )
    if not 0 <= sqs.prune_start <= sqs.prune_end <= sqs.prune_freeze <= 1:
        yield (
            "config.sqs.prune_start, prune_end and prune_freeze must ascend within [0, 1]; they "
            f"are {sqs.prune_start}, {sqs.prune_end}, {sqs.prune_freeze}."
        )
    if sqs.saliency == "gate" and sqs.learning_rate.gate == 0:
        yield (
            "config.sqs.saliency is 'gate', but config.sqs.learning_rate.gate is 0: every score "
            "would stay at its start. Train the gates, or use 'magnitude'."
        )
    if sqs.saliency == "gate" and sqs.estimator == "mode":
        yield (
            "config.sqs.saliency is 'gate', but estimator 'mode' never trains gates: every score "
            "would stay at its start. Use 'magnitude', or estimator 'mean'."
        )
    if sqs.target_bytes and (sqs.saliency != "magnitude" or sqs.window_kind != "single"):
        yield (
            "config.sqs.target_bytes chooses K and sparsity per tensor by magnitude, without "
            f"windows; config.sqs.saliency is {sqs.saliency!r} and config.sqs.window_kind is "
            f"{sqs.window_kind!r}: use 'magnitude' and 'single', or target_bytes=0."
        )
    if sqs.start == "calibration" and not sqs.target_bytes:
        yield (
            "config.sqs.start is 'calibration', the codes of a file of config.sqs.target_bytes, "
            "which is 0: give the bytes, or start at the 'weights' (and decide the mask less often "
            "than at every step: config.sqs.prune_every=10)."
        )
    if sqs.start == "calibration" and sqs.order != "together":
        yield (
            f"config.sqs.start is 'calibration' and config.sqs.order {sqs.order!r}, which prunes "
            "or quantizes what starts at the 'weights': give that, or the order 'together'."
        )
    if sqs.start in PEERS and not (
        sqs.target_bytes and sqs.order == "together" and not sqs.learning_rate.loc
    ):
        yield (
            f"config.sqs.start is {sqs.start!r}, a peer whose codes stay, in a file of "
            f"config.sqs.target_bytes, {sqs.target_bytes}; config.sqs.order is {sqs.order!r} and "
            f"learning_rate.loc {sqs.learning_rate.loc}: give the bytes, 'together' and 0."
        )
    for field, asked in (
        ("start", sqs.start != "weights"),
        ("saliency", sqs.saliency == "activation"),
    ):
        if asked and config.calibration.examples < config.batch_size:
            yield (
                f"config.sqs.{field} is {sqs[field]!r}, by config.calibration.examples, "
                f"{config.calibration.examples}: fewer than config.batch_size, {config.batch_size}."
            )
    if sqs.mistakes and sqs.start != "weights":
        yield (
            f"config.sqs.mistakes is {tuple(sqs.mistakes)}, of the published recipe, which starts "
            f"at the weights; config.sqs.start is {sqs.start!r}: use 'weights', or no mistakes."
        )
    if "untrained_scores" in sqs.mistakes and sqs.saliency == "activation":
        yield (
            "config.sqs.mistakes has 'untrained_scores', which takes the place of "
            "config.sqs.saliency, 'activation': use one of them."
        )
    if sqs.generated and config.data.kind != "language":
        yield (
            f"config.sqs.generated is {sqs.generated}, but config.data.kind is "
            f"{config.data.kind!r}; only 'language' models write texts: use 0."
        )
    single = sqs.start != "weights" or sqs.saliency == "activation" or sqs.generated
    if jax.process_count() > 1 and single:
        yield (
            f"config.sqs.start {sqs.start!r}, config.sqs.saliency 'activation' and "
            "config.sqs.generated are for one process, and this is one of "
            f"{jax.process_count()}; use 'weights', 'magnitude' and 0."
        )
