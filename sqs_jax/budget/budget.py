"""Compression to a byte budget, by rate-distortion optimization over all tensors."""

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
from sqs_jax.budget.allocation import Allocation
from sqs_jax.budget.budget_error import infeasible_budget
from sqs_jax.budget.options import Option, Tensor, as_array, read_tensor
from sqs_jax.budget.stacked_axes import stacked_axes
from sqs_jax.transform.rules import (
    DEFAULT_RULES,
    Rule,
    assign,
    check_rules,
    flatten,
    is_sub_distribution,
    path_string,
)

__all__ = ["compress_to_budget", "rules_for"]

_AIM = 0.995  # share of the budget
_GOOD_SHARE, _LEAST_SHARE = 0.99, 0.98  # of the budget: ends the search early; the guarantee
_ATTEMPTS = 16  # bound of the coded files; two are usual
_LEARNING_FILES = 3  # first files, which correct the estimates
_SAMPLE, _RUNS = 256, 4  # tensors that are coded before the first file, in runs of neighbors
_THREADS = 4  # numpy releases the lock in sorts; bounds the leaves in memory
# Bits of a leaf in a long index over those in a sample's index, which compresses less.
_INDEX_COMPRESSION = 0.85
_TABLES_BYTES, _INDEX_BYTES = 112, 6  # estimates for the index: in all, and per leaf
_TASK_BYTES, _SMALL_LEAVES = 1 << 18, 16  # size of a thread's task; leaves in a task of small ones


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
    """Compress weights to a file of 98 to 100 % of a byte budget.

    The method needs no data and no training. Every tensor gets the levels and the sparsity at
    which one more bit would lower the distortion equally in all tensors. docs/budget.md describes
    the method.

    Args:
        params: Tree of arrays, or of array-likes with shape, dtype and `__array__`. Threads read
            four array-likes at a time.
        target_bytes: Upper bound of the size of the whole file, bytes, > 0.
        target_ratio: Bytes of the original over bytes of the file, > 0. Every leaf counts as an
            array of its dtype. The caller sets either `target_bytes` or `target_ratio`.
        sensitivity: Tree with values s >= 0 at some paths of `params`, which broadcast to the
            weights, such as E[g^2] or second moments of the inputs. The distortion of these leaves
            is sum s_i (w_i - v_i)^2. The distortion of the other leaves is the squared error over
            the norm, and their levels are scaled to preserve that norm. Its unit is such that
            pruning all leaves with a sensitivity has the same distortion by both measures.
        rules: Rules that select the leaves to compress, with their `prunable` and `stacked`. The
            budget replaces `components`, and windows are not used. Integer, bool and complex
            leaves stay dense.
        stacked: Number of leading axes whose slices each get their own levels (layers under scan,
            experts), for leaves whose rule has 0. None chooses, for each leaf without a
            sensitivity, the number of fewest bits at equal error.
        dense_dtype: Argument of the later call of `save`.
        metadata: Argument of the later call of `save`.
        attachments: Argument of the later call of `save`.

    Returns:
        Tree of `CompressedLeaf` and dense leaves at the paths of `params`; deterministic. The file
        is smaller than 98 % of the budget if it is lossless, or if too few weights remain for an
        intermediate size.

    Raises:
        BudgetError: If the target is below the smallest possible file.
        ValueError: If there is not exactly one positive finite target. If weights or sensitivities
            are unusable; the message names the path.
        TypeError: If a leaf is no array, or has a dtype that a file cannot store.

    Example:
        >>> import jax
        >>> import sqs_jax
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (256, 64))}
        >>> compressed = sqs_jax.compress_to_budget(params, target_ratio=8)
        >>> params["kernel"].nbytes, sqs_jax.summarize(compressed).file_bytes <= 8192
        (65536, True)

    References:
        Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988.
        Chou, Lookabaugh and Gray, "Entropy-constrained vector quantization", 1989.
    """
    rules = check_rules(rules)
    rounding = rounding_dtype(dense_dtype)
    pairs, treedef = _flatten(params)
    budget = _budget(target_bytes, target_ratio, pairs)
    assigned = assign(rules, [path for path, _ in pairs])
    count = sum(math.prod(_spec(leaf).shape) for _, leaf in pairs)
    stack = _stacking(stacked, 8 * budget / max(count, 1))
    tensors, duplicates = _read(pairs, assigned, sensitivity, rounding, stack)
    dense = [
        None if tensor or i in duplicates else as_array(leaf)
        for i, (tensor, (_, leaf)) in enumerate(zip(tensors, pairs, strict=True))
    ]
    dense_bytes = sum(array.nbytes for array in dense if array is not None)
    compressible = [tensor for tensor in tensors if tensor]
    summarize_file = partial(
        summarize, dense_dtype=dense_dtype, metadata=metadata, attachments=attachments
    )
    rest_bytes = dense_bytes + summarize_file({}).file_bytes + _TABLES_BYTES
    allocation = Allocation(compressible, 8 * (rest_bytes + _INDEX_BYTES * len(pairs)))

    def build(options: Sequence[Option], learn: bool = True) -> tuple[Any, int]:
        built = iter(_in_threads(Tensor.build, compressible, options))
        leaves = [
            next(built) if tensor else array for tensor, array in zip(tensors, dense, strict=True)
        ]
        for i, first in duplicates.items():
            leaves[i] = leaves[first]
        tree = treedef.unflatten(leaves)
        report = summarize_file(tree)
        if learn:
            bits = [leaf.file_bits for leaf, t in zip(report.leaves, tensors, strict=True) if t]
            allocation.learn(options, bits, report.file_bits)
        return tree, report.file_bytes

    def sample(options: Sequence[Option]) -> None:
        """Correct the estimates by the coded streams of a sample of the tensors."""
        # Runs of neighbors: their paths and figures compress as well as those of all leaves.
        starts = np.linspace(0, len(options) - _SAMPLE // _RUNS, _RUNS).astype(int)
        indices = (starts[:, None] + np.arange(_SAMPLE // _RUNS)).ravel().tolist()
        sampled = [options[i] for i in indices]
        leaves = _in_threads(Tensor.build, [compressible[i] for i in indices], sampled)
        by_path = {compressible[i].path: leaf for i, leaf in zip(indices, leaves, strict=True)}
        first_run = dict(list(by_path.items())[: _SAMPLE // _RUNS])
        reports = [summarize(tree, dense_dtype=dense_dtype) for tree in (by_path, first_run)]
        # The difference between the two files is the header and index of the additional leaves.
        overheads = [
            report.file_bits - sum(leaf.file_bits for leaf in report.leaves) for report in reports
        ]
        added_bits, added_leaves = overheads[0] - overheads[1], len(by_path) - len(first_run)
        per_leaf = _INDEX_COMPRESSION * added_bits / added_leaves
        bits = {leaf.path: leaf.file_bits for leaf in reports[0].leaves}
        rest = 8 * rest_bytes + per_leaf * len(pairs)
        allocation.learn_from_sample(indices, sampled, [bits[path] for path in by_path], rest)

    exact = allocation.exact()
    if allocation.bytes(exact) < 1.1 * budget:
        tree, file_bytes = build(exact)
        if file_bytes <= budget:
            return tree

    # The first files correct the estimates of the coder's bits. Later files correct the aim: false
    # position between an aim whose file was too small and an aim whose file was too large.
    aim, sufficient, under, over = _AIM * budget, _GOOD_SHARE, None, None
    best, size, least_distortion = None, 0, math.inf
    tried: list[list[tuple[float, float]]] = []
    if len(compressible) > 4 * _SAMPLE:  # coding all streams again costs more than it saves
        sample(allocation.search(aim))
        sufficient = _LEAST_SHARE
    for attempt in range(_ATTEMPTS):
        options = allocation.search(aim)
        figures = [(option.distortion, option.bits) for option in options]
        if figures in tried[-2:]:
            break  # no file has an intermediate size
        tried.append(figures)
        tree, file_bytes = build(options, learn=attempt < _LEARNING_FILES)
        distortion = sum(option.distortion for option in options)
        fits = file_bytes <= budget
        better = (
            distortion < least_distortion if size >= _LEAST_SHARE * budget else file_bytes > size
        )
        if fits and better and file_bytes >= min(size, _LEAST_SHARE * budget):
            best, size, least_distortion = tree, file_bytes, distortion
        if size >= (sufficient if attempt < _LEARNING_FILES else _LEAST_SHARE) * budget:
            break
        if attempt < _LEARNING_FILES - 1:
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
        best, size = build(allocation.smallest())
        if size > budget:
            leaves = [
                (path, array, rule)
                for (path, _), array, rule in zip(pairs, dense, assigned, strict=True)
                if array is not None
            ]
            raise infeasible_budget(budget, size, leaves, len(pairs), rounding)
    return best


def rules_for(compressed: Any) -> tuple[Rule, ...]:
    """Return rules that reproduce the number of levels of each leaf of a compressed tree.

    `spike_slab_gmm(rules_for(compressed), ...)` starts a training with the same bit allocation.

    Args:
        compressed: Tree of `CompressedLeaf` and arrays, as `compress_to_budget` returns it.

    Returns:
        Tuple of one rule per compressed leaf, and a last rule for the dense leaves, if any.

    Example:
        >>> import numpy as np
        >>> import sqs_jax
        >>> codes = np.array([[0, 1], [2, 3]], np.uint8)
        >>> codebook = np.array([[-0.5, 0.25, 0.5]], np.float32)
        >>> compressed = {"kernel": sqs_jax.CompressedLeaf(codes, codebook), "bias": np.zeros(2)}
        >>> [(rule.pattern, rule.components) for rule in sqs_jax.rules_for(compressed)]
        [('kernel', 3), ('.*', None)]
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
    """Return the (path, leaf) pairs and the structure of params, or raise an error."""
    nodes = jax.tree.leaves(params, is_leaf=lambda x: _is_compressed(x) or is_sub_distribution(x))
    if any(_is_compressed(x) or is_sub_distribution(x) for x in nodes):
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
    """Raise TypeError unless a leaf is an array of a dtype that a file stores."""
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
    """Return the shape and dtype of a leaf; lazy leaves are not read."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    array = np.asarray(leaf)
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _compresses(rule: Rule | None, spec: jax.ShapeDtypeStruct) -> bool:
    """Return whether a rule compresses a leaf of a shape and dtype."""
    floating = jnp.issubdtype(spec.dtype, jnp.floating)
    return bool(floating and math.prod(spec.shape) and rule is not None and rule.compresses(spec))


def _in_threads(function: Callable[..., Any], leaves: Sequence[Any], *others: Any) -> list[Any]:
    """Map a function over leaves and other sequences, with a task per 256 KiB of leaves.

    Many small leaves run in one thread: their time is Python's own, and threads would wait for its
    lock.
    """
    tasks: list[list[tuple[Any, ...]]] = []
    size = _TASK_BYTES
    for item in zip(leaves, *others, strict=True):
        leaf = item[0].leaf if isinstance(item[0], Tensor) else item[0][1]
        if size >= _TASK_BYTES:
            tasks.append([])
            size = 0
        tasks[-1].append(item)
        spec = _spec(leaf)
        size += math.prod(spec.shape) * spec.dtype.itemsize
    small = len(leaves) > _SMALL_LEAVES * len(tasks)
    with ThreadPoolExecutor(1 if small else _THREADS) as pool:
        results = pool.map(lambda task: [function(*item) for item in task], tasks)
        return [result for task_results in results for result in task_results]


def _budget(target_bytes: Any, target_ratio: Any, pairs: Sequence[tuple[str, Any]]) -> int:
    """Return the budget in bytes."""
    targets = {"target_bytes": target_bytes, "target_ratio": target_ratio}
    targets = {name: value for name, value in targets.items() if value is not None}
    if len(targets) != 1:
        raise ValueError(
            f"Give exactly one of target_bytes and target_ratio; got {targets or 'neither'}."
        )
    ((name, value),) = targets.items()
    is_number = (
        isinstance(value, numbers.Real | np.ndarray | np.generic) and getattr(value, "ndim", 0) == 0
    )
    if isinstance(value, bool) or not is_number or not 0 < float(value) < math.inf:
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
    """Read and sort the leaves that may be compressed, a few at a time.

    Args:
        pairs: Path and leaf of each leaf of the tree.
        rules: Rule of each leaf, or None.
        sensitivity: Tree of sensitivities at some of the paths.
        rounding: Dtype that `save` rounds dense leaves to.
        stack: Function that sets `stacked` of a rule, from the weights.

    Returns:
        List with the tensor of each leaf, None for leaves that stay dense and for duplicates. Dict
        from the index of each duplicate to the index of the equal earlier leaf, as a file stores
        shared weights once.
    """
    sensitivities = dict(flatten(sensitivity)[0])
    unknown = sorted(sensitivities.keys() - {path for path, _ in pairs})
    if unknown:
        raise ValueError(
            f"sensitivity has {', '.join(unknown[:8])}, where params have no leaf; it must be a "
            "tree with params' own paths."
        )

    def read(pair: tuple[str, Any], rule: Rule | None) -> tuple[Tensor | None, Any]:
        """Return the tensor, and a key that is equal for leaves of the same weights."""
        path, leaf = pair
        if rule is None or not _compresses(rule, _spec(leaf)):
            return None, None
        array = np.ascontiguousarray(leaf)
        if sensitivities.get(path) is None:
            rule = stack(rule, array)
        key = None
        if array.nbytes >= SHARED_FROM and sensitivities.get(path) is None:
            digest = hashlib.sha256(array.view(np.uint8).data).digest()
            key = rule, array.shape, array.dtype.name, digest
        return read_tensor(path, leaf, array, rule, sensitivities.get(path), rounding), key

    tensors: list[Tensor | None] = []
    duplicates: dict[int, int] = {}
    seen: dict[Any, int] = {}
    # Duplicates are sorted too: shared weights are rare, and waiting for digests would be slower.
    for i, (tensor, key) in enumerate(_in_threads(read, pairs, rules)):
        first = i if key is None else seen.setdefault(key, i)
        if first < i:
            duplicates[i] = first
        tensors.append(tensor if first == i else None)
    return _normalize_distortions(tensors), duplicates


def _stacking(stacked: int | None, rate: float) -> Callable[[Rule, np.ndarray], Rule]:
    """Return a function that sets `stacked` of a leaf's rule.

    Args:
        stacked: Number of stacked axes, or None to choose by the weights.
        rate: Bits per weight of the budget.

    Returns:
        Function from a rule and weights to the rule with its stacked axes.
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


def _normalize_distortions(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """Scale distortions so that pruning everything has a total distortion of 1.

    A common unit: pruning all leaves with a sensitivity has the same distortion by both measures.
    """
    weighted = [tensor for tensor in tensors if tensor and not tensor.norms]
    norms = sum(tensor.norm for tensor in weighted)
    unit = sum(tensor.energy for tensor in weighted) / norms if norms else 1.0
    total = sum(t.energy if t.norms else t.energy / (unit or 1.0) for t in tensors if t) or 1.0
    return [t and t.scaled(1 / total if t.norms else 1 / (unit or 1.0) / total) for t in tensors]
