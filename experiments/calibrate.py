"""Compress a network from examples alone, without labels and training, and evaluate the file.

    python -m experiments.calibrate --config=experiments/configs/stories260k.py \
        --config.data.directory=DATA --config.model.weights=DATA/stories260K.bin \
        --config.data.tokenizer=DATA/tok512.bin --workdir=runs/calibrated

K and sparsity of every tensor come from `config.sqs.target_bytes` and the network's sensitivities;
codes are then chosen block by block such that each layer's outputs stay put. Batch statistics stay
those of the dense network, or are estimated anew: what serves held-out examples better. Blocks that
are done are kept: the same command goes on after the last. The folder ends up with model.sqs,
dense.sqs, evaluation.json, calibration.json (times, device memory, which statistics),
calibration.html and, of a language model, tokenizer.json.
"""

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import sqs_jax
from experiments.atomic_files import write_json
from experiments.calibration.batch_statistics import check_choice, with_statistics
from experiments.calibration.bit_allocation import compress
from experiments.calibration.blockwise import examples_of
from experiments.calibration.page import write_calibration
from experiments.export import shipped
from experiments.memory import explained
from experiments.task.evaluation import evaluate_files, show
from experiments.task.task import TOKENIZER, described, load_task, starting_variables
from experiments.training.workdir import claim_workdir, hold_workdir
from sqs_jax.progress import progress


def calibrate(config: Any, workdir: Path) -> dict[str, Any]:
    """Compress a network from its training examples; returns what evaluation.json holds.

    Raises:
      ValueError, FileNotFoundError: for a config that cannot be run.
    """
    check_choice(config)
    problem = load_task(config, workdir)
    variables = starting_variables(problem, config)
    if not config.sqs.target_bytes:
        raise ValueError("config.sqs.target_bytes is 0; give the bytes that the file may take.")
    if (workdir / "mean.sqs").is_file():
        raise ValueError(f"{workdir} holds a training; give another --workdir.")
    batches = examples_of(problem.splits.train, config)
    claim_workdir(workdir, config)
    hold_workdir(workdir)
    if problem.tokenizer is not None:
        problem.tokenizer.save(str(workdir / TOKENIZER))
    seconds: dict[str, float] = {}

    def timed(name: str, function: Any, *args: Any) -> Any:
        started = time.monotonic()
        found = function(*args)
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 1)
        return found

    train = problem.splits.train
    compressed = compress(problem.model, variables, train, batches, config, workdir, timed)

    given = problem.model, compressed, variables, train, config
    state, which = timed("statistics", with_statistics, *given)

    @progress("writing")
    def write() -> None:
        tree, options = shipped(compressed, state, config)
        sqs_jax.save(workdir / "model.sqs", tree, **options)
        sqs_jax.save(workdir / "dense.sqs", jax.tree.map(np.asarray, variables))

    timed("writing", write)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    write_json(
        workdir / "calibration.json",
        {"seconds": seconds, "device_bytes": memory, "statistics": which},
    )
    evaluate_files(workdir)
    return json.loads((workdir / "evaluation.json").read_text())


def main(_: Any) -> None:
    given = flags.FLAGS
    if not given.config or not given.workdir:
        raise app.UsageError("--config and --workdir are needed.")
    logging.set_verbosity(logging.WARNING)  # jax tells of every backend that is not there
    config, workdir = described(given.config), Path(given.workdir)
    with explained(config, "calibration"):
        evaluation = calibrate(config, workdir)
    show(evaluation, sqs_jax.inspect(workdir / "model.sqs"))
    told = json.loads((workdir / "calibration.json").read_text())["seconds"]
    print(", ".join(f"{name} {value} s" for name, value in told.items()))
    print(f"page: {write_calibration(workdir)}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Experiment: experiments/configs/stories260k.py, ...", lock_config=True
    )
    flags.DEFINE_string("workdir", "", "Folder of the run; made if it is not there.")
    app.run(main)
