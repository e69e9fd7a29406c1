"""Compress a network by calibration data, without labels or training.

    python -m experiments.calibrate --config=experiments/configs/stories260k.py \
        --config.data.directory=DATA --config.model.weights=DATA/stories260K.bin \
        --config.data.tokenizer=DATA/tok512.bin --workdir=runs/calibrated

`config.sqs.target_bytes` and the sensitivities of the network determine K and sparsity of every
tensor. Codes are then chosen block by block, to preserve the outputs of each layer. Batch
statistics are those of the dense network, or are estimated anew, whichever predicts held-out
examples better. An interrupted calibration resumes with the same command after its last finished
block. The command evaluates the file, and writes model.sqs, dense.sqs, evaluation.json,
calibration.json (times, device memory, choice of statistics), calibration.html and, for a language
model, tokenizer.json.
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
from experiments.configs.sqs_fields import require_valid
from experiments.export import shipped
from experiments.memory import explained
from experiments.task.evaluation import evaluate_files, show
from experiments.task.initial_weights import starting_variables
from experiments.task.load import described, load_task
from experiments.task.tokenizer import TOKENIZER
from experiments.training.workdir import claim_workdir, hold_workdir
from sqs_jax.progress import progress


def calibrate(config: Any, workdir: Path) -> dict[str, Any]:
    """Compress a network by calibration data, and return the content of evaluation.json.

    Args:
      config: Config of the experiment, `described`.
      workdir: Folder of the run.

    Raises:
      ValueError: The config cannot be run, or the folder belongs to another config.
      FileNotFoundError: A file of the data, the model or the tokenizer is missing.
    """
    check_choice(config)
    require_valid(config.sqs)
    task = load_task(config, workdir)
    variables = starting_variables(task, config)
    if not config.sqs.target_bytes:
        raise ValueError("config.sqs.target_bytes is 0; give the bytes that the file may take.")
    if (workdir / "mean.sqs").is_file():
        raise ValueError(f"{workdir} holds a training; give another --workdir.")
    batches = examples_of(task.splits.train, config)
    claim_workdir(workdir, config)
    hold_workdir(workdir)
    if task.tokenizer is not None:
        task.tokenizer.save(str(workdir / TOKENIZER))
    seconds: dict[str, float] = {}

    def timed(name: str, function: Any, *args: Any) -> Any:
        started = time.monotonic()
        output = function(*args)
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 1)
        return output

    model, train = task.model, task.splits.train
    compressed = compress(model, variables, train, batches, config, workdir, timed)
    state, statistics = timed(
        "statistics", with_statistics, model, compressed, variables, train, config
    )

    @progress("writing")
    def write() -> None:
        tree, options = shipped(compressed, state, config)
        sqs_jax.save(workdir / "model.sqs", tree, **options)
        sqs_jax.save(workdir / "dense.sqs", jax.tree.map(np.asarray, variables))

    timed("writing", write)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    write_json(
        workdir / "calibration.json",
        {"seconds": seconds, "device_bytes": memory, "statistics": statistics},
    )
    evaluate_files(workdir)
    return json.loads((workdir / "evaluation.json").read_text())


def main(_: Any) -> None:
    options = flags.FLAGS
    if not options.config or not options.workdir:
        raise app.UsageError("--config and --workdir are needed.")
    logging.set_verbosity(logging.WARNING)  # JAX logs every missing backend.
    config, workdir = described(options.config), Path(options.workdir)
    with explained(config, "calibration"):
        evaluation = calibrate(config, workdir)
    show(evaluation, sqs_jax.inspect(workdir / "model.sqs"))
    seconds = json.loads((workdir / "calibration.json").read_text())["seconds"]
    print(", ".join(f"{name} {value} s" for name, value in seconds.items()))
    print(f"page: {write_calibration(workdir)}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Experiment: experiments/configs/stories260k.py, ...", lock_config=True
    )
    flags.DEFINE_string("workdir", "", "Folder of the run; created if necessary.")
    app.run(main)
