"""Messages and figures of budget errors."""

import jax
import numpy as np
import pytest

import sqs_jax
from sqs_jax import BudgetError, Rule, compress_to_budget


def error_of(tree, target_bytes=10, **options):
    with pytest.raises(BudgetError) as caught:
        compress_to_budget(tree, target_bytes=target_bytes, **options)
    return caught.value


WEIGHTS = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
BIAS = np.ones(300, np.float32)


def test_the_error_has_the_figures():
    error = error_of({"w": WEIGHTS, "b": BIAS, "n": np.arange(50)}, 500)
    assert error.budget == 500
    assert error.dense == (("b", "float32", 1200), ("n", "int64", 400))
    tree = {"w": WEIGHTS, "b": BIAS, "n": np.arange(50)}
    compressed = compress_to_budget(tree, target_bytes=error.least)
    assert sqs_jax.summarize(compressed).file_bytes <= error.least


def test_dense_bytes_are_those_of_dense_dtype():
    error = error_of({"w": WEIGHTS, "b": BIAS}, dense_dtype="bfloat16")
    assert error.dense == (("b", "float32", 600),)
    assert "dense_dtype" not in str(error)  # the dtype is narrow already


@pytest.mark.parametrize("leaf", [np.arange(60), np.ones(60, bool), np.ones(60, np.complex64)])
def test_leaves_that_are_never_rounded_get_no_advice_to_round(leaf):
    message = str(error_of({"w": WEIGHTS, "n": leaf}))
    assert "1 of them hold integers, bools or complex numbers, never rounded" in message
    assert "dense_dtype" not in message and "min_ndim" not in message


def test_advice_depends_on_the_reason_for_dense_leaves():
    rules = [Rule(pattern="v", components=None), Rule()]
    by_rule = str(error_of({"w": WEIGHTS, "v": WEIGHTS}, rules=rules))
    assert "dense_dtype" in by_rule and "min_ndim" not in by_rule
    narrow = str(error_of({"w": WEIGHTS, "b": BIAS.astype(np.float16)}))
    assert "min_ndim=1" in narrow and "dense_dtype" not in narrow
    neither = str(error_of({"w": WEIGHTS, "v": 2 * WEIGHTS}))
    assert "dense" not in neither and "every weight pruned that may be" in neither


@pytest.mark.parametrize("tree", [{}, {"a": {}, "b": [None]}])
def test_a_tree_of_no_tensors_is_named(tree):
    with pytest.raises(ValueError, match="no tensors"):
        compress_to_budget(tree, target_bytes=10)


@pytest.mark.parametrize(
    "tree", [{"e": np.zeros((0, 3), np.float32)}, [np.zeros(0), np.zeros((2, 0), np.int32)]]
)
def test_a_tree_of_empty_tensors_is_named(tree):
    assert "all tensors of the tree are empty" in str(error_of(tree))
    with pytest.raises(BudgetError, match="are empty"):
        compress_to_budget(tree, target_ratio=4)


class Thing:
    """Object without arrays."""


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (jax.nn.relu, "function"),
        (np.tanh, "function"),
        (jax.ShapeDtypeStruct((8, 8), np.float32), "no values"),
        (np.ones((8, 8), np.longdouble), "cast"),
        (np.array(["a", "b"]), "cast"),
        ("name", "out of the tree"),
        (Thing(), "out of the tree"),
        (jax.random.key(0), "key_data"),
    ],
)
def test_leaves_that_are_no_arrays_are_named_before_any_work(leaf, words, monkeypatch):
    def refuse(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr("sqs_jax.budget.budget.read_tensor", refuse)
    with pytest.raises(TypeError, match=rf"a/odd: .*{words}"):
        compress_to_budget({"a": {"odd": leaf, "w": WEIGHTS}}, target_ratio=4)
