"""A network as stages, run one after the other, so that one of them is in memory at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from experiments.models.decoder import Decoder, DecoderBlock
from experiments.models.layers import Layers


class Stage(NamedTuple):
    """A part of a network.

    Attributes:
      names: of its params, at the top of the tree.
      apply: ({name: params}, inputs) -> outputs; equal for stages that one program serves.
    """

    names: tuple[str, ...]
    apply: Callable[[Any, jax.Array], Any]


def stages_of(model: nn.Module, variables: Any) -> list[Stage]:
    """Return the stages of a network, from examples to logits: of a decoder its blocks.

    Args:
      model: the network; one that is no decoder is one stage.
      variables: its variables, of which only the names and what is not params are used.
    """
    if not isinstance(model, Decoder):
        state = {name: value for name, value in variables.items() if name != "params"}
        return [
            Stage(tuple(variables["params"]), lambda p, x: model.apply({"params": p, **state}, x))
        ]
    block = DecoderBlock(model.config, Layers(model.rule, model.dtype))

    def run_block(params: Any, x: jax.Array) -> Any:
        (its,) = params.values()
        return block.apply({"params": its}, x)

    def part(method: str) -> Callable[[Any, jax.Array], Any]:
        return lambda params, x: model.apply({"params": params}, x, method=method)

    blocks = [Stage((f"layers_{i}",), run_block) for i in range(model.config.layers)]
    head = "embed_tokens" if model.config.tied else "lm_head"
    return [
        Stage(("embed_tokens",), part("embed")),
        *blocks,
        Stage(("norm", head), part("head")),
    ]


def read(params: Any, stage: Stage) -> Any:
    """Read the params of a stage, which may still be in their files."""
    return jax.tree.map(np.asarray, {name: params[name] for name in stage.names})
