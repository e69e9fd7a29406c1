"""Leading axes that stack layers or experts, with a codebook for each slice.

Examples are layers under scan, [L, I, O], and fused experts, [E, I, O]. A stack of slices of
different scales is smaller with levels for each slice. Levels cost bits, so that small slices and
slices of one scale share them. Kernels of convolutions are no stacks: the error of an output is
not relative to the weights of a channel or a tap alone. With a codebook for every output channel,
ResNet-20 at a sixteenth of its bytes had an accuracy of 26 % instead of 81 %.
"""

import math

import numpy as np

__all__ = ["stacked_axes"]

_SAMPLE = 1 << 20  # number of weights of a leaf that the decision reads
_LEAST_SLICE = 64  # weights; levels of a smaller slice cost more than they save
_MARGIN = 0.97  # required share of the bits of fewer codebooks, as a smaller gain may be noise
_LONGEST_WINDOW = 11  # of a convolution; patches of images are larger, and have few channels
_FEW_CHANNELS = 4
_LEVEL_BITS, _TABLE_BITS = 16.0, 10.0  # of a level: its value per slice, its entry in the table


def stacked_axes(weights: np.ndarray, min_ndim: int, bits_per_weight: float) -> int:
    """Return the number of leading axes whose slices get their own codebooks.

    The decision compares the bits of entropy-coded uniform grids at equal distortion
    sum_t ||W_t - V_t||^2 / ||W_t||, with t over the finest slices. A grid has one step for the
    whole leaf, or one step for each slice.

    Args:
        weights: Weights of a leaf, a floating array.
        min_ndim: Least number of axes of a slice.
        bits_per_weight: Average bits per weight of the budget, > 0.

    Returns:
        Number of leading axes; 0 for one codebook.

    Example:
        >>> layers = np.random.default_rng(0).normal(size=(4, 64, 64))
        >>> stacked_axes(layers, 2, 3.0)
        0
        >>> stacked_axes(layers * np.array([1, 0.3, 0.1, 0.03])[:, None, None], 2, 3.0)
        1
    """
    most_axes = _most_axes(weights.shape, min_ndim)
    largest = float(np.max(np.abs(weights), initial=0))
    if not most_axes or not 0 < largest < math.inf:
        return 0  # only zeros, or non-finite weights, which the caller rejects
    rows = weights.reshape(math.prod(weights.shape[:most_axes]), -1)
    rows = rows[:, :: max(1, weights.size // _SAMPLE)].astype(np.float64) / largest
    scale = np.sqrt(np.mean(rows**2, axis=1))
    typical = np.exp(np.mean(np.log(scale[scale > 0])))
    scale = np.where(scale > 0, scale, typical)
    # In a slice, cells of width d have a distortion proportional to d^2 / (12 scale).
    unit = typical * 12 * 4.0**-bits_per_weight
    least_bits, axes = math.inf, 0
    for stacked in range(most_axes + 1):
        codebooks = math.prod(weights.shape[:stacked])
        slice_scales = scale.reshape(codebooks, -1)
        steps = np.sqrt(unit / np.mean(1 / slice_scales, axis=1))
        cells = np.rint(rows.reshape(codebooks, -1) / steps[:, None])
        bits = _coded_bits(cells, weights.size, codebooks)
        if bits < (_MARGIN * least_bits if stacked else least_bits):
            least_bits, axes = bits, stacked
    return axes


def _most_axes(shape: tuple[int, ...], min_ndim: int) -> int:
    """Return the largest number of leading axes that may stack layers or experts."""
    for stacked in range(1, len(shape) - max(min_ndim, 2) + 1):
        # A stack has fewer layers, or experts, than a layer has units: [768, 12, 64] is one layer
        # of twelve heads.
        small = math.prod(shape[stacked:]) < _LEAST_SLICE
        many = shape[stacked - 1] > max(shape[-2:])
        if small or many or not shape[stacked - 1] or _is_convolution(shape[stacked - 1 :]):
            return stacked - 1
    return max(0, len(shape) - max(min_ndim, 2))


def _is_convolution(shape: tuple[int, ...]) -> bool:
    """Return whether a shape is a convolution's, [*window, I, O] or [O, I, *window]."""
    first, last = shape[:-2], shape[2:]
    odd = all(size % 2 for size in first) and max(first) <= _LONGEST_WINDOW
    window_first = odd and (len(first) == 2 or (len(first) == 3 and len(set(first)) == 1))
    if max(last) <= _LONGEST_WINDOW or window_first:
        return True
    # Vision transformers embed patches of images: square windows of few channels.
    patch_last = len(set(last)) == 1 and shape[1] <= _FEW_CHANNELS and shape[0] > max(last)
    patch_first = len(set(first)) == 1 and shape[-2] <= _FEW_CHANNELS
    return len(shape) > 3 and (patch_last or patch_first)


def _coded_bits(cells: np.ndarray, total: int, codebooks: int) -> float:
    """Estimate the bits of a leaf on uniform grids.

    Args:
        cells: Integer cells of a sample of the weights.
        total: Number of all weights of the leaf.
        codebooks: Number of slices with their own levels.

    Returns:
        Bits of the codes, the values of the levels and the coder's table.
    """
    _, count = np.unique(cells, return_counts=True)
    shares = count / cells.size
    entropy = -float(shares @ np.log2(shares))
    levels = min(count.size, 2 * 2.0**entropy)  # a quantizer merges rare levels
    return total * entropy + levels * (_LEVEL_BITS * codebooks + _TABLE_BITS)
