"""Optimal Brain Compression with a budget: each layer in several ways, and a choice among them."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

import sqs_jax
from experiments.calibration.blockwise import Batches, recode_stages
from experiments.trees import map_leaves
from sqs_jax.baselines import obc, obc_allocation, round_to_nearest
from sqs_jax.progress import progress

WAYS: tuple[dict[str, Any], ...] = tuple(
    {"levels": levels, "sparsity": sparsity}
    for levels, sparsity in (
        *((64, 0.0), (32, 0.0), (20, 0.0), (12, 0.0), (8, 0.0)),
        *((32, 0.4), (16, 0.4), (16, 0.65), (12, 0.8), (8, 0.92)),
    )
)
_TRIALS = 6


class Way(NamedTuple):
    """A kernel as one of WAYS makes it: what it loses of its outputs' squares, and its bytes."""

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
    """Return the params with a way for each kernel, in a file of at most a budget; None if none is.

    As in the paper, each layer is compressed on its own, with inputs as the dense network gives
    them (here one of 256 levels), and what a layer loses is added up. Different: over its outputs'
    squares, for normalisations undo scales; a file's bytes take the place of operations.

    Args:
      model, variables: the network, on the host.
      kernels: what is compressed, by path.
      batches: of examples.
      folder: where to keep what is temporary.
      size: (params) -> bytes of their file.
      budget: of that.
    """
    params, found = variables["params"], {}

    def collect(compressed: Any, weights: Any, moments: Any) -> Any:
        for path, kernel in weights.items():
            found[path] = _ways(kernel, moments[path].second)
        return compressed

    fine = round_to_nearest.compress(kernels, levels=256)
    start = map_leaves(lambda path, leaf: fine.get(path, leaf), params)
    with TemporaryDirectory(dir=folder) as fresh:  # stages that were done would not be collected
        recode_stages(model, variables, start, batches, Path(fresh), collect)
    for path in kernels.keys() - found.keys():  # read by no linear layer
        found[path] = _ways(kernels[path], None)
    paths = list(found)

    def made(choice: list[int]) -> Any:
        chosen = {path: found[path][way].leaf for path, way in zip(paths, choice, strict=True)}
        return map_leaves(lambda path, leaf: chosen.get(path, leaf), params)

    first = [0] * len(paths)
    rest = size(made(first)) - sum(found[path][0].size for path in paths)
    errors = [[way.error for way in found[path]] for path in paths]
    sizes = [[way.size for way in found[path]] for path in paths]
    room = budget - rest
    for _ in range(_TRIALS):
        try:
            compressed = made(obc_allocation.allocate(errors, sizes, room))
        except sqs_jax.BudgetError as error:  # which says how small it can be
            print(error)
            return None
        if (taken := size(compressed)) <= budget:
            return compressed
        room -= taken - budget
    return None


def _ways(weights: Any, second: Any) -> list[Way]:
    calibration = {} if second is None else {"_": sqs_jax.InputMoments(second)}
    matrix = np.asarray(weights, np.float64).reshape(-1, weights.shape[-1])
    hessian = np.eye(len(matrix)) if second is None else np.asarray(second, np.float64)
    norm = max(float(np.sum(matrix * (hessian @ matrix))), 1e-300)
    ways = []
    for way in WAYS:
        leaf = obc.compress({"_": weights}, **way, calibration=calibration)["_"]
        error = np.asarray(sqs_jax.materialize(leaf), np.float64).reshape(matrix.shape) - matrix
        lost = float(np.sum(error * (hessian @ error))) / norm
        ways.append(Way(leaf, max(lost, 0.0), sqs_jax.summarize({"_": leaf}).file_bytes))
    return ways
