"""A byte budget as an input: levels and sparsity of every tensor by rate and distortion."""

import dataclasses
import hashlib
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from sqs_jax.artifact import CompressedLeaf, summarize
from sqs_jax.artifact.dtypes import DTYPES, rounding_dtype
from sqs_jax.artifact.file import SHARED_FROM
from sqs_jax.transform.allocation import Allocation
from sqs_jax.transform.alternatives import Choice, Tensor, as_array, read_tensor
from sqs_jax.transform.rules import (
    DEFAULT_RULES,
    Rule,
    assign,
    check_rules,
    flatten,
    is_sub_distribution,
    path_string,
)
from sqs_jax.transform.stacking import stacked_axes

_AIM = 0.995  # of the budget
_GOOD, _PROMISED = 0.99, 0.98
_ATTEMPTS = 16  # two are usual
_LESSONS = 3  # files that teach
_SAMPLE, _RUNS = 256, 4  # tensors whose streams teach before a file of many more
_THREADS = 4  # numpy sorts and searches side by side; so many leaves are in memory at a time
_PACKING = 0.85  # of a leaf's bits in the index: a long index packs better than a sample's
_WIDEST = 2  # bytes of a dense value that no dense_dtype is advised for
_TABLES_BYTES, _INDEX_BYTES = 112, 6  # of an index, for all leaves and for each, before a file
_TASK, _SMALL = 1 << 18, 16  # bytes of leaves that a thread takes together; small ones in that


class BudgetError(ValueError):
    """No file is as small as the budget; the message says how small one can be, and why.

    Attributes:
      budget: What was asked for, bytes.
      least: Size of the smallest possible file, bytes; None where it is not known.
      dense: Path, name of the dtype and bytes of each leaf that is stored uncompressed.
    """

    def __init__(
        self,
        message: str,
        *,
        budget: int = 0,
        least: int | None = None,
        dense: Sequence[tuple[str, str, int]] = (),
    ) -> None:
        """Keep the figures beside the message."""
        super().__init__(message)
        self.budget, self.least, self.dense = budget, least, tuple(dense)


