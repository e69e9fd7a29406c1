"""One jitted training step that never applies an update that is not finite."""

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
    """All that changes while training.

    Attributes:
      posterior: sub-distributions and dense leaves.
      model_state: mutable collections of the network (batch statistics); {} if it has none.
      optimizer_state: optax's.
    """

    posterior: Any
    model_state: Any
    optimizer_state: Any


def init_state(phase: Phase, variables: Any) -> TrainState:
    """Return the state that a phase starts from."""
    model_state = other_collections(variables)
    posterior = phase.transform.init(variables["params"])
    trainable, _ = sqs_jax.partition(posterior, train=phase.learning_rate)
    return TrainState(posterior, model_state, phase.optimizer().init(trainable))


def make_nll(model: nn.Module, phase: Phase) -> Callable[..., Any]:
    """Return nll_fn(params, batch) -> (mean NLL per label, (new model state, accuracy)).

    With a teacher, the NLL is mixed with the cross-entropy to the teacher's softened prediction.
    Labels that are negative are not asked for.
    """
    weight, heat = phase.distill_weight, phase.distill_temperature

    def nll_fn(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        logits, model_state = model.apply(
            {"params": params, **batch["model_state"]},
            batch["inputs"],
            train=True,
            mutable=list(batch["model_state"]),
            rngs={"dropout": batch["key"]},
        )
        labels = batch["labels"]
        asked = labels >= 0

        def mean(each: jax.Array) -> jax.Array:
            return jnp.mean(each, where=asked)

        nll = mean(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0)))
        if weight:
            target: Any = model.apply(batch["teacher"], batch["inputs"])
            soft = optax.losses.kl_divergence_with_log_targets(
                jax.nn.log_softmax(logits / heat), jax.nn.log_softmax(target / heat)
            )
            nll = (1 - weight) * nll + weight * heat**2 * mean(soft)
        accuracy = mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
        return nll, (model_state, accuracy)

    return nll_fn


def make_gradient(
    model: nn.Module, phase: Phase, train: Dataset, config: Any
) -> Callable[..., tuple[tuple[jax.Array, sqs_jax.ElboAux], Any]]:
    """Return gradient(state, batch, teacher, step, seed) -> ((loss, aux), gradients).

    Gradients are of what is trained. All that is drawn depends on nothing but `seed`, a key's data,
    and the step. It is an argument, and no constant: trainings that differ in it share a program.
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

        given = {"inputs": examples, "labels": batch.labels, "key": jax.random.fold_in(key, 1)}
        return accumulated(of_batch, config.accumulate)(state.model_state, given)

    return gradient


def make_step(
    gradient: Callable[..., Any], phase: Phase, num_data: int, layout: TrainState, mesh: Mesh
) -> Callable[..., tuple[TrainState, jax.Array, dict[str, jax.Array]]]:
    """Return the jitted step(state, failed, *arguments) -> (state, failed, metrics).

    The arguments are those of `gradient`, after the state.
    `failed` is the first step whose loss or gradient was not finite, -1 before that; that step
    and all later ones leave the state as it was. The state is donated and keeps its layout.
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
