"""Optimal Brain Compression with a budget: a database of compressed layers.

Frantar & Alistarh 2022, arXiv:2208.11580, compress each layer with several settings and choose one
setting per layer.
"""

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

import sqs_jax
from experiments.calibration.blockwise import Batches, recode_stages
from experiments.trees import map_leaves
from sqs_jax.baselines import obc, obc_allocation, round_to_nearest
from sqs_jax.budget import fit_bytes
from sqs_jax.progress import progress

SETTINGS: tuple[dict[str, Any], ...] = tuple(
    {"levels": levels, "sparsity": sparsity}
    for levels, sparsity in (
        *((64, 0.0), (32, 0.0), (20, 0.0), (12, 0.0), (8, 0.0)),
        *((32, 0.4), (16, 0.4), (16, 0.65), (12, 0.8), (8, 0.92)),
    )
)
_TRIALS = 6


class Entry(NamedTuple):
    """Kernel compressed with a setting of SETTINGS.

    Attributes:
      leaf: Compressed kernel.
      error: Squared error of the layer's outputs over their squared norm, >= 0.
      size: Size of the leaf in a file of its own, bytes.
    """

    leaf: Any
    error: float
    size: int


@progress("obc-allocated")
def compress(
    model: Any,
    variables: Any,
    kernels: dict[str, Any],
    batches: Batches,
    folder: Path,
    size: Callable[[Any], int],
    budget: int,
) -> Any:
    """Compress each kernel with the setting that the allocation chooses for a budget.

    As in the paper, each layer is compressed separately, with inputs from the dense network (here
    a network of 256 levels), and the errors of the layers are added. Different from the paper:
    errors are relative to the squares of the layer's outputs, because normalization layers undo
    scales, and the cost is a file's bytes instead of operations.

    Args:
      model: Network.
      variables: Variables of the network, on the host.
      kernels: Kernels to compress, by path.
      batches: Batches of calibration examples.
      folder: Existing folder for temporary files.
      size: Function from params to the bytes of their file.
      budget: Largest size of the file, bytes.

    Returns:
      Params with compressed kernels, or None if no choice fits in the budget.
    """
    params, database = variables["params"], {}

    def collect(compressed: Any, weights: Any, moments: Any) -> Any:
        for path, kernel in weights.items():
            database[path] = _entries(kernel, moments[path].second)
        return compressed

    fine = round_to_nearest.compress(kernels, levels=256)
    start = map_leaves(lambda path, leaf: fine.get(path, leaf), params)
    with TemporaryDirectory(dir=folder) as fresh:  # a resumed folder would skip finished stages
        recode_stages(model, variables, start, batches, Path(fresh), collect)
    for path in kernels.keys() - database.keys():  # kernels that no linear layer uses
        database[path] = _entries(kernels[path], None)
    paths = list(database)

    def assembled(choice: list[int]) -> Any:
        leaves = {path: database[path][i].leaf for path, i in zip(paths, choice, strict=True)}
        return map_leaves(lambda path, leaf: leaves.get(path, leaf), params)

    first = [0] * len(paths)
    rest = size(assembled(first)) - sum(database[path][0].size for path in paths)
    errors = [[entry.error for entry in database[path]] for path in paths]
    sizes = [[entry.size for entry in database[path]] for path in paths]
    kernel_bytes = budget - rest

    def measure(x: float) -> tuple[Any, int]:
        choice = obc_allocation.allocate(errors, sizes, kernel_bytes * math.exp(x))
        compressed = assembled(choice)
        return compressed, size(compressed)

    try:
        return fit_bytes(measure, budget, tries=_TRIALS).candidate
    except sqs_jax.BudgetError as error:  # the message gives the least size
        print(error)
        return None


def _entries(weights: Any, second: Any) -> list[Entry]:
    """Compress a kernel with each of SETTINGS.

    Args:
      weights: Kernel [..., outputs].
      second: Second moments of the layer's inputs, [inputs, inputs]; None for the identity.
    """
    calibration = {} if second is None else {"_": sqs_jax.InputMoments(second)}
    matrix = np.asarray(weights, np.float64).reshape(-1, weights.shape[-1])
    hessian = np.eye(len(matrix)) if second is None else np.asarray(second, np.float64)
    norm = max(float(np.sum(matrix * (hessian @ matrix))), 1e-300)
    entries = []
    for setting in SETTINGS:
        leaf = obc.compress({"_": weights}, **setting, calibration=calibration)["_"]
        error = np.asarray(sqs_jax.materialize(leaf), np.float64).reshape(matrix.shape) - matrix
        relative = max(float(np.sum(error * (hessian @ error))) / norm, 0.0)
        entries.append(Entry(leaf, relative, sqs_jax.summarize({"_": leaf}).file_bytes))
    return entries
