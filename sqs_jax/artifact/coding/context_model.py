"""The context model: a code's frequency table depends on row, column and past.

In a network, some rows, columns and kernels have mostly small weights. The codes of a tensor are
viewed as [A, B, P]: pairs (a, b) of a row and a column, and P steps (the positions of a convolution
kernel; 1 for a matrix). The context of a code has two parts:

    score   level_A[a] + level_B[b] + level_P[p] - bias, clipped to 0..15. The levels of rows,
            columns and steps are stored in the stream.
    past    0 at the first step, else 1 + the mean activity of the codes at the earlier steps of
            the pair, in 0..6: (16 * sum of the activities // p - low) // width, clipped

`activity` is a small integer per symbol: its code length above that of the most frequent symbol,
in half bits. Contexts with similar statistics share a table, so that a tensor has only tables that
save more bytes than they take.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sqs_jax.artifact.coding import ans
from sqs_jax.artifact.coding.frequency_table import best_table

__all__ = [
    "CONTEXTS",
    "MAX_ALPHABET",
    "MAX_LEVEL",
    "MAX_STEPS",
    "Context",
    "fit",
    "view",
    "worth_fitting",
]

SCORES, PASTS = 16, 8
CONTEXTS = SCORES * PASTS
MAX_ALPHABET = 1024
MAX_STEPS = 64
MAX_LEVEL = 32
MAX_ACTIVITY = 16
_LEVEL_STEP = 0.25  # distance of levels, in standard deviations of the activity
_PAST_STEP = 0.4  # distance of pasts, in the same unit
_HISTOGRAM_ROWS = 1 << 16  # pairs per pass of `_histogram`, which bounds its working memory
_SMALL = 1 << 12  # largest number of codes of a matrix that `worth_fitting` batches with others
_BATCH = 1 << 20  # numbers in the histograms of one such batch


class Context(NamedTuple):
    """The context model of a tensor, which a decoder needs beside the words.

    Attributes:
        leading: True if the steps are the leading axes and the pair is the last two; False if the
            pair is the first two axes and the steps are the trailing axes.
        levels: Three integer arrays `[A]`, `[B]`, `[P]`, values below `MAX_LEVEL`.
        bias: Offset of the scores, integer.
        low: Mean activity at which the pasts 1 to 7 begin, in sixteenths.
        width: Width of a past, in sixteenths of activity, at least 1.
        activity: Integer array `[alphabet]`, values below `MAX_ACTIVITY`.
        table_of: Integer array `[CONTEXTS]`, the number of the table of each context.
        tables: Frequencies `[alphabet]`, one array per table.
    """

    leading: bool
    levels: tuple[np.ndarray, ...]
    bias: int
    low: int
    width: int
    activity: np.ndarray
    table_of: np.ndarray
    tables: list[np.ndarray]

    def encode(self, codes: np.ndarray, start: int) -> bytes:
        """Code a range of pairs.

        Args:
            codes: Symbols of the pairs, `[n, P]`.
            start: Number of the first pair, counted along rows and columns.

        Returns:
            The words of the coder.
        """
        runs, past_activity = [], np.zeros(len(codes), np.int32)
        scores = self._scores(start, len(codes))
        for step, column in enumerate(codes.T):
            tables = self._tables(scores, past_activity, step)
            order = np.argsort(tables, kind="stable")
            ends = np.cumsum(np.bincount(tables, minlength=len(self.tables)))
            runs.append(np.split(column[order], ends[:-1]))
            past_activity += self.activity[column]
        models = [ans.Model(table, paired=False) for table in self.tables]
        coder = ans.AnsCoder()
        for run in reversed(runs):
            for model, symbols in reversed(list(zip(models, run, strict=True))):
                model.encode(coder, symbols)
        return ans.words_of(coder)

    def decode(self, words: bytes, start: int, out: np.ndarray) -> None:
        """Decode a range of pairs.

        Args:
            words: Words of the coder, from `encode`.
            start: Number of the first pair.
            out: Unsigned array `[n, P]` that is filled with the symbols.

        Raises:
            ValueError: If the words do not end where the symbols do.
        """
        models = [ans.Model(table, paired=False) for table in self.tables]
        coder = ans.coder_of(words)
        past_activity = np.zeros(len(out), np.int32)
        scores = self._scores(start, len(out))
        column = np.empty(len(out), out.dtype)
        for step in range(out.shape[1]):
            tables = self._tables(scores, past_activity, step)
            order = np.argsort(tables, kind="stable")
            first = 0
            for model, count in zip(models, np.bincount(tables), strict=False):
                if count:
                    model.decode(coder, column[first : first + count])
                first += count
            out[order, step] = column
            past_activity += self.activity[out[:, step]]
        if not coder.is_empty():
            raise ValueError("a symbol stream does not end where its symbols do")

    def _scores(self, start: int, count: int) -> np.ndarray:
        """Return the scores of `count` pairs without the level of the step."""
        rows, columns, _ = self.levels
        row, column = np.divmod(np.arange(start, start + count), len(columns))
        return rows[row].astype(np.int32) + columns[column] - np.int32(self.bias)

    def _tables(self, scores: np.ndarray, past_activity: np.ndarray, step: int) -> np.ndarray:
        """Return the table of each pair at a step.

        Args:
            scores: Scores of the pairs, from `_scores`, `[n]`.
            past_activity: Sum of the activities at earlier steps, `[n]`.
            step: Number of the step, 0 to P - 1.
        """
        context = np.clip(scores + self.levels[2][step], 0, SCORES - 1) * PASTS
        if step:
            context += _past(past_activity, step, self.low, self.width)
        return self.table_of.astype(np.uint8)[context]  # uint8: numpy sorts it by radix


def _past(past_activity: np.ndarray, step: int, low: int, width: int) -> np.ndarray:
    return np.asarray(1 + np.clip((16 * past_activity // step - low) // width, 0, PASTS - 2))


def view(shape: tuple[int, ...], leading: bool) -> tuple[int, int, int] | None:
    """Return the view of a tensor as rows A, columns B and steps P.

    Args:
        shape: Shape of the tensor.
        leading: True if the steps are the leading axes, False if they are the trailing axes.

    Returns:
        A, B and P; None if there are fewer than two axes or more than `MAX_STEPS` steps, and for a
        matrix with `leading`, whose view is that of trailing steps.
    """
    if len(shape) < 2 or (leading and len(shape) == 2):
        return None
    (rows, columns), rest = (shape[-2:], shape[:-2]) if leading else (shape[:2], shape[2:])
    steps = math.prod(rest)
    return (rows, columns, steps) if steps <= MAX_STEPS else None


def fit(codes: np.ndarray, counts: np.ndarray) -> tuple[Context, float] | None:
    """Fit a context model to the codes of a tensor.

    Args:
        codes: Unsigned integer array of any shape.
        counts: Count of each symbol, int64 array `[alphabet]`.

    Returns:
        The best model and an estimate of the bytes of its words; None if the shape or alphabet
        allows no model, or no model of a matrix has more than one table.
    """
    if counts.size > MAX_ALPHABET or codes.size < 2:
        return None
    fits = []
    for leading in (False, True):
        shape = view(codes.shape, leading)
        if shape is not None:
            viewed = codes.reshape(shape[2], -1).T if leading else codes.reshape(-1, shape[2])
            fits.append(_fit_view(viewed, shape, counts, leading))
    models = [fitted for fitted in fits if fitted is not None]
    return min(models, key=lambda fitted: fitted[0])[1:] if models else None


def _fit_view(
    codes: np.ndarray, shape: tuple[int, int, int], counts: np.ndarray, leading: bool
) -> tuple[float, Context, float] | None:
    """Fit a context model to the codes of a view.

    Levels of rows, columns and steps are added in this order, each if it saves bytes; then pasts.

    Args:
        codes: Codes of the view, `[A * B, P]`.
        shape: A, B and P.
        counts: Count of each symbol, int64 array `[alphabet]`.
        leading: True if the steps are the leading axes.

    Returns:
        Estimates of all bytes and of the words' bytes around the model; None as for `fit`.
    """
    activity, mean, spread = (x[0] for x in _activities(counts[None]))
    active = activity[codes]

    levels, score, bias = [np.zeros(size, np.int64) for size in shape], np.zeros(shape, np.int8), 0
    merged = _merge(counts[None])
    best = merged[0]
    for axis, size in enumerate(shape):
        others = tuple(other for other in range(3) if other != axis)
        sums = active.reshape(shape).sum(axis=others, dtype=np.int64)
        level = _levels(sums, active.size // size, mean, spread)
        if size == 1 or not level.any():
            continue
        trial = score + np.expand_dims(level, others)
        trial_bias = bias + int(_middle(level))
        by_context = _histogram(codes, _clipped(trial, trial_bias, codes.shape), counts.size)
        level_bytes = float(_level_bytes(level))
        if _min_bytes(by_context[by_context.any(1)]) + level_bytes >= best:
            continue
        trial_merged = _merge(by_context)
        cost = trial_merged[0] + level_bytes
        if cost < best:
            score, bias, best, merged = trial, trial_bias, cost, trial_merged
            levels[axis] = level.astype(np.int64)
    if len(merged[2]) == 1 and shape[2] == 1:
        return None

    total_bytes, table_of, tables = merged
    # So far the context is the score alone: all pasts of a score use its table.
    table_of = np.repeat(np.broadcast_to(table_of, CONTEXTS)[:SCORES], PASTS)
    low = max(0, round(16 * (mean - 2 * _PAST_STEP * spread)))
    width = max(1, round(16 * _PAST_STEP * spread))
    if shape[2] > 1:
        context = _clipped(score, bias, codes.shape) * np.uint8(PASTS)
        past_activity = np.zeros(len(codes), np.int32)
        for step in range(1, shape[2]):
            past_activity += active[:, step - 1]
            context[:, step] += _past(past_activity, step, low, width).astype(np.uint8)
        with_past = _merge(_histogram(codes, context, counts.size))
        if with_past[0] < total_bytes:
            total_bytes, table_of, tables = with_past
    non_negative = tuple(level - level.min() for level in levels)
    bias -= sum(int(level.min()) for level in levels) + SCORES // 2
    best_of_tables = [best_table(table) for table in tables]
    word_bytes = sum(size - len(table) for _, table, size in best_of_tables)
    frequencies = [table[0] for table in best_of_tables]
    model = Context(leading, non_negative, bias, low, width, activity, table_of, frequencies)
    return total_bytes, model, word_bytes


def worth_fitting(codes: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> list[bool]:
    """Return for which tensors `fit` may return a model, in batches of small matrices.

    The lower bound is the one with which `fit` rejects most small matrices. Computing it for many
    matrices at once avoids numpy's call overhead. For other tensors the result is True.

    Args:
        codes: Codes of each tensor, unsigned arrays.
        counts: Counts of each tensor's symbols, int64 arrays `[alphabet]`.

    Returns:
        False for each tensor for which `fit` returns None for certain.
    """
    worth = [True] * len(codes)
    matrices_of_shape: dict[Any, list[int]] = {}
    for i, (matrix, count) in enumerate(zip(codes, counts, strict=True)):
        if matrix.ndim == 2 and 1 < matrix.size <= _SMALL and count.size <= MAX_ALPHABET:
            key = matrix.shape, count.size.bit_length()
            matrices_of_shape.setdefault(key, []).append(i)
    for (_, alphabet_bits), matrices in matrices_of_shape.items():
        step = max(1, _BATCH >> alphabet_bits + 4)
        for start in range(0, len(matrices), step):
            batch = matrices[start : start + step]
            padded_counts = np.zeros((len(batch), 1 << alphabet_bits), np.int64)
            for row, i in zip(padded_counts, batch, strict=True):
                row[: counts[i].size] = counts[i]
            batch_worth = _worth_fitting(np.stack([codes[i] for i in batch]), padded_counts)
            for i, is_worth in zip(batch, batch_worth.tolist(), strict=True):
                worth[i] = is_worth
    return worth


def _worth_fitting(codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Compute `worth_fitting` for matrices `[T, A, B]` with counts `[T, alphabet]`."""
    worth = np.zeros(len(codes), bool)
    activity, mean, spread = _activities(counts)
    active = np.take_along_axis(activity, codes.reshape(len(codes), -1), 1).reshape(codes.shape)
    one_table = _bytes(counts) + 1 / 4
    for axis in (1, 2):
        sums = active.sum(axis=3 - axis, dtype=np.int64)
        level = _levels(sums, codes.shape[3 - axis], mean[:, None], spread[:, None])
        trial = level - _middle(level)[:, None]
        score = np.clip(trial + SCORES // 2, 0, SCORES - 1).astype(np.int64)
        context = np.arange(len(codes))[:, None] * SCORES + score
        index = np.expand_dims(context, 3 - axis) * counts.shape[1] + codes
        by_context = np.bincount(index.reshape(-1), minlength=SCORES * counts.size)
        min_bytes = _min_bytes(by_context.reshape(len(codes), SCORES, -1)) + _level_bytes(level)
        worth |= level.any(1) & (min_bytes < one_table)
    return worth


def _activities(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the activities of the symbols of each tensor.

    Args:
        counts: Counts of the symbols, `[T, alphabet]`.

    Returns:
        Activities `[T, alphabet]`; their mean `[T]` and standard deviation `[T]` over the codes.
    """
    totals = counts.sum(1)
    shares = counts / totals[:, None]
    lengths = np.where(counts, -np.log2(np.maximum(shares, 1e-12)), 0.0)
    floor = np.where(counts, lengths, np.inf).min(1, keepdims=True)
    activity = np.clip(np.round(2 * (lengths - floor)), 0, MAX_ACTIVITY - 1).astype(np.uint8)
    mean = (counts * activity).sum(1) / totals
    squares = (counts * activity.astype(np.int64) ** 2).sum(1) / totals
    return activity, mean, np.sqrt(np.maximum(squares - mean**2, 1e-12))


def _levels(sums: np.ndarray, count: int, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Quantize the mean activity of each row to a level, in -4..4.

    Args:
        sums: Sum of the activities of each row, `[..., n]`.
        count: Number of codes per row.
        mean: Mean activity of the tensor.
        spread: Standard deviation of the activity of the tensor.
    """
    # Shrunk towards the mean by the weight of two codes, as short rows are weak evidence.
    means = (sums + 2 * mean) / (count + 2)
    levels = np.round((means - mean) / (_LEVEL_STEP * spread))
    return np.asarray(np.clip(levels, -4, 4).astype(np.int8))


def _middle(level: np.ndarray) -> np.ndarray:
    """Return the median level, which centers the scores in their range."""
    return np.asarray(np.median(level, axis=-1).astype(np.int8))


def _clipped(score: np.ndarray, bias: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return scores `[A, B, P]` in a shape, shifted by the bias and clipped to 0..15."""
    shifted = score.reshape(shape) - np.int8(bias - SCORES // 2)
    return np.asarray(np.clip(shifted, 0, SCORES - 1).astype(np.uint8))


def _histogram(codes: np.ndarray, context: np.ndarray, alphabet: int) -> np.ndarray:
    """Count the symbols of each context, `[CONTEXTS, alphabet]`."""
    counts = np.zeros(CONTEXTS * alphabet, np.int64)
    for start in range(0, len(codes), _HISTOGRAM_ROWS):
        rows = slice(start, start + _HISTOGRAM_ROWS)
        index = np.multiply(context[rows], alphabet, dtype=np.int64) + codes[rows]
        counts += np.bincount(index.reshape(-1), minlength=counts.size)
    return counts.reshape(CONTEXTS, alphabet)


def _merge(counts: np.ndarray) -> tuple[float, np.ndarray, list[np.ndarray]]:
    """Merge contexts into shared tables, greedily, as long as a merge saves bytes.

    Args:
        counts: Counts of the symbols of each context, int64 array `[contexts, alphabet]`.

    Returns:
        An estimate of the bytes of tables and codes, the number of the table of each context, and
        the counts of each table.
    """
    used = np.flatnonzero(counts.sum(1))
    groups = [[int(context)] for context in used]
    tables = counts[used].astype(np.float64)
    cost = _bytes(tables)
    # merge_cost[i, j]: bytes that one table for contexts i and j takes beyond two tables.
    merge_cost = np.full((len(used), len(used)), np.inf)
    for i in range(len(used)):
        merge_cost[i, :i] = _bytes(tables[:i] + tables[i]) - cost[:i] - cost[i]
    while merge_cost.size and merge_cost.min() < 0:
        i, j = divmod(int(merge_cost.argmin()), len(merge_cost))
        groups[j] += groups[i]
        tables[j] += tables[i]
        cost[j] = _bytes(tables[j][None])[0]
        cost[i] = 0.0
        groups[i] = []
        merge_cost[i, :] = merge_cost[:, i] = np.inf
        is_open = np.array([bool(group) for group in groups])
        row = np.where(is_open, _bytes(tables + tables[j]) - cost - cost[j], np.inf)
        merge_cost[j, :j], merge_cost[j + 1 :, j] = row[:j], row[j + 1 :]
    groups = [sorted(group) for group in groups if group]
    # Contexts that do not occur get table 0. As the table of most contexts it codes in few bytes.
    groups.sort(key=len, reverse=True)
    table_of = np.zeros(len(counts), np.int64)
    for number, group in enumerate(groups):
        table_of[group] = number
    totals = [counts[group].sum(0) for group in groups]
    return float(cost.sum()) + len(used) / 4, table_of, totals


def _min_bytes(counts: np.ndarray) -> np.ndarray:
    """Return a lower bound of the bytes that `_merge` returns for two tables or more.

    A merge makes codes longer. Two tables or more have an entry for every symbol, and two entries
    for at least one symbol. (A single table for all contexts is longer than no contexts.)
    For most small tensors, the bound alone shows that contexts do not pay.

    Args:
        counts: Counts of the symbols of each context, `[..., contexts, alphabet]`.

    Returns:
        The bound, bytes, `[...]`.
    """
    totals = counts.sum(-1, keepdims=True)
    shares = np.where(counts > 0, counts / np.maximum(totals, 1), 1.0)
    words = -(counts * np.log2(shares)).sum((-2, -1))
    symbols = 1 + counts.any(-2).sum(-1)
    used = counts.any(-1).sum(-1)
    # 1e-6 bytes allow for rounding.
    return np.asarray((words + 10 * symbols + 2 * 16) / 8 + used / 4 - 1e-6)


def _bytes(counts: np.ndarray) -> np.ndarray:
    """Estimate the bytes `[n]` of tables and coded symbols for `[n, alphabet]` counts.

    A table takes about 10 bits per present symbol and 16 bits beside.
    """
    totals = counts.sum(-1, keepdims=True)
    shares = np.where(counts > 0, counts / np.maximum(totals, 1), 1.0)
    words = -(counts * np.log2(shares)).sum(-1)
    return (words + 10 * (counts > 0).sum(-1) + 16) / 8


def _level_bytes(level: np.ndarray) -> np.ndarray:
    """Estimate the bytes `[...]` of the stream of levels `[..., n]`."""
    counts = (level[..., None] == np.arange(-4, 5)).sum(-2)
    shares = np.where(counts > 0, counts / level.shape[-1], 1.0)
    words = -(counts * np.log2(shares)).sum(-1)
    return np.asarray(words / 8 + np.count_nonzero(counts, axis=-1) + 1)
