"""Names of PyTorch tensors without the prefixes of training wrappers."""

import numpy as np
import pytest

from sqs_jax.checkpoints import CheckpointError, unwrapped


@pytest.mark.parametrize(
    "wrap",
    [
        "{}",
        "module.{}",
        "_orig_mod.{}",
        "model.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "model.module.model.{}",
        "_fsdp_wrapped_module._checkpoint_wrapped_module.{}",
    ],
)
def test_wrappers_of_all_names_are_removed(wrap):
    names = ["conv1.weight", "layer1.0.bn1.bias", "fc.bias"]
    assert list(unwrapped({wrap.format(n): i for i, n in enumerate(names)}).items()) == [
        ("conv1.weight", 0),
        ("layer1.0.bn1.bias", 1),
        ("fc.bias", 2),
    ]


def test_what_is_part_of_a_name_stays():
    names = ["model.layers.0.weight", "lm_head.weight", "module.a", "x_orig_mod.b"]
    assert list(unwrapped(dict.fromkeys(names))) == names
    inner = {"layers.0._orig_mod.attention.weight": np.ones(2), "model.norm": np.ones(3)}
    assert list(unwrapped(inner)) == ["layers.0.attention.weight", "model.norm"]
    assert unwrapped({}) == {}


def test_names_that_become_the_same_are_an_error():
    with pytest.raises(CheckpointError, match="two tensors are called 'a' without wrappers"):
        unwrapped({"a": 1, "_orig_mod.a": 2})
