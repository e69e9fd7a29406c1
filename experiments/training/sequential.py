"""Sequential pruning and quantization, for comparison with simultaneous compression."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import sqs_jax
from experiments.configs.sqs_fields import ORDERS
from experiments.training.phases import MaskSchedule, Phase
from experiments.trees import map_leaves


def in_order(phase: Phase, order: str) -> list[Phase]:
    """List the phases of a compression, in their order.

    Each phase starts from the posterior of the previous phase. The order "together" has one phase.
    The other orders have two phases of half the steps each:

    - "prune_first" trains float weights under the mask. The second phase starts codebooks at the
      survivors and keeps the mask.
    - "quantise_first" trains without pruning. The second phase prunes and keeps every latent
      weight, and therefore the code of every survivor.

    Args:
      phase: Phase of the simultaneous compression, with a mask.
      order: Order, one of ORDERS.

    Raises:
      ValueError: The order is unknown, or the estimator of a sequential order is not "mode".
    """
    if order not in ORDERS:
        raise ValueError(f"config.sqs.order is {order!r}; it must be one of {ORDERS}.")
    if order == "together":
        return [phase]
    if phase.estimator != "mode":
        raise ValueError(
            f"config.sqs.order is {order!r}, but estimator is {phase.estimator!r}: use 'mode'."
        )
    mask = phase.mask
    assert mask is not None
    half = phase._replace(
        steps=phase.steps // 2,
        warmup=phase.warmup // 2,
        settled={label: step // 2 for label, step in phase.settled.items()},
        temperature=lambda step: phase.temperature(2 * step),
        mask=_halved(mask),
    )
    first = half._replace(name="sqs_first")
    if order == "prune_first":
        target = float(mask.sparsity(mask.freeze))
        once = mask._replace(sparsity=optax.constant_schedule(target), start=0, end=0, freeze=0)
        return [
            first._replace(
                transform=phase.transform._replace(mode=_float_weights),
                mask=_halved(mask)._replace(budget=None, refit=False),
            ),
            half._replace(
                transform=phase.transform._replace(init=_codebooks_of_survivors), mask=once
            ),
        ]
    keep_all = _halved(mask)._replace(sparsity=optax.constant_schedule(0.0), budget=None)
    rates = {label: rate for label, rate in phase.learning_rate.items() if label != "loc"}

    def for_all(params: Any) -> Any:
        return _codebooks_of_survivors(phase.transform.init(params))

    return [
        first._replace(transform=phase.transform._replace(init=for_all), mask=keep_all),
        half._replace(
            transform=phase.transform._replace(init=lambda posterior: posterior),
            learning_rate=rates,
        ),
    ]


def _halved(mask: MaskSchedule) -> MaskSchedule:
    return mask._replace(
        sparsity=lambda step: mask.sparsity(2 * step),
        start=mask.start // 2,
        end=mask.end // 2,
        freeze=mask.freeze // 2,
    )


def _float_weights(posterior: Any) -> Any:
    """Return latent weights under the mask; pruned weights receive a gradient, too."""

    def weights(_: str, leaf: Any) -> Any:
        if not isinstance(leaf, sqs_jax.SubDistribution):
            return leaf
        masked = jnp.where(leaf.kept, leaf.loc, 0)
        return leaf.loc + jax.lax.stop_gradient(masked - leaf.loc)

    return map_leaves(weights, posterior)


def _codebooks_of_survivors(posterior: Any) -> Any:
    """Start every codebook anew at the kept weights."""

    def start(_: str, leaf: Any) -> Any:
        if not isinstance(leaf, sqs_jax.SubDistribution):
            return leaf
        survivors = jnp.asarray(leaf.loc)[jnp.asarray(leaf.kept)]
        fresh = sqs_jax.SubDistribution.init(survivors, components=leaf.means.shape[-1])
        return leaf.replace(**fresh.mixture._asdict())

    return map_leaves(start, posterior)
