"""Memory and multiplications of each stage of a network, counted in its jaxpr."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.calibration.stages import stages_of, values
from experiments.trees import other_collections

_PRODUCTS = ("dot_general", "conv_general_dilated")


class StageCost(NamedTuple):
    """Cost of a stage.

    Attributes:
      intermediates: Bytes of all arrays that the forward pass computes; an upper bound of the
        activations, because fusion is ignored.
      output: Bytes of the output.
      weights: Bytes of the params, in float32.
      products: Number of multiplications in matrix products and convolutions.
      moments: Number of multiplications in the second moments of convolution inputs.
    """

    intermediates: int
    output: int
    weights: int
    products: int
    moments: int


def stage_costs(model: Any, variables: Any, examples: Any) -> list[StageCost]:
    """Count the cost of each stage of a network.

    Args:
      model: Network.
      variables: Shapes of the variables.
      examples: Shape of a batch.
    """
    costs, x = [], examples
    # Batch statistics are no argument of a stage: they must be values. They are few and small.
    statistics = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape, leaf.dtype), other_collections(variables)
    )
    variables = {"params": variables["params"], **statistics}
    counted: dict[Any, tuple[int, int, int, Any]] = {}  # equal blocks are traced once
    for stage in stages_of(model, variables):
        params = {name: variables["params"][name] for name in stage.names}
        key = stage.apply, x.shape
        if key not in counted:
            traced, out = jax.make_jaxpr(stage.apply, return_shape=True)(values(params), x)
            intermediates = sum(map(_size, (v.aval for v in _intermediates(traced.jaxpr))))
            products = _products(traced.jaxpr)
            moments = sum(n * inputs // outputs for n, inputs, outputs in products if outputs)
            counted[key] = intermediates, sum(n for n, *_ in products), moments, out
        intermediates, multiplications, moments, x = counted[key]
        weights = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
        costs.append(StageCost(intermediates, _size(x), weights, multiplications, moments))
    return costs


def _size(array: Any) -> int:
    return int(array.size) * array.dtype.itemsize


def _products(jaxpr: Any) -> list[tuple[int, int, int]]:
    """List the products of a program.

    Returns:
      For each product its multiplications, and inputs and outputs per position of a convolution.
      These are 0 for a matrix product.
    """
    products = []
    for equation in jaxpr.eqns:
        for inner in _inner(equation):
            products += _products(inner)
        if equation.primitive.name not in _PRODUCTS:
            continue
        size = equation.outvars[0].aval.size
        left, right = (operand.aval.shape for operand in equation.invars)
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            products.append((size * math.prod(left[axis] for axis in summed), 0, 0))
        else:  # a kernel [height, width, inputs, outputs]
            *window, outputs = right
            products.append((size * math.prod(window), math.prod(window), outputs))
    return products


def _inner(equation: Any) -> list[Any]:
    """List the programs within an equation: a call, a loop, a custom derivative."""
    return [p.jaxpr for p in equation.params.values() if hasattr(p, "jaxpr")]


def _intermediates(jaxpr: Any) -> list[Any]:
    """List the variables that a program and its inner programs compute."""
    variables: list[Any] = []
    for equation in jaxpr.eqns:
        inner = _inner(equation)
        variables += (
            [v for program in inner for v in _intermediates(program)] if inner else equation.outvars
        )
    return variables
