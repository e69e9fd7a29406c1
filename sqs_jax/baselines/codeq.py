"""CoDeQ: a uniform quantizer with a learned dead zone, which sets the sparsity.

Wenshoj, Chen, Pepin and Selvan 2025, arXiv:2512.12981.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.transform.rules import (
    DEFAULT_RULES,
    Rule,
    check_rules,
    map_assigned,
    require_finite,
    total,
)
from sqs_jax.transform.transform import Transform

_RANGE = 0.99  # quantile of the absolute weights, near which the outermost level lies
_START = 3.0  # initial value of both logits: almost no dead zone, all bits
_LEAST_BITS = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeadZone:
    """Weights of a tensor and the parameters of its quantizer.

    Attributes:
        loc: Weights, float [*shape].
        dead_zone: Logit d of the dead zone, scalar. Weights of magnitude below (1 - |tanh d|) times
            the range become 0.
        width: Logit v of the bit width, scalar. The width grows with |tanh v| from 2 to `bits`;
            it is `bits` unless `mixed`.
        bits: Largest bit width of a weight (static).
        mixed: Whether the bit width is learned (static).
    """

    loc: jax.Array
    dead_zone: jax.Array
    width: jax.Array
    bits: int = dataclasses.field(metadata={"static": True})
    mixed: bool = dataclasses.field(metadata={"static": True})

    roles: ClassVar[dict[str, str]] = {"loc": "loc", "dead_zone": "spread", "width": "spread"}

    def replace(self, **changes: Any) -> "DeadZone":
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def kept(self) -> jax.Array:
        """Mask of the weights that are not 0, bool [*shape]."""
        return self.numbers() != 0

    def grid(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return step, shift and largest integer of the grid sign(q) (step |q| + shift)."""
        size = jax.lax.stop_gradient(jnp.quantile(jnp.abs(self.loc), _RANGE))
        bits: Any = self.bits
        if self.mixed:
            learned = (self.bits - _LEAST_BITS) * jnp.abs(jnp.tanh(self.width))
            bits = _straight_through(jnp.round, learned + _LEAST_BITS)
        most = 2.0 ** (bits - 1) - 1
        half = size * (1 - jnp.abs(jnp.tanh(self.dead_zone)))
        step = (size - half) / (most - 0.5) + 1e-8
        return step, half - step / 2, jnp.asarray(most, self.loc.dtype)

    def numbers(self) -> jax.Array:
        """Return integers q, float [*shape], with straight-through derivatives."""
        step, shift, most = self.grid()
        beyond = _straight_through(jax.nn.relu, jnp.abs(self.loc) - shift)
        q = _straight_through(jnp.round, jnp.sign(self.loc) * beyond / step)
        return _straight_through(lambda x: jnp.clip(x, -most, most), q)

    def weights(self) -> jax.Array:
        """Return the quantized weights, [*shape]."""
        step, shift, _ = self.grid()
        q = self.numbers()
        return step * q + shift * jnp.sign(jax.lax.stop_gradient(q))


def codeq(rules: Iterable[Rule] = DEFAULT_RULES, *, mixed: bool = False) -> Transform:
    """Build the CoDeQ transform, which trains and saves like `spike_slab_gmm`.

    Kept: the quantizer, its range at the 99th percentile, the logits and their initial values, and
    straight-through derivatives of rounding and clipping. Weights, dead zones and, if `mixed`, the
    bit width of each tensor are learned. Different: the decay that widens dead zones and reduces
    bit widths is a term of the loss, `kl`, in addition to any decay of the optimizer. Its weight,
    `kl_weight`, sets the sparsity.

    Args:
        rules: Rules as for `spike_slab_gmm`. K + 2 must be a power of two, 2 ** bits; the number
            of windows must be 1 and `stacked` 0. `prunable` and `structure` are ignored.
        mixed: Whether the bit width of each tensor is learned; K then sets the largest.

    Returns:
        Transform without `sample`, whose `kl` is half the sum of squared logits. Train it with
        estimator "mean" and the labels "loc", "spread" and "dense".

    Raises:
        ValueError: If K + 2 is no power of two, or a rule has several windows or stacked axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax import Rule
        >>> from sqs_jax.baselines.codeq import codeq
        >>> transform = codeq([Rule(components=6)])  # 3 bits
        >>> posterior = transform.init({"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3)})
        >>> transform.compress(posterior)["kernel"].codebook.shape
        (1, 6)
    """
    rules = check_rules(rules)
    for rule in rules:
        levels = 2 if rule.components is None else rule.components
        power = math.log2(levels + 2)
        if rule.windows.count != 1 or rule.stacked or not power.is_integer():
            raise ValueError(
                f"Rule {rule.pattern!r} has {rule.components} components, {rule.windows.count} "
                f"windows and stacked={rule.stacked}; a quantizer of b bits has 2**b - 2 levels "
                "beside zero (2, 6, 14, ...), one window and no stack."
            )

    def start(path: str, leaf: Any, rule: Rule | None) -> Any:
        array = jnp.array(leaf)
        if rule is None or rule.components is None or not rule.compresses(leaf):
            return array
        if not isinstance(array, jax.core.Tracer):
            require_finite(path, array)
        logit = jnp.asarray(_START, array.dtype)
        return DeadZone(array, logit, jnp.array(logit), int(math.log2(rule.components + 2)), mixed)

    def weights(posterior: Any, *, temperature: Any = 1.0) -> Any:
        return _map(DeadZone.weights, posterior)

    def penalty(posterior: Any, *, temperature: Any = 1.0) -> jax.Array:
        terms: list[jax.Array] = []

        def add(leaf: DeadZone) -> DeadZone:
            terms.append(leaf.dead_zone**2 / 2)
            if leaf.mixed:
                terms.append(leaf.width**2 / 2)
            return leaf

        _map(add, posterior)
        return total(terms)

    return Transform(
        init=lambda params: map_assigned(start, rules, params),
        mean=weights,
        sample=None,
        mode=weights,
        kl=penalty,
        compress=lambda posterior: _map(_compressed, posterior),
    )


def _map(function: Callable[[DeadZone], Any], posterior: Any) -> Any:
    def is_leaf(node: Any) -> bool:
        return isinstance(node, DeadZone)

    return jax.tree.map(lambda x: function(x) if is_leaf(x) else x, posterior, is_leaf=is_leaf)


def _compressed(leaf: DeadZone) -> CompressedLeaf:
    """Return codes and a codebook of the levels that occur, computed on the host."""
    values = np.asarray(leaf.weights())
    distinct, indices = np.unique(values, return_inverse=True)
    levels = distinct[distinct != 0]
    code_of = np.zeros(len(distinct), np.int64)
    code_of[distinct != 0] = 1 + np.arange(len(levels))
    codes = code_of[indices.reshape(values.shape)]
    book = (levels if len(levels) else np.ones(1, values.dtype)).reshape(1, -1)
    return CompressedLeaf(codes.astype(np.uint8 if book.size <= 255 else np.uint16), book)


def _straight_through(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    return x + jax.lax.stop_gradient(function(x) - x)
