"""A network as stages, run one after the other, so that one of them is in memory at a time."""

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
      names: of its params, at the top of the tree, in order of the alphabet.
      scope: what paths of its layers begin with in the tree, and not within the stage.
      apply: (`values` of {name: params}, inputs) -> outputs; equal for stages that one program
        serves.
    """

    names: tuple[str, ...]
    scope: str
    apply: Callable[[Any, jax.Array], Any]


def stages_of(model: nn.Module, variables: Any) -> list[Stage]:
    """Return the stages of a network, from examples to logits: of a decoder its blocks.

    Args:
      model: the network; one that is no decoder is one stage.
      variables: its variables, of which only the names and what is not params are used.
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
    """List the params of a stage without their names: a program is made once for all blocks."""
    return [params[name] for name in sorted(params)]


@dataclasses.dataclass(frozen=True)
class _Block:
    """Applies a block; equal for all blocks of equal models, so that each program is made once."""

    block: DecoderBlock

    def __call__(self, params: Any, x: jax.Array) -> Any:
        (its,) = params
        return self.block.apply({"params": its}, x)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Applies a method of the model."""

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
    """Apply a stage to the `values` of its params and batches; its outputs come to the host."""
    return [np.asarray(run(stage.apply, params, x)) for x in batches]


def read(params: Any, stage: Stage) -> Any:
    """Read the params of a stage, which may still be in their files."""
    return jax.tree.map(np.asarray, {name: params[name] for name in stage.names})
