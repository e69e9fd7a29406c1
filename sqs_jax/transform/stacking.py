"""Find leaves that are stacks: layers under scan [L, I, O], fused experts [E, I, O].

A stack of slices of different scales is smaller with levels for each slice. Levels cost bits, so
slices of one scale, and small ones, share them. Kernels of convolutions are no stacks: an error of
their outputs is not relative to each channel's or each tap's own weights (with a codebook for every
output channel, ResNet-20 at a sixteenth of its bytes had 26 % accuracy in place of 81 %).
"""

import math

import numpy as np

__all__ = ["stacked_axes"]

_SAMPLE = 1 << 20  # weights of a leaf that are looked at
_LEAST_SLICE = 64  # weights; levels of a smaller slice cost more than they save
_MARGIN = 0.97  # of the bits of one codebook: a smaller gain may be chance
_LONGEST_WINDOW = 11  # of a convolution; patches of images are larger, and have few channels
_FEW_CHANNELS = 4
_LEVEL_BITS, _TABLE_BITS = 16.0, 10.0  # of a level's value in each slice, of its code's table entry


def stacked_axes(weights: np.ndarray, min_ndim: int, bits_per_weight: float) -> int:
    """Return how many leading axes are worth a codebook for each of their slices.

    Compares uniform grids, entropy-coded, of equal distortion sum_t ||W_t - V_t||^2 / ||W_t||: one
    step for the whole leaf, or one for each slice in proportion to the root of its norm.

    Args:
      weights: a leaf's weights, floating; slices are at least `min_ndim` of its axes.
      min_ndim: least number of axes of a slice.
      bits_per_weight: what the budget leaves for a weight on average.

    Returns:
      The number of axes, 0 for one codebook.

    Example:
      >>> layers = np.random.default_rng(0).normal(size=(4, 64, 64))
      >>> stacked_axes(layers, 2, 3.0)
      0
      >>> stacked_axes(layers * np.array([1, 0.3, 0.1, 0.03])[:, None, None], 2, 3.0)
      1
    """
    least, axes = _MARGIN, 0
    for stacked in range(1, weights.ndim - max(min_ndim, 2) + 1):
        slices = math.prod(weights.shape[:stacked])
        if not slices or weights.size // slices < _LEAST_SLICE:
            break
        if _is_convolution(weights.shape[stacked - 1 :]):
            break
        # There are fewer layers, or experts, than a layer has units; [768, 12, 64] is one layer
        # of twelve heads.
        if weights.shape[stacked - 1] > max(weights.shape[-2:]):
            break
        if slices > 1:
            shared, own = _bits(weights.reshape(slices, -1), bits_per_weight)
            if own < least * shared:
                least, axes = own / shared, stacked
    return axes


def _is_convolution(shape: tuple[int, ...]) -> bool:
    """Return whether a shape is that of a kernel, [*window, I, O] or [O, I, *window]."""
    first, last = shape[:-2], shape[2:]
    odd = all(size % 2 for size in first) and max(first) <= _LONGEST_WINDOW
    window_first = odd and (len(first) == 2 or (len(first) == 3 and len(set(first)) == 1))
    if max(last) <= _LONGEST_WINDOW or window_first:
        return True
    # patches of images, which vision transformers embed: square, of few channels
    patch_last = len(set(last)) == 1 and shape[1] <= _FEW_CHANNELS and shape[0] > max(last)
    patch_first = len(set(first)) == 1 and shape[-2] <= _FEW_CHANNELS
    return len(shape) > 3 and (patch_last or patch_first)


def _bits(rows: np.ndarray, rate: float) -> tuple[float, float]:
    """Return the bits of a leaf with one grid and with one for each slice, at equal distortion."""
    sample = rows[:, :: max(1, rows.size // _SAMPLE)].astype(np.float64)
    largest = float(np.max(np.abs(sample)))
    if not 0 < largest < math.inf:
        return 1.0, 1.0  # zeros, or weights that are refused elsewhere
    sample = sample[np.any(sample != 0, axis=1)] / largest
    scale = np.sqrt(np.mean(sample**2, axis=1))
    # For cells of width d the distortion of a slice is d^2 / (12 scale), up to a factor.
    common = np.exp(np.mean(np.log(scale))) * 12 * 4.0**-rate
    own = np.sqrt(common * scale)[:, None]
    shared = math.sqrt(common / np.mean(1 / scale))
    codebooks = len(rows)
    return _coded_bits(sample / shared, rows.size, 1), _coded_bits(
        sample / own, rows.size, codebooks
    )


def _coded_bits(cells: np.ndarray, total: int, codebooks: int) -> float:
    """Return the bits of all codes and of the levels' values and table."""
    _, number = np.unique(np.rint(cells), return_counts=True)
    shares = number / cells.size
    entropy = -float(shares @ np.log2(shares))
    levels = min(number.size, 2 * 2.0**entropy)  # rare ones are joined
    return total * entropy + levels * (_LEVEL_BITS * codebooks + _TABLE_BITS)
