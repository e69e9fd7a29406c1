"""Where every array of a model lies on a mesh of devices: by rules, or automatically."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sqs_jax.transform.rules import flatten, is_sub_distribution, path_string

# Shaped as the parameter; a sub-distribution's tables are small, and every device has them whole.
_SHAPED_AS_WEIGHTS = ("loc", "gate_logits", "kept")


def shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]]) -> Any:
    """Lay a tree out over a mesh by rules; the first that matches wins.

    Example:
      >>> layout = sqs_jax.shardings(posterior, mesh, [(".*kernel", PartitionSpec(None, "fsdp"))])
      >>> posterior = jax.device_put(posterior, layout)

    Args:
      tree: params, a posterior or a part of one, of arrays or `jax.ShapeDtypeStruct`.
      mesh: the devices.
      rules: (pattern, spec) pairs. The pattern must match the whole path of a leaf
        ("layers/0/kernel", as in `Rule`); the spec names the mesh axes that split each dimension.
        Leaves that no pattern matches are replicated.

    Returns:
      A tree of NamedSharding, of the tree's own structure. A SubDistribution's `loc`,
      `gate_logits` and `kept` get the spec, its tables are replicated.

    Raises:
      ValueError: for a pattern that matches nothing or is no regular expression, and for a spec
        with an axis that the mesh lacks or that comes twice, with more entries than the leaf has
        dimensions, or that splits a dimension unevenly; each names the leaf's path.
    """
    paths = [path for path, _ in flatten(tree)[0]]
    for pattern, _ in rules:
        try:
            used = any(re.fullmatch(pattern, path) for path in paths)
        except re.error as error:
            raise ValueError(f"Pattern {pattern!r} is no regular expression: {error}.") from error
        if not used:
            shown = ", ".join(paths[:8]) + (", ..." if len(paths) > 8 else "")
            raise ValueError(
                f"Sharding pattern {pattern!r} matches no leaf. A pattern must match a whole path; "
                f"the paths here are: {shown or '(an empty tree)'}."
            )

    def choose(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        found = (spec for pattern, spec in rules if re.fullmatch(pattern, path))
        spec = next(found, PartitionSpec())
        if wrong := _complaint(shape, spec, mesh):
            raise ValueError(
                f"{path}: {wrong}. The leaf's shape is {shape}, its spec {spec}, the mesh "
                f"{dict(mesh.shape)}; put a rule that fits this path before the one that matched."
            )
        return spec

    return _lay_out(tree, mesh, choose)


def fully_sharded(tree: Any, mesh: Mesh, *, axis: str, min_size: int = 4096) -> Any:
    """Lay a tree out so that every large leaf is split over one axis of a mesh.

    Args:
      tree: as for `shardings`.
      mesh: the devices.
      axis: of the mesh. A leaf's largest dimension that the axis divides is split; of equal ones
        the first.
      min_size: leaves of fewer weights are replicated, as are those with no such dimension.

    Returns:
      A tree of NamedSharding, as `shardings` returns it.

    Raises:
      ValueError: if the mesh has no such axis.
    """
    if axis not in mesh.shape:
        raise ValueError(f"axis is {axis!r}; the mesh has the axes {list(mesh.shape)}.")

    def choose(_: str, shape: tuple[int, ...]) -> PartitionSpec:
        even = [i for i, length in enumerate(shape) if length % mesh.shape[axis] == 0]
        if math.prod(shape) < min_size or not even:
            return PartitionSpec()
        return PartitionSpec(*[None] * max(even, key=lambda i: shape[i]), axis)

    return _lay_out(tree, mesh, choose)


def state_shardings(state: Any, tree: Any, layout: Any) -> Any:
    """Lay a whole training state out as what it trains is: moments follow their parameter.

    Args:
      state: any tree of arrays or `jax.ShapeDtypeStruct`: optimizer state, batch statistics, the
        posterior itself, or all of them. An array whose path ends in the path of an array of
        `tree`, and has its shape, gets its sharding; the rest is replicated.
      tree: params or a posterior.
      layout: its shardings, from `shardings` or `fully_sharded`; not empty.

    Returns:
      A tree of NamedSharding, of the state's own structure.
    """
    arrays, _ = jax.tree_util.tree_flatten_with_path(tree)
    known = {
        _names(path): (np.shape(array), sharding)
        for (path, array), sharding in zip(arrays, jax.tree.leaves(layout), strict=True)
    }
    replicated = NamedSharding(jax.tree.leaves(layout)[0].mesh, PartitionSpec())

    def follow(path: Any, leaf: Any) -> NamedSharding:
        names = _names(path)
        for start in range(len(names) + 1):  # the longest suffix first
            shape, sharding = known.get(names[start:], (None, replicated))
            if shape == np.shape(leaf):
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(follow, state)


def _lay_out(tree: Any, mesh: Mesh, choose: Callable[[str, tuple[int, ...]], PartitionSpec]) -> Any:
    """Give every leaf the sharding that `choose` has for its path and shape."""
    pairs, treedef = flatten(tree)

    def place(path: str, leaf: Any) -> Any:
        if not is_sub_distribution(leaf):
            return NamedSharding(mesh, choose(path, np.shape(leaf)))
        # `partition` leaves None in the place of some arrays, also of all that have the shape.
        shaped = [a for f in _SHAPED_AS_WEIGHTS if (a := getattr(leaf, f)) is not None]
        spec = choose(path, np.shape(shaped[0])) if shaped else PartitionSpec()
        places = {
            field.name: NamedSharding(
                mesh, spec if field.name in _SHAPED_AS_WEIGHTS else PartitionSpec()
            )
            for field in dataclasses.fields(leaf)
            if not field.metadata.get("static") and getattr(leaf, field.name) is not None
        }
        return leaf.replace(**places)

    return treedef.unflatten([place(path, leaf) for path, leaf in pairs])


def _complaint(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> str | None:
    """Say what keeps a spec from splitting an array of this shape; None if nothing does."""
    entries = [(e,) if isinstance(e, str) else tuple(e or ()) for e in spec]
    axes = [axis for entry in entries for axis in entry]
    for axis in axes:
        if axis not in mesh.shape:
            return f"the mesh has no axis {axis!r}"
        if axes.count(axis) > 1:
            return f"the axis {axis!r} comes twice"
    if len(entries) > len(shape):
        return f"the spec has {len(entries)} entries for {len(shape)} dimensions"
    for dimension, (length, entry) in enumerate(zip(shape, entries, strict=False)):
        parts = math.prod(mesh.shape[axis] for axis in entry)
        if length % parts:
            return f"dimension {dimension} of length {length} does not split in {parts} parts"
    return None


def _names(path: Any) -> tuple[str, ...]:
    return tuple(path_string((key,)) for key in path)
