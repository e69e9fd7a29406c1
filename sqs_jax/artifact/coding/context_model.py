"""The context model: a frequency table for each kind of surroundings that a code has.

Networks have quiet rows, quiet columns and quiet kernels. The codes of a tensor are viewed as
[A, B, P]: pairs (a, b) of a row and a column, and P steps (the positions of a convolution kernel;
1 for a matrix). The context of a code has two parts:

    score   level_A[a] + level_B[b] + level_P[p] - bias, clipped to 0..15: what the coder says of
            its row, column and step
    past    0 at the first step, else 1 + how active the codes at the earlier steps of its pair
            were, in 0..6: (16 * the sum of their activities // p - low) // width, clipped

`activity` is a small integer per symbol, its code length in half bits above the cheapest symbol.
Contexts with similar codes share a table: as many tables as save more than they cost.
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
_LEVEL_STEP = 0.25  # levels are this far apart, in standard deviations of the activity
_PAST_STEP = 0.4
_ROWS = 1 << 16
_SMALL = 1 << 12  # codes of a matrix that is looked at together with others
_BATCH = 1 << 20  # numbers in the histograms of those, at a time


class Context(NamedTuple):
    """The model of one tensor's codes, all that a decoder needs beside the words.

    Attributes:
        leading: Whether the steps are the leading axes, the last two being the pair, or the
            trailing ones, the first two being the pair.
        levels: Three integer arrays `[A]`, `[B]`, `[P]`, values below `MAX_LEVEL`.
        bias, low, width: See above; width is at least 1.
        activity: Integer array `[alphabet]`, values below `MAX_ACTIVITY`.
        table_of: Integer array `[CONTEXTS]`, the table that each context uses.
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
        """Code the pairs `start`, `start + 1`, ... of which `codes` `[n, P]` holds the symbols."""
        runs, total = [], np.zeros(len(codes), np.int32)
        scores = self._scores(start, len(codes))
        for step, column in enumerate(codes.T):
            tables = self._tables(scores, total, step)
            order = np.argsort(tables, kind="stable")
            ends = np.cumsum(np.bincount(tables, minlength=len(self.tables)))
            runs.append(np.split(column[order], ends[:-1]))
            total += self.activity[column]
        models = [ans.Model(table, paired=False) for table in self.tables]
        coder = ans.AnsCoder()
        for run in reversed(runs):
            for model, symbols in reversed(list(zip(models, run, strict=True))):
                model.encode(coder, symbols)
        return ans.words_of(coder)

    def decode(self, words: bytes, start: int, out: np.ndarray) -> None:
        """Fill `out` `[n, P]` with the symbols of the pairs `start`, `start + 1`, ...

        Raises:
            ValueError: If the words do not end where the symbols do.
        """
        models = [ans.Model(table, paired=False) for table in self.tables]
        coder = ans.coder_of(words)
        total = np.zeros(len(out), np.int32)
        scores = self._scores(start, len(out))
        column = np.empty(len(out), out.dtype)
        for step in range(out.shape[1]):
            tables = self._tables(scores, total, step)
            order = np.argsort(tables, kind="stable")
            first = 0
            for model, count in zip(models, np.bincount(tables), strict=False):
                if count:
                    model.decode(coder, column[first : first + count])
                first += count
            out[order, step] = column
            total += self.activity[out[:, step]]
        if not coder.is_empty():
            raise ValueError("a symbol stream does not end where its symbols do")

    def _scores(self, start: int, count: int) -> np.ndarray:
        """Return the scores of `count` pairs, but for the level of the step."""
        rows, columns, _ = self.levels
        row, column = np.divmod(np.arange(start, start + count), len(columns))
        return rows[row].astype(np.int32) + columns[column] - np.int32(self.bias)

    def _tables(self, scores: np.ndarray, total: np.ndarray, step: int) -> np.ndarray:
        """Return the table of each of a range of pairs, given their past activity."""
        context = np.clip(scores + self.levels[2][step], 0, SCORES - 1) * PASTS
        if step:
            context += _past(total, step, self.low, self.width)
        return self.table_of.astype(np.uint8)[context]  # small integers are sorted fastest


