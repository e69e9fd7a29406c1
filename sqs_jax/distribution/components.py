"""What each weight needs of its mixture, exactly: one component after another, never N x K.

Everything is elementwise in the weights, in their own shape: XLA fuses it, and a tensor that is
sharded over devices stays where it is. Of a small tensor all components may be evaluated at once,
N x K: that is a fraction of the program, and on an accelerator of the time.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.windows import pick, window_index

_ROUNDING = 0.1  # of logits; where they are larger than what is rounded by it, they are scaled down


class Averages(NamedTuple):
    """Averages of the components' values under each weight's responsibilities.

    Attributes:
      log_total: log of the sum of exp(logit) over the components, shaped as the weights; None
        if they were not summed up.
      values: sum_k phi_ik v_k, V arrays.
      slopes: their derivatives in the weight, V arrays; none unless asked for.
    """

    log_total: jax.Array | None
    values: tuple[jax.Array, ...]
    slopes: tuple[jax.Array, ...] = ()


class Pulled(NamedTuple):
    """Cotangents of everything that all weights of a tensor share.

    Attributes:
      mixture: of means, scales and mixture weights; zeros for the boundaries.
      values: [V, W, K].
      temperature: scalar.
      relaxation: scalar.
    """

    mixture: Mixture
    values: jax.Array
    temperature: jax.Array
    relaxation: jax.Array


class Logits(NamedTuple):
    """How responsible each component is for each weight, evaluated component by component.

    Attributes:
      loc: weights, any shape, of the mixture's dtype.
      mixture: of one tensor.
      temperature: of the responsibilities, scalar > 0.
      window: each weight's window, shaped as `loc` or broadcast to it; None if there is one.
      relaxation: of a Gumbel-softmax draw, scalar > 0; 1 without noise.
      key: PRNG key of the draw's noise; None for no noise. A component's noise is made where it
        is needed, and made again in the backward pass.
      at_once: whether all components are evaluated together, [K, *weights], without noise only.
    """

    loc: jax.Array
    mixture: Mixture
    temperature: jax.Array
    window: jax.Array | None
    relaxation: jax.Array
    key: jax.Array | None
    at_once: bool

    @classmethod
    def at(
        cls,
        loc: jax.Array,
        mixture: Mixture,
        temperature: jax.typing.ArrayLike,
        *,
        window: jax.Array | None = None,
        relaxation: jax.typing.ArrayLike = 1.0,
        key: jax.Array | None = None,
        at_once: bool = False,
    ) -> "Logits":
        """Fill in the window that holds each weight, and make scalars arrays."""
        if window is None and mixture.boundaries.shape[0]:
            window = window_index(loc, mixture.boundaries)
        temperature, relaxation = (jnp.asarray(x, loc.dtype) for x in (temperature, relaxation))
        return cls(loc, mixture, temperature, window, relaxation, key, at_once)

    def rows(self, values: jax.Array) -> "Row":
        """List the components, with V values [V, W, K] each."""
        logs = jax.nn.log_softmax(self.mixture.mixture_logits, axis=-1)
        return Row(
            jnp.arange(logs.shape[-1], dtype=jnp.int32),
            self.mixture.means.T,
            jnp.exp(-self.mixture.log_scales).T,
            (logs - self.mixture.log_scales).T,
            jnp.moveaxis(values, -1, 0),
        )

    def of(self, row: "Row") -> "Logit":
        """Evaluate one component for all weights."""
        pull = pick(row.inverse_scale, self.window)
        z = (self.loc - pick(row.mean, self.window)) * pull
        joint = pick(row.log_height, self.window) - 0.5 * z * z
        logit = joint / self.temperature
        if self.key is not None:
            key = jax.random.fold_in(self.key, row.number)
            logit = logit + jax.random.gumbel(key, self.loc.shape, self.loc.dtype)
            # materialised once, or every sum over the components would make the noise anew
            logit = jax.lax.optimization_barrier(logit)
        return Logit(z, pull, joint, logit / self.relaxation)

    def pick(self, row: jax.Array) -> jax.Array:
        """Give each weight its window's entry of a row [W]."""
        return pick(row, self.window)

    def sums(self, x: jax.Array) -> jax.Array:
        """Sum over the weights of each window, [W]."""
        if self.window is None:
            return jnp.sum(x)[None]
        windows = self.mixture.means.shape[0]
        return jnp.stack([jnp.sum(jnp.where(self.window == w, x, 0)) for w in range(windows)])


