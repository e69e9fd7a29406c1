"""A dense training step, and the SQS step that replaces it: same network, same optimiser.

Both are written as in a user's loop: jitted, the state donated, the gradient by
`jax.value_and_grad`, updates by optax.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import sqs_jax
from benchmarks.timing import Run

PATTERN = ".*(kernel|embedding)"  # what is compressed
TRAIN = {  # labels of `sqs_jax.partition`, per estimator
    "mean": ("loc", "gate", "means", "dense"),
    "sample": ("loc", "gate", "means", "dense"),
    "mode": ("loc", "means", "dense"),
}
_SAMPLED = 1 << 16  # weights of a tensor that its codebook is fitted to


class Problem(NamedTuple):
    """A network and a batch.

    Attributes:
      name: of the network.
      model: module; its output are logits over the last axis of the labels' shape.
      inputs: of one step.
      labels: integers.
    """

    name: str
    model: nn.Module
    inputs: jax.Array
    labels: jax.Array

    def variables(self) -> tuple[Any, Any]:
        """Return random (params, other collections), made on the device."""
        made = dict(jax.jit(self.model.init)(jax.random.key(0), self.inputs[:1]))
        return made.pop("params"), made

    def nll(self, params: Any, batch: Any) -> tuple[jax.Array, Any]:
        """Return (mean NLL per label, new model state); batch is (inputs, labels, model state)."""
        inputs, labels, state = batch
        logits, state = self.model.apply({"params": params, **state}, inputs, mutable=list(state))
        logits = logits.astype(jnp.float32)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(nll), state


class State(NamedTuple):
    """All that a step changes; `weights` are params or a posterior."""

    weights: Any
    model_state: Any
    optimizer_state: Any


Step = Callable[..., State]  # (state, inputs, labels, step) -> state


def optimizer() -> optax.GradientTransformation:
    """Return the optimiser of all steps."""
    return optax.adam(1e-4)


def dense_step(problem: Problem, layout: Any = None) -> Step:
    """Build the plain training step of a network's params.

    Args:
      problem: a network and a batch.
      layout: shardings of the state that it returns; None leaves them to JAX.
    """

    def step_fn(state: State, inputs: jax.Array, labels: jax.Array, step: jax.Array) -> State:
        batch = inputs, labels, state.model_state
        (_, model_state), grads = jax.value_and_grad(problem.nll, has_aux=True)(
            state.weights, batch
        )
        updates, optimizer_state = optimizer().update(grads, state.optimizer_state, state.weights)
        return State(optax.apply_updates(state.weights, updates), model_state, optimizer_state)

    return jax.jit(step_fn, donate_argnums=0, out_shardings=layout)


def dense_state(problem: Problem) -> State:
    """Return the state that `dense_step` starts from."""
    params, model_state = problem.variables()
    return State(params, model_state, optimizer().init(params))


def sqs_step(
    problem: Problem,
    sqs: sqs_jax.Transform,
    estimator: Any,
    train: tuple[str, ...] = (),
    layout: Any = None,
) -> Step:
    """Build the SQS step of the same network, KL included.

    Args:
      problem: a network and a batch.
      sqs: the transform.
      estimator: of `sqs_jax.elbo`.
      train: labels of what is trained; by default those of `TRAIN`.
      layout: as for `dense_step`.
    """
    train = train or TRAIN[estimator]
    loss_fn = sqs_jax.elbo(
        sqs, problem.nll, num_data=50_000, estimator=estimator, temperature=temperature
    )

    def step_fn(state: State, inputs: jax.Array, labels: jax.Array, step: jax.Array) -> State:
        trainable, fixed = sqs_jax.partition(state.weights, train=train)
        key = jax.random.fold_in(jax.random.key(0), step)
        batch = inputs, labels, state.model_state

        def loss_of(part: Any) -> Any:
            return loss_fn(sqs_jax.combine(part, fixed), batch, key, step)

        (_, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        updates, optimizer_state = optimizer().update(grads, state.optimizer_state, trainable)
        posterior = sqs_jax.combine(optax.apply_updates(trainable, updates), fixed)
        return State(posterior, aux.model_aux, optimizer_state)

    return jax.jit(step_fn, donate_argnums=0, out_shardings=layout)


def sqs_state(
    problem: Problem, sqs: sqs_jax.Transform, estimator: Any, train: tuple[str, ...] = ()
) -> State:
    """Return the state that `sqs_step` of the same arguments starts from."""
    params, model_state = problem.variables()
    posterior = start(sqs, params)
    trainable, _ = sqs_jax.partition(posterior, train=train or TRAIN[estimator])
    return State(posterior, model_state, optimizer().init(trainable))


def temperature(step: jax.Array) -> jax.Array:
    """Anneal as trainings do: the compiled step does not know the temperature."""
    return jnp.maximum(0.5, 1.0 - 1e-3 * jnp.asarray(step, jnp.float32))


def transform(
    components: int, *, stacked: bool = False, pattern: str = PATTERN, **options: Any
) -> sqs_jax.Transform:
    """Return the SQS transform of the benchmarks.

    Args:
      components: K.
      stacked: whether the leaves under "layers" have a leading axis of layers.
      pattern: of the leaves that are compressed.
      **options: of `sqs_jax.spike_slab_gmm`.
    """
    rules = [sqs_jax.Rule(pattern=pattern, components=components)]
    if stacked:
        layers = sqs_jax.Rule(pattern=f"layers/{pattern}", components=components, stacked=1)
        rules = [layers, *rules]
    prior = sqs_jax.SpikeSlabPrior(inclusion=0.2, scale=1.0)
    return sqs_jax.spike_slab_gmm(rules, prior=prior, **options)


def start(sqs: sqs_jax.Transform, params: Any) -> Any:
    """Return `sqs.init(params)` with codebooks fitted to some weights of each tensor.

    `init` fits them to all weights, on the host, once: minutes for a billion. A step takes the
    same time wherever its codebooks start.
    """
    abstract = jax.eval_shape(sqs.init, params)
    few = jax.tree.map(_few, params, abstract, is_leaf=_compressed)
    return jax.tree.map(_spread, sqs.init(few), params, is_leaf=_compressed)


def compressible(sqs: sqs_jax.Transform, params: Any) -> int:
    """Count the weights of the leaves that get a sub-distribution."""
    leaves = jax.tree.leaves(jax.eval_shape(sqs.init, params), is_leaf=_compressed)
    return sum(math.prod(leaf.loc.shape) for leaf in leaves if _compressed(leaf))


def steps(step: Step, state: State, problem: Problem) -> Run:
    """Return a Run of steps, each on the state that the one before left.

    Args:
      step: donates its state.
      state: to start from; of no use to the caller afterwards.
      problem: gives the batch.
    """
    done = 0

    def run(count: int) -> None:
        nonlocal state, done
        for _ in range(count):
            state = step(state, problem.inputs, problem.labels, done)
            done += 1
        jax.block_until_ready(state)

    return run


def _compressed(leaf: Any) -> bool:
    return isinstance(leaf, sqs_jax.SubDistribution)


def _few(weights: jax.Array, leaf: Any) -> jax.Array:
    """Take the first weights of each slice of a tensor that is compressed, as a matrix."""
    if not _compressed(leaf):
        return weights
    lead = weights.shape[: leaf.stacked]
    return weights.reshape(*lead, -1)[..., :_SAMPLED][..., None]


def _spread(leaf: Any, weights: jax.Array) -> Any:
    """Put all the weights in place of the few."""
    if not _compressed(leaf):
        return leaf
    return leaf.replace(
        loc=jnp.array(weights, copy=True),  # the step donates it
        gate_logits=jnp.full(weights.shape, leaf.gate_logits.ravel()[0]),
        kept=jnp.ones(weights.shape, bool),
    )
