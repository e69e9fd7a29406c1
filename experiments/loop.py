"""One jitted training step over a mesh of all devices, and the loop around it."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import sqs_jax
from experiments.checkpoints import Checkpoints
from experiments.data import Dataset, augment, batch_indices
from experiments.phases import Phase
from experiments.trees import sparsity


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


def data_mesh() -> jax.sharding.Mesh:
    """Return a mesh of all devices along one axis, "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def make_nll(model: nn.Module, phase: Phase) -> Callable[..., Any]:
    """Return nll_fn(params, batch) -> (mean NLL per image, (new model state, accuracy)).

    With a teacher, the NLL is mixed with the cross-entropy to the teacher's softened prediction.
    """
    weight, heat = phase.distill_weight, phase.distill_temperature

    def nll_fn(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        logits, model_state = model.apply(
            {"params": params, **batch["model_state"]},
            batch["images"],
            train=True,
            mutable=list(batch["model_state"]),
        )
        labels = batch["labels"]
        nll = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        if weight:
            target: Any = model.apply(batch["teacher"], batch["images"])
            soft = optax.losses.kl_divergence_with_log_targets(
                jax.nn.log_softmax(logits / heat), jax.nn.log_softmax(target / heat)
            )
            nll = (1 - weight) * nll + weight * heat**2 * jnp.mean(soft)
        accuracy = jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
        return nll, (model_state, accuracy)

    return nll_fn


def make_step(
    model: nn.Module, phase: Phase, num_data: int, data: Any, mesh: jax.sharding.Mesh
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Return the jitted step(state, batch, teacher, key, step) -> (state, metrics).

    The state is replicated and donated, the batch split over the mesh.
    """
    loss_fn = sqs_jax.elbo(
        phase.transform,
        make_nll(model, phase),
        num_data=num_data,
        estimator=phase.estimator,
        kl_weight=phase.kl_weight,
        temperature=phase.temperature,
        relaxation=phase.relaxation,
    )
    optimizer = phase.optimizer()

    def step_fn(
        state: TrainState, batch: Any, teacher: Any, key: jax.Array, step: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        augment_key, draw_key = jax.random.split(jax.random.fold_in(key, step))
        images = augment(augment_key, batch.images, shift=data.shift, flip=data.flip)
        inputs = {
            "images": images,
            "labels": batch.labels,
            "model_state": state.model_state,
            "teacher": teacher,
        }
        trainable, fixed = sqs_jax.partition(state.posterior, train=phase.learning_rate)

        def loss_of(part: Any) -> Any:
            return loss_fn(sqs_jax.combine(part, fixed), inputs, draw_key, step)

        (loss, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable)
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
        return TrainState(posterior, model_state, optimizer_state), metrics

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step_fn, donate_argnums=0, out_shardings=replicated)


def run_phase(
    phase: Phase,
    model: nn.Module,
    variables: Any,
    teacher: Any,
    train: Dataset,
    config: Any,
    workdir: Path,
) -> TrainState:
    """Run one training to its end, or on from its latest checkpoint.

    Args:
      phase: what to train.
      model: the network.
      variables: {"params": ..., and its other collections}: where it starts.
      teacher: variables of the network it is distilled from; {} without one.
      train: the training examples.
      config: the experiment.
      workdir: holds checkpoints and metrics.

    Returns:
      The final state.
    """
    mesh = data_mesh()
    replicated, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    if config.batch_size % mesh.size:
        raise ValueError(
            f"config.batch_size is {config.batch_size}, no multiple of the {mesh.size} devices "
            "that share it."
        )
    # Copied, as `init` copies the params: the step donates the state, the caller keeps its own.
    model_state = {k: jax.tree.map(jnp.copy, v) for k, v in variables.items() if k != "params"}
    posterior = phase.transform.init(variables["params"])
    trainable, _ = sqs_jax.partition(posterior, train=phase.learning_rate)
    state = TrainState(posterior, model_state, phase.optimizer().init(trainable))
    state, teacher = jax.device_put((state, teacher), replicated)
    step_fn = make_step(model, phase, len(train.labels), config.data, mesh)
    key = jax.random.key(config.seed)
    # Several devices emulated on one CPU share its threads: steps that are queued wait for each
    # other in their collectives until XLA aborts.
    await_each_step = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    metrics_path = workdir / "metrics.jsonl"

    with Checkpoints(workdir / "checkpoints" / phase.name, config.checkpoint_every) as checkpoints:
        restored = checkpoints.restore(state)
        start, state = restored or (0, state)
        forget_after(metrics_path, phase.name, start)
        with open(metrics_path, "a") as log, progress(phase.name, start, phase.steps) as advance:
            for step in range(start, phase.steps):
                if phase.mask is not None and phase.mask.due(step):
                    posterior = phase.mask.decide(state.posterior, step, state.model_state)
                    state = jax.device_put(state._replace(posterior=posterior), replicated)
                chosen = batch_indices(len(train.labels), config.batch_size, config.seed, step)
                batch = jax.device_put(Dataset(train.images[chosen], train.labels[chosen]), split)
                state, metrics = step_fn(state, batch, teacher, key, np.int32(step))
                if await_each_step:
                    jax.block_until_ready((state, metrics))
                done = step + 1
                if done % 10 == 0 or done == phase.steps:
                    line = {name: float(value) for name, value in metrics.items()}
                    line["sparsity"] = sparsity(state.posterior)
                    log.write(json.dumps({"phase": phase.name, "step": done, **line}) + "\n")
                    log.flush()
                    advance(done, line)
                if checkpoints.due(done, phase.steps):
                    checkpoints.save(done, state)
    return state


def forget_after(path: Path, phase: str, step: int) -> None:
    """Drop a phase's lines after a step: a resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text().splitlines(keepends=True):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # cut off in the middle when the run was killed
        if line["phase"] != phase or line["step"] <= step:
            kept.append(text)
    part = path.with_suffix(".part")
    part.write_text("".join(kept))
    os.replace(part, path)


@contextmanager
def progress(
    name: str, start: int, total: int
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Show a bar; yields advance(step, metrics)."""
    columns = (
        TextColumn(f"{name:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(name, total=total, completed=start, figures="")

        def advance(step: int, metrics: dict[str, float]) -> None:
            figures = f"nll {metrics['nll']:.4f}  accuracy {metrics['accuracy']:.3f}"
            if metrics["sparsity"]:
                figures += f"  sparsity {metrics['sparsity']:.3f}"
            bar.update(task, completed=step, figures=figures)

        yield advance
