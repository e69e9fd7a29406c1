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

    Compares uniform grids, entropy-coded, of equal distortion sum_t ||W_t - V_t||^2 / ||W_t||, t
    over the finest slices: one step for the whole leaf, or one for each slice of an axis.

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
    most = _most_axes(weights.shape, min_ndim)
    largest = float(np.max(np.abs(weights), initial=0))
    if not most or not 0 < largest < math.inf:
        return 0  # zeros, or weights that are refused elsewhere
    rows = weights.reshape(math.prod(weights.shape[:most]), -1)
    rows = rows[:, :: max(1, weights.size // _SAMPLE)].astype(np.float64) / largest
    scale = np.sqrt(np.mean(rows**2, axis=1))
    typical = np.exp(np.mean(np.log(scale[scale > 0])))
    scale = np.where(scale > 0, scale, typical)
    # Cells of width d have the distortion d^2 / (12 scale) in a slice, up to a factor.
    unit = typical * 12 * 4.0**-bits_per_weight
    least, axes = math.inf, 0
    for stacked in range(most + 1):
        codebooks = math.prod(weights.shape[:stacked])
        together = scale.reshape(codebooks, -1)
        steps = np.sqrt(unit / np.mean(1 / together, axis=1))
        cells = np.rint(rows.reshape(codebooks, -1) / steps[:, None])
        bits = _coded_bits(cells, weights.size, codebooks)
        if bits < (_MARGIN * least if stacked else least):
            least, axes = bits, stacked
    return axes


def _most_axes(shape: tuple[int, ...], min_ndim: int) -> int:
    """Return how many leading axes may be those of a stack."""
    for stacked in range(1, len(shape) - max(min_ndim, 2) + 1):
        # There are fewer layers, or experts, than a layer has units; [768, 12, 64] is one layer
        # of twelve heads.
        small = math.prod(shape[stacked:]) < _LEAST_SLICE
        many = shape[stacked - 1] > max(shape[-2:])
        if small or many or not shape[stacked - 1] or _is_convolution(shape[stacked - 1 :]):
            return stacked - 1
    return max(0, len(shape) - max(min_ndim, 2))


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


def _coded_bits(cells: np.ndarray, total: int, codebooks: int) -> float:
    """Return the bits of all codes, and of the levels' values and table.

    Args:
      cells: numbers of the cells of a sample of the weights.
      total: number of all weights.
      codebooks: number of slices with levels of their own.
    """
    _, count = np.unique(cells, return_counts=True)
    shares = count / cells.size
    entropy = -float(shares @ np.log2(shares))
    levels = min(count.size, 2 * 2.0**entropy)  # rare ones are joined
    return total * entropy + levels * (_LEVEL_BITS * codebooks + _TABLE_BITS)
