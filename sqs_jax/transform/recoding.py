"""Codes of a compressed model chosen anew for the outputs of its layers, from inputs alone."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.distribution.feedback import InputMoments, inverse_factor, unusable
from sqs_jax.distribution.feedback import recode as recode_kernel
from sqs_jax.transform.rules import path_string

_CORRECTION = 0.5  # of what outputs that differ would ask of the weights: the rest fits their noise


def recode(compressed: Any, params: Any, inputs: Any) -> Any:
    """Choose codes anew so that linear layers give about the same outputs, at no more bits.

    Rows of a kernel are rounded one after the other; those that follow make good what their outputs
    lose (GPTQ, arXiv:2210.17323), and codes are weighed by their length: coordinate by coordinate,
    the least negative ELBO of a Gaussian likelihood of the outputs with the codes' length. Levels
    move to the means of their weights. No labels and no gradients.

    Example:
      >>> compressed = sqs_jax.compress_to_budget(params, target_ratio=8)
      >>> x = inputs_of_the_layer  # [n, features]
      >>> moments = {"dense": {"kernel": sqs_jax.InputMoments(x.T @ x / len(x))}}
      >>> compressed = sqs_jax.recode(compressed, params, moments)

    Args:
      compressed: as `compress_to_budget` returns it.
      params: the weights it stands for; kernels are [*inputs, outputs], of a convolution
        [height, width, inputs, outputs].
      inputs: tree with `InputMoments` at paths of compressed kernels, of as many inputs as a
        kernel has rows [-1, outputs]: of a convolution its patches.

    Returns:
      A tree like `compressed`. A kernel that cannot be coded anew in as few bits stays as it is.

    Raises:
      ValueError: naming the path, for moments where nothing is compressed or of another size, or
        that are none: not finite, not symmetric, or with a negative eigenvalue.
    """
    leaves, treedef = _flatten(compressed)
    weights, given = (dict(_flatten(tree)[0]) for tree in (params, inputs))
    found = []
    for path, leaf in leaves:
        moments = given.pop(path, None)
        if moments is not None:
            leaf = _recode(path, leaf, weights.get(path), moments)
        found.append(leaf)
    if given:
        raise ValueError(f"inputs has {', '.join(sorted(given))}, where nothing is compressed.")
    return treedef.unflatten(found)


def _flatten(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    pairs, treedef = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, CompressedLeaf | InputMoments)
    )
    return [(path_string(path), leaf) for path, leaf in pairs], treedef


def _recode(path: str, leaf: Any, weights: Any, moments: InputMoments) -> Any:
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
    for name, given, due in (("cross", cross, rows), ("missing", missing, shape[-1])):
        if given is not None and given.shape != (rows, due):
            raise ValueError(f"{path}: {name} has shape {given.shape}; it must have {(rows, due)}.")
        if given is not None and not bool(jnp.isfinite(given).all()):
            raise ValueError(f"{path}: {name} moments are not finite.")
    if why := unusable(second):
        raise ValueError(f"{path}: {why}.")
    feedback = inverse_factor(second)
    wanted = jnp.asarray(np.asarray(weights), jnp.float32).reshape(rows, -1)
    lacking = jnp.zeros_like(wanted) if missing is None else missing
    if cross is not None:
        lacking += (cross - second) @ wanted
    wanted += _CORRECTION * jnp.linalg.solve(feedback.moments, lacking)
    levels = np.asarray(leaf.codebook)
    codes = np.asarray(leaf.codes).reshape(rows, -1)
    codes, found = recode_kernel(wanted, codes, levels.reshape(-1), feedback)
    return CompressedLeaf(codes.reshape(shape), found.reshape(levels.shape))
