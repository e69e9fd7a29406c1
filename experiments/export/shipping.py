"""Contents of model.sqs: trimmed codebooks, rounded arrays, metadata."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

import sqs_jax
from experiments.configs import base
from experiments.training.normalisation import fold_statistics
from experiments.trees import map_leaves

_MACHINE_FIELDS = ("data.directory", "mesh.", "sharding", "checkpoint_every")


def shipped(params: Any, model_state: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """Return the tree that model.sqs stores, and the options of `sqs_jax.save`.

    Args:
      params: Params, compressed or arrays.
      model_state: Other collections of the network.
      config: Config of the experiment.
    """
    options = {"dense_dtype": config.sqs.dense_dtype or None, "metadata": file_metadata(config)}
    params, model_state = fold_statistics(trimmed(params, config), model_state)
    return {"params": params, **model_state}, options


def file_metadata(config: Any) -> dict[str, Any]:
    """Return the metadata of a run's files: the library's version and the recipe."""
    return {"provenance": {"sqs_jax": sqs_jax.__version__}, "recipe": recipe(config)}


def recipe(config: Any) -> dict[str, Any]:
    """Return the settings of a training that differ from the defaults, for model.sqs.

    Folders and devices are left out, so that a run gives the same file on every machine.

    Args:
      config: Config of the experiment.

    Returns:
      Values by dotted name of the field.
    """
    defaults, chosen = (
        flatten_dict(json.loads(source.to_json_best_effort()), sep=".")
        for source in (base.experiment(), config)
    )
    settings = {
        field: value
        for field, value in chosen.items()
        if value != defaults.get(field) and not field.startswith(_MACHINE_FIELDS)
    }
    if config.model.weights:
        settings["model.weights"] = Path(config.model.weights).name
    return settings


def trimmed(compressed: Any, config: Any) -> Any:
    """Remove unused levels from codebooks, and round the rest to the dense dtype.

    Args:
      compressed: Tree of compressed and dense leaves.
      config: Config of the experiment, with the dtype in `sqs.dense_dtype`, "" for none.
    """
    dtype = config.sqs.dense_dtype

    def trim(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, sqs_jax.CompressedLeaf):
            return leaf
        leaf = _without_unused(leaf)
        codebook = _cast(path, leaf.codebook, dtype) if dtype else leaf.codebook
        return sqs_jax.CompressedLeaf(leaf.codes, codebook)

    return map_leaves(trim, compressed)


def _without_unused(leaf: sqs_jax.CompressedLeaf) -> sqs_jax.CompressedLeaf:
    """Return a leaf without its unused levels, except the last remaining level."""
    if leaf.codebook.ndim > 2 or len(leaf.codebook) > 1:  # codebooks share a size
        return leaf
    codes, levels = np.asarray(leaf.codes), np.asarray(leaf.codebook).reshape(-1)
    used = np.bincount(codes.ravel(), minlength=levels.size + 1)[1:] > 0
    used[0] |= not used.any()
    if used.all():
        return leaf
    dtype = np.uint8 if used.sum() <= 255 else np.uint16
    new_codes = np.concatenate([[0], np.cumsum(used)]).astype(dtype)
    return sqs_jax.CompressedLeaf(new_codes[codes], levels[used].reshape(1, -1))


def _cast(path: str, array: Any, dtype: str) -> np.ndarray:
    """Round a floating array to the values of a narrower dtype; keep the array's dtype.

    Raises:
      ValueError: If a value overflows the narrower dtype; the message names the path.
    """
    array, narrow = np.asarray(array), jnp.dtype(dtype)
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    if not floating or narrow.itemsize >= array.dtype.itemsize:
        return array
    with np.errstate(over="ignore"):
        rounded = array.astype(narrow).astype(array.dtype)
    if not np.isfinite(rounded[np.isfinite(array)]).all():
        raise ValueError(
            f"{path}: {np.abs(array).max()} is more than config.sqs.dense_dtype {dtype!r} holds; "
            "use one of a wider range, such as 'bfloat16'."
        )
    return rounded


def as_stored(tree: Any, dense_dtype: str | None) -> Any:
    """Round a tree's arrays like a file with this `dense_dtype`.

    Args:
      tree: Tree of arrays and compressed leaves.
      dense_dtype: Name of the dtype; None for no rounding.
    """

    def rounded(path: str, leaf: Any) -> Any:
        if dense_dtype is None or sqs_jax.is_compressed(leaf):  # constants of a folded batch norm
            return leaf
        return _cast(path, leaf, dense_dtype)

    return map_leaves(rounded, tree)


def codes_of(draw: Any, compressed: Any) -> Any:
    """Encode a K-level draw with the codebooks of the compressed posterior.

    Args:
      draw: Draw of the weights, arrays.
      compressed: Compressed posterior with the same tree paths.
    """

    def encode(leaf: Any, weights: jax.Array) -> Any:
        if not isinstance(leaf, sqs_jax.CompressedLeaf):
            return weights
        levels = np.concatenate([[0], np.asarray(leaf.codebook).reshape(-1)])
        order = np.argsort(levels, kind="stable")
        position = np.searchsorted(levels[order], np.asarray(weights))
        return sqs_jax.CompressedLeaf(order[position].astype(leaf.codes.dtype), leaf.codebook)

    return jax.tree.map(
        encode, compressed, draw, is_leaf=lambda x: isinstance(x, sqs_jax.CompressedLeaf)
    )
