"""Recoding: new codes of a compressed model that minimize its layers' output errors."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.calibration.error_compensation import inverse_factor, recode_kernel
from sqs_jax.calibration.moments import InputMoments, unusable
from sqs_jax.transform.rules import path_string

# Share of the least-squares correction for differing inputs. The full correction fits their noise.
_CORRECTION = 0.5


def recode(compressed: Any, params: Any, inputs: Any) -> Any:
    """Choose new codes that minimize the output errors of linear layers, at no more bits.

    The method rounds the rows of a kernel one after another. Error compensation adjusts the rows
    that follow (GPTQ). Each code minimizes the output error plus the code's length: coordinate
    descent on the negative ELBO with a Gaussian likelihood of the outputs. Levels move to the means
    of their weights. The method needs no labels and no gradients.

    Args:
        compressed: Tree of `CompressedLeaf` and arrays, as `compress_to_budget` returns it.
        params: Tree of the original weights. Kernels are `[*inputs, outputs]`, those of
            convolutions `[height, width, inputs, outputs]`.
        inputs: Tree with `InputMoments` at paths of compressed kernels. The number of inputs is the
            number of rows of the kernel as `[-1, outputs]`; for a convolution, the inputs are
            patches.

    Returns:
        Tree like `compressed`. A kernel keeps its codes if new ones would take more bits.

    Raises:
        ValueError: If moments are at the path of a dense leaf, have another shape, are not finite,
            are not symmetric, or have a negative eigenvalue. The message names the path.

    Example:
        >>> import jax
        >>> import sqs_jax
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (32, 64))}
        >>> compressed = sqs_jax.compress_to_budget(params, target_ratio=8)
        >>> x = jax.random.normal(jax.random.key(1), (100, 32))  # inputs of the layer
        >>> moments = {"kernel": sqs_jax.InputMoments(x.T @ x / len(x))}
        >>> recoded = sqs_jax.recode(compressed, params, moments)
        >>> recoded["kernel"].codes.shape
        (32, 64)

    References:
        Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for
        Generative Pre-trained Transformers", arXiv:2210.17323.
    """
    leaves, treedef = _flatten(compressed)
    weights, remaining = (dict(_flatten(tree)[0]) for tree in (params, inputs))
    recoded = []
    for path, leaf in leaves:
        moments = remaining.pop(path, None)
        if moments is not None:
            leaf = _recode(path, leaf, weights.get(path), moments)
        recoded.append(leaf)
    if remaining:
        raise ValueError(f"inputs has {', '.join(sorted(remaining))}, where nothing is compressed.")
    return treedef.unflatten(recoded)


def _flatten(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    pairs, treedef = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, CompressedLeaf | InputMoments)
    )
    return [(path_string(path), leaf) for path, leaf in pairs], treedef


def _recode(path: str, leaf: Any, weights: Any, moments: InputMoments) -> Any:
    """Return a kernel with new codes and levels."""
    if not isinstance(leaf, CompressedLeaf):
        raise ValueError(f"{path}: there are moments of its inputs, but it is not compressed.")
    second, cross, missing = (None if m is None else jnp.asarray(m, jnp.float32) for m in moments)
    assert second is not None
    shape = leaf.codes.shape
    rows = math.prod(shape[:-1])
    if len(shape) < 2 or leaf.codebook.ndim > 2 or second.shape != (rows, rows):
        raise ValueError(
            f"{path}: second moments of inputs have shape {second.shape}; a kernel {shape} needs "
            f"{(rows, rows)}, two axes or more, and none of them stacked."
        )
    if np.shape(weights) != shape:
        raise ValueError(f"{path}: params have no weights of shape {shape} there.")
    for name, array, width in (("cross", cross, rows), ("missing", missing, shape[-1])):
        if array is None:
            continue
        if array.shape != (rows, width):
            raise ValueError(
                f"{path}: {name} has shape {array.shape}; it must have {(rows, width)}."
            )
        if not bool(jnp.isfinite(array).all()):
            raise ValueError(f"{path}: {name} moments are not finite.")
    if reason := unusable(second):
        raise ValueError(f"{path}: {reason}.")
    compensation = inverse_factor(second)
    target = jnp.asarray(np.asarray(weights), jnp.float32).reshape(rows, -1)
    deviation = jnp.zeros_like(target) if missing is None else missing
    if cross is not None:
        deviation += (cross - second) @ target
    target += _CORRECTION * jnp.linalg.solve(compensation.moments, deviation)
    old_levels = np.asarray(leaf.codebook)
    codes = np.asarray(leaf.codes).reshape(rows, -1)
    codes, levels = recode_kernel(target, codes, old_levels.reshape(-1), compensation)
    return CompressedLeaf(codes.reshape(shape), levels.reshape(old_levels.shape))
