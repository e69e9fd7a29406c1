"""Averages of the components under a weight's responsibilities, evaluated in two ways."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution import blocks, components, table
from sqs_jax.distribution.mixture import Mixture

Evaluation = Literal["auto", "table", "loop"]

EVALUATIONS = ("auto", "table", "loop")

_Function = Callable[..., tuple[jax.Array, ...]]


# Compiled as a whole: outside of jit both platforms' branches would be.
@partial(jax.jit, static_argnames="evaluation")
def expectation(
    loc: jax.Array,
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.typing.ArrayLike,
    evaluation: Evaluation = "auto",
) -> tuple[jax.Array, ...]:
    """Average values of the components, each weight by its responsibilities: sum_k phi_ik v_k.

    With the means as values this is the soft weight; with each component's KL, the Jensen bound.

    Args:
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.
      values: [V, W, K], V values for each component, which share the pass.
      temperature: of the responsibilities, > 0.
      evaluation: "loop", over the components, exact; "table", by interpolation to within
        `table.TOLERANCE` of the values' range, and exact (in blocks on a CPU) where a bound of the
        error says that the table would miss that, where the tensor is too small for one, and in
        float64; "auto", the table on a CPU, the loop elsewhere.

    Returns:
      V arrays shaped as `loc`. Differentiable in all but the boundaries.
    """
    temperature = jnp.asarray(temperature, loc.dtype)
    windows, count = mixture.means.shape
    intervals = table.intervals(loc.size, count, windows)
    if evaluation == "loop":
        return components.mix(loc, mixture, values, temperature)
    if not intervals or loc.dtype == jnp.float64:
        return _exact(loc, mixture, values, temperature)
    return _expectation(loc, mixture, values, temperature, evaluation, intervals)


@jax.jit
def relaxed_component(
    key: jax.Array,
    loc: jax.Array,
    mixture: Mixture,
    temperature: jax.typing.ArrayLike,
    relaxation: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Draw a Gumbel-softmax mix of components and return its mean and its scale.

    Args:
      key: PRNG key.
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.
      temperature: of the responsibilities, > 0.
      relaxation: temperature of the Gumbel-softmax, > 0; towards 0 the draw is one-hot.

    Returns:
      (sum_k g_ik mu_k, sum_k g_ik sigma_k), each shaped as `loc`. The noise is made again in the
      backward pass: there is no [N, K] noise in memory.
    """
    temperature, relaxation = (jnp.asarray(x, loc.dtype) for x in (temperature, relaxation))
    values = jnp.stack([mixture.means, jnp.exp(mixture.log_scales)])
    mean, scale = _exact(loc, mixture, values, temperature, relaxation, key)
    return mean, scale


def _exact(*inputs: Any) -> tuple[jax.Array, ...]:
    return jax.lax.platform_dependent(*inputs, cpu=blocks.mix, default=components.mix)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _expectation(
    loc: jax.Array,
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.Array,
    evaluation: Evaluation,
    intervals: int,
) -> tuple[jax.Array, ...]:
    inputs = (loc, mixture, values, temperature)
    return _forward(*inputs, evaluation, intervals)[0]


def _forward(
    loc: jax.Array,
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.Array,
    evaluation: Evaluation,
    intervals: int,
) -> tuple[tuple[jax.Array, ...], Any]:
    inputs = (loc, mixture, values, temperature)
    lay_out = partial(table.plan, count=intervals)
    shapes = jax.eval_shape(lay_out, *inputs)

    def unused(*_: Any) -> table.Plan:
        fields = [jnp.zeros(x.shape, x.dtype) for x in (*shapes.fitted, *shapes[1:])]
        return table.Plan(table.Layout(*fields[:-2]), *fields[-2:])

    if evaluation == "auto":
        plan = jax.lax.platform_dependent(*inputs, cpu=lay_out, default=unused)
    else:
        plan = lay_out(*inputs)
    way = _Way(lambda function, inputs, _: function(*inputs), evaluation, intervals)
    return way(plan, inputs, ()), (plan, inputs)


def _backward(
    evaluation: Evaluation, intervals: int, residuals: Any, cotangents: tuple[jax.Array, ...]
) -> Any:
    def pull(function: _Function, inputs: Any, cotangents: Any) -> Any:
        return jax.vjp(function, *inputs)[1](cotangents)

    # Differentiated inside the branches: residuals that leave a branch would be copies.
    plan, inputs = residuals
    inputs, cotangents = jax.lax.optimization_barrier((inputs, cotangents))
    return _Way(pull, evaluation, intervals)(plan, inputs, cotangents)


_expectation.defvjp(_forward, _backward)


class _Way(NamedTuple):
    """Which function is run, the table's or an exact one: by platform, and by the table's bound."""

    run: Callable[[_Function, Any, Any], Any]
    evaluation: Evaluation
    intervals: int

    def __call__(self, plan: table.Plan, inputs: Any, cotangents: Any) -> Any:
        """Call run(function, inputs, cotangents)."""

        def within_tolerance(plan: table.Plan, inputs: Any, cotangents: Any) -> Any:
            look_up = partial(table.look_up, plan=plan, count=self.intervals)
            ways: tuple[_Function, ...] = (
                partial(look_up, even=True), partial(look_up, even=False), _exact
            )  # fmt: skip
            branches = [partial(self.run, way) for way in ways]
            # a bound that is not a number is not met: what is not finite goes the exact way
            fails = [~(error <= table.TOLERANCE) for error in (plan.even_error, plan.fitted_error)]
            branch = jnp.where(fails[0], jnp.where(fails[1], 2, 1), 0)
            return jax.lax.switch(branch, branches, inputs, cotangents)

        def loop(_: table.Plan, inputs: Any, cotangents: Any) -> Any:
            return self.run(components.mix, inputs, cotangents)

        operands = (plan, inputs, cotangents)
        if self.evaluation == "table":
            return within_tolerance(*operands)
        return jax.lax.platform_dependent(*operands, cpu=within_tolerance, default=loop)