class Row(NamedTuple):
    """One component in every window (or, stacked along a leading axis, all of them)."""

    number: jax.Array  # [], which component
    mean: jax.Array  # [W]
    inverse_scale: jax.Array  # [W]
    log_height: jax.Array  # [W], log pi - log sigma
    values: jax.Array  # [V, W]


class Logit(NamedTuple):
    """How responsible one component is for each weight."""

    z: jax.Array  # distance from its mean, in standard deviations
    inverse_scale: jax.Array
    joint: jax.Array  # log pi_k + log N(loc; mu_k, sigma_k^2) + log(2 pi) / 2
    logit: jax.Array  # unnormalised log responsibility


def _within_rounding(top: jax.Array) -> jax.Array:
    """Return what takes a weight's logits to a size at which rounding does not matter; mostly 1.

    Thousands of deviations from every component, a logit that a compiled program makes anew is
    another one, by much more than 1. All but the highest are negligible there, scaled down or not.
    """
    largest = _ROUNDING / jnp.finfo(top.dtype).eps
    return jnp.minimum(largest / jnp.abs(top), 1)


def average(logits: Logits, values: jax.Array, *, slopes: bool = False) -> Averages:
    """Average values of the components, each weight by its responsibilities.

    Args:
      logits: of the weights.
      values: [V, W, K], V values for each component.
      slopes: whether derivatives in the weight are wanted.
    """
    rows = logits.rows(values)
    lowest, zero = jnp.full_like(logits.loc, -jnp.inf), jnp.zeros_like(logits.loc)

    def terms(row: Row, found: Logit) -> list[Any]:
        """List what is summed, each times exp(logit): 1, the values, and with the logit's slope."""
        plain: list[Any] = [1.0, *(logits.pick(v) for v in row.values)]
        rate = -found.z * found.inverse_scale  # times temperature and relaxation
        return plain + [rate * x for x in plain] if slopes else plain

    def rescale_and_add(carry: Any, row: Row) -> tuple[Any, None]:
        top, sums = carry
        found = logits.of(row)
        # however logits of the same component are rounded, no share exceeds 1
        higher, apart = found.logit > top, jnp.exp(-jnp.abs(found.logit - top))
        lower, share = jnp.where(higher, apart, 1), jnp.where(higher, 1, apart)
        sums = [x * lower + share * y for x, y in zip(sums, terms(row, found), strict=True)]
        return (jnp.maximum(top, found.logit), sums), None

    def raise_to(top: jax.Array, row: Row) -> tuple[jax.Array, None]:
        return jnp.maximum(top, logits.of(row).logit), None

    def shares(row: Row, top: jax.Array, scale: jax.Array) -> list[jax.Array]:
        found = logits.of(row)
        share = jnp.exp(jnp.minimum(found.logit * scale - top * scale, 0))
        return [share * y for y in terms(row, found)]

    def add(sums: Any, row: Row, top: jax.Array, scale: jax.Array) -> tuple[Any, None]:
        return [x + y for x, y in zip(sums, shares(row, top, scale), strict=True)], None

    sums = [zero] * (1 + values.shape[0]) * (2 if slopes else 1)
    if logits.at_once:
        assert logits.key is None  # whose noise is made where it is needed
        top = jnp.max(jax.vmap(logits.of)(rows).logit, axis=0)
        parts = jax.vmap(partial(shares, top=top, scale=_within_rounding(top)))(rows)
        sums = [jnp.sum(x, axis=0) for x in parts]
    elif logits.key is None:
        top, _ = jax.lax.scan(raise_to, lowest, rows)
        add_share = partial(add, top=top, scale=_within_rounding(top))
        sums, _ = jax.lax.scan(add_share, sums, rows)
    else:  # noise is dear: once through the components, scaled down when a higher logit comes
        (top, sums), _ = jax.lax.scan(rescale_and_add, (lowest, sums), rows)
    (total, *parts), rates = sums[: 1 + values.shape[0]], sums[1 + values.shape[0] :]
    means = tuple(part / total for part in parts)
    scale = logits.temperature * logits.relaxation * total
    slopes_of = tuple(
        (rate - mean * rates[0]) / scale for rate, mean in zip(rates[1:], means, strict=False)
    )
    return Averages(top + jnp.log(total), means, slopes_of)