def _past(total: np.ndarray, step: int, low: int, width: int) -> np.ndarray:
    return np.asarray(1 + np.clip((16 * total // step - low) // width, 0, PASTS - 2))


def view(shape: tuple[int, ...], leading: bool) -> tuple[int, int, int] | None:
    """Return A, B and P of a tensor of this shape, None if it has no such view."""
    if len(shape) < 2 or (leading and len(shape) == 2):
        return None
    (rows, columns), rest = (shape[-2:], shape[:-2]) if leading else (shape[:2], shape[2:])
    steps = math.prod(rest)
    return (rows, columns, steps) if steps <= MAX_STEPS else None


def fit(codes: np.ndarray, counts: np.ndarray) -> tuple[Context, float] | None:
    """Choose the contexts that make codes shortest.

    Args:
        codes: Unsigned integer array, any shape.
        counts: How often each symbol occurs, `[alphabet]`.

    Returns:
        The best model found and how many bytes of words it codes them in; None if the shape or the
        alphabet has none, or the codes have no such structure.
    """
    if counts.size > MAX_ALPHABET or codes.size < 2:
        return None
    fits = []
    for leading in (False, True):
        shape = view(codes.shape, leading)
        if shape is not None:
            viewed = codes.reshape(shape[2], -1).T if leading else codes.reshape(-1, shape[2])
            fits.append(_fit(viewed, shape, counts, leading))
    found = [fitted for fitted in fits if fitted is not None]
    return min(found, key=lambda fitted: fitted[0])[1:] if found else None


def _fit(
    codes: np.ndarray, shape: tuple[int, int, int], counts: np.ndarray, leading: bool
) -> tuple[float, Context, float] | None:
    """Return about how many bytes codes `[A * B, P]` take, their model, and those of the words."""
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
        side = float(_side_bytes(level))
        if _least_bytes(by_context[by_context.any(1)]) + side >= best:
            continue
        found = _merge(by_context)
        cost = found[0] + side
        if cost < best:
            score, bias, best, merged = trial, trial_bias, cost, found
            levels[axis] = level.astype(np.int64)
    if len(merged[2]) == 1 and shape[2] == 1:
        return None

    total_bytes, table_of, tables = merged
    table_of = np.repeat(np.broadcast_to(table_of, CONTEXTS)[:SCORES], PASTS)  # whatever the past
    low = max(0, round(16 * (mean - 2 * _PAST_STEP * spread)))
    width = max(1, round(16 * _PAST_STEP * spread))
    if shape[2] > 1:
        context = _clipped(score, bias, codes.shape) * np.uint8(PASTS)
        total = np.zeros(len(codes), np.int32)
        for step in range(1, shape[2]):
            total += active[:, step - 1]
            context[:, step] += _past(total, step, low, width).astype(np.uint8)
        with_past = _merge(_histogram(codes, context, counts.size))
        if with_past[0] < total_bytes:
            total_bytes, table_of, tables = with_past
    lifted = tuple(level - level.min() for level in levels)
    bias -= sum(int(level.min()) for level in levels) + SCORES // 2
    chosen = [best_table(table) for table in tables]
    words = sum(length - len(table) for _, table, length in chosen)
    frequencies = [table[0] for table in chosen]
    model = Context(leading, lifted, bias, low, width, activity, table_of, frequencies)
    return total_bytes, model, words


def worth_fitting(codes: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> list[bool]:
    """Return of which tensors `fit` may find something, looking at many small matrices at a time.

    It is what `fit` does first, up to the bound with which it gives up most small matrices. Others
    are not looked at.
    """
    worth = [True] * len(codes)
    alike: dict[Any, list[int]] = {}
    for i, (mine, count) in enumerate(zip(codes, counts, strict=True)):
        if mine.ndim == 2 and 1 < mine.size <= _SMALL and count.size <= MAX_ALPHABET:
            alike.setdefault((mine.shape, count.size.bit_length()), []).append(i)
    for (_, alphabet_bits), numbers in alike.items():
        step = max(1, _BATCH >> alphabet_bits + 4)
        for start in range(0, len(numbers), step):
            chunk = numbers[start : start + step]
            table = np.zeros((len(chunk), 1 << alphabet_bits), np.int64)
            for row, i in zip(table, chunk, strict=True):
                row[: counts[i].size] = counts[i]
            found = _worth_fitting(np.stack([codes[i] for i in chunk]), table)
            for i, is_worth in zip(chunk, found.tolist(), strict=True):
                worth[i] = is_worth
    return worth


def _worth_fitting(codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Do what `worth_fitting` says for matrices `[T, A, B]` and counts `[T, alphabet]`."""
    worth = np.zeros(len(codes), bool)
    activity, mean, spread = _activities(counts)
    active = np.take_along_axis(activity, codes.reshape(len(codes), -1), 1).reshape(codes.shape)
    one_table = _bytes(counts) + 1 / 4
    for axis in (1, 2):
        sums = active.sum(axis=3 - axis, dtype=np.int64)
        level = _levels(sums, codes.shape[3 - axis], mean[:, None], spread[:, None])
        trial = level - _middle(level)[:, None]
        score = np.clip(trial + SCORES // 2, 0, SCORES - 1).astype(np.int64)
        place = np.arange(len(codes))[:, None] * SCORES + score
        index = np.expand_dims(place, 3 - axis) * counts.shape[1] + codes
        by_context = np.bincount(index.reshape(-1), minlength=SCORES * counts.size)
        least = _least_bytes(by_context.reshape(len(codes), SCORES, -1)) + _side_bytes(level)
        worth |= level.any(1) & (least < one_table)
    return worth


def _activities(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return activities `[T, alphabet]` of symbols, their mean and their deviation, each `[T]`."""
    totals = counts.sum(1)
    shares = counts / totals[:, None]
    lengths = np.where(counts, -np.log2(np.maximum(shares, 1e-12)), 0.0)
    floor = np.where(counts, lengths, np.inf).min(1, keepdims=True)
    activity = np.clip(np.round(2 * (lengths - floor)), 0, MAX_ACTIVITY - 1).astype(np.uint8)
    mean = (counts * activity).sum(1) / totals
    squares = (counts * activity.astype(np.int64) ** 2).sum(1) / totals
    return activity, mean, np.sqrt(np.maximum(squares - mean**2, 1e-12))


def _levels(sums: np.ndarray, count: int, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return how far the activities of rows, sums over so many codes, are from their mean."""
    # Shrunk towards the mean by two codes' worth: short rows prove little.
    means = (sums + 2 * mean) / (count + 2)
    levels = np.round((means - mean) / (_LEVEL_STEP * spread))
    return np.asarray(np.clip(levels, -4, 4).astype(np.int8))


def _middle(level: np.ndarray) -> np.ndarray:
    """Return what the bulk of the scores is moved by, to stay in the middle."""
    return np.asarray(np.median(level, axis=-1).astype(np.int8))


def _clipped(score: np.ndarray, bias: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return scores `[A, B, P]` as the first part of contexts, in 0..15."""
    middle = score.reshape(shape) - np.int8(bias - SCORES // 2)
    return np.asarray(np.clip(middle, 0, SCORES - 1).astype(np.uint8))


def _histogram(codes: np.ndarray, context: np.ndarray, alphabet: int) -> np.ndarray:
    """Count the symbols of each context, `[CONTEXTS, alphabet]`, in bounded working memory."""
    counts = np.zeros(CONTEXTS * alphabet, np.int64)
    for start in range(0, len(codes), _ROWS):
        part, where = codes[start : start + _ROWS], context[start : start + _ROWS]
        index = np.multiply(where, alphabet, dtype=np.int64) + part
        counts += np.bincount(index.reshape(-1), minlength=counts.size)
    return counts.reshape(CONTEXTS, alphabet)


def _merge(counts: np.ndarray) -> tuple[float, np.ndarray, list[np.ndarray]]:
    """Join contexts as long as that saves bytes.

    Args:
        counts: int64 array `[contexts, alphabet]`.

    Returns:
        About how many bytes tables and codes take, the table of each context, and the counts of
        each table.
    """
    used = np.flatnonzero(counts.sum(1))
    groups = [[int(context)] for context in used]
    tables = counts[used].astype(np.float64)
    cost = _bytes(tables)
    # joined[i, j]: what a table of both would cost, beyond the two.
    joined = np.full((len(used), len(used)), np.inf)
    for i in range(len(used)):
        joined[i, :i] = _bytes(tables[:i] + tables[i]) - cost[:i] - cost[i]
    while joined.size and joined.min() < 0:
        i, j = divmod(int(joined.argmin()), len(joined))
        groups[j] += groups[i]
        tables[j] += tables[i]
        cost[j] = _bytes(tables[j][None])[0]
        cost[i] = 0.0
        groups[i] = []
        joined[i, :] = joined[:, i] = np.inf
        alive = np.array([bool(group) for group in groups])
        again = np.where(alive, _bytes(tables + tables[j]) - cost - cost[j], np.inf)
        joined[j, :j], joined[j + 1 :, j] = again[:j], again[j + 1 :]
    groups = [sorted(group) for group in groups if group]
    # A context that does not occur has table 0, which most others have too: cheap to write down.
    groups.sort(key=len, reverse=True)
    table_of = np.zeros(len(counts), np.int64)
    for number, group in enumerate(groups):
        table_of[group] = number
    totals = [counts[group].sum(0) for group in groups]
    return float(cost.sum()) + len(used) / 4, table_of, totals


def _least_bytes(counts: np.ndarray) -> np.ndarray:
    """Return what `_merge` returns at least, if it does not join all contexts in one table.

    Counts are `[..., contexts, alphabet]`, the result `[...]`.

    Joining makes codes longer, and two tables or more hold every symbol once and one twice. (One
    table for all is longer than no contexts.) Small tensors seldom have contexts: this spares them
    the search.
    """
    totals = counts.sum(-1, keepdims=True)
    shares = np.where(counts > 0, counts / np.maximum(totals, 1), 1.0)
    words = -(counts * np.log2(shares)).sum((-2, -1))
    symbols = 1 + counts.any(-2).sum(-1)
    used = counts.any(-1).sum(-1)
    return np.asarray((words + 10 * symbols + 2 * 16) / 8 + used / 4 - 1e-6)  # but for rounding


def _bytes(counts: np.ndarray) -> np.ndarray:
    """Return about what tables `[n, alphabet]` and the symbols they code take, bytes `[n]`."""
    totals = counts.sum(-1, keepdims=True)
    shares = np.where(counts > 0, counts / np.maximum(totals, 1), 1.0)
    words = -(counts * np.log2(shares)).sum(-1)
    return (words + 10 * (counts > 0).sum(-1) + 16) / 8


def _side_bytes(level: np.ndarray) -> np.ndarray:
    """Return about what levels `[..., n]` take."""
    counts = (level[..., None] == np.arange(-4, 5)).sum(-2)
    shares = np.where(counts > 0, counts / level.shape[-1], 1.0)
    words = -(counts * np.log2(shares)).sum(-1)
    return np.asarray(words / 8 + np.count_nonzero(counts, axis=-1) + 1)
