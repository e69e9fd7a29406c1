"""Compressible Flax Linen layers: layers of `flax.linen` with a `rule` for the kernel.

The params of a model with these layers are `transform.init` of the plain model's params: same
paths, same leaves, same random draw. A kernel may also be an array, which the layer uses unchanged.
`mean`, `sample`, `mode` and `materialize` return such arrays.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from sqs_jax.transform.rules import Rule, deployed

DEFAULT_RULE = Rule()


class _Compressible:
    """Mixin that stores a param as a SubDistribution, and computes with its mode.

    Fields, initialization, dtypes and masks are those of the plain layer.

    Attributes:
        rule: Rule that compresses the param.
        compressed_param: Name of the param.
        scope: Scope of the module, set by Flax.
    """

    rule: Rule
    compressed_param: str
    scope: Any

    @nn.nowrap
    def param(self, name: str, init_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return a param of the layer; the deployed weights of the compressed param."""
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
    """`flax.linen.Dense` with a compressed kernel.

    Attributes:
        rule: Rule that compresses the kernel. The pattern and `stacked` are not used. The other
            fields are those of `flax.linen.Dense`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> from sqs_jax.linen import Dense
        >>> layer = Dense(2, rule=sqs_jax.Rule(components=4))
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> variables["params"]["kernel"].loc.shape
        (4, 2)
        >>> layer.apply(variables, jnp.ones((1, 4))).shape
        (1, 2)
    """

    rule: Rule = DEFAULT_RULE
    compressed_param = "kernel"


class Conv(_Compressible, nn.Conv):
    """`flax.linen.Conv` with a compressed kernel.

    Attributes:
        rule: Rule that compresses the kernel. The pattern and `stacked` are not used. The other
            fields are those of `flax.linen.Conv`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> from sqs_jax.linen import Conv
        >>> layer = Conv(2, kernel_size=(3, 3), rule=sqs_jax.Rule(components=4))
        >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 5, 5, 1)))
        >>> variables["params"]["kernel"].loc.shape
        (3, 3, 1, 2)
        >>> layer.apply(variables, jnp.ones((1, 5, 5, 1))).shape
        (1, 5, 5, 2)
    """

    rule: Rule = DEFAULT_RULE
    compressed_param = "kernel"


class Embed(_Compressible, nn.Embed):
    """`flax.linen.Embed` with a compressed embedding.

    Attributes:
        rule: Rule that compresses the embedding. The pattern and `stacked` are not used. The other
            fields are those of `flax.linen.Embed`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> from sqs_jax.linen import Embed
        >>> layer = Embed(num_embeddings=8, features=2, rule=sqs_jax.Rule(components=4))
        >>> variables = layer.init(jax.random.key(0), jnp.array([3]))
        >>> variables["params"]["embedding"].loc.shape
        (8, 2)
        >>> layer.apply(variables, jnp.array([3])).shape
        (1, 2)
    """

    rule: Rule = DEFAULT_RULE
    compressed_param = "embedding"
