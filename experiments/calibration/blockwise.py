"""Compress a network from inputs alone, stage by stage, saving finished stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import sqs_jax
from experiments.calibration.input_moments import input_moments, layers_by_input
from experiments.calibration.residual_stream import missing_from, sum_after
from experiments.calibration.stages import Stage, outputs, read, stages_of, values
from experiments.data import Dataset, batch_indices
from experiments.trees import flat_leaves, map_leaves
from sqs_jax.progress import Advance, progress

Batches = list[np.ndarray]


# (compressed kernels, their weights, moments of their inputs), by path -> compressed kernels
Method = Callable[[Any, Any, Any], Any]


def examples_of(train: Dataset, config: Any) -> Batches:
    """Return the batches of examples that codes are chosen by.

    Raises:
      ValueError: if there are none.
    """
    wanted, size = config.calibration.examples, config.batch_size
    count = min(wanted, len(train.labels)) // size
    if not count:
        raise ValueError(
            f"config.calibration.examples is {wanted}, config.batch_size {size}, and the training "
            f"data has {len(train.labels)} examples: not one batch. Give more, or smaller batches."
        )
    return [
        np.asarray(train.inputs(batch_indices(len(train.labels), size, config.seed, step)))
        for step in range(count)
    ]


def recode_stages(
    model: nn.Module,
    variables: Any,
    compressed: Any,
    batches: Batches,
    folder: Path,
    method: Method = sqs_jax.recode,
) -> Any:
    """Compress a network's kernels anew, for its layers' outputs; batch statistics stay.

    Each stage sees what the compressed stages before it give; within a stage, so does each layer.

    Args:
      model: the network.
      variables: its weights, on the host or still in their files.
      compressed: its params, compressed without inputs.
      batches: Batches of examples.
      folder: Folder of finished stages; stages found there are loaded, not done again.
      method: how a few kernels are compressed that have the same inputs.

    Returns:
      The compressed params; anew where linear layers read them.
    """
    params, compressed = variables["params"], dict(compressed)
    stages = stages_of(model, variables)
    ours, theirs = batches, batches
    folder.mkdir(parents=True, exist_ok=True)
    with progress("calibration", _kernels(compressed)) as advance:
        for number, stage in enumerate(stages):
            dense, path = read(params, stage), folder / f"{number:03}.sqs"
            mine = {name: compressed[name] for name in stage.names}
            if path.is_file():
                mine = sqs_jax.load(path)
                advance(_kernels(mine))
            else:
                mine = _recode_stage(stage, dense, mine, (ours, theirs), method, advance)
                sqs_jax.save(path, mine)
            compressed |= mine
            if stage is not stages[-1]:
                ours = outputs(stage, jax.device_put(values(sqs_jax.materialize(mine))), ours)
                theirs = outputs(stage, jax.device_put(values(dense)), theirs)
    return compressed


def _kernels(compressed: Any) -> int:
    """Count the compressed kernels of a tree."""
    leaves = flat_leaves(compressed).items()
    return sum(path.endswith("/kernel") and sqs_jax.is_compressed(leaf) for path, leaf in leaves)


def _recode_stage(
    stage: Stage,
    dense: Any,
    compressed: Any,
    batches: tuple[Batches, Batches],
    method: Method,
    advance: Advance,
) -> Any:
    """Compress the layers of a stage in their order; later layers stay dense until then."""
    current, there = jax.device_put(dense), jax.device_put(dense)
    ours, theirs = batches
    found, weights = flat_leaves(compressed), flat_leaves(dense)
    for group in layers_by_input(stage.apply, values(current), ours[0]):
        paths = {path: f"{stage.scope}{path}/kernel" for path in group}
        paths = {p: k for p, k in paths.items() if sqs_jax.is_compressed(found.get(k))}
        if not paths:
            continue
        now = values(current), ours
        wanted = (values(there), theirs) if method is sqs_jax.recode else None  # peers imitate none
        sums = {path: wanted and sum_after(stage.apply, path, now[0], ours[0]) for path in paths}
        crossing = wanted if None in sums.values() else None
        seen = input_moments(stage.apply, group[0], now, crossing)
        moments = dict.fromkeys(paths.values(), seen)
        for path, at in sums.items():
            if wanted and at is not None:
                missing = missing_from(stage.apply, path, at, now, wanted)
                moments[paths[path]] = seen._replace(cross=None, missing=missing)
        done = method(
            {kernel: found[kernel] for kernel in moments},
            {kernel: weights[kernel] for kernel in moments},
            moments,
        )
        found |= done
        current = _replaced(current, sqs_jax.materialize(done))
        advance(len(paths))
    return _replaced(compressed, found)


def _replaced(tree: Any, leaves: dict[str, Any]) -> Any:
    return map_leaves(lambda path, leaf: leaves.get(path, leaf), tree)
