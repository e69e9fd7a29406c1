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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import sqs_jax
from experiments.calibration.blocks import Batches, examples_of, recode_stages
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
    seconds: dict[str, float] = {}

    def timed(name: str, function: Any, *args: Any) -> Any:
        started = time.monotonic()
        found = function(*args)
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 1)
        return found

    train = problem.splits.train
    compressed = compress(problem.model, variables, train, batches, config, workdir, timed)

    def write() -> None:
        tree, options = shipped(compressed, _state(variables), config)
        sqs_jax.save(workdir / "model.sqs", tree, **options)
        sqs_jax.save(workdir / "dense.sqs", jax.tree.map(np.asarray, variables))

    timed("writing", write)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    (workdir / "calibration.json").write_text(
        json.dumps({"seconds": seconds, "device_bytes": memory}, indent=1)
    )
    evaluate_files(workdir)
    return json.loads((workdir / "evaluation.json").read_text())


def _call(_: str, function: Any, *args: Any) -> Any:
    return function(*args)


def compress(
    model: Any,
    variables: Any,
    train: Dataset,
    batches: Batches,
    config: Any,
    workdir: Path,
    run: Callable[..., Any] = _call,
) -> Any:
    """Return compressed params whose file fits in the budget.

    Args:
      model, variables: the network, its weights on the host or still in their files.
      train: examples, of which the sensitivities are taken.
      batches: of examples, by which codes are chosen.
      config: the experiment.
      workdir: of what is done already.
      run: (name, function, *arguments) -> what it returns; for "allocation" and "blocks".

    Raises:
      ValueError: if codes chosen anew take more bytes than are left for them, again and again.
    """
    budget = room = config.sqs.target_bytes
    for trial in range(_TRIALS):
        folder = workdir / f"trial_{trial}" if trial else workdir
        found = run("allocation", allocate, model, variables, train, config, folder, room)
        found = run("blocks", recode_stages, model, variables, found, batches, folder / "blocks")
        tree, options = shipped(found, _state(variables), config)
        size = sqs_jax.summarize(jax.tree.map(np.asarray, tree), **options).file_bytes
        if size <= budget:
            return found
        room = int(0.999 * room * budget / size)  # what follows the codes' order takes more now
    raise ValueError(
        f"The file takes {size} bytes, config.sqs.target_bytes is {budget}, after {_TRIALS} "
        "trials; give a little less."
    )


def allocate(
    model: Any, variables: Any, train: Dataset, config: Any, folder: Path, budget: int
) -> Any:
    """Return compressed params of about a budget, from the folder if they are there."""
    path = folder / "allocation.sqs"
    if path.is_file():
        return sqs_jax.load(path)
    folder.mkdir(parents=True, exist_ok=True)
    sensitivity = sensitivities(model, variables, train, config)
    tree, options = shipped(variables["params"], _state(variables), config)
    rest = {name: value for name, value in tree.items() if name != "params"}
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


def _state(variables: Any) -> dict[str, Any]:
    return {name: value for name, value in variables.items() if name != "params"}


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
