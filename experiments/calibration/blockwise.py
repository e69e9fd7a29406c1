"""Blockwise calibration: codes chosen stage by stage; finished stages are saved."""

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


# (compressed kernels, weights, input moments) -> compressed kernels; all are dicts by path
Method = Callable[[Any, Any, Any], Any]


def examples_of(train: Dataset, config: Any) -> Batches:
    """Read the calibration data, in batches.

    Args:
      train: Training examples.
      config: Config of the experiment, with `calibration.examples` and `batch_size`.

    Raises:
      ValueError: The examples do not fill a batch.
    """
    examples, size = config.calibration.examples, config.batch_size
    count = min(examples, len(train.labels)) // size
    if not count:
        raise ValueError(
            f"config.calibration.examples is {examples}, config.batch_size {size}, and the "
            f"training data has {len(train.labels)} examples: not one batch. Give more, or smaller "
            "batches."
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
    """Choose the codes of all kernels anew, for the outputs of their layers.

    The inputs of each stage and of each layer are those of the network compressed up to there.
    Batch statistics do not change.

    Args:
      model: Network.
      variables: Variables of the dense network, on the host or lazy.
      compressed: Params, compressed without inputs.
      batches: Calibration data.
      folder: Folder of finished stages; a stage in the folder is loaded.
      method: Compression method of kernels that have the same inputs.

    Returns:
      The compressed params, with new codes in the kernels of linear layers.
    """
    params, compressed = variables["params"], dict(compressed)
    stages = stages_of(model, variables)
    inputs, dense_inputs = batches, batches
    folder.mkdir(parents=True, exist_ok=True)
    with progress("calibration", _kernels(compressed)) as advance:
        for number, stage in enumerate(stages):
            dense, path = read(params, stage), folder / f"{number:03}.sqs"
            coded = {name: compressed[name] for name in stage.names}
            if path.is_file():
                coded = sqs_jax.load(path)
                advance(_kernels(coded))
            else:
                coded = _recode_stage(stage, dense, coded, (inputs, dense_inputs), method, advance)
                sqs_jax.save(path, coded)
            compressed |= coded
            if stage is not stages[-1]:
                weights = jax.device_put(values(sqs_jax.materialize(coded)))
                inputs = outputs(stage, weights, inputs)
                dense_inputs = outputs(stage, jax.device_put(values(dense)), dense_inputs)
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
    """Compress the layers of a stage in their order; later layers are dense until then.

    Args:
      stage: Stage of the network.
      dense: Dense params of the stage, on the host.
      compressed: Compressed params of the stage.
      batches: Inputs of the stage in the compressed and in the dense network.
      method: Compression method of kernels that have the same inputs.
      advance: Function that advances the progress bar.
    """
    current, target = jax.device_put(dense), jax.device_put(dense)
    inputs, dense_inputs = batches
    leaves, weights = flat_leaves(compressed), flat_leaves(dense)
    for group in layers_by_input(stage.apply, values(current), inputs[0]):
        paths = {path: f"{stage.scope}{path}/kernel" for path in group}
        paths = {p: k for p, k in paths.items() if sqs_jax.is_compressed(leaves.get(k))}
        if not paths:
            continue
        now = values(current), inputs
        # Peers do not imitate the outputs of the dense network.
        reference = (values(target), dense_inputs) if method is sqs_jax.recode else None
        sums = {
            path: reference and sum_after(stage.apply, path, now[0], inputs[0]) for path in paths
        }
        cross_reference = reference if None in sums.values() else None
        group_moments = input_moments(stage.apply, group[0], now, cross_reference)
        moments = dict.fromkeys(paths.values(), group_moments)
        for path, module in sums.items():
            if reference and module is not None:
                missing = missing_from(stage.apply, path, module, now, reference)
                moments[paths[path]] = group_moments._replace(cross=None, missing=missing)
        recoded = method(
            {kernel: leaves[kernel] for kernel in moments},
            {kernel: weights[kernel] for kernel in moments},
            moments,
        )
        leaves |= recoded
        current = _replaced(current, sqs_jax.materialize(recoded))
        advance(len(paths))
    return _replaced(compressed, leaves)


def _replaced(tree: Any, leaves: dict[str, Any]) -> Any:
    return map_leaves(lambda path, leaf: leaves.get(path, leaf), tree)
