"""Bit allocation to a file size, then codes chosen for the outputs of layers."""

import math
from collections.abc import Callable
from itertools import chain, count
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
from sqs_jax.budget import fit_bytes
from sqs_jax.progress import progress, tracked

# Fraction of the budget for an allocation. The rest is for codebooks, which may grow by a few bytes
# when codes are chosen anew.
_MOST = 0.998
_TRIALS = 4  # calibrations of the whole network; one is usual
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
      sqs_jax.BudgetError: No file is that small, or all files with newly chosen codes are too
        large.
    """
    budget = config.sqs.target_bytes
    folders = chain([workdir], (workdir / f"trial_{trial}" for trial in count(1)))

    def measure(x: float) -> tuple[Any, int]:
        """Give the allocation exp(x) budgets, as new codes take more or fewer bytes."""
        folder, allowance = next(folders), round(budget * math.exp(x))
        allocated = run("allocation", allocate, model, variables, train, config, folder, allowance)
        compressed = run(
            "blocks", recode_stages, model, variables, allocated, batches, folder / "blocks"
        )
        measured = with_any_values(compressed) if trained else compressed
        tree, options = shipped(measured, other_collections(variables), config)
        with progress("size of the file"):
            size = sqs_jax.summarize(jax.tree.map(np.asarray, tree), **options).file_bytes
        return compressed, size

    name, remedy = "config.sqs.target_bytes", "give a little more"
    return fit_bytes(measure, budget, tries=_TRIALS, name=name, remedy=remedy).candidate


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
      budget: Bytes of the whole file; the allocation takes at most 99.8 %.

    Returns:
      The compressed params.
    """
    path = folder / "allocation.sqs"
    if path.is_file():
        return sqs_jax.load(path)
    folder.mkdir(parents=True, exist_ok=True)
    sensitivity = sensitivities(model, variables, train, config)
    tree, options = shipped(variables["params"], other_collections(variables), config)
    rest = sqs_jax.materialize(other_collections(tree))  # constants ship as codes
    reads = _READS * sum(leaf.nbytes for leaf in jax.tree.leaves(tree["params"]))
    with progress("allocation", reads, percent=True) as advance:
        compressed = sqs_jax.compress_to_budget(
            {**rest, "params": tracked(tree["params"], advance)},
            target_bytes=int(_MOST * budget),
            sensitivity={"params": sensitivity},
            rules=[sqs_jax.Rule(pattern=f"params/(?:{config.sqs.pattern})")],
            stacked=0,
            **options,
        )["params"]
    kept = flat_leaves(compressed)

    def unfolded(path: str, leaf: Any) -> Any:
        return kept[path] if isinstance(kept[path], sqs_jax.CompressedLeaf) else np.asarray(leaf)

    # Statistics are folded into the dense leaves of the measured file, but only shipping folds.
    compressed = map_leaves(unfolded, variables["params"])
    sqs_jax.save(path, compressed)
    return compressed
