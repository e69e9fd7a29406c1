"""Compressible Flax Linen layers: `flax.linen`'s own, with a `rule` for their kernel.

The params of a model built with these are `transform.init` of the plain model's params: same
paths, same leaves, same random draw. A kernel may also be an array, used as it is: what `mean`,
`sample`, `mode` and `materialize` return.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from sqs_jax.transform.rules import Rule, deployed

DEFAULT_RULE = Rule()


class _Compressible:
    """Mixin that stores a param as a SubDistribution, and computes with its mode.

    Fields, initialization, dtypes and masks are those of the plain layer.
    """

    rule: Rule
    compressed_param: str
    scope: Any

    @nn.nowrap
    def param(self, name: str, init_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name != self.compressed_param:
            return super().param(name, init_fn, *args, **kwargs)  # type: ignore[misc]

        def init_weights(*init_args: Any) -> Any:
            path = "/".join((*self.scope.path, name))
            weights = init_fn(*init_args)
            if isinstance(weights, nn.meta.AxisMetadata):
                raise ValueError(
                    f"{path}: its initializer boxes the weights ({type(weights).__name__}), and a "
                    "box holds one array, not a sub-distribution. Give the layer a plain "
                    "initializer, and shard the params by jax.device_put."
                )
            return self.rule.init_layer(path, weights)

        return deployed(super().param(name, init_weights, *args, **kwargs))  # type: ignore[misc]


class Dense(_Compressible, nn.Dense):
    """Linear layer of Flax Linen with a compressible kernel.

    The fields are those of `flax.linen.Dense` and `rule`.

    Attributes:
        rule: Rule of the kernel; its pattern is not used.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import sqs_jax
        >>> layer = Dense(8, rule=sqs_jax.Rule(components=4))
        >>> params = layer.init(jax.random.key(0), jnp.zeros((1, 16)))["params"]
        >>> type(params["kernel"]).__name__
        'SubDistribution'
        >>> layer.apply({"params": params}, jnp.zeros((1, 16))).shape
        (1, 8)
    """

    rule: Rule = DEFAULT_RULE
    compressed_param = "kernel"


class Conv(_Compressible, nn.Conv):
    """Convolution of Flax Linen with a compressible kernel.

    The fields are those of `flax.linen.Conv` and `rule`.

    Attributes:
        rule: Rule of the kernel; its pattern is not used.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> layer = Conv(8, kernel_size=(3, 3))
        >>> params = layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
        >>> params["kernel"].loc.shape
        (3, 3, 3, 8)
    """

    rule: Rule = DEFAULT_RULE
    compressed_param = "kernel"


class Embed(_Compressible, nn.Embed):
    """Embedding of Flax Linen with a compressible table.

    The fields are those of `flax.linen.Embed` and `rule`.

    Attributes:
        rule: Rule of the table; its pattern is not used.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> layer = Embed(num_embeddings=100, features=4)
        >>> params = layer.init(jax.random.key(0), jnp.zeros(3, jnp.int32))["params"]
        >>> params["embedding"].loc.shape
        (100, 4)
    """

    rule: Rule = DEFAULT_RULE
    compressed_param = "embedding"
