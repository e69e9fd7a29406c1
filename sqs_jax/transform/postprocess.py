"""Post-processing of weights: batch-normalization folding, rounding to a tolerance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import CompressedLeaf, materialize

_NARROW = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16")


def fold_batch_norm(
    kernel: jax.Array,
    *,
    scale: jax.Array | float,
    bias: jax.Array | float,
    mean: jax.Array,
    variance: jax.Array,
    epsilon: float = 1e-5,
    layer_bias: jax.Array | float = 0.0,
    axis: int = -1,
) -> tuple[jax.Array, jax.Array]:
    """Fold a batch normalization into the kernel and bias of the layer before.

    With stored statistics,
    scale * (x @ kernel + layer_bias - mean) / sqrt(variance + epsilon) + bias is affine in x. The
    file then has one vector per layer instead of four. Fold before compressing, and deploy the
    network without its normalizations.

    Args:
        kernel: Kernel of a Dense or Conv layer, with no activation before the normalization.
        scale: Gamma, `[channels]`, or 1.0.
        bias: Beta, `[channels]`, or 0.0.
        mean: Running mean, `[channels]`.
        variance: Running variance, `[channels]`, >= 0.
        epsilon: Epsilon of the normalization (Flax's and PyTorch's default is 1e-5).
        layer_bias: Bias of the layer, `[channels]`, or 0.0.
        axis: Output axis of the kernel: -1 in Flax, 0 in PyTorch.

    Returns:
        Pair (kernel, bias) in the kernel's dtype, in the shape of the kernel and `[channels]`.

    Raises:
        ValueError: If an argument does not have one value per output channel, or a variance is
            negative.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> kernel, bias = sqs_jax.fold_batch_norm(
        ...     jnp.ones((3, 2)), scale=2.0, bias=0.0, mean=jnp.array([1.0, 2.0]),
        ...     variance=jnp.ones(2), epsilon=0.0,
        ... )
        >>> kernel[0].tolist(), bias.tolist()
        ([2.0, 2.0], [-2.0, -4.0])

    References:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", arXiv:1712.05877, section 3.2.
    """
    if not -kernel.ndim <= axis < kernel.ndim:
        raise ValueError(f"axis is {axis}, the kernel has {kernel.ndim} axes.")
    channels = (kernel.shape[axis],)
    vectors = {"mean": mean, "variance": variance, "scale": scale, "bias": bias}
    for name, value in {**vectors, "layer_bias": layer_bias}.items():
        is_scalar = name not in ("mean", "variance") and jnp.shape(value) == ()
        if jnp.shape(value) != channels and not is_scalar:
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}, the kernel {kernel.shape} has "
                f"{channels[0]} output channels on axis {axis}; choose the kernel's output axis."
            )
    if not isinstance(variance, jax.core.Tracer) and bool(jnp.any(variance < 0)):
        raise ValueError("variance has values below 0; give variances, not deviations or logs.")
    factor = scale / jnp.sqrt(variance + epsilon)
    shape = [1] * kernel.ndim
    shape[axis] = channels[0]
    folded = kernel * factor.reshape(shape).astype(kernel.dtype)
    return folded, ((layer_bias - mean) * factor + bias).astype(kernel.dtype)


def round_to_tolerance(
    compressed: Any, predict_fn: Callable[[Any], Any], *, tolerance: float
) -> Any:
    """Round codebooks and dense leaves to the narrowest dtypes that the outputs tolerate.

    A file stores every array in the narrowest dtype that represents its values exactly, so that
    rounded values make the file smaller. The rounded leaves keep their dtypes. The method first
    rounds all leaves to one dtype, the narrowest within the tolerance. Then it rounds each leaf,
    the largest first, to narrower dtypes while the outputs stay within the tolerance.

    Args:
        compressed: Tree of CompressedLeaf and arrays.
        predict_fn: Function (params) -> outputs, an array, on inputs of the caller's choice. The
            number of calls is about the number of leaves.
        tolerance: Relative L2 difference from the outputs of `compressed`, at least 0.

    Returns:
        Tree with rounded values.

    Raises:
        ValueError: If the tolerance is negative, or the outputs of `compressed` are not finite.

    Example:
        >>> import numpy as np
        >>> import sqs_jax
        >>> compressed = {"bias": np.array([0.5, 0.3], np.float32)}
        >>> rounded = sqs_jax.round_to_tolerance(compressed, lambda p: p["bias"], tolerance=0.1)
        >>> rounded["bias"]
        array([0.5   , 0.3125], dtype=float32)
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must be >= 0.")
    treedef: Any  # the declared type has no methods
    leaves, treedef = jax.tree.flatten(
        compressed, is_leaf=lambda node: isinstance(node, CompressedLeaf)
    )
    reference = np.asarray(predict_fn(materialize(compressed)), np.float64)
    if not np.isfinite(reference).all():
        raise ValueError("predict_fn gives outputs that are not finite before any rounding.")
    norm = np.linalg.norm(reference)

    def tolerable(candidate: list[Any]) -> bool:
        outputs = np.asarray(predict_fn(materialize(treedef.unflatten(candidate))), np.float64)
        return bool(np.linalg.norm(outputs - reference) <= tolerance * norm)

    def round_all(dtype: str) -> list[Any]:
        candidates = [_rounded(leaf, dtype) for leaf in leaves]
        return [
            leaf if rounded is None else rounded
            for leaf, rounded in zip(leaves, candidates, strict=True)
        ]

    everywhere = map(round_all, _NARROW)
    current = next((candidate for candidate in everywhere if tolerable(candidate)), leaves)
    for number in sorted(range(len(leaves)), key=lambda i: -_values(leaves[i]).size):
        for dtype in _NARROW[:2]:
            rounded = _rounded(leaves[number], dtype)
            if rounded is None:
                continue
            trial = list(current)
            trial[number] = rounded
            if tolerable(trial):
                current = trial
                break
    return treedef.unflatten(current)


def _values(leaf: Any) -> Any:
    """Return the array of a leaf that may be rounded."""
    return leaf.codebook if isinstance(leaf, CompressedLeaf) else leaf


def _rounded(leaf: Any, dtype: str) -> Any | None:
    """Return a leaf with rounded values; None if the dtype is no narrower or overflows."""
    values = np.asarray(_values(leaf))
    narrow = jnp.dtype(dtype)
    if not jnp.issubdtype(values.dtype, jnp.floating) or values.dtype.itemsize <= narrow.itemsize:
        return None
    with np.errstate(all="ignore"):
        rounded = values.astype(narrow).astype(values.dtype)
    if not np.array_equal(np.isfinite(rounded), np.isfinite(values)):
        return None
    return CompressedLeaf(leaf.codes, rounded) if isinstance(leaf, CompressedLeaf) else rounded
