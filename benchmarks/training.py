"""Dense and SQS training steps of the same network with the same optimizer.

Both follow a user's loop: jit with a donated state, gradients by `jax.value_and_grad`, updates by
optax.
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

PATTERN = ".*(kernel|embedding)"  # compressed leaves
TRAIN = {  # labels of `sqs_jax.partition`, per estimator
    "mean": ("loc", "gate", "means", "dense"),
    "sample": ("loc", "gate", "means", "dense"),
    "mode": ("loc", "means", "dense"),
}
_SAMPLED = 1 << 16  # weights of a tensor in the sample for its codebook


class Problem(NamedTuple):
    """Network and batch.

    Attributes:
        name: Name of the network.
        model: Module that returns logits `[*labels.shape, classes]`.
        inputs: Inputs of a step.
        labels: Integer labels.
    """

    name: str
    model: nn.Module
    inputs: jax.Array
    labels: jax.Array

    def variables(self) -> tuple[Any, Any]:
        """Return random (params, other collections), drawn on the device."""
        variables = dict(jax.jit(self.model.init)(jax.random.key(0), self.inputs[:1]))
        return variables.pop("params"), variables

    def nll(self, params: Any, batch: Any) -> tuple[jax.Array, Any]:
        """Return (mean NLL per label, new model state).

        Args:
            params: Weights of the model.
            batch: Tuple (inputs, labels, model state).
        """
        inputs, labels, state = batch
        logits, state = self.model.apply({"params": params, **state}, inputs, mutable=list(state))
        logits = logits.astype(jnp.float32)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(nll), state


class State(NamedTuple):
    """State of a training.

    Attributes:
        weights: Params or posterior.
        model_state: Other collections of the model.
        optimizer_state: State of the optimizer.
    """

    weights: Any
    model_state: Any
    optimizer_state: Any


Step = Callable[..., State]  # (state, inputs, labels, step) -> state


def optimizer() -> optax.GradientTransformation:
    """Return the optimizer of all steps."""
    return optax.adam(1e-4)


def dense_step(problem: Problem, layout: Any = None) -> Step:
    """Build the dense training step of a network.

    Args:
        problem: Network and batch.
        layout: Shardings of the returned state; None lets JAX choose.
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
    """Return the initial state of `dense_step`."""
    params, model_state = problem.variables()
    return State(params, model_state, optimizer().init(params))


def sqs_step(
    problem: Problem,
    sqs: sqs_jax.Transform,
    estimator: Any,
    train: tuple[str, ...] = (),
    layout: Any = None,
) -> Step:
    """Build the SQS step of a network, with the KL.

    Args:
        problem: Network and batch.
        sqs: Transform.
        estimator: Estimator of `sqs_jax.elbo`.
        train: Labels of the trained arrays; by default those of `TRAIN`.
        layout: Shardings of the returned state; None lets JAX choose.
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
    """Return the initial state of `sqs_step` with the same arguments."""
    params, model_state = problem.variables()
    posterior = start(sqs, params)
    trainable, _ = sqs_jax.partition(posterior, train=train or TRAIN[estimator])
    return State(posterior, model_state, optimizer().init(trainable))


def temperature(step: jax.Array) -> jax.Array:
    """Return an annealed temperature, as a traced value in the compiled step."""
    return jnp.maximum(0.5, 1.0 - 1e-3 * jnp.asarray(step, jnp.float32))


def transform(
    components: int, *, stacked: bool = False, pattern: str = PATTERN, **options: Any
) -> sqs_jax.Transform:
    """Return the SQS transform of the benchmarks.

    Args:
        components: Number K of components.
        stacked: Whether leaves under "layers" have a leading axis of layers.
        pattern: Pattern of the compressed leaves.
        **options: Further arguments of `sqs_jax.spike_slab_gmm`.
    """
    rules = [sqs_jax.Rule(pattern=pattern, components=components)]
    if stacked:
        layers = sqs_jax.Rule(pattern=f"layers/{pattern}", components=components, stacked=1)
        rules = [layers, *rules]
    prior = sqs_jax.SpikeSlabPrior(inclusion=0.2, scale=1.0)
    return sqs_jax.spike_slab_gmm(rules, prior=prior, **options)


def start(sqs: sqs_jax.Transform, params: Any) -> Any:
    """Return `sqs.init(params)` with codebooks fitted to a sample of each tensor.

    `init` fits codebooks to all weights on the host, which takes minutes for 1e9 weights. The
    time of a step does not depend on the codebooks.
    """
    abstract = jax.eval_shape(sqs.init, params)
    sample = jax.tree.map(_sample, params, abstract, is_leaf=_compressed)
    return jax.tree.map(_expand, sqs.init(sample), params, is_leaf=_compressed)


def compressible(sqs: sqs_jax.Transform, params: Any) -> int:
    """Return the number of weights of the compressed leaves."""
    leaves = jax.tree.leaves(jax.eval_shape(sqs.init, params), is_leaf=_compressed)
    return sum(math.prod(leaf.loc.shape) for leaf in leaves if _compressed(leaf))


def steps(step: Step, state: State, problem: Problem) -> Run:
    """Return a Run of consecutive training steps.

    Args:
        step: Step that donates its state.
        state: Initial state, which the first step deletes.
        problem: Network and batch.
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


def _sample(weights: jax.Array, leaf: Any) -> jax.Array:
    """Return the first weights of each slice of a compressed tensor, as a matrix."""
    if not _compressed(leaf):
        return weights
    lead = weights.shape[: leaf.stacked]
    return weights.reshape(*lead, -1)[..., :_SAMPLED][..., None]


def _expand(leaf: Any, weights: jax.Array) -> Any:
    """Return a leaf with all weights in place of the sample."""
    if not _compressed(leaf):
        return leaf
    return leaf.replace(
        loc=jnp.array(weights, copy=True),  # the step donates it
        gate_logits=jnp.full(weights.shape, leaf.gate_logits.ravel()[0]),
        kept=jnp.ones(weights.shape, bool),
    )
