"""Averages of component values under each weight's responsibilities, exact.

The components are evaluated one after another, never N x K. All steps are elementwise in the
weights, in their own shape: XLA fuses them, and a tensor that is sharded over devices stays where
it is. Small tensors may be evaluated for all components at once, which is a smaller program.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.windows import pick, window_index

# Rounding error of logits that does not matter; larger logits are scaled down to it.
_ROUNDING = 0.1

# Components of one step of a search on a CPU, which XLA fuses into one loop over the weights.
_FUSED = 16


class Draw(NamedTuple):
    """Noise of a Gumbel-softmax draw.

    Attributes:
      key: PRNG key; the noise of a component is a function of it and of the component.
      relaxation: Temperature of the Gumbel-softmax, positive scalar.
    """

    key: jax.Array
    relaxation: jax.Array


class Inputs(NamedTuple):
    """Inputs of an average.

    Attributes:
      loc: Weights, any shape, of the mixture's dtype.
      window: Index of each weight's window, int32, broadcastable to `loc`; None for one window.
      mixture: Mixture of one tensor, [W, K].
      values: Averaged values, [V, W, K].
      temperature: Softmax temperature of the responsibilities, positive scalar.
      draw: Noise of a draw; None for the responsibilities themselves.
    """

    loc: jax.Array
    window: jax.Array | None
    mixture: Mixture
    values: jax.Array
    temperature: jax.Array
    draw: Draw | None


class _Component(NamedTuple):
    """One component in every window, or all components along a leading axis."""

    number: jax.Array  # index of the component
    mean: jax.Array  # [W]
    inverse_scale: jax.Array  # [W]
    log_height: jax.Array  # [W], log pi - log sigma
    values: jax.Array  # [V, W]


class _Logit(NamedTuple):
    """Unnormalized log responsibility of a component for each weight."""

    z: jax.Array  # distance from the mean, in standard deviations
    inverse_scale: jax.Array
    joint: jax.Array  # log pi_k + log N(loc; mu_k, sigma_k^2) + log(2 pi) / 2
    tempered: jax.Array  # joint / temperature, plus noise
    logit: jax.Array


def average(
    loc: jax.Array,
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.typing.ArrayLike,
    *,
    window: jax.Array | None = None,
    draw: Draw | None = None,
    at_once: bool = False,
) -> list[jax.Array]:
    """Average values of the components: sum_k phi_ik v_k of each weight i.

    Args:
      loc: Weights, any shape, of the mixture's dtype.
      mixture: Mixture of one tensor, [W, K].
      values: Values of the components, [V, W, K].
      temperature: Softmax temperature of the responsibilities, positive scalar.
      window: Index of each weight's window, int32, broadcastable to `loc`; by default that of the
        window that holds the weight.
      draw: Noise of a Gumbel-softmax draw in place of the responsibilities.
      at_once: Whether all components are evaluated together, [K, *loc.shape]; not for draws.

    Returns:
      V arrays shaped as `loc`, differentiable in all arguments but the windows and the key.
    """
    if window is None and mixture.boundaries.shape[0]:
        window = window_index(loc, mixture.boundaries)
    temperature = jnp.asarray(temperature, loc.dtype)
    return _average(at_once, Inputs(loc, window, mixture, values, temperature, draw))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _average(at_once: bool, inputs: Inputs) -> list[jax.Array]:
    return _forward(at_once, inputs)[0]


def _forward(at_once: bool, inputs: Inputs) -> tuple[list[jax.Array], Any]:
    components = _components(inputs)
    lowest, zero = jnp.full_like(inputs.loc, -jnp.inf), jnp.zeros_like(inputs.loc)

    def terms(component: _Component) -> list[Any]:
        return [1.0, *(pick(value, inputs.window) for value in component.values)]

    def raise_to(top: jax.Array, component: _Component) -> tuple[jax.Array, None]:
        return jnp.maximum(top, _logit(inputs, component).logit), None

    def shares(component: _Component, top: jax.Array, shrink: jax.Array) -> list[jax.Array]:
        logit = _logit(inputs, component).logit
        share = jnp.exp(jnp.minimum(logit * shrink - top * shrink, 0))
        return [share * term for term in terms(component)]

    def add(sums: Any, component: _Component, top: Any, shrink: Any) -> tuple[Any, None]:
        added = shares(component, top, shrink)
        return [x + y for x, y in zip(sums, added, strict=True)], None

    def rescale_and_add(carry: Any, component: _Component) -> tuple[Any, None]:
        top, sums = carry
        logit = _logit(inputs, component).logit
        # however logits of the same component are rounded, no share exceeds 1
        higher, ratio = logit > top, jnp.exp(-jnp.abs(logit - top))
        lower, share = jnp.where(higher, ratio, 1), jnp.where(higher, 1, ratio)
        sums = [x * lower + share * y for x, y in zip(sums, terms(component), strict=True)]
        return (jnp.maximum(top, logit), sums), None

    start = [zero] * (1 + inputs.values.shape[0])
    if at_once:
        assert inputs.draw is None  # noise is made component by component
        top = jnp.max(jax.vmap(partial(_logit, inputs))(components).logit, axis=0)
        parts = jax.vmap(partial(shares, top=top, shrink=_shrink(top)))(components)
        sums = [jnp.sum(part, axis=0) for part in parts]
    elif inputs.draw is None:
        top, _ = jax.lax.scan(raise_to, lowest, components)
        sums, _ = jax.lax.scan(partial(add, top=top, shrink=_shrink(top)), start, components)
    else:  # noise is expensive: one pass over the components, which rescales at a higher logit
        (top, sums), _ = jax.lax.scan(rescale_and_add, (lowest, start), components)
    total, *weighted = sums
    averages = [x / total for x in weighted]
    return averages, (inputs, top + jnp.log(total), averages)


def _backward(at_once: bool, residuals: Any, cotangents: list[jax.Array]) -> tuple[Inputs]:
    inputs, log_total, averages = residuals
    mixture, windows = inputs.mixture, inputs.mixture.means.shape[0]
    scale, shrink = inputs.temperature, _shrink(log_total)
    if inputs.draw is not None:
        scale = scale * inputs.draw.relaxation

    def by_window(x: jax.Array) -> jax.Array:
        if inputs.window is None:
            return jnp.sum(x)[None]
        # windows are few: sums of comparisons fuse, a scatter would not
        return jnp.stack([jnp.sum(jnp.where(inputs.window == w, x, 0)) for w in range(windows)])

    def of_component(component: _Component) -> tuple[jax.Array, Any]:
        evaluated = _logit(inputs, component)
        phi = jnp.exp(jnp.minimum(evaluated.logit * shrink - log_total * shrink, 0))
        parts = zip(cotangents, component.values, averages, strict=True)
        lift = sum(g * (pick(value, inputs.window) - mean) for g, value, mean in parts)
        d_joint = phi * lift / scale
        moments = [by_window(x) for x in (d_joint, d_joint * evaluated.z, d_joint * evaluated.z**2)]
        d_values = jnp.stack([by_window(g * phi) for g in cotangents])
        scalars = jnp.sum(d_joint * evaluated.joint), jnp.sum(d_joint * evaluated.tempered)
        return -d_joint * evaluated.z * evaluated.inverse_scale, (*moments, d_values, *scalars)

    def add(d_loc: jax.Array, component: _Component) -> tuple[jax.Array, Any]:
        d_component, sums = of_component(component)
        return d_loc + d_component, sums

    components = _components(inputs)
    if at_once:
        parts, sums = jax.vmap(of_component)(components)
        d_loc = jnp.sum(parts, axis=0)
    else:
        d_loc, sums = jax.lax.scan(add, jnp.zeros_like(inputs.loc), components)
    zeroth, first, second, d_values, by_joint, by_tempered = sums
    # The cotangents of a weight's log joint probabilities add up to zero over the components, so
    # that their sums are the gradients of unnormalized mixture weights, too.
    d_mixture = Mixture(
        means=first.T * jnp.exp(-mixture.log_scales),
        log_scales=(second - zeroth).T,
        mixture_logits=zeroth.T,
        boundaries=jnp.zeros_like(mixture.boundaries),
    )
    d_draw = None
    if inputs.draw is not None:
        none: Any = None
        d_draw = Draw(none, -jnp.sum(by_tempered) * inputs.temperature / scale)
    d_temperature = -jnp.sum(by_joint) / inputs.temperature
    return (Inputs(d_loc, None, d_mixture, jnp.moveaxis(d_values, 0, -1), d_temperature, d_draw),)


_average.defvjp(_forward, _backward)


def highest(
    loc: jax.Array,
    mixture: Mixture,
    temperature: jax.typing.ArrayLike = 1.0,
    *,
    key: jax.Array | None = None,
    at_once: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Find the most probable component of each weight, or draw it from phi.

    Args:
      loc: Weights, any shape, of the mixture's dtype.
      mixture: Mixture of one tensor, [W, K].
      temperature: Softmax temperature of the responsibilities, positive scalar.
      key: PRNG key of a draw; None for the most probable component.
      at_once: Whether all components are evaluated together, [K, *loc.shape]; not for draws.

    Returns:
      Components, int32 shaped as `loc`, window * K + k; ties go to the lower one. And their means,
      selected in the same pass: a gather afterwards would be fused with the search, and repeat it.
    """
    window = window_index(loc, mixture.boundaries) if mixture.boundaries.shape[0] else None
    draw = None if key is None else Draw(key, jnp.ones((), loc.dtype))
    temperature = jnp.asarray(temperature, loc.dtype)
    inputs = Inputs(loc, window, mixture, mixture.means[None], temperature, draw)
    components, count = _components(inputs), mixture.means.shape[-1]

    def compare(best: Any, component: _Component) -> tuple[Any, None]:
        top, number, mean = best
        logit = _logit(inputs, component).logit
        higher = logit > top
        return (
            jnp.where(higher, logit, top),
            jnp.where(higher, component.number, number),
            jnp.where(higher, pick(component.mean, window), mean),
        ), None

    start = (
        jnp.full_like(loc, -jnp.inf),
        jnp.zeros_like(loc, jnp.int32),
        jnp.broadcast_to(pick(mixture.means[:, 0], window), loc.shape),
    )
    if at_once:
        number = jnp.argmax(jax.vmap(partial(_logit, inputs))(components).logit, axis=0)
        number = number.astype(jnp.int32)
        index = number if window is None else window * count + number
        return index, mixture.means.reshape(-1).at[index].get(mode="promise_in_bounds")

    def search(unroll: int) -> Any:
        return jax.lax.scan(compare, start, components, unroll=unroll)[0]

    # Unrolled programs compile for minutes on accelerators.
    _, number, mean = jax.lax.platform_dependent(
        cpu=lambda: search(min(count, _FUSED) if key is None else 1), default=lambda: search(1)
    )
    return number if window is None else window * count + number, mean


