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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

import sqs_jax
from experiments.evaluate import predict
from experiments.export import deployed, describe_distributions, export
from experiments.memory import explained
from experiments.report import write_report
from experiments.task.evaluation import evaluate_files, show
from experiments.task.task import described
from experiments.training.pipeline import run_trainings
from experiments.training.processes import is_writer, joined, wait_for_all


def train(config: Any, workdir: Path, networks: Iterable[str] = ()) -> dict[str, Any]:
    """Run an experiment, `described`, to its end; returns what evaluation.json holds.

    Args:
      config: the experiment.
      workdir: of the run.
      networks: names of those that are evaluated, "mode" among them; all by default.

    Raises:
      RuntimeError: if the files do not do what was trained, and as `run_trainings`.
    """
    model, splits, finetuned, phase, state, mean_state = run_trainings(config, workdir)
    export(workdir, phase, finetuned, state, mean_state, config)
    describe_distributions(workdir / "distributions.json", state.posterior)
    trained = deployed(phase, state, config)
    if is_writer():
        evaluate_files(workdir, predict(model, [trained], splits.holdout).correct, networks)
    wait_for_all("the files are evaluated")
    return json.loads((workdir / "evaluation.json").read_text())


def main(_: Any) -> None:
    given = flags.FLAGS
    for name in ("config", "workdir"):
        if not given[name].value:
            raise app.UsageError(f"--{name} is needed.")
    logging.set_verbosity(logging.WARNING)  # orbax tells of every save
    workdir = Path(given.workdir)
    with joined(given.coordinator_address, given.num_processes, given.process_id):
        config = described(given.config)
        with explained(config, "training"):
            evaluation = train(config, workdir)
        if is_writer():
            show(evaluation, sqs_jax.inspect(workdir / "model.sqs"))
            print(f"report: {write_report(workdir)}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Experiment: experiments/configs/digits.py, ...", lock_config=True
    )
    flags.DEFINE_string("workdir", "", "Folder of the run; made if it is not there.")
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
    flags.DEFINE_integer("num_processes", None, "Processes of this training; one by default.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    app.run(main)
