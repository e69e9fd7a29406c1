"""Windows split a tensor's weights by value, so that long tails have own components."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

WindowKind = Literal["single", "equal", "outlier"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """Say how a tensor's weights are split by value into windows.

    Attributes:
      kind: "single", one window; "equal", `count` windows of equal occupancy; "outlier", a lower
        tail below Q1 - iqr_factor * IQR, an upper tail above Q3 + iqr_factor * IQR, and the body
        between them in `count` - 2 windows of equal occupancy.
      count: number of windows W, both tails included.
      iqr_factor: where the tails of "outlier" begin, in interquartile ranges.

    Raises:
      ValueError: If kind is unknown, or count or iqr_factor is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> import sqs_jax
      >>> halves = sqs_jax.Windows(kind="equal", count=2)
      >>> weights = jnp.array([-0.4, -0.3, 0.1, 0.2])
      >>> sqs_jax.SubDistribution.init(weights, components=1, windows=halves).boundaries.shape
      (1,)
    """

    kind: WindowKind = "single"
    count: int = 1
    iqr_factor: float = 1.5

    def __post_init__(self) -> None:
        least = {"single": 1, "equal": 1, "outlier": 3}
        if self.kind not in least:
            raise ValueError(f"Windows.kind is {self.kind!r}; it must be one of {list(least)}.")
        if type(self.count) is not int or self.count < least[self.kind]:
            raise ValueError(
                f"Windows.count is {self.count!r}; kind {self.kind!r} needs an int >= "
                f"{least[self.kind]}."
            )
        if self.kind == "single" and self.count != 1:
            raise ValueError(f"Windows.count is {self.count}; kind 'single' has exactly 1 window.")
        if not (math.isfinite(self.iqr_factor) and self.iqr_factor > 0):
            raise ValueError(f"Windows.iqr_factor is {self.iqr_factor!r}; it must be > 0.")


def init_boundaries(ordered: np.ndarray, windows: Windows) -> np.ndarray:
    """Place the window edges for a tensor's weights.

    Args:
      ordered: the weights in ascending order, [N], N >= 1.
      windows: how to split them.

    Returns:
      [W - 1] edges in weight value, ascending. A window holds its lower edge and not its upper
      one. The edge of an empty tail is -inf (lower) or inf (upper).
    """
    size = ordered.size
    if windows.kind != "outlier":
        return ordered[[i * size // windows.count for i in range(1, windows.count)]]
    q1, q3 = np.quantile(ordered, [0.25, 0.75])
    reach = windows.iqr_factor * (q3 - q1)
    start = np.searchsorted(ordered, q1 - reach, side="left")
    stop = np.searchsorted(ordered, q3 + reach, side="right")
    body = windows.count - 2
    cuts = [start + i * (stop - start) // body for i in range(1, body)]
    lower = q1 - reach if start > 0 else -np.inf
    # The first weight beyond opens the upper tail: a weight on the limit is still body.
    upper = ordered[stop] if stop < size else np.inf
    return np.concatenate([[lower], ordered[cuts], [upper]])


def window_index(loc: jax.Array, boundaries: jax.Array) -> jax.Array:
    """Find the window that holds each weight.

    Args:
      loc: weights, any shape.
      boundaries: [W - 1] ascending edges.

    Returns:
      int32 array shaped as `loc`, values in [0, W).
    """
    index = jnp.zeros(loc.shape, jnp.int32)
    for i in range(boundaries.shape[0]):  # W is small and static: comparisons fuse, a search loops
        index = index + (loc >= boundaries[i]).astype(jnp.int32)
    return index


def pick(row: jax.Array, window: jax.Array | None) -> jax.Array:
    """Give each weight its window's entry of a row [W]; without windows, the only entry.

    W is small and static: comparisons fuse, a gather would not.
    """
    value = row[0]
    if window is not None:
        for w in range(1, row.shape[0]):
            value = jnp.where(window >= w, row[w], value)
    return value
