"""Bit allocation to a file size, then codes chosen for the outputs of layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sqs_jax
from experiments.calibration.blockwise import Batches, recode_stages
from experiments.calibration.sensitivity import sensitivities
from experiments.data import Dataset
from experiments.export import shipped
from experiments.trees import flat_leaves, map_leaves, other_collections
from sqs_jax.progress import progress, tracked

# Fractions of the budget that an allocation takes. The rest is for codebooks, which may grow by a
# few bytes when codes are chosen anew.
_LEAST, _AIM, _MOST = 0.993, 0.997, 0.998
_ENOUGH = 0.99  # fraction of the budget; a smaller file is made again from a larger allocation
_TRIALS = 4
_READS = 3  # approximate reads of each weight in an allocation, for its progress bar


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
    *,
    trained: bool = False,
) -> Any:
    """Compress params to a file of at most `config.sqs.target_bytes` bytes.

    Args:
      model: Network.
      variables: Variables of the network, on the host or lazy.
      train: Training examples, for the sensitivities.
      batches: Calibration data, for the codes.
      config: Config of the experiment.
      workdir: Folder of intermediate results, which a second call reuses.
      run: Function (name, function, *arguments) -> result of the function; it can measure the
        steps "allocation" and "blocks".
      trained: Whether the file fits for any values of codebooks and dense leaves. A later training
        may change these to values that take more bytes than the present values.

    Raises:
      sqs_jax.BudgetError: No file is that small.
      ValueError: The file is too large after every trial, with the newly chosen codes.
    """
    budget = allowance = config.sqs.target_bytes
    largest, best = 0, None  # bytes and params of the largest file that fits
    for trial in range(_TRIALS):
        folder = workdir / f"trial_{trial}" if trial else workdir
        allocated = run("allocation", allocate, model, variables, train, config, folder, allowance)
        compressed = run(
            "blocks", recode_stages, model, variables, allocated, batches, folder / "blocks"
        )
        measured = with_any_values(compressed) if trained else compressed
        tree, options = shipped(measured, other_collections(variables), config)
        with progress("size of the file"):
            size = sqs_jax.summarize(jax.tree.map(np.asarray, tree), **options).file_bytes
        if size <= budget:
            if size <= largest:  # No file lies between: a larger allowance changed nothing.
                break
            largest, best = size, compressed
            if size >= _ENOUGH * budget:
                break
        allowance += budget - size
        if size > budget:
            allowance = int(0.999 * allowance)  # New codes are less ordered and take more bytes.
    if best is None:
        raise ValueError(
            f"The file takes {size} bytes, config.sqs.target_bytes is {budget}, after {_TRIALS} "
            "trials; give a little less."
        )
    return best


def with_any_values(compressed: Any) -> Any:
    """Replace floating values by random values that no narrower dtype holds exactly."""
    rng = np.random.default_rng(0)

    def draw(array: Any) -> Any:
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        return rng.uniform(1, 2, np.shape(array)).astype(array.dtype)

    return jax.tree.map(draw, compressed)


def allocate(
    model: Any, variables: Any, train: Dataset, config: Any, folder: Path, budget: int
) -> Any:
    """Allocate levels and sparsities to a file size, without calibration data.

    Args:
      model: Network.
      variables: Variables of the network, on the host or lazy.
      train: Training examples, for the sensitivities.
      config: Config of the experiment.
      folder: Folder of allocation.sqs; an existing file is loaded.
      budget: Bytes of the whole file; the allocation takes 99.3 to 99.8 %, where it can.

    Returns:
      The compressed params.
    """
    path = folder / "allocation.sqs"
    if path.is_file():
        return sqs_jax.load(path)
    folder.mkdir(parents=True, exist_ok=True)
    sensitivity = sensitivities(model, variables, train, config)
    tree, options = shipped(variables["params"], other_collections(variables), config)
    rest = other_collections(tree)
    reads = _READS * sum(leaf.nbytes for leaf in jax.tree.leaves(tree["params"]))
    target, best_size, best = _AIM * budget, 0, None
    for _ in range(_TRIALS):
        with progress("allocation", reads, percent=True) as advance:
            compressed = sqs_jax.compress_to_budget(
                {"params": tracked(tree["params"], advance)},
                target_bytes=int(target),
                sensitivity={"params": sensitivity},
                rules=[sqs_jax.Rule(pattern=f"params/(?:{config.sqs.pattern})")],
                stacked=0,
                **options,
            )["params"]
        size = sqs_jax.summarize({"params": compressed, **rest}, **options).file_bytes
        if best_size < size <= _MOST * budget:
            best_size, best = size, compressed
        if _LEAST * budget <= size <= _MOST * budget:
            break
        target *= _AIM * budget / size
    kept = flat_leaves(best or compressed)  # the last one if no trial is in the range

    def unfolded(path: str, leaf: Any) -> Any:
        return kept[path] if isinstance(kept[path], sqs_jax.CompressedLeaf) else np.asarray(leaf)

    # Statistics are folded into the dense leaves of the measured file, but only shipping folds.
    compressed = map_leaves(unfolded, variables["params"])
    sqs_jax.save(path, compressed)
    return compressed
