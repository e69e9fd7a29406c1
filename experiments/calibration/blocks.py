"""Compress a network from inputs alone, stage by stage; finished stages are kept on the disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from rich.progress import track

import sqs_jax
from experiments.calibration.inputs import input_moments, layers_by_input
from experiments.calibration.stages import Stage, read, stages_of
from experiments.trees import flat_leaves, map_leaves

Batches = list[np.ndarray]


def recode_stages(
    model: nn.Module, variables: Any, compressed: Any, batches: Batches, folder: Path
) -> Any:
    """Choose the codes of a compressed network anew, for its layers' outputs.

    Each stage sees what the compressed stages before it give; within a stage, so does each layer.

    Args:
      model: the network.
      variables: its weights, on the host or still in their files.
      compressed: its params, as `sqs_jax.compress_to_budget` returns them.
      batches: of examples.
      folder: of the stages that are done; those that are there are not done again.

    Returns:
      The compressed params, with new codes where linear layers read them.
    """
    params, compressed = variables["params"], dict(compressed)
    stages = stages_of(model, variables)
    ours, theirs = batches, batches
    folder.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(track(stages, "calibration", transient=True)):
        dense, path = read(params, stage), folder / f"{number:03}.sqs"
        mine = {name: compressed[name] for name in stage.names}
        if path.is_file():
            mine = sqs_jax.load(path)
        else:
            mine = _recode_stage(stage, dense, mine, (ours, theirs))
            sqs_jax.save(path, mine)
        compressed |= mine
        if stage is not stages[-1]:
            ours = _outputs(stage, sqs_jax.materialize(mine), ours)
            theirs = _outputs(stage, dense, theirs)
    return compressed


def _recode_stage(
    stage: Stage, dense: Any, compressed: Any, batches: tuple[Batches, Batches]
) -> Any:
    """Go through the layers of a stage; those that are still to come are dense."""
    current, there = jax.device_put(dense), jax.device_put(dense)
    ours, theirs = batches
    scope = _scope(stage)
    found = flat_leaves(compressed)
    for group in layers_by_input(stage.apply, current, ours[0]):
        kernels = [f"{scope}{path}/kernel" for path in group]
        kernels = [k for k in kernels if isinstance(found.get(k), sqs_jax.CompressedLeaf)]
        if not kernels:
            continue
        moments = input_moments(stage.apply, group[0], (current, ours), (there, theirs))
        wanted = {kernel: moments for kernel in kernels}
        leaves = {kernel: found[kernel] for kernel in kernels}
        dense_leaves = flat_leaves(dense)
        recoded = sqs_jax.recode(leaves, {k: dense_leaves[k] for k in kernels}, wanted)
        found |= recoded
        values = sqs_jax.materialize(recoded)
        current = map_leaves(lambda path, leaf: values.get(path, leaf), current)
    return map_leaves(lambda path, leaf: found[path], compressed)


def _scope(stage: Stage) -> str:
    """Return what paths within the stage lack of those in the params."""
    return f"{stage.names[0]}/" if stage.names[0].startswith("layers_") else ""


def _outputs(stage: Stage, params: Any, batches: Batches) -> Batches:
    def each() -> Iterator[np.ndarray]:
        run, its = jax.jit(stage.apply), jax.device_put(params)
        for x in batches:
            yield np.asarray(run(its, x))

    return list(each())