def pull(
    logits: Logits, values: jax.Array, averages: Averages, cotangents: Sequence[jax.Array]
) -> Pulled:
    """Pull the averages' cotangents back to what all weights share.

    Args:
      logits, values: of `average`.
      averages: what it returned.
      cotangents: of the V averages, shaped as the weights.
    """
    mixture, rows, log_total = logits.mixture, logits.rows(values), averages.log_total
    assert log_total is not None  # of averages that were looked up
    scale, small = logits.temperature * logits.relaxation, _within_rounding(log_total)

    def of_component(row: Row) -> Any:
        found = logits.of(row)
        phi = jnp.exp(jnp.minimum(found.logit * small - log_total * small, 0))
        lifts = (
            g * (logits.pick(v) - mean)
            for g, v, mean in zip(cotangents, row.values, averages.values, strict=True)
        )
        d_joint = phi * sum(lifts) / scale
        moments = [logits.sums(x) for x in (d_joint, d_joint * found.z, d_joint * found.z**2)]
        by_value = jnp.stack([logits.sums(g * phi) for g in cotangents])
        return (*moments, by_value, jnp.sum(d_joint * found.joint),
                jnp.sum(d_joint * found.logit))  # fmt: skip

    sums = jax.vmap(of_component)(rows) if logits.at_once else jax.lax.map(of_component, rows)
    zeroth, first, second, by_value, by_joint, by_logit = sums
    return Pulled(
        gradient_of(mixture, zeroth.T, first.T, second.T),
        jnp.moveaxis(by_value, 0, -1),
        -jnp.sum(by_joint) / logits.temperature,
        -jnp.sum(by_logit) * logits.temperature,
    )


def gradient_of(
    mixture: Mixture, zeroth: jax.Array, first: jax.Array, second: jax.Array
) -> Mixture:
    """Make gradients of a mixture of moments, each [W, K].

    Args:
      mixture: of one tensor.
      zeroth: sums over the weights of the cotangents of the log joint probabilities. Those of a
        weight add up to zero, so that these are the gradients of unnormalised mixture weights too.
      first, second: the same sums with the distance from the mean in standard deviations, and
        with its square.
    """
    return Mixture(
        means=first * jnp.exp(-mixture.log_scales),
        log_scales=second - zeroth,
        mixture_logits=zeroth,
        boundaries=jnp.zeros_like(mixture.boundaries),
    )


def highest(logits: Logits) -> jax.Array:
    """Find the component with the highest logit; with noise that is a draw from phi.

    Returns:
      int32 shaped as the weights: window * K + component. Ties go to the lower component.
    """

    def body(best: tuple[jax.Array, jax.Array], row: Row) -> tuple[Any, None]:
        top, index = best
        logit = logits.of(row).logit
        return (jnp.maximum(top, logit), jnp.where(logit > top, row.number, index)), None

    start = jnp.full_like(logits.loc, -jnp.inf), jnp.zeros_like(logits.loc, jnp.int32)
    rows = logits.rows(logits.mixture.means[None])
    if logits.at_once:
        best = jnp.argmax(jax.vmap(logits.of)(rows).logit, axis=0).astype(jnp.int32)
    else:
        (_, best), _ = jax.lax.scan(body, start, rows)
    window, components = logits.window, logits.mixture.means.shape[-1]
    return best if window is None else window * components + best
