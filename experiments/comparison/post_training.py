"""Post-training compression to a size: ours, and published methods.

Each published method has one setting that determines the size of its file.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import sqs_jax
from experiments.calibration import bit_allocation as ours
from experiments.calibration.batch_statistics import outputs_lost
from experiments.calibration.blockwise import examples_of, recode_stages
from experiments.comparison import obc_database
from experiments.export import shipped
from experiments.task.task import Task
from experiments.trees import flat_leaves, map_leaves, other_collections
from sqs_jax.baselines import (
    awq,
    deep_compression,
    gptq,
    obc,
    round_to_nearest,
    sparse_decomposition,
    sparse_gpt,
    spqr,
    wanda,
)
from sqs_jax.budget import fit_bytes
from sqs_jax.progress import track

_GROUP, _SMALL_GROUP = 32, 16  # inputs per group, or the nearest divisor of a kernel's inputs
_SPARSITY_STEPS = 256
_TRIALS = 6


class Peer(NamedTuple):
    """A published method.

    Attributes:
      compress: Function of (kernels by path, settings, input moments by path or None) that returns
        compressed kernels by path.
      ladders: Lists of settings, each from the largest file to the smallest. For a size, each
        ladder gives the largest file that fits, and the outputs for held-out examples decide
        between these files.
      informed: Whether the method uses the layers' inputs.
    """

    compress: Callable[[Any, Any, Any], Any]
    ladders: tuple[list[Any], ...]
    informed: bool


def _on_grids(
    method: Any, informed: bool, kernels: Any, settings: Any, calibration: Any, *, group: int = 0
) -> Any:
    """Compress each kernel separately, with settings that depend on the kernel."""

    def compress_kernel(path: str, weights: Any) -> Any:
        options = dict(settings)
        if group:
            options["group"] = _divisor(int(np.prod(weights.shape[:-1])), group)
        if informed:
            has_inputs = path in (calibration or {})
            options["calibration"] = {"_": calibration[path]} if has_inputs else {}
        return method.compress({"_": weights}, **options)["_"]

    return {path: compress_kernel(path, weights) for path, weights in kernels.items()}


def _plain(method: Any, *ladders: list[Any], **group: int) -> Peer:
    return Peer(partial(_on_grids, method, False, **group), ladders, False)


def _informed(method: Any, *ladders: list[Any], **group: int) -> Peer:
    return Peer(partial(_on_grids, method, True, **group), ladders, True)


def _shared(kernels: Any, settings: Any, _: Any) -> Any:
    return deep_compression.compress(kernels, **settings)


def _divisor(count: int, target: int) -> int:
    """Return the divisor of `count` that is nearest to `target` by ratio."""
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    return min(divisors, key=lambda d: abs(np.log(d / target)))


_LEVELS = [{"levels": n} for n in range(256, 1, -1)]
# The published threshold. Below 8 levels the threshold grows with the squared step of the grid, so
# that the number of outliers stays the same.
_OUTLIERS = [
    {"levels": n, "threshold": 0.2 * max(1, (7 / (n - 1)) ** 2)} for n in range(256, 1, -1)
]
_DENSE_LEVELS = [{"levels": n, "sparsity": 0.0} for n in range(256, 1, -1)]
_SPARSITIES = [i / _SPARSITY_STEPS for i in range(_SPARSITY_STEPS)]


def _pruned(**fixed: Any) -> list[Any]:
    return [{**fixed, "sparsity": sparsity} for sparsity in _SPARSITIES]


_GRIDS = tuple(_pruned(levels=levels) for levels in (8, 16, 32, 64))
_FACTORS = tuple(_pruned(levels=n, rank=r) for n in (16, 32, 64) for r in (0.5, 1.0))
_SHARED = tuple(_pruned(components=k) for k in (8, 16, 32, 64))
_REVERSED = tuple(_pruned(components=k, order="quantise_first") for k in (8, 16, 32, 64))

# "-8" and "-16" are numbers of levels; "-groups" has a grid per 32 inputs of an output.
PEERS = {
    "rtn": _plain(round_to_nearest, _LEVELS),
    "rtn-groups": _plain(round_to_nearest, _LEVELS, group=_GROUP),
    "gptq": _informed(gptq, _LEVELS),
    "gptq-groups": _informed(gptq, _LEVELS, group=_GROUP),
    "awq": _informed(awq, _LEVELS),
    "awq-groups": _informed(awq, _LEVELS, group=_GROUP),
    "spqr": _informed(spqr, _OUTLIERS, group=_SMALL_GROUP),
    "obq": _informed(obc, _DENSE_LEVELS),
    "obc-8": _informed(obc, _pruned(levels=8)),
    "obc-16": _informed(obc, _pruned(levels=16)),
    "sparsegpt": _informed(sparse_gpt, *_GRIDS),
    "wanda": _informed(wanda, *_GRIDS),
    "decomposition": _plain(sparse_decomposition, *_FACTORS),
    "prune-kmeans": Peer(_shared, _SHARED, False),
    "kmeans-prune": Peer(_shared, _REVERSED, False),
}
OURS = ("ours", "ours-allocation")
ALLOCATED = "obc-allocated"
METHODS = (*OURS, *PEERS, ALLOCATED)


def compress(
    method: str, problem: Task, variables: Any, config: Any, workdir: Path
) -> tuple[Any, Any] | None:
    """Compress a network by a method to at most `config.sqs.target_bytes`.

    Args:
      method: One of METHODS.
      problem: Network and data.
      variables: Variables of the network, on the host.
      config: Config of the experiment.
      workdir: Folder for the results of finished stages.

    Returns:
      (compressed params, chosen settings or None), or None if no setting fits.
    """
    batches = examples_of(problem.splits.train, config)
    model = problem.model

    budget = config.sqs.target_bytes

    train = problem.splits.train

    def size(params: Any) -> int:
        return file_bytes(params, variables, config)

    if method in OURS:
        try:
            if method == "ours":
                params = ours.compress(model, variables, train, batches, config, workdir)
            else:
                params = ours.allocate(model, variables, train, config, workdir, budget)
        except sqs_jax.BudgetError as error:  # the message gives the least size
            print(error)
            return None
        return (params, None) if size(params) <= budget else None
    kernels = _kernels(variables["params"], config)
    if method == ALLOCATED:
        params = obc_database.compress(model, variables, kernels, batches, workdir, size, budget)
        return None if params is None else (params, None)
    peer, candidates = PEERS[method], []
    for number, ladder in enumerate(track(peer.ladders, method)):
        folder = workdir / f"ladder_{number}"
        candidate = _fitting(peer, ladder, kernels, model, variables, batches, folder, size, budget)
        if candidate is not None:
            candidates.append(candidate)
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    return min(
        candidates,
        key=lambda candidate: outputs_lost(model, candidate[0], variables, train, config),
    )


def _fitting(
    peer: Peer,
    ladder: list[Any],
    kernels: Any,
    model: Any,
    variables: Any,
    batches: Any,
    workdir: Path,
    size: Callable[[Any], int],
    budget: int,
) -> tuple[Any, Any] | None:
    """Return params and settings of the largest file of a ladder that fits in a budget."""
    params = variables["params"]
    last = len(ladder) - 1

    @cache
    def uninformed(x: float) -> tuple[Any, int]:
        """Compress by settings x of the reversed ladder, and return params and file size."""
        leaves = peer.compress(kernels, ladder[last - round(x)], None)
        compressed = map_leaves(lambda path, leaf: leaves.get(path, leaf), params)
        return compressed, size(compressed)

    trials = count()

    def informed(x: float) -> tuple[Any, int]:
        """Compress by the layers' inputs: the file may be larger or smaller than without them."""

        def by_inputs(_: Any, weights: Any, moments: Any) -> Any:
            return peer.compress(weights, ladder[last - round(x)], moments)

        folder, start = workdir / f"trial_{next(trials)}", uninformed(x)[0]
        compressed = recode_stages(model, variables, start, batches, folder, by_inputs)
        return compressed, size(compressed)

    steps = partial(fit_bytes, bracket=(0, last), resolution=1, tolerance=0)
    try:
        fit = steps(uninformed, budget, start=last // 2, slope=1 / len(ladder))
        if peer.informed:
            # The settings of a slightly larger file may fit by inputs.
            start, slope = min(fit.x + 1, last), 1 / len(ladder)
            fit = steps(informed, budget, start=start, slope=slope, tries=_TRIALS)
    except sqs_jax.BudgetError:
        return None
    return fit.candidate, ladder[last - round(fit.x)]


def compress_to_train(
    method: str, problem: Task, variables: Any, config: Any, workdir: Path
) -> Any:
    """Compress a network so that its file fits after training of the codebooks, too.

    Trained codebooks can compress worse, so that the size is measured with arbitrary values.
    Arguments are those of `compress`.

    Returns:
      Compressed params.

    Raises:
      sqs_jax.BudgetError: If the method makes no file of this size.
    """
    budget = config.sqs.target_bytes
    reduced = config.copy_and_resolve_references()
    trials = count()

    def measure(x: float) -> tuple[Any, int]:
        reduced.sqs.target_bytes = round(budget * math.exp(x))
        folder = workdir / f"room_{next(trials)}"
        result = compress(method, problem, variables, reduced, folder)
        if result is None:
            raise sqs_jax.BudgetError(
                f"config.sqs.target_bytes is {budget}: {method} makes no file that small of this "
                "network; give more."
            )
        return result[0], file_bytes(ours.with_any_values(result[0]), variables, config)

    name = "config.sqs.target_bytes"
    fit = fit_bytes(measure, budget, bracket=(-math.inf, 0), tries=_TRIALS, name=name)
    return fit.candidate


def file_bytes(params: Any, variables: Any, config: Any) -> int:
    """Return the size in bytes of the file of compressed params and the other collections.

    Args:
      params: Compressed params.
      variables: Variables of the network, whose other collections the file stores.
      config: Config of the experiment.
    """
    state = other_collections(variables)
    tree, options = shipped(params, state, config)
    return sqs_jax.summarize(jax.tree.map(np.asarray, tree), **options).file_bytes


def _kernels(params: Any, config: Any) -> dict[str, Any]:
    rule = sqs_jax.Rule(pattern=config.sqs.pattern)
    leaves = flat_leaves(params).items()
    return {path: w for path, w in leaves if rule.matches(path) and rule.compresses(w)}
