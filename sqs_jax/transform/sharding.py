"""Shardings of posteriors and training states over a mesh, by rules or automatic."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sqs_jax.transform.rules import flatten, is_sub_distribution, path_string

# Fields in the shape of the weights. The other fields are small, and replicated.
_SHAPED_AS_WEIGHTS = ("loc", "gate_logits", "kept")


def shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]]) -> Any:
    """Return the sharding of every array of a tree, by rules on paths.

    The first rule that matches a path applies.

    Args:
        tree: Params, a posterior, or a part of one, of arrays or `jax.ShapeDtypeStruct`.
        mesh: Mesh of devices.
        rules: Pairs (pattern, spec). The pattern must match the whole path of a leaf
            ("layers/0/kernel", as in `Rule`); the spec names the mesh axes that split each
            dimension. Leaves that no pattern matches are replicated.

    Returns:
        Tree of NamedSharding with the structure of `tree`. The fields `loc`, `gate_logits` and
        `kept` of a SubDistribution get the spec; its other fields are replicated.

    Raises:
        ValueError: If a pattern matches nothing or is no regular expression. If a spec has an axis
            that the mesh lacks, repeats an axis, has more entries than the leaf has dimensions, or
            splits a dimension unevenly; the message names the leaf's path.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import AxisType, PartitionSpec
        >>> import sqs_jax
        >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(AxisType.Auto,))
        >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}
        >>> layout = sqs_jax.shardings(params, mesh, [("kernel", PartitionSpec("fsdp"))])
        >>> tuple(layout["kernel"].spec), tuple(layout["bias"].spec)
        (('fsdp',), ())
        >>> params = jax.device_put(params, layout)
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
        matching = (spec for pattern, spec in rules if re.fullmatch(pattern, path))
        spec = next(matching, PartitionSpec())
        if problem := _problem(shape, spec, mesh):
            raise ValueError(
                f"{path}: {problem}. The leaf's shape is {shape}, its spec {spec}, the mesh "
                f"{dict(mesh.shape)}; put a rule that fits this path before the one that matched."
            )
        return spec

    return _lay_out(tree, mesh, choose)


def fully_sharded(tree: Any, mesh: Mesh, *, axis: str, min_size: int = 4096) -> Any:
    """Return shardings that split every large leaf over an axis of a mesh (FSDP).

    The axis splits the largest dimension of a leaf that its size divides, the first of equal ones.

    Args:
        tree: Params, a posterior, or a part of one, of arrays or `jax.ShapeDtypeStruct`.
        mesh: Mesh of devices.
        axis: Name of an axis of the mesh.
        min_size: Least number of weights of a split leaf. Smaller leaves are replicated, as are
            leaves without a dimension that the axis divides.

    Returns:
        Tree of NamedSharding with the structure of `tree`, as from `shardings`.

    Raises:
        ValueError: If the mesh lacks the axis.

    Example:
        >>> import jax
        >>> from jax.sharding import AxisType
        >>> import sqs_jax
        >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(AxisType.Auto,))
        >>> shapes = {"kernel": jax.ShapeDtypeStruct((64, 256), "float32")}
        >>> tuple(sqs_jax.fully_sharded(shapes, mesh, axis="fsdp")["kernel"].spec)
        (None, 'fsdp')
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
    """Return the shardings of a training state, whose moments follow their parameters.

    An array of the state gets the sharding of an array of `tree` if its path ends in the path of
    that array and the shapes are equal. All other arrays are replicated.

    Args:
        state: Tree of arrays or `jax.ShapeDtypeStruct`, such as optimizer state, batch statistics
            and the posterior itself.
        tree: Params or a posterior.
        layout: Shardings of `tree`, from `shardings` or `fully_sharded`; not empty.

    Returns:
        Tree of NamedSharding with the structure of `state`.

    Example:
        >>> import jax
        >>> import optax
        >>> from jax.sharding import AxisType
        >>> import sqs_jax
        >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(AxisType.Auto,))
        >>> shapes = {"kernel": jax.ShapeDtypeStruct((64, 256), "float32")}
        >>> layout = sqs_jax.fully_sharded(shapes, mesh, axis="fsdp")
        >>> state = jax.eval_shape(optax.adam(1e-3).init, shapes)
        >>> tuple(sqs_jax.state_shardings(state, shapes, layout)[0].mu["kernel"].spec)
        (None, 'fsdp')
    """
    arrays, _ = jax.tree_util.tree_flatten_with_path(tree)
    by_names = {
        _names(path): (np.shape(array), sharding)
        for (path, array), sharding in zip(arrays, jax.tree.leaves(layout), strict=True)
    }
    replicated = NamedSharding(jax.tree.leaves(layout)[0].mesh, PartitionSpec())

    def follow(path: Any, leaf: Any) -> NamedSharding:
        names = _names(path)
        for start in range(len(names) + 1):  # the longest suffix first
            shape, sharding = by_names.get(names[start:], (None, replicated))
            if shape == np.shape(leaf):
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(follow, state)


def _lay_out(tree: Any, mesh: Mesh, choose: Callable[[str, tuple[int, ...]], PartitionSpec]) -> Any:
    """Return a tree of shardings; `choose` returns the spec for a path and a shape."""
    pairs, treedef = flatten(tree)

    def place(path: str, leaf: Any) -> Any:
        if not is_sub_distribution(leaf):
            return NamedSharding(mesh, choose(path, np.shape(leaf)))
        # In a part that `partition` returned, all fields in the shape of the weights may be None.
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


def _problem(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> str | None:
    """Return the reason why a spec cannot split an array of a shape, or None."""
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
    """Return the keys of a path as strings."""
    return tuple(path_string((key,)) for key in path)
