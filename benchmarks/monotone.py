"""Monotonicity of errors in the budget, at compression ratios from 30 to 1.1.

The error of a small random tree is the relative weight error of the worst tensor. The error of a
real network is the relative error of the logits.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import sqs_jax
from benchmarks.networks import NAMES, Network, load_network

_HIGHEST, _LOWEST = 30.0, 1.1
_TREE_STEPS, _NETWORK_STEPS = 40, 20
_SHOWN = (30, 20, 12, 8, 6, 4, 3, 2, 1.5, 1.1)
_SIZE = 64
_SAMPLERS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "student-t": lambda rng, shape: rng.standard_t(3, size=shape),
}
_TREES = [
    (kind, count, dtype, scales)
    for kind in _SAMPLERS
    for count in (1, 4, 16)
    for dtype in ("float32", "bfloat16")
    for scales in ((False, True) if count == 4 else (False,))
]

Tree = dict[str, np.ndarray]


def run(_: Path, data: Path) -> list[dict[str, Any]]:
    """Print the errors of increasing budgets, and the largest rise between neighbors."""
    print(f"{'tree or network':>34} {'rise':>6}  error at ratio")
    print(f"{'':>42}", *(f"{ratio:>7g}" for ratio in _SHOWN))
    rows = []
    for kind, count, dtype, scales in _TREES:
        name = f"{count} x {kind} {dtype}{' 1..1e-3' if scales else ''}"
        tree = _tree(kind, count, dtype, scales)
        rows.append(_ladder(name, tree, partial(_worst, tree), _TREE_STEPS))
    for name in NAMES:
        network = load_network(name, data)
        outputs = network.outputs(network.weights)
        rows.append(
            _ladder(name, network.weights, partial(_of_outputs, network, outputs), _NETWORK_STEPS)
        )
    return rows


def _tree(kind: str, count: int, dtype: str, scales: bool) -> Tree:
    """Draw tensors of 64 x 64 of equal scale, or of scales 1, 0.1, 0.01 and 0.001."""
    rng = np.random.default_rng(0)
    return {
        f"layer{i}": (_SAMPLERS[kind](rng, (_SIZE, _SIZE)) * (10.0**-i if scales else 1.0))
        .astype(np.float32)
        .astype(np.dtype(dtype))
        for i in range(count)
    }


def _worst(tree: Tree, weights: Tree) -> float:
    """Return the largest relative error of a tensor."""
    return max(
        float(np.linalg.norm(np.float64(weights[name]) - np.float64(tree[name])))
        / float(np.linalg.norm(np.float64(tree[name])))
        for name in tree
    )


def _of_outputs(network: Network, outputs: np.ndarray, weights: Tree) -> float:
    """Return the relative error of the outputs."""
    error = np.linalg.norm(network.outputs(weights) - outputs)
    return float(error / np.linalg.norm(outputs))


def _ladder(name: str, tree: Tree, error: Callable[[Tree], float], steps: int) -> dict[str, Any]:
    """Measure errors at geometric steps of the ratio; print and return a row."""
    ratios, errors = [], []
    original = sum(array.nbytes for array in tree.values())
    for ratio in np.geomspace(_HIGHEST, _LOWEST, steps).tolist():
        try:
            compressed = sqs_jax.compress_to_budget(tree, target_bytes=int(original / ratio))
        except sqs_jax.BudgetError:
            continue  # below the smallest possible file
        ratios.append(ratio)
        errors.append(error(sqs_jax.materialize(compressed)))
    rises = [
        after / before if before else float(after > 0) * np.inf or 1.0
        for before, after in pairwise(errors)
    ]
    shown = []
    for target in _SHOWN:
        nearest = min(range(len(ratios)), key=lambda i: abs(np.log(ratios[i] / target)))
        near = abs(np.log(ratios[nearest] / target)) < np.log(_HIGHEST / _LOWEST) / steps
        shown.append(f"{errors[nearest]:>7.5f}" if near else f"{'-':>7}")
    print(f"{name:>34} {max(rises):>6.3f}  ", *shown, flush=True)
    return {"name": name, "ratios": ratios, "errors": errors, "largest_rise": max(rises)}
