"""Train and compress a network, write the file, evaluate the file, write a report.

    python -m experiments.train --config=experiments/configs/digits.py --workdir=runs/digits

Every field of the config has a flag: --config.sqs.sparsity=0.9. An interrupted run resumes from its
latest checkpoint with the same command, also on another number of devices or processes. In a
multi-process training each process needs --coordinator_address, --num_processes and --process_id;
experiments.launch starts the processes on one machine. See docs/training_at_scale.md.

The exit code is 0 after a complete run, 75 (EX_TEMPFAIL) if SIGTERM ended the training and its last
step is saved, and 1 after an error.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

import sqs_jax
from experiments.export import deployed, describe_distributions, export
from experiments.memory import explained
from experiments.report import write_report
from experiments.task.evaluation import evaluate_files, show
from experiments.task.load import described
from experiments.task.prediction import predict
from experiments.training.pipeline import run_trainings
from experiments.training.processes import is_writer, joined, wait_for_all


def train(config: Any, workdir: Path, networks: Iterable[str] = ()) -> dict[str, Any]:
    """Run an experiment to its end, and return the content of evaluation.json.

    Args:
      config: Config of the experiment, `described`.
      workdir: Folder of the run.
      networks: Names of the evaluated networks, "mode" among them; all by default.

    Raises:
      RuntimeError: The predictions of model.sqs are not those of the trained network. Other errors
        are those of `run_trainings`.
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
    options = flags.FLAGS
    for name in ("config", "workdir"):
        if not options[name].value:
            raise app.UsageError(f"--{name} is needed.")
    logging.set_verbosity(logging.WARNING)  # Orbax logs every save.
    workdir = Path(options.workdir)
    with joined(options.coordinator_address, options.num_processes, options.process_id):
        config = described(options.config)
        with explained(config, "training"):
            evaluation = train(config, workdir)
        if is_writer():
            show(evaluation, sqs_jax.inspect(workdir / "model.sqs"))
            print(f"report: {write_report(workdir)}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Experiment: experiments/configs/digits.py, ...", lock_config=True
    )
    flags.DEFINE_string("workdir", "", "Folder of the run; created if necessary.")
    flags.DEFINE_string("coordinator_address", None, "host:port of process 0.")
    flags.DEFINE_integer("num_processes", None, "Processes of this training; one by default.")
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
    app.run(main)
