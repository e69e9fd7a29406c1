"""The methods that need no training, each with the one number that moves the size of its file."""

from collections.abc import Callable
from functools import cache, partial
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
from sqs_jax.progress import track

_GROUP, _SMALL = 32, 16  # rows, or the nearest divisor of a kernel's
_STEPS = 256  # of a sparsity
_MARGIN, _TRIALS = 0.01, 6


class Peer(NamedTuple):
    """A published method.

    Attributes:
      compress: (kernels by path, settings, calibration by path or None) -> compressed kernels.
      ladders: of settings; in each the one of the largest file comes first. A size gets the best
        of what fits, one of each ladder, by the outputs for held-out examples.
      informed: whether it uses inputs.
    """

    compress: Callable[[Any, Any, Any], Any]
    ladders: tuple[list[Any], ...]
    informed: bool


def _on_grids(
    method: Any, informed: bool, kernels: Any, settings: Any, calibration: Any, *, group: int = 0
) -> Any:
    def one(path: str, weights: Any) -> Any:
        given = dict(settings)
        if group:
            given["group"] = _divisor(int(np.prod(weights.shape[:-1])), group)
        if informed:
            known = path in (calibration or {})
            given["calibration"] = {"_": calibration[path]} if known else {}
        return method.compress({"_": weights}, **given)["_"]

    return {path: one(path, weights) for path, weights in kernels.items()}


def _plain(method: Any, *ladders: list[Any], **group: int) -> Peer:
    return Peer(partial(_on_grids, method, False, **group), ladders, False)


def _informed(method: Any, *ladders: list[Any], **group: int) -> Peer:
    return Peer(partial(_on_grids, method, True, **group), ladders, True)


def _shared(kernels: Any, settings: Any, _: Any) -> Any:
    return deep_compression.compress(kernels, **settings)


def _divisor(count: int, wanted: int) -> int:
    """Return the divisor of a count that is nearest to a number, by ratio."""
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    return min(divisors, key=lambda d: abs(np.log(d / wanted)))


_LEVELS = [{"levels": n} for n in range(256, 1, -1)]
# the published threshold, and below 8 levels as many outliers as there: errors are of a step
_OUTLIERS = [
    {"levels": n, "threshold": 0.2 * max(1, (7 / (n - 1)) ** 2)} for n in range(256, 1, -1)
]
_DENSE_LEVELS = [{"levels": n, "sparsity": 0.0} for n in range(256, 1, -1)]
_SPARSITIES = [i / _STEPS for i in range(_STEPS)]


def _pruned(**fixed: Any) -> list[Any]:
    return [{**fixed, "sparsity": sparsity} for sparsity in _SPARSITIES]


_GRIDS = tuple(_pruned(levels=levels) for levels in (8, 16, 32, 64))
_FACTORS = tuple(_pruned(levels=n, rank=r) for n in (16, 32, 64) for r in (0.5, 1.0))
_SHARED = tuple(_pruned(components=k) for k in (8, 16, 32, 64))
_REVERSED = tuple(_pruned(components=k, order="quantise_first") for k in (8, 16, 32, 64))

