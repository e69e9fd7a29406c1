"""A network in a file of given size: bits are allocated, then codes chosen for layers' outputs."""

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

# Of the budget, before codes are chosen anew: codebooks may take a few bytes more after that.
_LEAST, _AIM, _MOST = 0.993, 0.997, 0.998
_ENOUGH = 0.99  # of the budget, after: a file that is smaller is made once more with more room
_TRIALS = 4
_READS = 3  # of each weight, about, by an allocation: to sort it, and for each file it tries


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
    """Return compressed params whose file fits in the budget.

    Args:
      model, variables: the network, its weights on the host or still in their files.
      train: examples, of which the sensitivities are taken.
      batches: of examples, by which codes are chosen.
      config: the experiment.
      workdir: of what is done already.
      run: (name, function, *arguments) -> what it returns; for "allocation" and "blocks".
      trained: whether the file must fit with any values of codebooks and what is dense, as if they
        had been trained: the values there are may be such that few bytes hold them.

    Raises:
      sqs_jax.BudgetError: if no file is that small.
      ValueError: if codes chosen anew take more bytes than are left for them, again and again.
    """
    budget = room = config.sqs.target_bytes
    largest, best = 0, None  # of what fits
    for trial in range(_TRIALS):
        folder = workdir / f"trial_{trial}" if trial else workdir
        found = run("allocation", allocate, model, variables, train, config, folder, room)
        found = run("blocks", recode_stages, model, variables, found, batches, folder / "blocks")
        ships = with_any_values(found) if trained else found
        tree, options = shipped(ships, other_collections(variables), config)
        with progress("size of the file"):
            size = sqs_jax.summarize(jax.tree.map(np.asarray, tree), **options).file_bytes
        if size <= budget:
            if size <= largest:  # more room gave nothing: no file lies between
                break
            largest, best = size, found
            if size >= _ENOUGH * budget:
                break
        room += budget - size
        if size > budget:
            room = int(0.999 * room)  # what follows the codes' order takes more now
    if best is None:
        raise ValueError(
            f"The file takes {size} bytes, config.sqs.target_bytes is {budget}, after {_TRIALS} "
            "trials; give a little less."
        )
    return best


def with_any_values(compressed: Any) -> Any:
    """Replace floating values by others that no narrower dtype holds; codes stay."""
    rng = np.random.default_rng(0)

    def drawn(array: Any) -> Any:
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        return rng.uniform(1, 2, np.shape(array)).astype(array.dtype)

    return jax.tree.map(drawn, compressed)


def allocate(
    model: Any, variables: Any, train: Dataset, config: Any, folder: Path, budget: int
) -> Any:
    """Return compressed params of about a budget, from the folder if they are there."""
    path = folder / "allocation.sqs"
    if path.is_file():
        return sqs_jax.load(path)
    folder.mkdir(parents=True, exist_ok=True)
    sensitivity = sensitivities(model, variables, train, config)
    tree, options = shipped(variables["params"], other_collections(variables), config)
    rest = other_collections(tree)
    reads = _READS * sum(leaf.nbytes for leaf in jax.tree.leaves(tree["params"]))
    target, found, best = _AIM * budget, 0, None
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
