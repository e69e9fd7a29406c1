"""Initial windows and components of a tensor: order statistics and 1-D k-means.

A sorted window is cut into K cells of consecutive values; a component is its cell's mean, spread
and share. No cell is ever empty and no spread ever zero, also where a tensor is constant or has
fewer distinct values than K: those values are then covered exactly, some by several components.

This runs once per tensor, on the host in float64: sorting and prefix sums are exact there and cost
no compilation. Under a JAX transformation the same code runs as a callback. Of a large tensor an
even sample comes to the host: four million weights place each of 16 components to a few
thousandths of its spread.
"""

import math
from functools import lru_cache, partial
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.windows import Windows, init_boundaries

Initialiser = Literal["kmeans", "quantile"]

_LLOYD_STEPS = 300

# Number of weights that the codebook of a larger tensor is fitted to.
SAMPLE = 1 << 22

# A scale may not fall below this fraction of the tensor's mean absolute weight (below the second
# number in a tensor of zeros): a component of equal weights would be a needle that divides by
# zero. The mean absolute weight, because one outlier hardly moves it. Relative to the weights, so
# that a tensor of 1e-16 is treated as one of 1.
RELATIVE_FLOOR = 1e-4
FLOOR_OF_ZEROS = 1e-12


def init_mixture(
    loc: jax.Array,
    *,
    components: int,
    windows: Windows,
    stacked: int = 0,
    initialiser: Initialiser = "kmeans",
) -> Mixture:
    """Fit windows and components to a tensor's weights.

    Args:
      loc: Weights, [*S, *shape], floating, finite.
      components: Number K of components of a window.
      windows: Split of the weights by value.
      stacked: Number of leading axes S whose slices each get their own mixture.
      initialiser: "kmeans" minimises the squared error, "quantile" gives equal occupancy.

    Returns:
      Mixture of arrays [*S, W, K] (means ascending) and [*S, W - 1], in at least float32.
    """
    lead = loc.shape[:stacked]
    dtype = jnp.dtype(jnp.float64 if loc.dtype == jnp.float64 else jnp.float32)
    table, edges = (*lead, windows.count, components), (*lead, windows.count - 1)
    host = partial(
        _fit_slices, components=components, windows=windows, stacked=stacked, dtype=dtype,
        initialiser=initialiser,
    )  # fmt: skip
    if not isinstance(loc, jax.core.Tracer):
        return Mixture(*(jnp.asarray(x) for x in host(_to_host(loc, stacked))))
    result = tuple(jax.ShapeDtypeStruct(s, dtype) for s in (table, table, table, edges))
    sample = _sample(loc, stacked)
    return Mixture(*jax.pure_callback(host, result, sample, vmap_method="sequential"))


def _to_host(loc: jax.Array, stacked: int) -> np.ndarray:
    """Copy the sample of the fit to the host, from all devices and processes."""
    shardings = None
    if isinstance(loc.sharding, jax.NamedSharding) and not loc.is_fully_replicated:
        shardings = jax.NamedSharding(loc.sharding.mesh, jax.P())
    pick = jax.jit(_sample, static_argnums=1, out_shardings=shardings)
    return np.asarray(pick(loc, stacked) if shardings or loc.size > SAMPLE else loc)


def _sample(loc: jax.Array, stacked: int) -> jax.Array:
    """Take `SAMPLE` evenly spread weights of every larger slice; [*S, n] or `loc`."""
    shape = loc.shape[stacked:]
    if math.prod(shape) <= SAMPLE:
        return loc
    return loc[(..., *map(jnp.asarray, _places(shape)))]


