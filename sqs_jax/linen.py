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
    """Create one param as a SubDistribution, and hand the layer its deployed weights.

    Everything else (fields, initialisation, dtypes, masks) is the plain layer's.
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
    """`flax.linen.Dense` whose kernel is compressed as `rule` says (its pattern is not used)."""

    rule: Rule = DEFAULT_RULE
    compressed_param = "kernel"


class Conv(_Compressible, nn.Conv):
    """`flax.linen.Conv` whose kernel is compressed as `rule` says (its pattern is not used)."""

    rule: Rule = DEFAULT_RULE
    compressed_param = "kernel"


class Embed(_Compressible, nn.Embed):
    """`flax.linen.Embed` whose table is compressed as `rule` says (its pattern is not used)."""

    rule: Rule = DEFAULT_RULE
    compressed_param = "embedding"
