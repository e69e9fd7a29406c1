"""Compressible Flax NNX layers, and pure functions of NNX models.

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
    """NNX parameter that holds an array or a sub-distribution.

    `param[...]` is the array, or the deployed weights of the sub-distribution.

    Example:
        >>> from flax import nnx
        >>> kernel = Linear(16, 8, rngs=nnx.Rngs(0)).kernel
        >>> type(kernel).__name__, type(kernel.get_value()).__name__, kernel[...].shape
        ('CompressibleParam', 'SubDistribution', (16, 8))
    """

    def get_value(self, **index: Any) -> Any:
        """Return the stored value; with an index, the weights that a layer computes with."""
        value = super().get_value()
        return deployed(value)[index["index"]] if index else value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        value = super().get_value()
        return value.loc.shape if is_sub_distribution(value) else value.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions of the weights."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Dtype of the weights."""
        value = super().get_value()
        return value.loc.dtype if is_sub_distribution(value) else value.dtype


def _compress(layer: nnx.Module, name: str, rule: Rule) -> None:
    """Replace a layer's freshly drawn weights by their sub-distribution."""
    plain = getattr(layer, name)
    setattr(layer, name, CompressibleParam(rule.init_layer(name, plain[...])))


class Linear(nnx.Linear):
    """Linear layer of Flax NNX with a compressible kernel.

    Args:
        rule: Rule of the kernel; its pattern is not used. All other arguments are those of
            `flax.nnx.Linear`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import sqs_jax
        >>> layer = Linear(16, 8, rule=sqs_jax.Rule(components=4), rngs=nnx.Rngs(0))
        >>> layer(jnp.zeros((1, 16))).shape
        (1, 8)
    """

    def __init__(self, *args: Any, rule: Rule = DEFAULT_RULE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _compress(self, "kernel", rule)


class Conv(nnx.Conv):
    """Convolution of Flax NNX with a compressible kernel.

    Args:
        rule: Rule of the kernel; its pattern is not used. All other arguments are those of
            `flax.nnx.Conv`.

    Example:
        >>> from flax import nnx
        >>> Conv(3, 8, kernel_size=(3, 3), rngs=nnx.Rngs(0)).kernel.shape
        (3, 3, 3, 8)
    """

    def __init__(self, *args: Any, rule: Rule = DEFAULT_RULE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _compress(self, "kernel", rule)


class Embed(nnx.Embed):
    """Embedding of Flax NNX with a compressible table.

    Args:
        rule: Rule of the table; its pattern is not used. All other arguments are those of
            `flax.nnx.Embed`.

    Example:
        >>> from flax import nnx
        >>> Embed(num_embeddings=100, features=4, rngs=nnx.Rngs(0)).embedding.shape
        (100, 4)
    """

    def __init__(self, *args: Any, rule: Rule = DEFAULT_RULE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _compress(self, "embedding", rule)


def functionalize(model: nnx.Module) -> tuple[Any, Any, Callable[..., tuple[Any, Any]]]:
    """Split an NNX model into plain trees and a pure function.

    Args:
        model: NNX module, which stays unchanged.

    Returns:
        Tuple of three. `params` is a plain dict of the model's `nnx.Param` values. `state` is a
        plain dict of all other variables: batch statistics, random streams. `apply_fn(params,
        state, *args, **kwargs)` returns the model's output and the new state.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> params, state, apply_fn = functionalize(nnx.Linear(16, 8, rngs=nnx.Rngs(0)))
        >>> output, state = apply_fn(params, state, jnp.zeros((1, 16)))
        >>> sorted(params), output.shape
        (['bias', 'kernel'], (1, 8))
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]

    def apply_fn(params: Any, state: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # copy=True: under jax.grad a merged model may not share the tracers it is given.
        merged = nnx.merge(graphdef, params, state, copy=True)
        out = merged(*args, **kwargs)
        _, _, new_state = nnx.split(merged, nnx.Param, ...)  # type: ignore[misc]
        return out, nnx.to_pure_dict(new_state)

    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest), apply_fn
