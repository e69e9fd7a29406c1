"""Compress a network from examples alone, without labels and training, and evaluate the file.

    python -m experiments.calibrate --config=experiments/configs/stories260k.py \
        --config.data.directory=DATA --config.model.weights=DATA/stories260K.bin \
        --config.data.tokenizer=DATA/tok512.bin --workdir=runs/calibrated

K and sparsity of every tensor come from `config.sqs.target_bytes` and the network's sensitivities;
codes are then chosen block by block such that each layer's outputs stay put; batch statistics stay
those of the dense network, whose outputs the layers keep. Blocks that are done are kept: the same
command goes on after the last. The folder ends up with model.sqs, dense.sqs, evaluation.json,
calibration.json (times, device memory) and, of a language model, tokenizer.json.
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
from experiments.calibration.blocks import examples_of, recode_stages
from experiments.calibration.sensitivity import sensitivities
from experiments.data import Dataset
from experiments.export import shipped
from experiments.outcome import evaluate_files, show
from experiments.problem import TOKENIZER, described, load_problem, starting_variables
from experiments.training.workdir import claim_workdir, hold_workdir
from experiments.trees import flat_leaves, map_leaves

# Of the budget, before codes are chosen anew: codebooks may take a few bytes more after that.
_LEAST, _AIM, _MOST = 0.993, 0.997, 0.998
_TRIALS = 3


def calibrate(config: Any, workdir: Path) -> dict[str, Any]:
    """Compress a network from its training examples; returns what evaluation.json holds.

    Raises:
      ValueError, FileNotFoundError: for a config that cannot be run.
    """
    problem = load_problem(config, workdir)
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
    seconds = {}

    def timed(name: str, function: Any, *args: Any) -> Any:
        started = time.monotonic()
        found = function(*args)
        seconds[name] = round(time.monotonic() - started, 1)
        return found

    model = problem.model
    compressed = timed(
        "allocation", allocate, model, variables, problem.splits.train, config, workdir
    )
    folder = workdir / "blocks"
    compressed = timed("blocks", recode_stages, model, variables, compressed, batches, folder)
    model_state = {name: value for name, value in variables.items() if name != "params"}

    def write() -> None:
        tree, options = shipped(compressed, model_state, config)
        written = sqs_jax.save(workdir / "model.sqs", tree, **options)
        if written > config.sqs.target_bytes:
            (workdir / "model.sqs").unlink()  # which breaks its promise
            raise ValueError(
                f"model.sqs would take {written} bytes, config.sqs.target_bytes is "
                f"{config.sqs.target_bytes}; give a little less, and another --workdir."
            )
        sqs_jax.save(workdir / "dense.sqs", jax.tree.map(np.asarray, variables))

    timed("writing", write)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    (workdir / "calibration.json").write_text(
        json.dumps({"seconds": seconds, "device_bytes": memory}, indent=1)
    )
    evaluate_files(workdir)
    return json.loads((workdir / "evaluation.json").read_text())


def allocate(model: Any, variables: Any, train: Dataset, config: Any, workdir: Path) -> Any:
    """Return compressed params of about the budget, from the folder if they are there."""
    path = workdir / "allocation.sqs"
    if path.is_file():
        return sqs_jax.load(path)
    sensitivity = sensitivities(model, variables, train, config)
    state = {name: value for name, value in variables.items() if name != "params"}
    tree, options = shipped(variables["params"], state, config)
    rest = {name: value for name, value in tree.items() if name != "params"}
    budget = config.sqs.target_bytes
    target, found, best = _AIM * budget, 0, None
    for _ in range(_TRIALS):
        compressed = sqs_jax.compress_to_budget(
            {"params": tree["params"]},
            target_bytes=int(target),
            sensitivity={"params": sensitivity},
            rules=[sqs_jax.Rule(pattern=f"params/(?:{config.sqs.pattern})")],
            **options,
        )["params"]
        size = sqs_jax.summarize({"params": compressed, **rest}, **options).file_bytes
        if found < size <= _MOST * budget:
            found, best = size, compressed
        if _LEAST * budget <= size <= _MOST * budget:
            break
        target *= _AIM * budget / size
    kept = flat_leaves(best or compressed)  # at whose size nothing lies between

    def unfolded(path: str, leaf: Any) -> Any:
        return kept[path] if isinstance(kept[path], sqs_jax.CompressedLeaf) else np.asarray(leaf)

    # in whose other leaves statistics are folded, as they will be when it ships
    compressed = map_leaves(unfolded, variables["params"])
    sqs_jax.save(path, compressed)
    return compressed


def main(_: Any) -> None:
    given = flags.FLAGS
    if not given.config or not given.workdir:
        raise app.UsageError("--config and --workdir are needed.")
    logging.set_verbosity(logging.WARNING)  # jax tells of every backend that is not there
    config, workdir = described(given.config), Path(given.workdir)
    evaluation = calibrate(config, workdir)
    show(evaluation, sqs_jax.inspect(workdir / "model.sqs"))
    told = json.loads((workdir / "calibration.json").read_text())["seconds"]
    print(", ".join(f"{name} {value} s" for name, value in told.items()))


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Experiment: experiments/configs/stories260k.py, ...", lock_config=True
    )
    flags.DEFINE_string("workdir", "", "Folder of the run; made if it is not there.")
    app.run(main)
