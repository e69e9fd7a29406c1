"""Train a dense network, compress it, write the file, evaluate it in a second process, report.

    python -m experiments.train --config=experiments/configs/digits.py --workdir=runs/digits

Every field of the config can be set: --config.sqs.sparsity=0.9. A run that was interrupted goes
on from its latest checkpoint when the same command is given again, also on another number of
devices or processes. Several processes each get --coordinator_address, --num_processes and
--process_id; experiments.launch starts them on one machine. See docs/training_at_scale.md.

Exits with 0 when all is done, with 75 (EX_TEMPFAIL) when SIGTERM ended a training in good order,
its last step saved, and with 1 for an error.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import sqs_jax
from experiments import data
from experiments.budget import with_budget
from experiments.data import Dataset
from experiments.evaluate import predict
from experiments.export import deployed, describe_distributions, export
from experiments.fisher import squared_gradients
from experiments.importers import import_resnet
from experiments.layout import fetch, lay_out, make_mesh, place
from experiments.loop import run_phase
from experiments.models import build_model
from experiments.normalisation import estimate_statistics
from experiments.phases import Phase, phases
from experiments.processes import is_writer, joined, wait_for_all
from experiments.published import with_mistakes
from experiments.report import write_report
from experiments.sequential import in_order
from experiments.step import TrainState
from experiments.workdir import claim_workdir

_CONFIG: Any = config_flags.DEFINE_config_file(
    "config", None, "Experiment: experiments/configs/digits.py, ...", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; made if it is not there.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
_COUNT = flags.DEFINE_integer("num_processes", None, "Processes of this training; one by default.")
_INDEX = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def train(config: Any, workdir: Path) -> dict[str, Any]:
    """Run an experiment to its end; returns what evaluation.json holds.

    Raises:
      ValueError: for a config or a workdir that cannot be trained.
      RuntimeError: if a checkpoint cannot be written, or the files do not do what was trained.
      FloatingPointError: when a training is not finite any more, see loop.py.
      SystemExit: after SIGTERM.
    """
    splits = data.load(config.data, config.seed)
    dense_phase, finetune_phase, sqs_phase = phases(config, len(splits.train.labels))
    mesh = make_mesh(config)
    model = build_model(config.model, splits.num_classes)
    example = splits.train.inputs(slice(1))

    def init() -> Any:
        return model.init(jax.random.key(config.seed), jnp.asarray(example))

    shapes = jax.eval_shape(init)
    layout = lay_out(shapes, shapes["params"], mesh, config)
    weights = config.model.weights and import_resnet(
        Path(config.model.weights), model, example.shape[1:]
    )
    # Rules that match nothing and unknown names, early.
    jax.eval_shape(sqs_phase.transform.init, shapes["params"])
    in_order(with_mistakes(sqs_phase, config.sqs.mistakes, 1), config.sqs.order)
    if is_writer():
        claim_workdir(workdir, config)  # only now: a config that cannot run claims no folder
    wait_for_all("the folder is claimed")

    def run(phase: Phase, variables: Any, teacher: Any) -> TrainState:
        return run_phase(phase, model, variables, teacher, splits.train, config, workdir, mesh)

    def variables_of(state: TrainState) -> dict[str, Any]:
        return {"params": state.posterior, **state.model_state}

    if weights:
        dense = place(weights, layout)
    else:
        untrained = jax.jit(init, out_shardings=layout)()
        dense = variables_of(run(dense_phase, untrained, {}))
    finetuned = variables_of(run(finetune_phase, dense, dense)) if config.finetune else None
    if config.sqs.target_bytes:
        sensitivity = None
        if config.sqs.sensitivity == "fisher":
            sensitivity = squared_gradients(model, fetch(dense), splits.train, config.seed)
        sqs_phase = with_budget(sqs_phase, dense, config, sensitivity)
    sqs_phase = with_mistakes(sqs_phase, config.sqs.mistakes, len(splits.train.labels))
    start = dense
    for stage in in_order(sqs_phase, config.sqs.order):
        state = run(stage, start, dense)
        start = variables_of(state)
    if config.sqs.reestimate:
        state = reestimated(model, sqs_phase, state, splits.train, config)
    if sqs_phase.mask is not None and sqs_phase.mask.budget is not None:
        landed = sqs_phase.mask.budget.land(state.posterior, state.model_state)
        state = state._replace(posterior=landed)

    export(workdir, sqs_phase, dense, finetuned, state, config)
    describe_distributions(workdir / "distributions.json", state.posterior)
    trained = deployed(sqs_phase, state, config)
    if is_writer():
        correct = predict(model, trained, splits.holdout).argmax(-1) == splits.holdout.labels
        evaluate_files(workdir, correct)
    wait_for_all("the files are evaluated")
    return json.loads((workdir / "evaluation.json").read_text())


def reestimated(
    model: nn.Module, phase: Phase, state: TrainState, train: Dataset, config: Any
) -> TrainState:
    """Return the state with the batch statistics of the deployed weights.

    Of the images of the first `config.sqs.reestimate` steps, without augmentation. Every process
    computes all of it.
    """
    chosen = [
        data.batch_indices(len(train.labels), config.batch_size, config.seed, step)
        for step in range(config.sqs.reestimate)
    ]
    model_state = estimate_statistics(
        model,
        fetch(phase.transform.mode(state.posterior)),
        fetch(state.model_state),
        (train.inputs(indices) for indices in chosen),
    )
    return state._replace(model_state=model_state)


def evaluate_files(workdir: Path, correct: np.ndarray) -> None:
    """Evaluate the files in a process of their own, and compare the one that ships.

    Args:
      workdir: of the run.
      correct: which images [n] the trained network classifies correctly.

    Raises:
      RuntimeError: if the file classifies another number of images correctly.
    """
    print("Evaluating the files in a process of their own.", flush=True)
    command = [sys.executable, "-m", "experiments.evaluate", f"--workdir={workdir}"]
    subprocess.run(command, check=True)
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    if evaluation["mode"]["correct"] != int(correct.sum()):
        raise RuntimeError(
            f"{workdir / 'model.sqs'}: the file classifies {evaluation['mode']['correct']} of "
            f"{correct.size} images correctly, the trained network {int(correct.sum())}."
        )


def show(evaluation: dict[str, Any], size: sqs_jax.SizeReport) -> None:
    """Print what was evaluated, a line for each network, and what was gained and lost."""
    print(f"{'network':>10}  {'accuracy':>9}  {'NLL':>7}  {'ECE':>6}  {'file bytes':>10}")
    for name, row in evaluation.items():
        print(
            f"{name:>10}  {100 * row['accuracy']:8.2f} %  {row['nll']:7.4f}  "
            f"{row['calibration_error']:6.4f}  {row['bytes']:10,}"
        )
    rivals = [name for name in ("dense", "finetune") if name in evaluation]
    dense = max(rivals, key=lambda name: evaluation[name]["accuracy"])
    lost = 100 * (evaluation[dense]["accuracy"] - evaluation["mode"]["accuracy"])
    print(
        f"{size.original_bytes:,} bytes of weights in a file of {size.file_bytes:,}: "
        f"{size.ratio:.1f} times smaller at {100 * size.sparsity:.1f} % sparsity, "
        f"{lost:.2f} points lost against {dense}"
    )


def main(_: Any) -> None:
    for flag in (_CONFIG, _WORKDIR):
        if not flag.value:
            raise app.UsageError(f"--{flag.name} is needed.")
    logging.set_verbosity(logging.WARNING)  # orbax tells of every save
    workdir = Path(_WORKDIR.value)
    with joined(_COORDINATOR.value, _COUNT.value, _INDEX.value):
        evaluation = train(_CONFIG.value, workdir)
        if is_writer():
            show(evaluation, sqs_jax.inspect(workdir / "model.sqs"))
            print(f"report: {write_report(workdir)}")


if __name__ == "__main__":
    app.run(main)