def compress_to_budget(
    params: Any,
    *,
    target_bytes: int | None = None,
    target_ratio: float | None = None,
    sensitivity: Any = None,
    rules: Iterable[Rule] = DEFAULT_RULES,
    stacked: int | None = None,
    dense_dtype: DTypeLike | None = None,
    metadata: dict[str, Any] | None = None,
    attachments: Mapping[str, bytes] | None = None,
) -> Any:
    """Compress weights so that the file takes 98 to 100 % of a budget, everything counted.

    Without data and without training: every tensor gets the levels and the sparsity at which one
    more bit would lower the distortion equally everywhere. docs/budget.md says how.

    Example:
      >>> compressed = sqs_jax.compress_to_budget(params, target_ratio=8)
      >>> sqs_jax.save("model.sqs", compressed)

    Args:
      params: tree of arrays, or of array-likes with shape, dtype and `__array__`, which are read
        four at a time, from threads.
      target_bytes: the most bytes that the file may take.
      target_ratio: bytes of the original, every leaf as an array of its dtype, over those of the
        file. Exactly one of the two is given.
      sensitivity: tree with, at paths of params, s >= 0 that broadcasts to the weights, such as
        E[g^2] or second moments of the inputs; the distortion is then sum s_i (w_i - v_i)^2.
        Leaves without one have their squared error over their norm, and levels scaled to keep
        that norm, in a unit in which pruning all leaves with a sensitivity costs the same by both
        measures.
      rules: which leaves may be compressed, and their `prunable` and `stacked`. K and sparsity
        are chosen here; windows are not used. Integer, bool and complex leaves stay as they are.
      stacked: number of leading axes whose slices each get their own levels, of leaves whose rule
        says 0 (layers under scan, experts); None decides for each leaf without a sensitivity by
        what takes fewer bits at equal error.
      dense_dtype: as it will be given to `save`.
      metadata: as it will be given to `save`.
      attachments: as they will be given to `save`.

    Returns:
      A tree of `CompressedLeaf` and dense leaves, same paths; the same bytes for the same input.
      The file is smaller than 98 % of the budget where it loses nothing at all, or where so few
      weights are left to choose for that nothing lies between.

    Raises:
      BudgetError: if the target is below the least possible file.
      ValueError: if not exactly one positive finite target is given; naming the path, if weights
        or sensitivities cannot be used.
    """
    rules = check_rules(rules)
    rounding = rounding_dtype(dense_dtype)
    pairs, treedef = _flatten(params)
    budget = _budget(target_bytes, target_ratio, pairs)
    assigned = assign(rules, [path for path, _ in pairs])
    count = sum(math.prod(_spec(leaf).shape) for _, leaf in pairs)
    stack = _stacking(stacked, 8 * budget / max(count, 1))
    tensors, twins = _read(pairs, assigned, sensitivity, rounding, stack)
    dense = [
        None if tensor or i in twins else as_array(leaf)
        for i, (tensor, (_, leaf)) in enumerate(zip(tensors, pairs, strict=True))
    ]
    dense_bytes = sum(array.nbytes for array in dense if array is not None)
    compressible = [tensor for tensor in tensors if tensor]
    weigh = partial(summarize, dense_dtype=dense_dtype, metadata=metadata, attachments=attachments)
    rest_bytes = dense_bytes + weigh({}).file_bytes + _TABLES_BYTES
    allocation = Allocation(compressible, 8 * (rest_bytes + _INDEX_BYTES * len(pairs)))

    def build(choices: Sequence[Choice], learn: bool = True) -> tuple[Any, int]:
        built = iter(_in_threads(Tensor.build, compressible, choices))
        leaves = [
            next(built) if tensor else array for tensor, array in zip(tensors, dense, strict=True)
        ]
        for i, first in twins.items():
            leaves[i] = leaves[first]
        tree = treedef.unflatten(leaves)
        report = weigh(tree)
        if learn:
            bits = [leaf.file_bits for leaf, t in zip(report.leaves, tensors, strict=True) if t]
            allocation.learn(choices, bits, report.file_bits)
        return tree, report.file_bytes

    def sample(choices: Sequence[Choice]) -> None:
        """Learn from the streams of some tensors what all will take, about."""
        # runs of neighbors: their names and figures pack as well as all will
        starts = np.linspace(0, len(choices) - _SAMPLE // _RUNS, _RUNS).astype(int)
        some = (starts[:, None] + np.arange(_SAMPLE // _RUNS)).ravel().tolist()
        mine = [choices[i] for i in some]
        leaves = _in_threads(Tensor.build, [compressible[i] for i in some], mine)
        named = {compressible[i].path: leaf for i, leaf in zip(some, leaves, strict=True)}
        few = dict(list(named.items())[: _SAMPLE // _RUNS])
        reports = [summarize(leaves, dense_dtype=dense_dtype) for leaves in (named, few)]
        # header and index: what another leaf adds to them
        others = [
            report.file_bits - sum(leaf.file_bits for leaf in report.leaves) for report in reports
        ]
        other = _PACKING * (others[0] - others[1]) / (len(named) - len(few))
        bits = {leaf.path: leaf.file_bits for leaf in reports[0].leaves}
        rest = 8 * rest_bytes + other * len(pairs)
        allocation.learn_from_some(some, mine, [bits[path] for path in named], rest)

    exact = allocation.exact()
    if allocation.bytes(exact) < 1.1 * budget:
        tree, file_bytes = build(exact)
        if file_bytes <= budget:
            return tree

    # The first files correct the estimates of the coder's bits. After that the aim is corrected: by
    # false position between an aim whose file was too small and one whose file was too large.
    aim, enough, under, over = _AIM * budget, _GOOD, None, None
    best, size, least = None, 0, math.inf
    tried: list[list[tuple[float, float]]] = []
    if len(compressible) > 4 * _SAMPLE:  # coding all streams once more takes longer than it gains
        sample(allocation.search(aim))
        enough = _PROMISED
    for attempt in range(_ATTEMPTS):
        choices = allocation.search(aim)
        figures = [(choice.distortion, choice.bits) for choice in choices]
        if figures in tried[-2:]:
            break  # a jump that nothing fills
        tried.append(figures)
        tree, file_bytes = build(choices, learn=attempt < _LESSONS)
        distortion = sum(choice.distortion for choice in choices)
        fits = file_bytes <= budget
        better = distortion < least if size >= _PROMISED * budget else file_bytes > size
        if fits and better and file_bytes >= min(size, _PROMISED * budget):
            best, size, least = tree, file_bytes, distortion
        if size >= (enough if attempt < _LESSONS else _PROMISED) * budget:
            break
        if attempt < _LESSONS - 1:
            continue
        if fits:
            under = aim, file_bytes
        else:
            over = aim, file_bytes
        if under and over:
            share = (_AIM * budget - under[1]) / (over[1] - under[1])
            aim = under[0] + min(max(share, 0.1), 0.9) * (over[0] - under[0])
            if over[0] - under[0] < 1e-3 * budget:
                break
        else:
            aim *= _AIM * budget / file_bytes
    if not size:
        best, size = build(allocation.least())
        if size > budget:
            leaves = [
                (path, array, rule)
                for (path, _), array, rule in zip(pairs, dense, assigned, strict=True)
                if array is not None
            ]
            raise _too_small(budget, size, leaves, len(pairs), rounding)
    return best


def rules_for(compressed: Any) -> tuple[Rule, ...]:
    """Return the rules that give each leaf the K it has in a compressed tree.

    They make a posterior of the same allocation, to be trained: `spike_slab_gmm(rules_for(tree))`.

    Args:
      compressed: a tree as `compress_to_budget` returns it.

    Returns:
      A rule per compressed leaf, then one that leaves the others dense, if there are any.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(compressed, is_leaf=_is_compressed)
    rules = [
        Rule(
            pattern=re.escape(path_string(path)),
            components=math.prod(leaf.codebook.shape[-2:]),
            min_ndim=0,
            stacked=leaf.codebook.ndim - 2,
        )
        for path, leaf in leaves
        if _is_compressed(leaf)
    ]
    return (*rules, Rule(components=None)) if len(rules) < len(leaves) else tuple(rules)


def _is_compressed(node: Any) -> bool:
    return isinstance(node, CompressedLeaf)


def _flatten(params: Any) -> tuple[list[tuple[str, Any]], Any]:
    """List (path, leaf), or say which leaf is no array of weights."""
    done = jax.tree.leaves(params, is_leaf=lambda x: _is_compressed(x) or is_sub_distribution(x))
    if any(_is_compressed(x) or is_sub_distribution(x) for x in done):
        raise ValueError(
            "compress_to_budget takes plain params; this tree has leaves that are compressed "
            "already. Pass sqs_jax.materialize(compressed), or transform.mode(posterior)."
        )
    pairs, treedef = flatten(params)
    if not pairs:
        raise ValueError("params has no tensors, so there is nothing to compress.")
    for path, leaf in pairs:
        _require_array(path, leaf)
    return pairs, treedef


def _require_array(path: str, leaf: Any) -> None:
    """Raise TypeError, naming the path, unless a leaf holds numbers that a file can keep."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(
            f"{path}: a jax.ShapeDtypeStruct has no values; load the weights into it first."
        )
    if callable(leaf) and not hasattr(leaf, "dtype"):
        raise TypeError(
            f"{path}: a function ({getattr(leaf, '__name__', type(leaf).__name__)}), no array; "
            "separate the arrays first, as equinox.partition(model, equinox.is_array) does."
        )
    dtype = getattr(leaf, "dtype", None)
    name = getattr(dtype, "name", None) if dtype is not None else np.asarray(leaf).dtype.name
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended):
        raise TypeError(f"{path}: a key array; use jax.random.key_data(key).")
    if name not in DTYPES:
        raise TypeError(
            f"{path}: {type(leaf).__name__} of dtype {name or dtype} cannot be stored; cast it to "
            "a numeric dtype such as float32, or leave it out of the tree."
        )


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return shape and dtype, without reading what has them."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    array = np.asarray(leaf)
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _compresses(rule: Rule | None, spec: jax.ShapeDtypeStruct) -> bool:
    """Return whether a leaf may be compressed."""
    floating = jnp.issubdtype(spec.dtype, jnp.floating)
    return bool(floating and math.prod(spec.shape) and rule is not None and rule.compresses(spec))


def _in_threads(function: Callable[..., Any], leaves: Sequence[Any], *others: Any) -> list[Any]:
    """Map a function over leaves and what goes with them, small leaves many to a task.

    Of very many small ones nearly all the time is Python's own, for which threads would queue.
    """
    tasks: list[list[tuple[Any, ...]]] = []
    size = _TASK
    for item in zip(leaves, *others, strict=True):
        leaf = item[0].leaf if isinstance(item[0], Tensor) else item[0][1]
        if size >= _TASK:
            tasks.append([])
            size = 0
        tasks[-1].append(item)
        spec = _spec(leaf)
        size += math.prod(spec.shape) * spec.dtype.itemsize
    small = len(leaves) > _SMALL * len(tasks)
    with ThreadPoolExecutor(1 if small else _THREADS) as pool:
        done = pool.map(lambda task: [function(*item) for item in task], tasks)
        return [result for results in done for result in results]


def _budget(target_bytes: Any, target_ratio: Any, pairs: Sequence[tuple[str, Any]]) -> int:
    """Return the budget in bytes."""
    given = {"target_bytes": target_bytes, "target_ratio": target_ratio}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            f"Give exactly one of target_bytes and target_ratio; got {given or 'neither'}."
        )
    ((name, value),) = given.items()
    number = (
        isinstance(value, numbers.Real | np.ndarray | np.generic) and getattr(value, "ndim", 0) == 0
    )
    if isinstance(value, bool) or not number or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a positive finite number.")
    if name == "target_bytes":
        return int(value)
    original = sum(math.prod(s.shape) * s.dtype.itemsize for s in (_spec(x) for _, x in pairs))
    return int(original / float(value))


def _read(
    pairs: Sequence[tuple[str, Any]],
    rules: Sequence[Rule | None],
    sensitivity: Any,
    rounding: np.dtype | None,
    stack: Callable[[Rule, np.ndarray], Rule],
) -> tuple[list[Tensor | None], dict[int, int]]:
    """Read what may be compressed, a few leaves at a time.

    Returns:
      A tensor per leaf, None for leaves that stay dense and for those that equal an earlier one;
      and for these the number of that: a file stores shared weights once.
    """
    given = dict(flatten(sensitivity)[0])
    unknown = sorted(given.keys() - {path for path, _ in pairs})
    if unknown:
        raise ValueError(
            f"sensitivity has {', '.join(unknown[:8])}, where params have no leaf; it must be a "
            "tree with params' own paths."
        )

    def read(pair: tuple[str, Any], rule: Rule | None) -> tuple[Tensor | None, Any]:
        """Return the tensor, and what is equal for leaves that share their weights."""
        path, leaf = pair
        if rule is None or not _compresses(rule, _spec(leaf)):
            return None, None
        array = np.ascontiguousarray(leaf)
        if given.get(path) is None:
            rule = stack(rule, array)
        same = None
        if array.nbytes >= SHARED_FROM and given.get(path) is None:
            digest = hashlib.sha256(array.view(np.uint8).data).digest()
            same = rule, array.shape, array.dtype.name, digest
        return read_tensor(path, leaf, array, rule, given.get(path), rounding), same

    tensors: list[Tensor | None] = []
    twins: dict[int, int] = {}
    seen: dict[Any, int] = {}
    # a twin is sorted, too, before it is known to be one: shared weights are rare
    for i, (tensor, same) in enumerate(_in_threads(read, pairs, rules)):
        first = i if same is None else seen.setdefault(same, i)
        if first < i:
            twins[i] = first
        tensors.append(tensor if first == i else None)
    return _in_one_unit(tensors), twins


def _stacking(stacked: int | None, rate: float) -> Callable[[Rule, np.ndarray], Rule]:
    """Return what gives a leaf's rule its stacked axes.

    Args:
      stacked: as given to `compress_to_budget`.
      rate: bits that the budget leaves for a weight on average.
    """
    if stacked is not None and (type(stacked) is not int or stacked < 0):
        raise ValueError(f"stacked is {stacked!r}; it must be an int >= 0, or None.")
    rate = min(max(rate, 1.0), 8.0)

    def stack(rule: Rule, weights: np.ndarray) -> Rule:
        axes = stacked
        if rule.stacked or axes == 0:
            return rule
        if axes is None:
            axes = stacked_axes(weights, rule.min_ndim, rate)
        return dataclasses.replace(rule, stacked=min(axes, max(weights.ndim - rule.min_ndim, 0)))

    return stack


def _in_one_unit(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """Scale distortions: with a sensitivity and without alike, and 1 for pruning everything."""
    given = [tensor for tensor in tensors if tensor and not tensor.norms]
    plain = sum(tensor.norm for tensor in given)
    unit = sum(tensor.energy for tensor in given) / plain if plain else 1.0
    total = sum(t.energy if t.norms else t.energy / (unit or 1.0) for t in tensors if t) or 1.0
    return [t and t.scaled(1 / total if t.norms else 1 / (unit or 1.0) / total) for t in tensors]


def _too_small(
    budget: int,
    least: int,
    leaves: Sequence[tuple[str, Any, Rule | None]],
    count: int,
    rounding: np.dtype | None,
) -> BudgetError:
    """Say how small a file can be, what keeps it from being smaller, and what helps.

    Args:
      budget: The budget, bytes.
      least: The least possible file, bytes.
      leaves: Path, array and rule of each leaf that stays dense.
      count: Number of leaves of the tree.
      rounding: The dtype that `save` rounds dense leaves to.
    """
    dense, exact, wide, small = [], 0, 0, 0
    for path, array, rule in leaves:
        dtype = np.dtype(array.dtype)
        width = dtype.itemsize
        if jnp.issubdtype(dtype, jnp.floating):
            width = min(width, rounding.itemsize) if rounding else width
            wide += width > _WIDEST and array.size > 0
            small += array.size > 0 and array.ndim > 0 and _kept_by_min_ndim(rule, array)
        else:
            exact += array.size > 0
        dense.append((path, dtype.name, array.size * width))
    size = sum(entry[2] for entry in dense)
    message = f"The budget of {budget:,} bytes is below the least possible file: {least:,} bytes"
    remedies = ["a larger budget"]
    if len(dense) == count and not size:
        message += "; all tensors of the tree are empty."
    else:
        message += ", with every weight pruned that may be." if len(dense) < count else "."
        if dense:
            message += f" {len(dense)} leaves that stay dense take {size:,} bytes of it,"
            message += " uncompressed."
        if exact:
            message += f" {exact} of them hold integers, bools or complex numbers, never rounded."
        if wide:
            remedies.append("a dense_dtype such as 'bfloat16' (here and to save)")
        if small:
            remedies.append("rules that compress more leaves, such as Rule(min_ndim=1)")
    listed = ", ".join(remedies[:-1]) + (", or " if remedies[1:] else "") + remedies[-1]
    return BudgetError(f"{message} Give {listed}.", budget=budget, least=least, dense=dense)


def _kept_by_min_ndim(rule: Rule | None, array: Any) -> bool:
    """Return whether a leaf stays dense because it has too few axes."""
    return rule is not None and rule.components is not None and not rule.compresses(array)
