"""What each weight needs of its mixture, exactly: one component after another, never N x K.

Everything is elementwise in the weights, in their own shape: XLA fuses it, and a tensor that is
sharded over devices stays where it is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.windows import pick, window_index

# So many components are one fused pass over the weights, of exponentials or of comparisons. More
# are a loop: slower, but it compiles in no time and XLA cannot keep every component's part.
_FUSED, _COMPARED = 16, 64


class _Row(NamedTuple):
    """One component in every window (or, stacked along a leading axis, all of them)."""

    number: jax.Array  # [], which component
    mean: jax.Array  # [W]
    log_scale: jax.Array  # [W]
    log_weight: jax.Array  # [W]
    values: jax.Array  # [V, W]


class _Logit(NamedTuple):
    """How responsible one component is for each weight."""

    z: jax.Array  # distance from its mean, in standard deviations
    joint: jax.Array  # log pi_k + log N(loc; mu_k, sigma_k^2) + log(2 pi) / 2
    logit: jax.Array  # unnormalised log responsibility


_LogitOf = Callable[[_Row], _Logit]


@jax.jit  # traced once per shape: a model has many leaves of a few
def mix(
    loc: jax.Array,
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.typing.ArrayLike,
    relaxation: jax.typing.ArrayLike = 1.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Average values of the components, each weight by its responsibilities.

    With a key the responsibilities are a Gumbel-softmax draw from them: the noise of a component
    is made where it is needed, and made again in the backward pass.

    Args:
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.
      values: [V, W, K], V values for each component.
      temperature: of the responsibilities, > 0.
      relaxation: of the draw, > 0; 1 without a key.
      key: PRNG key, or None for no noise.

    Returns:
      V arrays shaped as `loc`: sum_k phi_ik v_k. Differentiable in all but the boundaries and the
      key; the gradient ignores the jump from window to window.
    """
    temperature, relaxation = (jnp.asarray(x, loc.dtype) for x in (temperature, relaxation))
    return _mix(loc, _normalised(mixture), values, temperature, relaxation, key)


@jax.custom_vjp
def _mix(
    loc: jax.Array,
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.Array,
    relaxation: jax.Array,
    key: jax.Array | None,
) -> tuple[jax.Array, ...]:
    rows = _rows(mixture, values)
    if key is not None:
        logit_of, window = _logits(loc, mixture, temperature, relaxation, key)
        return _online(loc, logit_of, rows, window)[1]
    averages = []
    for v in range(values.shape[0]):
        logit_of, window = _logits(loc, mixture, temperature, relaxation, None)
        average = _average(loc, logit_of, rows._replace(values=rows.values[:, v]), window)
        # A pass for each value: with two in one, XLA would keep every component's logits.
        average, loc = jax.lax.optimization_barrier((average, loc))
        averages.append(average)
    return tuple(averages)


def _forward(*inputs: Any) -> tuple[tuple[jax.Array, ...], Any]:
    return _mix(*inputs), inputs  # nothing shaped as the weights is kept but the weights


