"""The objective: expected mean NLL per unit plus the KL bound per unit."""

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.transform.rules import is_sub_distribution
from sqs_jax.transform.transform import Transform

Estimator = Literal["mean", "sample", "mode"]
Schedule = Callable[[Any], Any]


class ElboAux(NamedTuple):
    """Terms of a loss that `elbo` builds.

    Attributes:
      nll: Mean negative log-likelihood per unit, nats, averaged over the samples.
      kl: KL bound, nats, summed over the model.
      kl_weight: Weight of the KL at this step.
      model_aux: Second result of `nll_fn`; with a leading axis if num_samples > 1.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sqs_jax
      >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
      >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
      >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
      >>> loss_fn = sqs_jax.elbo(sqs, lambda params, batch: (jnp.sum(batch), "state"), num_data=10)
      >>> _, aux = loss_fn(posterior, jnp.ones(3), jax.random.key(0), 0)
      >>> float(aux.nll), float(aux.kl_weight), aux.model_aux
      (3.0, 1.0, 'state')
    """

    nll: jax.Array
    kl: jax.Array
    kl_weight: jax.Array
    model_aux: Any


def elbo(
    transform: Transform,
    nll_fn: Callable[[Any, Any], tuple[jax.Array, Any]],
    *,
    num_data: float,
    estimator: Estimator = "mean",
    num_samples: int = 1,
    kl_weight: float | Schedule = 1.0,
    temperature: float | Schedule = 1.0,
    relaxation: float | Schedule = 0.5,
) -> Callable[..., tuple[jax.Array, ElboAux]]:
    """Build the negative ELBO per unit, nats: mean NLL + kl_weight * KL / num_data.

    With estimator "sample" this is the negative ELBO; "mean" and "mode" evaluate the likelihood at
    one point, and are objectives, not bounds. The expectation of the gradient does not depend on
    the batch size.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import sqs_jax
      >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
      >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
      >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
      >>> def nll_fn(params, batch):
      ...     return jnp.mean((batch @ params["kernel"]) ** 2), None
      >>> loss_fn = sqs_jax.elbo(sqs, nll_fn, num_data=50_000, estimator="mode")
      >>> gradient = jax.value_and_grad(loss_fn, has_aux=True, allow_int=True)
      >>> (loss, aux), grads = gradient(posterior, jnp.ones((3, 2)), jax.random.key(0), 0)
      >>> bool(jnp.allclose(loss, aux.nll + aux.kl / 50_000))
      True

    Args:
      transform: a Transform.
      nll_fn: (params, batch) -> (mean NLL over the batch's units, model_aux). Mutable state (batch
        statistics) and dropout keys travel in `batch`; new state returns in model_aux.
      num_data: n, the number of units in the training set: what `nll_fn` averages over (tokens, if
        it averages per token), > 0.
      estimator: where the likelihood is evaluated: "mean", at E_q[w]; "sample", at relaxed draws;
        "mode", straight-through at the deployed weights, with the KL at temperature 0 and
        differentiated in the means alone (use `refit` for scales and mixture weights).
      num_samples: draws per step, for "sample" only.
      kl_weight: weight of the KL; a number or a schedule of the step.
      temperature: Temperature of the responsibilities; a number or a schedule of the step.
      relaxation: of the draws of "sample"; a number or a schedule of the step.

    Returns:
      loss_fn(posterior, batch, key, step) -> (loss, ElboAux).

    Raises:
      ValueError: if an argument is out of range, or, when called, `nll_fn` returns no scalar.

    References:
      arXiv:2510.08999; the "mode" estimator is ours.
    """
    if not (isinstance(num_data, numbers.Real) and math.isfinite(num_data) and num_data > 0):
        raise ValueError(
            f"num_data is {num_data!r}; it must be a number > 0: how many units the training set "
            "has of what nll_fn averages over."
        )
    if estimator not in ("mean", "sample", "mode"):
        raise ValueError(f"estimator is {estimator!r}; it must be 'mean', 'sample' or 'mode'.")
    if type(num_samples) is not int or num_samples < 1:
        raise ValueError(f"num_samples is {num_samples!r}; it must be an int >= 1.")
    if num_samples > 1 and estimator != "sample":
        raise ValueError(
            f"num_samples is {num_samples}, but estimator {estimator!r} draws nothing; use 1, or "
            "estimator='sample'."
        )
    if estimator == "sample" and transform.sample is None:
        raise ValueError("This transform cannot sample; use estimator 'mean' or 'mode'.")

    def nll_at(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        result = nll_fn(params, batch)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ValueError(
                f"nll_fn must return (mean NLL, model_aux), not {type(result).__name__}; return "
                "(nll, None) if there is nothing else."
            )
        if jnp.shape(result[0]) != ():
            raise ValueError(
                f"nll_fn returned an NLL of shape {jnp.shape(result[0])}; it must be a scalar, the "
                "mean over the batch's units: take jnp.mean of it."
            )
        dtype = jnp.result_type(result[0])
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"nll_fn returned an NLL of dtype {dtype}; it must be floating.")
        return result

    def likelihood_and_kl(
        posterior: Any, batch: Any, key: jax.Array, step: Any
    ) -> tuple[jax.Array, Any, jax.Array]:
        at = _at_step(temperature, step)
        if estimator == "mode":
            if transform.mode_and_kl is not None:
                params, kl = transform.mode_and_kl(posterior)
                return *nll_at(params, batch), kl
            nll, aux = nll_at(transform.mode(posterior), batch)
            return nll, aux, transform.kl(_only_means(posterior), temperature=at)
        if estimator == "mean" and transform.mean_and_kl is not None:
            params, kl = transform.mean_and_kl(posterior, temperature=at)
            return *nll_at(params, batch), kl
        kl = transform.kl(posterior, temperature=at)
        if estimator == "mean":
            return *nll_at(transform.mean(posterior, temperature=at), batch), kl
        sample = transform.sample
        assert sample is not None  # checked above

        def one(draw_key: jax.Array) -> tuple[jax.Array, Any]:
            draw = sample(
                posterior, draw_key, temperature=at, relaxation=_at_step(relaxation, step)
            )
            return nll_at(draw, batch)

        if num_samples == 1:
            return *one(key), kl
        nll, aux = jax.lax.map(one, jax.random.split(key, num_samples))
        return jnp.mean(nll), aux, kl

    def loss_fn(posterior: Any, batch: Any, key: jax.Array, step: Any) -> tuple[jax.Array, ElboAux]:
        nll, model_aux, kl = likelihood_and_kl(posterior, batch, key, step)
        weight = jnp.asarray(_at_step(kl_weight, step), kl.dtype)
        # float32 or float64, as the KL is: a half would keep too little of it
        dtype = jnp.float64 if nll.dtype == jnp.float64 else kl.dtype
        loss = jnp.asarray(nll, dtype) + (weight * kl / float(num_data)).astype(dtype)
        return loss, ElboAux(nll, kl, weight, model_aux)

    return loss_fn


def _at_step(value: float | Schedule, step: Any) -> Any:
    """Evaluate a schedule at a step; a plain number is itself."""
    return value(step) if callable(value) else value


def _only_means(posterior: Any) -> Any:
    """Cut the gradient of every field but the means.

    At the deployed weights nothing in the likelihood would oppose the KL's pull of scales and
    gates toward the prior.
    """

    def cut(leaf: Any) -> Any:
        if not is_sub_distribution(leaf):
            return leaf
        return jax.lax.stop_gradient(leaf).replace(means=leaf.means)

    return jax.tree.map(cut, posterior, is_leaf=is_sub_distribution)
