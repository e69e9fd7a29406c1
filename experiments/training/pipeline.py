"""Training pipeline of an experiment, from data to the shipped state."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import sqs_jax
from experiments import data
from experiments.calibration.batch_statistics import training_batches
from experiments.calibration.bit_allocation import allocate, compress
from experiments.calibration.blockwise import examples_of
from experiments.calibration.input_norms import input_norms
from experiments.comparison.post_training import compress_to_train
from experiments.configs.validation import require_trainable
from experiments.data import Dataset
from experiments.export import export_dense
from experiments.task.initial_weights import initial_weights
from experiments.task.load import load_task
from experiments.task.tokenizer import TOKENIZER
from experiments.training.ablations import with_mistakes
from experiments.training.batch_norm import estimate_statistics
from experiments.training.budget import require_compressed, with_budget
from experiments.training.loop import run_phase
from experiments.training.phases import Phase, phases
from experiments.training.processes import is_writer, wait_for_all
from experiments.training.sequential import in_order
from experiments.training.sharding import fetch, lay_out, make_mesh, place
from experiments.training.step import TrainState
from experiments.training.synthetic_data import with_generated
from experiments.training.warm_start import with_codes
from experiments.training.workdir import claim_workdir, hold_workdir
from sqs_jax.progress import progress


class Trained(NamedTuple):
    """Result of the trainings of an experiment.

    Attributes:
      model: Network.
      splits: Training part and held-out part of the data.
      finetuned: Variables of the fine-tuned dense network; None without fine-tuning.
      phase: Compression phase.
      state: Final state of the compression, as shipped.
      mean_state: Other collections of the network of posterior means, with batch statistics of
        their own.
    """

    model: nn.Module
    splits: data.Splits
    finetuned: Any
    phase: Phase
    state: TrainState
    mean_state: Any


def run_trainings(config: Any, workdir: Path) -> Trained:
    """Run the trainings of an experiment; finished phases are restored from checkpoints.

    Args:
      config: Config of the experiment, `described`.
      workdir: Folder of the run.

    Raises:
      ValueError: The config cannot be trained, or the folder belongs to another config.
      RuntimeError: A checkpoint cannot be written.
      FloatingPointError: A loss or gradient is not finite, see loop.py.
      SystemExit: SIGTERM arrived.
    """
    require_trainable(config)  # before the data are loaded
    task = load_task(config, workdir)
    model, splits = task.model, task.splits
    train, sampled = splits.train, config.sqs.generated
    dense_phase, finetune_phase, sqs_phase = phases(config, len(train.labels))
    mesh = make_mesh(config)
    example = train.inputs(slice(1))

    def init() -> Any:
        return model.init(jax.random.key(config.seed), jnp.asarray(example))

    shapes = jax.eval_shape(init)
    layout = lay_out(shapes, shapes["params"], mesh, config)
    weights = config.model.weights and initial_weights(task, config)
    # Rules without a match and unknown names raise here, before any training.
    jax.eval_shape(sqs_phase.transform.init, shapes["params"])
    in_order(with_mistakes(sqs_phase, config.sqs.mistakes, 1), config.sqs.order)
    if is_writer():
        claim_workdir(workdir, config)  # after all checks: a bad config claims no folder
        hold_workdir(workdir)
        if task.tokenizer is not None:
            task.tokenizer.save(str(workdir / TOKENIZER))
    wait_for_all("the folder is claimed")

    def run(phase: Phase, variables: Any, teacher: Any) -> TrainState:
        return run_phase(phase, model, variables, teacher, train, config, workdir, mesh)

    def variables_of(state: TrainState) -> dict[str, Any]:
        return {"params": state.posterior, **state.model_state}

    if weights:
        with progress("reading the weights"):  # leaves may be lazy arrays
            dense = place(weights, layout)
    else:
        untrained = jax.jit(init, out_shardings=layout)()
        dense = variables_of(run(dense_phase, untrained, {}))
    export_dense(workdir, dense, config)  # now: another command may start from this file
    # An impossible budget raises here, before the fine-tuning and the compression.
    if config.sqs.target_bytes:
        host, folder = fetch(dense), workdir / "start"
        codes_stay = config.sqs.start != "weights" and not config.sqs.learning_rate.loc
        if config.sqs.start == "weights":
            compressed = allocate(model, host, train, config, folder, config.sqs.target_bytes)
        elif config.sqs.start == "calibration":
            examples = examples_of(train, config)
            compressed = compress(model, host, train, examples, config, folder, trained=codes_stay)
        else:
            compressed = compress_to_train(config.sqs.start, task, host, config, folder)
        require_compressed(compressed, config)
        if codes_stay:
            sqs_phase = with_codes(sqs_phase, compressed)
        else:
            sqs_phase = with_budget(sqs_phase, host["params"], config, compressed)
    if config.sqs.saliency == "activation":
        norms = input_norms(model, fetch(dense), examples_of(train, config))
        sqs_phase = sqs_phase.scored_by(partial(sqs_jax.saliency.activation, input_norms=norms))
    if sampled:
        path = workdir / "generated.npy"
        train = with_generated(train, model, dense["params"], sampled, config.seed, path)
    finetuned = variables_of(run(finetune_phase, dense, dense)) if config.finetune else None
    sqs_phase = with_mistakes(sqs_phase, config.sqs.mistakes, train.units)
    start = dense
    for stage in in_order(sqs_phase, config.sqs.order):
        state = run(stage, start, dense)
        start = variables_of(state)
    mask = stage.mask  # of the last phase
    if mask is not None and mask.budget is not None:
        scores = mask.scores(state.posterior)
        with progress("size of the file"):
            fitted = mask.budget.land(state.posterior, state.model_state, scores)
        state = state._replace(posterior=fitted)
    mode_state, mean_state = reestimated(model, sqs_phase, state, train, config)
    state = state._replace(model_state=mode_state)
    return Trained(model, splits, finetuned, sqs_phase, state, mean_state)


def reestimated(
    model: nn.Module, phase: Phase, state: TrainState, train: Dataset, config: Any
) -> tuple[Any, Any]:
    """Estimate batch statistics of the deployed weights and of the posterior means.

    The statistics are means over the augmented images of the first `config.sqs.reestimate` steps.
    If that number is 0, both networks keep the running statistics of the training. Every process
    computes all statistics.

    Args:
      model: Network.
      phase: Compression phase.
      state: Final state of the compression.
      train: Training examples.
      config: Config of the experiment.

    Returns:
      The other collections of the deployed weights, and those of the posterior means.
    """
    kept = fetch(state.model_state)
    if not config.sqs.reestimate:
        return kept, kept
    transform, temperature = phase.transform, config.evaluation.temperature
    networks = (
        transform.mode(state.posterior),
        transform.mean(state.posterior, temperature=temperature),
    )
    mode, mean = (
        estimate_statistics(
            model, fetch(params), kept, training_batches(train, config, config.sqs.reestimate)
        )
        for params in networks
    )
    return mode, mean
