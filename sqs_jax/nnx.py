"""Compressible Flax NNX layers, and pure functions of NNX models.

The params of a model with these layers are `transform.init` of the plain model's params: same
paths, same leaves, same random draw. A kernel may also be an array, which the layer uses unchanged.
`mean`, `sample`, `mode` and `materialize` return such arrays.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx

from sqs_jax.transform.rules import Rule, deployed, is_sub_distribution

DEFAULT_RULE = Rule()


class CompressibleParam(nnx.Param):
    """Param whose value may be a SubDistribution.

    Indexing, `param[...]`, returns the deployed weights.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> rule = sqs_jax.Rule(components=2)
        >>> leaf = rule.init_leaf("kernel", jnp.array([[0.5, -0.3], [0.2, 0.1]]))
        >>> param = CompressibleParam(leaf)
        >>> param.shape, len(set(param[...].ravel().tolist()))
        ((2, 2), 2)
    """

    def get_value(self, **index: Any) -> Any:
        """Return the stored value, or the deployed weights at an index."""
        value = super().get_value()
        return deployed(value)[index["index"]] if index else value

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the weights."""
        value = super().get_value()
        return value.loc.shape if is_sub_distribution(value) else value.shape

    @property
    def ndim(self) -> int:
        """Return the number of dimensions of the weights."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """Return the dtype of the weights."""
        value = super().get_value()
        return value.loc.dtype if is_sub_distribution(value) else value.dtype


def _compress(layer: nnx.Module, name: str, rule: Rule) -> None:
    """Replace the initial weights of a layer by their sub-distribution."""
    plain = getattr(layer, name)
    setattr(layer, name, CompressibleParam(rule.init_layer(name, plain[...])))


class Linear(nnx.Linear):
    """`flax.nnx.Linear` with a compressed kernel.

    Args:
        *args: Arguments of `flax.nnx.Linear`.
        rule: Rule that compresses the kernel. The pattern and `stacked` are not used.
        **kwargs: Keyword arguments of `flax.nnx.Linear`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import sqs_jax.nnx
        >>> rule = sqs_jax.Rule(components=4)
        >>> layer = sqs_jax.nnx.Linear(4, 2, rule=rule, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((1, 4))).shape
        (1, 2)
    """

    def __init__(self, *args: Any, rule: Rule = DEFAULT_RULE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _compress(self, "kernel", rule)


class Conv(nnx.Conv):
    """`flax.nnx.Conv` with a compressed kernel.

    Args:
        *args: Arguments of `flax.nnx.Conv`.
        rule: Rule that compresses the kernel. The pattern and `stacked` are not used.
        **kwargs: Keyword arguments of `flax.nnx.Conv`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import sqs_jax.nnx
        >>> rule = sqs_jax.Rule(components=4)
        >>> layer = sqs_jax.nnx.Conv(1, 2, (3, 3), rule=rule, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((1, 5, 5, 1))).shape
        (1, 5, 5, 2)
    """

    def __init__(self, *args: Any, rule: Rule = DEFAULT_RULE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _compress(self, "kernel", rule)


class Embed(nnx.Embed):
    """`flax.nnx.Embed` with a compressed embedding.

    Args:
        *args: Arguments of `flax.nnx.Embed`.
        rule: Rule that compresses the embedding. The pattern and `stacked` are not used.
        **kwargs: Keyword arguments of `flax.nnx.Embed`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import sqs_jax.nnx
        >>> rule = sqs_jax.Rule(components=4)
        >>> layer = sqs_jax.nnx.Embed(8, 2, rule=rule, rngs=nnx.Rngs(0))
        >>> layer(jnp.array([3])).shape
        (1, 2)
    """

    def __init__(self, *args: Any, rule: Rule = DEFAULT_RULE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _compress(self, "embedding", rule)


def functionalize(model: nnx.Module) -> tuple[Any, Any, Callable[..., tuple[Any, Any]]]:
    """Split an NNX model into plain trees and a pure function.

    Args:
        model: NNX module, which stays unchanged.

    Returns:
        Tuple (params, state, apply_fn). `params` is a dict of the model's `nnx.Param`s, `state` a
        dict of all other variables (batch statistics, random streams). The pure function is
        apply_fn(params, state, *args, **kwargs) -> (output, new state).

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import sqs_jax.nnx
        >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
        >>> params, state, apply_fn = sqs_jax.nnx.functionalize(model)
        >>> out, state = apply_fn(params, state, jnp.ones((3, 4)))
        >>> sorted(params), out.shape
        (['bias', 'kernel'], (3, 2))
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]

    def apply_fn(params: Any, state: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # copy=True: under jax.grad, a merged model must not share the tracers of the arguments.
        merged = nnx.merge(graphdef, params, state, copy=True)
        out = merged(*args, **kwargs)
        _, _, new_state = nnx.split(merged, nnx.Param, ...)  # type: ignore[misc]
        return out, nnx.to_pure_dict(new_state)

    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest), apply_fn