@lru_cache(maxsize=4)  # a model's large tensors have few shapes
def _places(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return indices of `SAMPLE` weights, evenly spread, int32 along each axis."""
    # Multiples of the golden ratio, modulo 1: no step that could fall in with the rows' length.
    golden = (math.sqrt(5) - 1) / 2
    at = (np.arange(SAMPLE) * golden % 1 * math.prod(shape)).astype(np.int64)
    return tuple(i.astype(np.int32) for i in np.unravel_index(at, shape))


def _fit_slices(
    loc: np.ndarray,
    *,
    components: int,
    windows: Windows,
    stacked: int,
    dtype: np.dtype,
    initialiser: Initialiser,
) -> tuple[np.ndarray, ...]:
    """Fit every slice of the stacked axes; the host side of `init_mixture`."""
    loc = np.asarray(loc)
    lead = loc.shape[:stacked]
    slices = loc.reshape(int(np.prod(lead)), -1).astype(np.float64)
    fits = [_fit_tensor(s, components, windows, initialiser) for s in slices]
    fields = (np.stack(field).astype(dtype) for field in zip(*fits, strict=True))
    return tuple(x.reshape(*lead, *x.shape[1:]) for x in fields)


def _fit_tensor(
    weights: np.ndarray, components: int, windows: Windows, initialiser: Initialiser
) -> tuple[np.ndarray, ...]:
    """Fit weights [N] in float64; means, log scales, logits [W, K], edges [W - 1]."""
    ordered = np.sort(weights) if weights.size else np.zeros(1)
    boundaries = init_boundaries(ordered, windows)
    edges = [0, *np.searchsorted(ordered, boundaries, side="left"), ordered.size]
    floor = float(RELATIVE_FLOOR * np.mean(np.abs(ordered))) or FLOOR_OF_ZEROS
    rows = []
    for start, stop in pairwise(edges):
        # An empty window (an absent tail, tied edges) gets the value beside it, so that its
        # unused row is finite.
        window = ordered[start:stop] if stop > start else ordered[max(0, start - 1) :][:1]
        rows.append(_fit_window(window, components, initialiser, floor))
    return *(np.stack(field) for field in zip(*rows, strict=True)), boundaries


def _fit_window(
    ordered: np.ndarray, components: int, initialiser: Initialiser, floor: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit K components to sorted values; means, log scales and log shares, [K]."""
    values, counts = np.unique(ordered, return_counts=True)
    distinct, k = values.size, np.arange(components)
    # Prefix sums about the middle value: cells are differences, and cancel least there.
    origin = values[distinct // 2]
    powers = np.stack([np.ones_like(values), values - origin, (values - origin) ** 2])
    sums = np.concatenate([np.zeros((3, 1)), np.cumsum(powers * counts, axis=1)], axis=1)

    if distinct <= components:  # a cell for each value
        first = k * distinct // components
        last = first + 1
    else:
        if initialiser == "kmeans":
            cuts = _lloyd(values, counts, sums, origin, components)
        else:
            cuts = np.searchsorted(sums[0, 1:], k[1:] * ordered.size / components, side="right")
        first = np.concatenate([[0], cuts])
        # Every cell gets at least one distinct value: push the cuts apart, then off the end.
        first = np.maximum.accumulate(first - k) + k
        first = np.minimum(first, distinct - (components - k))
        last = np.append(first[1:], distinct)

    count, total, square = sums[:, last] - sums[:, first]
    shift = total / count
    single = last - first == 1
    means = np.where(single, values[first], origin + shift)
    variance = np.where(single, 0.0, np.maximum(square / count - shift**2, 0.0))
    # Fewer than two weights have no spread of their own: they get the window's pooled one.
    pooled = np.sum(variance * count) / np.sum(count)
    scales = np.sqrt(np.where(count > 1, variance, pooled))
    share = count / np.bincount(first, minlength=distinct)[first]
    return means, np.log(np.maximum(scales, floor)), np.log(share / share.sum())


def _lloyd(
    values: np.ndarray, counts: np.ndarray, sums: np.ndarray, origin: float, components: int
) -> np.ndarray:
    """Cut distinct sorted values by k-means; K - 1 indices of the first of a cell."""
    # The best scalar quantiser's levels are as dense as the cube root of the weights' density;
    # between neighbours that density is their count over their distance.
    density = np.cbrt(0.5 * (counts[1:] + counts[:-1])) * np.cbrt(np.diff(values)) ** 2
    reach = np.concatenate([[0.0], np.cumsum(density)])
    targets = (np.arange(components) + 0.5) / components * reach[-1]
    centres = np.interp(targets, reach, values)
    cuts = np.zeros(0, np.int64)
    for _ in range(_LLOYD_STEPS):
        previous, cuts = cuts, np.searchsorted(values, 0.5 * (centres[1:] + centres[:-1]))
        if np.array_equal(previous, cuts) and previous.size:
            break
        edges = np.concatenate([[0], cuts, [values.size]])
        count, total, square = np.diff(sums[:, edges], axis=1)
        shift = total / np.maximum(count, 1)
        error = np.maximum(square - count * shift**2, 0.0)
        centres = origin + shift
        # A cell in a gap of the weights is empty: let it halve the cell with the largest error.
        for empty in np.flatnonzero(count == 0):
            widest = np.argmax(error)
            spread = np.sqrt(error[widest] / count[widest])
            middle = centres[widest]
            centres[[widest, empty]] = middle - spread, middle + spread
            count[[widest, empty]] = count[widest] / 2
            error[[widest, empty]] = error[widest] / 8
        centres.sort()
    return cuts