# "-8" and "-16": levels; "-groups": a grid for every 32 inputs of an output, not one for all.
PEERS = {
    "rtn": _plain(round_to_nearest, _LEVELS),
    "rtn-groups": _plain(round_to_nearest, _LEVELS, group=_GROUP),
    "gptq": _informed(gptq, _LEVELS),
    "gptq-groups": _informed(gptq, _LEVELS, group=_GROUP),
    "awq": _informed(awq, _LEVELS),
    "awq-groups": _informed(awq, _LEVELS, group=_GROUP),
    "spqr": _informed(spqr, _OUTLIERS, group=_SMALL),
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
      method: one of METHODS.
      problem: the network and its data.
      variables: on the host.
      config: the experiment.
      workdir: for what is done in steps.

    Returns:
      (params, compressed; the settings that were found), or None if no setting fits.
    """
    batches = examples_of(problem.splits.train, config)
    model = problem.model

    budget = config.sqs.target_bytes

    def size(found: Any) -> int:
        return file_bytes(found, variables, config)

    if method in OURS:
        given = model, variables, problem.splits.train
        try:
            if method == "ours":
                found = ours.compress(*given, batches, config, workdir)
            else:
                found = ours.allocate(*given, config, workdir, budget)
        except sqs_jax.BudgetError as error:  # which says how small the file can be
            print(error)
            return None
        return (found, None) if size(found) <= budget else None
    kernels = _kernels(variables["params"], config)
    if method == ALLOCATED:
        found = obc_database.compress(model, variables, kernels, batches, workdir, size, budget)
        return None if found is None else (found, None)
    peer, found = PEERS[method], []
    for number, ladder in enumerate(track(peer.ladders, method)):
        folder = workdir / f"ladder_{number}"
        made = _fitting(peer, ladder, kernels, model, variables, batches, folder, size, budget)
        if made is not None:
            found.append(made)
    if len(found) < 2:
        return found[0] if found else None
    train = problem.splits.train
    return min(found, key=lambda made: outputs_lost(model, made[0], variables, train, config))


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

    @cache
    def plain(number: int) -> Any:
        """Compress without inputs; returns the params and the size of their file."""
        leaves = peer.compress(kernels, ladder[number], None)
        found = map_leaves(lambda path, leaf: leaves.get(path, leaf), params)
        return found, size(found)

    def largest(most: float) -> int:
        """Find the first settings whose file, without inputs, takes at most so many bytes."""
        low, high = 0, len(ladder)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if plain(middle)[1] <= most else (middle + 1, high)
        return low

    # Where inputs are used, errors that are made good may take more bytes, or less.
    most = budget * (1 + _MARGIN if peer.informed else 1)
    for trial in range(_TRIALS):
        number = largest(most)
        if number == len(ladder):
            return None
        settings, (found, without) = ladder[number], plain(number)
        if peer.informed:

            def by_inputs(_: Any, weights: Any, moments: Any, settings: Any = settings) -> Any:
                return peer.compress(weights, settings, moments)

            folder = workdir / f"trial_{trial}"
            found = recode_stages(model, variables, found, batches, folder, by_inputs)
        taken = size(found)
        if taken <= budget:
            return found, settings
        most = min(most, without - 1, 0.999 * without * budget / taken)
    return None


def compress_to_train(
    method: str, problem: Task, variables: Any, config: Any, workdir: Path
) -> Any:
    """Return params compressed by a method, whose file fits with whatever values are trained.

    Arguments as of `compress`.

    Raises:
      sqs_jax.BudgetError: if the method makes no file that small.
    """
    budget = room = config.sqs.target_bytes
    smaller = config.copy_and_resolve_references()
    for trial in range(_TRIALS):
        smaller.sqs.target_bytes = room
        made = compress(method, problem, variables, smaller, workdir / f"room_{trial}")
        if made is None:
            break
        size = file_bytes(ours.with_any_values(made[0]), variables, config)
        if size <= budget:
            return made[0]
        room -= size - budget
    raise sqs_jax.BudgetError(
        f"config.sqs.target_bytes is {budget}: {method} makes no file that small of this network; "
        "give more."
    )


def file_bytes(params: Any, variables: Any, config: Any) -> int:
    """Return the bytes of the file that compressed params make with the rest of a network."""
    state = other_collections(variables)
    tree, options = shipped(params, state, config)
    return sqs_jax.summarize(jax.tree.map(np.asarray, tree), **options).file_bytes


def _kernels(params: Any, config: Any) -> dict[str, Any]:
    rule = sqs_jax.Rule(pattern=config.sqs.pattern)
    leaves = flat_leaves(params).items()
    return {path: w for path, w in leaves if rule.matches(path) and rule.compresses(w)}
