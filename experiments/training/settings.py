"""Settings with which nothing can be trained, all of them named before anything runs."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from experiments.comparison.post_training import PEERS

_COUNTS = ("batch_size", "accumulate", "checkpoint_every", "sqs.prune_every")
_POSITIVE = (
    "sqs.temperature_start", "sqs.temperature_end", "sqs.relaxation", "sqs.distill_temperature",
    "evaluation.temperature", "evaluation.average_temperature", "dense.epochs", "sqs.epochs",
)  # fmt: skip
_NOT_NEGATIVE = (
    "dense.learning_rate", "dense.weight_decay", "sqs.weight_decay", "sqs.kl_weight",
    "sqs.rate_weight", "sqs.reestimate", "sqs.target_bytes", "sqs.generated",
    "evaluation.average_samples",
    *(f"sqs.learning_rate.{label}" for label in ("loc", "gate", "means", "spread", "dense")),
)  # fmt: skip
_BELOW_ONE = ("dense.warmup", "sqs.warmup", "sqs.sparsity")
_CHOICES = {
    "dense.optimizer": ("adamw", "sgd"),
    "sqs.method": ("spike_slab", "dgms", "codeq", "codeq_mixed"),
    "sqs.estimator": ("mean", "sample", "mode"),
    "sqs.saliency": ("magnitude", "gate", "activation"),
    "sqs.sensitivity": ("scale", "fisher"),
    "sqs.start": ("weights", "calibration", *PEERS),
    "sqs.scope": ("global", "tensor"),
}


def require_trainable(config: Any, num_train: int) -> None:
    """Refuse settings that are out of their range or contradict each other.

    Args:
      config: an experiment, see experiments/configs/base.py.
      num_train: number of training examples.

    Raises:
      ValueError: listing all of them, each with the way out.
    """
    problems = [*_out_of_range(config), *_contradictions(config, num_train)]
    if problems:
        raise ValueError("This cannot be trained:\n  " + "\n  ".join(problems))


def _out_of_range(config: Any) -> Iterator[str]:
    values = flatten_dict(config.to_dict(), sep=".")
    for fields, fits, wanted in (
        (_COUNTS, lambda x: x >= 1, "be at least 1"),
        (_POSITIVE, lambda x: x > 0, "be positive"),
        (_NOT_NEGATIVE, lambda x: x >= 0, "not be negative"),
        (_BELOW_ONE, lambda x: 0 <= x < 1, "lie in [0, 1)"),
        (("sqs.distill_weight",), lambda x: 0 <= x <= 1, "lie in [0, 1]"),
    ):
        for field in fields:
            if not fits(values[field]):
                yield f"config.{field} is {values[field]}; it must {wanted}."
    for field, choices in _CHOICES.items():
        if values[field] not in choices:
            names = ", ".join(map(repr, choices))
            yield f"config.{field} is {values[field]!r}; it must be one of {names}."
    dtype = values["sqs.dense_dtype"]
    try:
        floating = not dtype or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        yield (
            f"config.sqs.dense_dtype is {dtype!r}; it must be a floating dtype, such as 'float16' "
            "or 'bfloat16', or empty: exact."
        )


def _contradictions(config: Any, num_train: int) -> Iterator[str]:
    sqs = config.sqs
    if config.batch_size > num_train:
        yield f"config.batch_size is {config.batch_size}, but there are {num_train} examples."
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
            "or quantises what starts at the 'weights': give that, or the order 'together'."
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
    if sqs.method != "spike_slab" and (
        sqs.estimator != "mean"
        or sqs.target_bytes
        or sqs.order != "together"
        or sqs.mistakes
        or sqs.saliency != "magnitude"
        or sqs.rate_weight
        or not sqs.learning_rate.spread
    ):
        yield (
            f"config.sqs.method is {sqs.method!r}, which trains by estimator 'mean' and learns "
            f"what it prunes; config.sqs.estimator is {sqs.estimator!r}, target_bytes "
            f"{sqs.target_bytes}, order {sqs.order!r}, mistakes {tuple(sqs.mistakes)}, saliency "
            f"{sqs.saliency!r}, rate_weight {sqs.rate_weight}, learning_rate.spread "
            f"{sqs.learning_rate.spread}: use 'mean', 0, 'together', none, 'magnitude', 0 and a "
            "positive rate."
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