def _components(inputs: Inputs) -> _Component:
    """List the components, stacked along a leading axis of length K."""
    mixture = inputs.mixture
    logs = jax.nn.log_softmax(mixture.mixture_logits, axis=-1)
    return _Component(
        jnp.arange(logs.shape[-1], dtype=jnp.int32),
        mixture.means.T,
        jnp.exp(-mixture.log_scales).T,
        (logs - mixture.log_scales).T,
        jnp.moveaxis(inputs.values, -1, 0),
    )


def _logit(inputs: Inputs, component: _Component) -> _Logit:
    """Evaluate a component for all weights."""
    inverse_scale = pick(component.inverse_scale, inputs.window)
    z = (inputs.loc - pick(component.mean, inputs.window)) * inverse_scale
    joint = pick(component.log_height, inputs.window) - 0.5 * z * z
    tempered = joint / inputs.temperature
    if inputs.draw is None:
        return _Logit(z, inverse_scale, joint, tempered, tempered)
    key = jax.random.fold_in(inputs.draw.key, component.number)
    tempered = tempered + jax.random.gumbel(key, inputs.loc.shape, inputs.loc.dtype)
    # materialized once, or every sum over the components would make the noise anew
    tempered = jax.lax.optimization_barrier(tempered)
    return _Logit(z, inverse_scale, joint, tempered, tempered / inputs.draw.relaxation)


def _shrink(top: jax.Array) -> jax.Array:
    """Return the factor that scales logits down to where rounding is harmless; mostly 1.

    Thousands of deviations from every component, two compiled programs round the same logit to
    values that differ by more than 1. All components but the highest are negligible there, scaled
    down or not.
    """
    largest = _ROUNDING / jnp.finfo(top.dtype).eps
    return jnp.minimum(largest / jnp.abs(top), 1)
