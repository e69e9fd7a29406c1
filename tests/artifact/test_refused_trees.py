"""Trees that a file cannot store: refused with the path and a remedy."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.artifact import CompressedLeaf, load, save
from tests.artifact.trees import same

Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Thing:
    x: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    x: jax.Array


NODES = [
    (Point(np.ones(1), np.ones(1)), "_asdict"),
    (collections.OrderedDict(a=np.ones(1)), "dict"),
    (Thing(), "dict of its fields"),
    (3, "np.asarray"),
    (2.5, "np.asarray"),
    (True, "np.asarray"),
    ("text", "text 'text'.*metadata="),
    (b"bytes", "bytes.*attachments="),
    (jax.nn.relu, "function relu.*leave it out.*eqx.partition"),
    (lambda x: x, "function .*lambda.*leave it out"),
    (functools.partial(max, 1), "function.*leave it out"),
    (Module(jnp.ones(1)), r"Module.*jax\.tree\.leaves"),
    ({1: np.ones(1), "a": np.ones(1)}, "rename"),
    ({float("nan"): np.ones(1)}, "rename"),
    ({True: np.ones(1)}, "rename"),
    (jax.ShapeDtypeStruct((3,), np.float32), "ShapeDtypeStruct.*no values.*jnp.zeros"),
    (np.longdouble(3), r"dtype (float|longdouble).*astype\(np.float64\)"),
    (np.clongdouble(3), r"dtype c.*astype\(np.complex128\)"),
    (np.array(["a"]), "dtype <U1.*metadata="),
    (np.array([b"a"]), "dtype .S1.*attachments="),
    (np.array(["2020"], "M8[D]"), r"datetime64.*view\(np.int64\)"),
    (np.array([None]), "dtype object.*cast it"),
    (np.zeros(2, [("a", "f4")]), "dtype.*dict of its fields"),
    (jax.random.key(0), "key_data"),
    (CompressedLeaf([1, 2], np.ones((1, 4))), "list"),
]


@pytest.mark.parametrize(("node", "says"), NODES, ids=range(len(NODES)))
def test_refusals_name_the_path_and_a_remedy(node, says, path):
    with pytest.raises(TypeError, match=r"'a/1'.*" + says):
        save(path, {"a": [np.ones(1), node]})
    assert not path.exists()


def test_other_impossible_trees(path):
    deep = np.ones(1)
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValueError, match="deeper"):
        save(path, deep)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda x: save(path, {"x": x}))(jnp.ones(3))
    big_endian = np.arange(3, dtype=">f4")
    save(path, [big_endian])
    assert same(load(path), [big_endian.astype(np.float32)])


@pytest.mark.parametrize(
    ("codes", "codebook", "says"),
    [
        (np.full(3, 5, np.uint8), np.ones((1, 4)), "code 5"),
        (np.zeros(3, np.uint16), np.ones((1, 4)), "must be uint8"),
        (np.zeros(3, np.uint8), np.ones((2, 128)), "must be uint16"),
        (np.zeros(3, np.int32), np.ones((1, 4)), "int32"),
        (np.zeros(3, np.uint8), np.ones(4), "W, K"),
        (np.zeros((3, 2), np.uint8), np.ones((2, 1, 4)), "leading axes"),
        (np.zeros(3, np.uint8), np.ones((1, 0)), "0 values"),
        (np.zeros(3, np.uint16), np.ones((256, 256)), "65536 values"),
        (np.zeros(3, np.uint8), np.ones((1, 4), int), "floating"),
    ],
)
def test_broken_invariants_are_named(codes, codebook, says, path):
    with pytest.raises(ValueError, match=f"'a/k'.*{says}"):
        save(path, {"a": {"k": CompressedLeaf(codes, codebook)}})