def _backward(inputs: Any, cotangents: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    loc, mixture, values, temperature, relaxation, key = inputs
    # Else XLA might keep what the forward pass computed until here: floats per weight.
    loc, cotangents = jax.lax.optimization_barrier((loc, cotangents))
    rows = _rows(mixture, values)
    logit_of, window = _logits(loc, mixture, temperature, relaxation, key)
    log_total, averages = _online(loc, logit_of, rows, window)

    def sums(x: jax.Array) -> jax.Array:
        """Sum over the weights of each window, [W]."""
        if window is None:
            return jnp.sum(x)[None]
        return jnp.stack(
            [jnp.sum(jnp.where(window == w, x, 0)) for w in range(mixture.means.shape[0])]
        )

    def body(d_loc: jax.Array, row: _Row) -> tuple[jax.Array, Any]:
        z, joint, logit = logit_of(row)
        phi = jnp.exp(logit - log_total)
        lift = sum(
            g * (pick(v, window) - f)
            for g, v, f in zip(cotangents, row.values, averages, strict=True)
        )
        d_joint = phi * lift / (temperature * relaxation)
        d_loc = d_loc - d_joint * z * pick(jnp.exp(-row.log_scale), window)
        moments = jnp.stack([sums(d_joint), sums(d_joint * z), sums(d_joint * z * z)])
        by_value = jnp.stack([sums(g * phi) for g in cotangents])
        return d_loc, (moments, by_value, jnp.sum(d_joint * joint), jnp.sum(d_joint * logit))

    d_loc, (moments, by_value, by_joint, by_logit) = jax.lax.scan(body, jnp.zeros_like(loc), rows)
    zeroth, first, second = jnp.moveaxis(moments, 0, -1)  # [W, K] each
    d_mixture = Mixture(
        means=first * jnp.exp(-mixture.log_scales),
        log_scales=second - zeroth,
        mixture_logits=zeroth,
        boundaries=jnp.zeros_like(mixture.boundaries),
    )
    d_values = jnp.moveaxis(by_value, 0, -1)
    d_temperature = -jnp.sum(by_joint) / temperature
    d_relaxation = -jnp.sum(by_logit) * temperature
    return d_loc, d_mixture, d_values, d_temperature, d_relaxation, None


_mix.defvjp(_forward, _backward)


@jax.jit
def most_probable(loc: jax.Array, mixture: Mixture) -> jax.Array:
    """Find the most probable component of each weight; it does not depend on the temperature.

    Args:
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.

    Returns:
      int32 shaped as `loc`: window * K + component. Ties go to the lower component.
    """
    return _highest(loc, mixture, jnp.ones((), loc.dtype), None)


def draw_component(
    key: jax.Array, loc: jax.Array, mixture: Mixture, temperature: jax.typing.ArrayLike
) -> jax.Array:
    """Draw a component of each weight with the probabilities phi.

    Args:
      key: PRNG key.
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.
      temperature: of the responsibilities, > 0.

    Returns:
      int32 shaped as `loc`: window * K + component.
    """
    return _highest(loc, mixture, jnp.asarray(temperature, loc.dtype), key)


@partial(jax.jit, static_argnames="count")
def sum_by_component(x: jax.Array, component: jax.Array, count: int) -> jax.Array:
    """Sum x over the weights of each component.

    Args:
      x: floating, any shape.
      component: int32 in [0, count), shaped as `x`; what lies outside is not counted.
      count: windows * components.

    Returns:
      [count].
    """

    def scatter(x: jax.Array, component: jax.Array) -> jax.Array:
        # In buckets: one running float32 sum would stop growing at some ten million terms.
        buckets = max(1, min(64, (1 << 18) // count))
        axis = max(range(x.ndim), key=lambda i: x.shape[i], default=0)
        bucket = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) % buckets if x.ndim else 0
        sums = jnp.zeros((buckets, count), x.dtype).at[bucket, component].add(x, mode="drop")
        return jnp.sum(sums, axis=0)

    def loop(x: jax.Array, component: jax.Array) -> jax.Array:
        # Accelerators would queue up at the few sums of a scatter.
        return jax.lax.map(
            lambda k: jnp.sum(jnp.where(component == k, x, 0)), jnp.arange(count, dtype=jnp.int32)
        )

    return jax.lax.platform_dependent(x, component, cpu=scatter, default=loop)


def _highest(
    loc: jax.Array, mixture: Mixture, temperature: jax.Array, key: jax.Array | None
) -> jax.Array:
    """Find the component with the highest logit; with Gumbel noise that is a draw."""
    loc, mixture = jax.lax.stop_gradient((loc, _normalised(mixture)))
    logit_of, window = _logits(loc, mixture, temperature, jnp.ones((), loc.dtype), key)

    def body(best: tuple[jax.Array, jax.Array], row: _Row) -> tuple[Any, None]:
        highest, index = best
        logit = logit_of(row).logit
        wins = logit > highest
        return (jnp.where(wins, logit, highest), jnp.where(wins, row.number, index)), None

    start = jnp.full_like(loc, -jnp.inf), jnp.zeros_like(loc, jnp.int32)
    rows = _rows(mixture, mixture.means[None])
    unroll = min(rows.number.shape[0], _COMPARED) if key is None else 1
    (_, best), _ = jax.lax.scan(body, start, rows, unroll=unroll)
    return best if window is None else window * mixture.means.shape[-1] + best


def _online(
    loc: jax.Array, logit_of: _LogitOf, rows: _Row, window: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Return log sum exp of the logits, and the averages: once through the components.

    The sums are scaled down when a higher logit comes. A loop: in one fused pass XLA would keep
    every component's noise or logits.
    """

    def body(carry: Any, row: _Row) -> tuple[Any, None]:
        top, total, parts = carry
        logit = logit_of(row).logit
        higher = jnp.maximum(top, logit)
        fade, share = jnp.exp(top - higher), jnp.exp(logit - higher)
        parts = tuple(
            p * fade + share * pick(v, window) for p, v in zip(parts, row.values, strict=True)
        )
        return (higher, total * fade + share, parts), None

    zero = jnp.zeros_like(loc)
    start = jnp.full_like(loc, -jnp.inf), zero, (zero,) * rows.values.shape[1]
    (top, total, parts), _ = jax.lax.scan(body, start, rows)
    return top + jnp.log(total), tuple(p / total for p in parts)


def _average(loc: jax.Array, logit_of: _LogitOf, rows: _Row, window: jax.Array | None) -> jax.Array:
    """Return the average of one value of each component, `rows.values` [K, W]."""
    lowest, zero = jnp.full_like(loc, -jnp.inf), jnp.zeros_like(loc)
    count = rows.number.shape[0]
    unroll = count if count <= _FUSED else 1

    def highest(top: jax.Array, row: _Row) -> tuple[jax.Array, None]:
        return jnp.maximum(top, logit_of(row).logit), None

    top, _ = jax.lax.scan(highest, lowest, rows, unroll=unroll)

    def add(sums: Any, row: _Row) -> tuple[Any, None]:
        share = jnp.exp(logit_of(row).logit - top)
        return (sums[0] + share, sums[1] + share * pick(row.values, window)), None

    (total, part), _ = jax.lax.scan(add, (zero, zero), rows, unroll=unroll)
    return part / total


def _logits(
    loc: jax.Array,
    mixture: Mixture,
    temperature: jax.Array,
    relaxation: jax.Array,
    key: jax.Array | None,
) -> tuple[_LogitOf, jax.Array | None]:
    """Return the function from a component to its logits, and each weight's window (None: one)."""
    window = window_index(loc, mixture.boundaries) if mixture.boundaries.shape[0] else None

    def logit_of(row: _Row) -> _Logit:
        z = (loc - pick(row.mean, window)) * pick(jnp.exp(-row.log_scale), window)
        joint = pick(row.log_weight - row.log_scale, window) - 0.5 * z * z
        logit = joint / temperature
        if key is not None:
            noise = jax.random.gumbel(jax.random.fold_in(key, row.number), loc.shape, loc.dtype)
            logit = (logit + noise) / relaxation
        return _Logit(z, joint, logit)

    return logit_of, window


def _normalised(mixture: Mixture) -> Mixture:
    logs = jax.nn.log_softmax(mixture.mixture_logits, axis=-1)
    return mixture._replace(mixture_logits=logs)


def _rows(mixture: Mixture, values: jax.Array) -> _Row:
    """List the components of a normalised mixture."""
    return _Row(
        jnp.arange(mixture.means.shape[-1], dtype=jnp.int32),
        mixture.means.T,
        mixture.log_scales.T,
        mixture.mixture_logits.T,
        jnp.moveaxis(values, -1, 0),
    )
