"""Training step, jitted, which applies finite updates only."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import sqs_jax
from experiments.data import Dataset, augmented
from experiments.training.gradient_accumulation import accumulated
from experiments.training.phases import Phase
from experiments.trees import other_collections


class TrainState(NamedTuple):
    """State of a training.

    Attributes:
      posterior: Sub-distributions and dense leaves.
      model_state: Mutable collections of the network, such as batch statistics; may be {}.
      optimizer_state: State of the optax optimizer.
    """

    posterior: Any
    model_state: Any
    optimizer_state: Any


def init_state(phase: Phase, variables: Any) -> TrainState:
    """Make the initial state of a phase from the variables of the network."""
    model_state = other_collections(variables)
    posterior = phase.transform.init(variables["params"])
    trainable, _ = sqs_jax.partition(posterior, train=phase.learning_rate)
    return TrainState(posterior, model_state, phase.optimizer().init(trainable))


def make_nll(model: nn.Module, phase: Phase) -> Callable[..., Any]:
    """Build nll_fn(params, batch) -> (mean NLL per label, (new model state, accuracy)).

    With a teacher, the NLL is mixed with the KL divergence from the teacher's softened prediction.
    Means are over labels that are not negative.

    Args:
      model: Network.
      phase: Phase; its `distill_weight` and `distill_temperature` are used.
    """
    weight, softening = phase.distill_weight, phase.distill_temperature

    def nll_fn(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        logits, model_state = model.apply(
            {"params": params, **batch["model_state"]},
            batch["inputs"],
            train=True,
            mutable=list(batch["model_state"]),
            rngs={"dropout": batch["key"]},
        )
        labels = batch["labels"]
        labeled = labels >= 0

        def mean(values: jax.Array) -> jax.Array:
            return jnp.mean(values, where=labeled)

        nll = mean(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0)))
        if weight:
            target: Any = model.apply(batch["teacher"], batch["inputs"])
            soft = optax.losses.kl_divergence_with_log_targets(
                jax.nn.log_softmax(logits / softening), jax.nn.log_softmax(target / softening)
            )
            nll = (1 - weight) * nll + weight * softening**2 * mean(soft)
        accuracy = mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
        return nll, (model_state, accuracy)

    return nll_fn


def make_gradient(
    model: nn.Module, phase: Phase, train: Dataset, config: Any
) -> Callable[..., tuple[tuple[jax.Array, sqs_jax.ElboAux], Any]]:
    """Build gradient(state, batch, teacher, step, seed) -> ((loss, aux), gradients).

    Gradients are those of the trained arrays. Random numbers depend on `seed`, the data of a key,
    and on the step alone. The seed is an argument, so that trainings of other seeds share a
    program.

    Args:
      model: Network.
      phase: Phase.
      train: Training examples.
      config: Config of the experiment.
    """
    loss_fn = sqs_jax.elbo(
        phase.transform,
        make_nll(model, phase),
        num_data=train.units,
        estimator=phase.estimator,
        kl_weight=phase.kl_weight,
        temperature=phase.temperature,
        relaxation=phase.relaxation,
    )

    def gradient(
        state: TrainState, batch: Any, teacher: Any, step: jax.Array, seed: jax.Array
    ) -> Any:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed), step)
        augment_key, draw_key = jax.random.split(key)
        examples = augmented(augment_key, batch.examples, train, config.data)
        trainable, fixed = sqs_jax.partition(state.posterior, train=phase.learning_rate)

        def of_batch(model_state: Any, batch: Any) -> Any:
            def loss_of(part: Any) -> Any:
                posterior = sqs_jax.combine(part, fixed)
                inputs = {**batch, "model_state": model_state, "teacher": teacher}
                loss, aux = loss_fn(posterior, inputs, draw_key, step)
                if phase.rate_weight:
                    length = sqs_jax.code_length(posterior, temperature=phase.temperature(step))
                    loss += phase.rate_weight * length / train.units
                return loss, aux

            return jax.value_and_grad(loss_of, has_aux=True)(trainable)

        inputs = {"inputs": examples, "labels": batch.labels, "key": jax.random.fold_in(key, 1)}
        return accumulated(of_batch, config.accumulate)(state.model_state, inputs)

    return gradient


def make_step(
    gradient: Callable[..., Any], phase: Phase, num_data: int, layout: TrainState, mesh: Mesh
) -> Callable[..., tuple[TrainState, jax.Array, dict[str, jax.Array]]]:
    """Build the jitted step(state, failed, *arguments) -> (state, failed, metrics).

    `failed` is the first step whose loss or gradient is not finite, or -1. That step and all later
    steps do not change the state. The state is donated.

    Args:
      gradient: Function of `make_gradient`; `arguments` are its arguments after the state.
      phase: Phase.
      num_data: Number of training examples.
      layout: Shardings of the state.
      mesh: Mesh of all devices.
    """
    optimizer = phase.optimizer()

    def step_fn(
        state: TrainState,
        failed: jax.Array,
        batch: Any,
        teacher: Any,
        step: jax.Array,
        seed: jax.Array,
    ) -> tuple[TrainState, jax.Array, dict[str, jax.Array]]:
        (loss, aux), grads = gradient(state, batch, teacher, step, seed)
        trainable, fixed = sqs_jax.partition(state.posterior, train=phase.learning_rate)
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, trainable)
        posterior = sqs_jax.combine(optax.apply_updates(trainable, updates), fixed)
        model_state, accuracy = aux.model_aux
        metrics = {
            "loss": loss,
            "nll": aux.nll,
            "kl_per_example": aux.kl / num_data,
            "accuracy": accuracy,
            "temperature": jnp.asarray(phase.temperature(step), jnp.float32),
        }
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        failed = jnp.where((failed < 0) & ~finite, step, failed)
        new = TrainState(posterior, model_state, optimizer_state)
        state = jax.tree.map(lambda new, old: jnp.where(failed < 0, new, old), new, state)
        return state, failed, metrics

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step_fn, donate_argnums=0, out_shardings=(layout, replicated, replicated))
