"""Stages of a network, run sequentially, so that memory holds a single stage."""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from experiments.models.decoder import Decoder, DecoderBlock
from experiments.models.layers import Layers
from experiments.trees import other_collections


class Stage(NamedTuple):
    """A part of a network.

    Attributes:
      names: Names of the stage's params at the top of the tree, in alphabetical order.
      scope: Prefix of the layers' paths in the tree that the paths within the stage lack.
      apply: Function (`values` of {name: params}, inputs) -> outputs; equal for stages that share
        a program.
    """

    names: tuple[str, ...]
    scope: str
    apply: Callable[[Any, jax.Array], Any]


def stages_of(model: nn.Module, variables: Any) -> list[Stage]:
    """List the stages of a network, from examples to logits.

    Args:
      model: Network. A decoder has a stage per block; any other network is a single stage.
      variables: Variables of the network; only names of params and the other collections are used.
    """
    if not isinstance(model, Decoder):
        state = other_collections(variables)

        names = tuple(sorted(variables["params"]))

        def whole(params: Any, x: jax.Array) -> Any:
            return model.apply({"params": dict(zip(names, params, strict=True)), **state}, x)

        return [Stage(names, "", whole)]
    block = _Block(DecoderBlock(model.config, Layers(model.rule, model.dtype)))
    blocks = [Stage((f"layers_{i}",), f"layers_{i}/", block) for i in range(model.config.layers)]
    first, last = ("embed_tokens",), ("embed_tokens" if model.config.tied else "lm_head", "norm")
    return [
        Stage(first, "", _Part(model, "embed", first)),
        *blocks,
        Stage(last, "", _Part(model, "head", last)),
    ]


def values(params: Any) -> list[Any]:
    """List the params of a stage without names, so that all blocks share a program."""
    return [params[name] for name in sorted(params)]


@dataclasses.dataclass(frozen=True)
class _Block:
    """Function that applies a block; equal for all blocks, which share a program."""

    block: DecoderBlock

    def __call__(self, params: Any, x: jax.Array) -> Any:
        (weights,) = params
        return self.block.apply({"params": weights}, x)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Function that applies a method of the model."""

    model: Decoder
    method: str
    names: tuple[str, ...]

    def __call__(self, params: Any, x: jax.Array) -> Any:
        named = dict(zip(self.names, params, strict=True))
        return self.model.apply({"params": named}, x, method=self.method)


@partial(jax.jit, static_argnums=0)
def run(apply: Callable[[Any, jax.Array], Any], params: list[Any], x: jax.Array) -> Any:
    """Apply a stage to the `values` of its params, compiled."""
    return apply(params, x)


def outputs(stage: Stage, params: list[Any], batches: Iterable[Any]) -> list[Any]:
    """Apply a stage to batches, and copy the outputs to the host."""
    return [np.asarray(run(stage.apply, params, x)) for x in batches]


def read(params: Any, stage: Stage) -> Any:
    """Read the params of a stage, which may be lazy, as numpy arrays."""
    return jax.tree.map(np.asarray, {name: params[name] for name in stage.names})
