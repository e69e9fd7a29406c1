"""The trainings of an experiment, one after the other, from data to the state that ships."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import sqs_jax
from experiments import data
from experiments.calibration.blocks import examples_of
from experiments.calibration.norms import input_norms
from experiments.calibration.size import allocate, compress
from experiments.calibration.statistics import training_batches
from experiments.comparison.post_training import compress_to_train
from experiments.data import Dataset
from experiments.export import export_dense
from experiments.problem import TOKENIZER, initial_weights, load_problem
from experiments.training.budget import require_compressed, with_budget
from experiments.training.calibrated import with_codes
from experiments.training.generated import with_generated
from experiments.training.layout import fetch, lay_out, make_mesh, place
from experiments.training.loop import run_phase
from experiments.training.normalisation import estimate_statistics
from experiments.training.phases import Phase, phases
from experiments.training.processes import is_writer, wait_for_all
from experiments.training.published import with_mistakes
from experiments.training.sequential import in_order
from experiments.training.step import TrainState
from experiments.training.workdir import claim_workdir, hold_workdir
from sqs_jax.progress import progress


class Trained(NamedTuple):
    """What the trainings of an experiment end with.

    Attributes:
      model: the network.
      splits: its data.
      finetuned: variables of the dense network trained on; None if it was not.
      phase: the compression.
      state: its final state, as it ships.
      mean_state: the other collections of the network of posterior means, whose batch statistics
        are its own.
    """

    model: nn.Module
    splits: data.Splits
    finetuned: Any
    phase: Phase
    state: TrainState
    mean_state: Any


def run_trainings(config: Any, workdir: Path) -> Trained:
    """Run the trainings of an experiment, or what is left of them.

    Raises:
      ValueError: for a config or a workdir that cannot be trained.
      RuntimeError: if a checkpoint cannot be written.
      FloatingPointError: when a training is not finite any more, see loop.py.
      SystemExit: after SIGTERM.
    """
    problem = load_problem(config, workdir)
    model, splits = problem.model, problem.splits
    train, written = splits.train, config.sqs.generated
    dense_phase, finetune_phase, sqs_phase = phases(config, len(train.labels))
    mesh = make_mesh(config)
    example = train.inputs(slice(1))

    def init() -> Any:
        return model.init(jax.random.key(config.seed), jnp.asarray(example))

    shapes = jax.eval_shape(init)
    layout = lay_out(shapes, shapes["params"], mesh, config)
    weights = config.model.weights and initial_weights(problem, config)
    # Rules that match nothing and unknown names, early.
    jax.eval_shape(sqs_phase.transform.init, shapes["params"])
    in_order(with_mistakes(sqs_phase, config.sqs.mistakes, 1), config.sqs.order)
    if is_writer():
        claim_workdir(workdir, config)  # only now: a config that cannot run claims no folder
        hold_workdir(workdir)
        if problem.tokenizer is not None:
            problem.tokenizer.save(str(workdir / TOKENIZER))
    wait_for_all("the folder is claimed")

    def run(phase: Phase, variables: Any, teacher: Any) -> TrainState:
        return run_phase(phase, model, variables, teacher, train, config, workdir, mesh)

    def variables_of(state: TrainState) -> dict[str, Any]:
        return {"params": state.posterior, **state.model_state}

    if weights:
        with progress("reading the weights"):  # which may still be in their files
            dense = place(weights, layout)
    else:
        untrained = jax.jit(init, out_shardings=layout)()
        dense = variables_of(run(dense_phase, untrained, {}))
    export_dense(workdir, dense, config)  # which another command may start from already
    if config.sqs.target_bytes:  # which may be impossible: found before anything more is trained
        host, folder = fetch(dense), workdir / "start"
        codes_stay = config.sqs.start != "weights" and not config.sqs.learning_rate.loc
        if config.sqs.start == "weights":
            compressed = allocate(model, host, train, config, folder, config.sqs.target_bytes)
        elif config.sqs.start == "calibration":
            given = model, host, train, examples_of(train, config), config, folder
            compressed = compress(*given, trained=codes_stay)
        else:
            compressed = compress_to_train(config.sqs.start, problem, host, config, folder)
        require_compressed(compressed, config)
        if codes_stay:
            sqs_phase = with_codes(sqs_phase, compressed)
        else:
            sqs_phase = with_budget(sqs_phase, host["params"], config, compressed)
    if config.sqs.saliency == "activation":
        norms = input_norms(model, fetch(dense), examples_of(train, config))
        sqs_phase = sqs_phase.scored_by(partial(sqs_jax.saliency.activation, input_norms=norms))
    if written:
        path = workdir / "generated.npy"
        train = with_generated(train, model, dense["params"], written, config.seed, path)
    finetuned = variables_of(run(finetune_phase, dense, dense)) if config.finetune else None
    sqs_phase = with_mistakes(sqs_phase, config.sqs.mistakes, train.units)
    start = dense
    for stage in in_order(sqs_phase, config.sqs.order):
        state = run(stage, start, dense)
        start = variables_of(state)
    mask = stage.mask  # of the last one, whose budget moves what its order lets it
    if mask is not None and mask.budget is not None:
        scores = mask.scores(state.posterior)
        with progress("size of the file"):
            landed = mask.budget.land(state.posterior, state.model_state, scores)
        state = state._replace(posterior=landed)
    mode_state, mean_state = reestimated(model, sqs_phase, state, train, config)
    state = state._replace(model_state=mode_state)
    return Trained(model, splits, finetuned, sqs_phase, state, mean_state)


def reestimated(
    model: nn.Module, phase: Phase, state: TrainState, train: Dataset, config: Any
) -> tuple[Any, Any]:
    """Return the other collections of the deployed weights, and of the posterior means.

    Their batch statistics are each network's own, of the images of the first
    `config.sqs.reestimate` steps, augmented as they were there; if that is 0, those of the weights
    that were trained. Every process computes all of it.
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
