"""Tensors of one shape, stacked, so that one program serves them all.

A program per tensor is compiled for minutes where a model has many of them. Tensors are stacked
along a new axis: one that is spread over devices stays where it is.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution.mixture import Mixture

# By so many nats a component that only fills up is less probable than the first one, everywhere.
_NEVER = 200.0


def alike(
    locs: Sequence[jax.Array], mixtures: Sequence[Mixture], others: Sequence[Hashable]
) -> list[list[int]]:
    """Group the numbers of tensors of one shape, whose mixtures may differ in K.

    Args:
      locs, mixtures: of the tensors.
      others: what else must be equal.
    """
    groups: dict[Any, list[int]] = {}
    for i, (loc, mixture, other) in enumerate(zip(locs, mixtures, others, strict=True)):
        *stacked, windows, components = mixture.means.shape
        # a code counts K for each window, and takes one byte or two
        fixed = components if windows > 1 else components <= 255
        key = loc.shape, loc.dtype, mixture.means.dtype, (*stacked, windows), fixed, other
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def stack(trees: Sequence[Any]) -> Any:
    """Stack trees of arrays of equal shapes along a new first axis."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def widen(mixture: Mixture, components: int) -> Mixture:
    """Add components that are never chosen, for K in all."""
    room = components - mixture.means.shape[-1]
    logits = mixture.mixture_logits
    never = jnp.repeat(logits[..., :1] - _NEVER, room, axis=-1)
    return mixture._replace(
        means=widen_values(mixture.means, components),
        log_scales=widen_values(mixture.log_scales, components),
        mixture_logits=jnp.concatenate([logits, never], axis=-1),
    )


def widen_values(values: jax.Array, components: int) -> jax.Array:
    """Repeat the first component's value along the last axis, for K in all."""
    more = jnp.repeat(values[..., :1], components - values.shape[-1], axis=-1)
    return jnp.concatenate([values, more], axis=-1)
