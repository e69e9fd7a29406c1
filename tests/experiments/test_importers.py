"""Tests of imported weights: names, dtypes, PyTorch's logits, mismatches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import sqs_jax
from benchmarks import networks
from experiments import data
from experiments.importers import import_weights, read_state_dict
from experiments.models import build_model
from sqs_jax.checkpoints import write_safetensors
from tests.conftest import REAL_DATA

SHAPE = (32, 32, 3)
EXAMPLE = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)


def network(name: str, num_classes: int, stem: str = "cifar") -> Any:
    return build_model(SimpleNamespace(name=name, stem=stem, dtype="float32"), num_classes)


def state_dict(model: Any, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> dict[str, Any]:
    """Return random variables of a network under torchvision's names."""
    example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    torch_names = {
        "kernel": "weight",
        "scale": "weight",
        "mean": "running_mean",
        "var": "running_var",
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        _, *layer, last = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        name = ".".join(layer).replace("_bn", ".1").replace("_conv", ".0")
        if name.startswith("layer"):
            name = name.replace("_", ".", 1)
        x = rng.uniform(0.5, 1.5, leaf.shape) if last in ("scale", "var") else None
        x = rng.normal(size=leaf.shape) * 0.1 if x is None else x
        if last == "kernel":
            x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
        arrays[f"{name}.{torch_names.get(last, last)}"] = np.ascontiguousarray(x, np.float32)
    return arrays


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_state_dict_is_imported_from_every_format(tmp_path: Path, suffix: str) -> None:
    model = network("resnet18", 7)
    weights = state_dict(model)
    weights["bn1.num_batches_tracked"] = np.array([3], np.int64)
    path = tmp_path / f"weights{suffix}"
    parallel = {f"module.{name}": x for name, x in weights.items()}
    np.savez(path, **parallel) if suffix == ".npz" else save_file(parallel, path)
    variables = import_weights(path, model, EXAMPLE)
    kernel = variables["params"]["layer2_0"]["downsample_conv"]["kernel"]
    assert kernel.shape == (1, 1, 64, 128)
    np.testing.assert_array_equal(
        kernel[0, 0].T, weights["layer2.0.downsample.0.weight"][..., 0, 0]
    )
    np.testing.assert_array_equal(variables["params"]["fc"]["kernel"].T, weights["fc.weight"])
    stats = variables["batch_stats"]["layer2_0"]["downsample_bn"]
    np.testing.assert_array_equal(stats["var"], weights["layer2.0.downsample.1.running_var"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("wrapper", ["_orig_mod.", "model.", "module._orig_mod."])
def test_narrow_dtypes_and_wrapped_names_are_read(tmp_path: Path, wrapper: str, dtype: str) -> None:
    model = network("resnet20", 10)
    narrow = {name: x.astype(np.dtype(dtype)) for name, x in state_dict(model).items()}
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, {f"{wrapper}{name}": x for name, x in narrow.items()})
    variables = import_weights(path, model, EXAMPLE)
    np.testing.assert_array_equal(
        variables["params"]["fc"]["kernel"].T, narrow["fc.weight"].astype(np.float32)
    )


def test_the_error_lists_all_mismatches(tmp_path: Path) -> None:
    weights = state_dict(network("resnet20", 100))
    weights.pop("layer1.0.conv1.weight")
    weights["layer4.0.conv1.weight"] = np.zeros((1,), np.float32)
    weights["conv1.weight"][0, 0, 0, 0] = np.nan
    np.savez(tmp_path / "wrong.npz", **weights)
    with pytest.raises(ValueError) as error:
        import_weights(tmp_path / "wrong.npz", network("resnet20", 10), EXAMPLE)
    for problem in (
        "wrong.npz does not fit this ResNet in 5 places",
        "layer4.0.conv1.weight (1,): the network has no such weights",
        "params/layer1_0/conv1/kernel (3, 3, 16, 16) is missing",
        "fc.weight: as params/fc/kernel its shape is (64, 100), not (64, 10)",
        "fc.bias: as params/fc/bias its shape is (100,), not (10,)",
        "conv1.weight: 1 of 432 values are not finite",
    ):
        assert problem in str(error.value)


def test_the_dense_network_of_another_run_can_be_imported(tmp_path: Path) -> None:
    model = network("resnet20", 10)
    np.savez(tmp_path / "weights.npz", **state_dict(model))
    variables = import_weights(tmp_path / "weights.npz", model, EXAMPLE)
    sqs_jax.save(tmp_path / "dense.sqs", variables)
    again = import_weights(tmp_path / "dense.sqs", model, EXAMPLE)
    chex.assert_trees_all_equal(variables, again)
    with pytest.raises(
        ValueError, match=r"(?s)dense.sqs does not fit.*\(64, 10\), not \(64, 100\)"
    ):
        import_weights(tmp_path / "dense.sqs", network("resnet20", 100), EXAMPLE)


def test_two_names_of_the_same_leaf_are_refused(tmp_path: Path) -> None:
    weights = state_dict(network("resnet20", 10))
    weights["linear.bias"] = weights["fc.bias"]
    np.savez(tmp_path / "twice.npz", **weights)
    with pytest.raises(ValueError, match=r"linear.bias: fc.bias is the same leaf"):
        import_weights(tmp_path / "twice.npz", network("resnet20", 10), EXAMPLE)


def test_files_without_a_state_dict_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file"):
        read_state_dict(tmp_path / "absent.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"broken\.npz cannot be read as \.npz"):
        read_state_dict(tmp_path / "broken.npz")
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.h5, is unknown"):
        read_state_dict(tmp_path / "weights.h5")
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match=r"pickled\.npz cannot be read"):
        read_state_dict(tmp_path / "pickled.npz")
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match="no arrays"):
        read_state_dict(tmp_path / "empty.npz")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "stem", "shape"),
    [
        ("resnet20", "cifar", (32, 32, 3)),
        ("resnet20b", "cifar", (32, 32, 3)),
        ("resnet18", "cifar", (32, 32, 3)),
        ("resnet34", "imagenet", (64, 64, 3)),
        ("resnet50", "imagenet", (64, 64, 3)),
        ("staged_resnet20", "cifar", (32, 32, 3)),
    ],
)
def test_logits_match_pytorch(tmp_path: Path, name: str, stem: str, shape: Any) -> None:
    import torch

    from tests.experiments.torch_resnet import forward

    model = network(name, 10, stem)
    weights = state_dict(model, shape)
    torch.save({"state_dict": {k: torch.tensor(x) for k, x in weights.items()}}, tmp_path / "w.pth")
    variables = import_weights(
        tmp_path / "w.pth", model, jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    )
    images = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    logits = model.apply(variables, images)
    expected = forward(model, weights, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "name", "classes"),
    [("cifar10_resnet20", "resnet20", 10), ("cifar100_resnet20", "staged_resnet20", 100)],
)
def test_published_weights_give_the_reference_implementations_logits(
    file: str, name: str, classes: int
) -> None:
    reference = networks.load_network(file, REAL_DATA)
    dataset = file.partition("_")[0]
    images = networks.read_images(REAL_DATA / f"{dataset}_test.med.xz", 256)
    mean, deviation = 255 * np.asarray(networks.MEAN_STD[dataset], np.float32)
    test = data.Dataset(images, np.zeros(256, np.int32), mean, deviation)
    model = network(name, classes)
    variables = import_weights(REAL_DATA / f"{file}.npz", model, EXAMPLE)
    with jax.numpy_rank_promotion("allow"):
        expected = reference.outputs(reference.weights)
    logits = jax.jit(model.apply)(variables, test.inputs(slice(None)))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
