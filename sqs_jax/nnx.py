"""Compressible Flax NNX layers, and the way from an NNX model to pure functions.

The params of a model built with these layers are `transform.init` of the plain model's params:
same paths, same leaves, same random draw. A kernel may also be an array, used as it is: what
`mean`, `sample`, `mode` and `materialize` return.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx

from sqs_jax.transform.rules import Rule, deployed, is_sub_distribution

DEFAULT_RULE = Rule()


class CompressibleParam(nnx.Param):
    """A Param that may hold a SubDistribution: `param[...]` is then its deployed weights."""

    def get_value(self, **index: Any) -> Any:
        """Return the value whole as it is stored; indexed, the weights a layer computes with."""
        value = super().get_value()
        return deployed(value)[index["index"]] if index else value

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        value = super().get_value()
        return value.loc.shape if is_sub_distribution(value) else value.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions of the weights."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the weights."""
        value = super().get_value()
        return value.loc.dtype if is_sub_distribution(value) else value.dtype


def _compress(layer: nnx.Module, name: str, rule: Rule) -> None:
    """Replace a layer's freshly drawn weights by their sub-distribution."""
    plain = getattr(layer, name)
    setattr(layer, name, CompressibleParam(rule.init_layer(name, plain[...])))


class Linear(nnx.Linear):
    """`flax.nnx.Linear` whose kernel is compressed as `rule` says (its pattern is not used)."""

    def __init__(self, *args: Any, rule: Rule = DEFAULT_RULE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _compress(self, "kernel", rule)


class Conv(nnx.Conv):
    """`flax.nnx.Conv` whose kernel is compressed as `rule` says (its pattern is not used)."""

    def __init__(self, *args: Any, rule: Rule = DEFAULT_RULE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _compress(self, "kernel", rule)


class Embed(nnx.Embed):
    """`flax.nnx.Embed` whose table is compressed as `rule` says (its pattern is not used)."""

    def __init__(self, *args: Any, rule: Rule = DEFAULT_RULE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _compress(self, "embedding", rule)


def functionalize(model: nnx.Module) -> tuple[Any, Any, Callable[..., tuple[Any, Any]]]:
    """Split an NNX model in plain trees and a pure function.

    Args:
      model: any NNX module; it is not changed.

    Returns:
      (params, state, apply_fn). `params` is a plain dict of the model's `nnx.Param`s, `state` one
      of everything else (batch statistics, random streams), and
      apply_fn(params, state, *args, **kwargs) -> (output, new state).
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]

    def apply_fn(params: Any, state: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # copy=True: under jax.grad a merged model may not share the tracers it is given.
        merged = nnx.merge(graphdef, params, state, copy=True)
        out = merged(*args, **kwargs)
        _, _, new_state = nnx.split(merged, nnx.Param, ...)  # type: ignore[misc]
        return out, nnx.to_pure_dict(new_state)

    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest), apply_fn
