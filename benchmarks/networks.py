"""Pretrained networks as pure functions of their published state dicts.

A benchmark compresses a network's flat dict of weights, and measures the outputs on fixed real
inputs.
"""

import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import llama2c

NAMES = ("cifar10_resnet20", "cifar10_resnet56", "cifar100_resnet32", "stories260K")

_IMAGES = 256  # first images of the test set
_BATCH = 500
_WINDOWS, _LENGTH = 16, 256  # number of windows of text; tokens per window


class Network(NamedTuple):
    """Pretrained network with fixed real inputs.

    Attributes:
        name: Name for `load_network`.
        weights: Arrays by their published PyTorch names; convolutions OIHW, linear `[out, in]`.
        outputs: Function from a dict like `weights` to float32 logits `[images, classes]` or
            `[windows, length, vocabulary]`.
        quality: Function from a dict like `weights` to a number on the same inputs.
        quality_name: Measure of `quality`: "accuracy", a fraction, higher is better; or
            "nats/token", lower is better.
    """

    name: str
    weights: dict[str, np.ndarray]
    outputs: Callable[[dict[str, Any]], np.ndarray]
    quality: Callable[[dict[str, Any]], float]
    quality_name: str


def load_network(name: str, data: Path, images: int = _IMAGES) -> Network:
    """Read a network with its inputs and labels.

    Args:
        name: One of `NAMES`, or "cifar100_resnet20".
        data: Folder with the files of networks, test sets and texts.
        images: Number of test images.

    Returns:
        The network.

    Raises:
        ValueError: If there is no network of the name.
        FileNotFoundError: If the folder lacks a file of the network.
    """
    if name not in (*NAMES, "cifar100_resnet20"):
        raise ValueError(f"no network {name!r}; there are {', '.join(NAMES)}, cifar100_resnet20")
    return _load_stories(name, data) if name == "stories260K" else _load_vision(name, data, images)


def _load_vision(name: str, data: Path, count: int) -> Network:
    dataset = name.partition("_")[0]
    with np.load(_file(data, f"{name}.npz")) as state:
        # a training counter, not a weight
        weights = {k: state[k] for k in state if not k.endswith("num_batches_tracked")}
    images, targets = test_set(dataset, data, count)
    outputs = partial(_outputs, _FORWARD[dataset], inputs=normalize(images, dataset))

    def quality(weights: dict[str, Any]) -> float:
        return float(np.mean(outputs(weights).argmax(-1) == targets))

    return Network(name, weights, outputs, quality, "accuracy")


def _load_stories(name: str, data: Path) -> Network:
    weights, heads = llama2c.read_weights(_file(data, f"{name}.bin"))
    vocabulary = llama2c.read_vocabulary(_file(data, "tok512.bin"))
    text = read_text("tinystories_cased_a", data)
    inputs, targets = llama2c.windows(llama2c.encode(text, vocabulary), _WINDOWS, _LENGTH)
    outputs = partial(_outputs, llama2c.forward, inputs=inputs, heads=heads)

    def quality(weights: dict[str, Any]) -> float:
        log_probs = jax.nn.log_softmax(outputs(weights))
        return -float(jnp.mean(jnp.take_along_axis(log_probs, targets[..., None], -1)))

    return Network(name, weights, outputs, quality, "nats/token")


def read_text(name: str, data: Path) -> str:
    """Read a text of the data folder, plain or compressed by xz."""
    plain = data / f"{name}.txt"
    if plain.is_file():
        return plain.read_text()
    return lzma.decompress(_file(data, f"{name}.txt.xz").read_bytes()).decode()


def _file(data: Path, name: str) -> Path:
    if not (data / name).is_file():
        raise FileNotFoundError(f"{name} is not in the data folder {data}")
    return data / name


def _outputs(
    forward: Callable[..., jax.Array],
    weights: dict[str, Any],
    *,
    inputs: np.ndarray,
    **options: Any,
) -> np.ndarray:
    # Accelerators round float32 products by default, which would mask small errors.
    with jax.default_matmul_precision("highest"):
        parts = [inputs[i : i + _BATCH] for i in range(0, len(inputs), _BATCH)]
        return np.concatenate([np.asarray(forward(weights, inputs=x, **options)) for x in parts])


# --- images -------------------------------------------------------------------------------------


def test_set(dataset: str, data: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the first test images, uint8 [count, 32, 32, 3], and the labels.

    The source is cifar10.npz or cifar100.npz, see experiments/data/npz_file.py; or a file for
    `read_images`, with a file of labels.
    """
    plain = data / f"{dataset}.npz"
    if plain.is_file():
        with np.load(plain) as arrays:
            return arrays["test_images"][:count], arrays["test_labels"][:count]
    with np.load(_file(data, f"{dataset}_labels.npz")) as labels:
        targets = labels["test_labels"][:count]
    return read_images(_file(data, f"{dataset}_test.med.xz"), count), targets


def read_images(path: Path, count: int) -> np.ndarray:
    """Decode the first images of a chunk; uint8 [count, 32, 32, 3], RGB.

    The file is an xz stream of uint8 [3, N, 32, 32]: residuals mod 256 of the median edge
    detector (LOCO-I, Weinberger et al. 2000) on the planes G, R - G, B - G.
    """
    residuals = np.frombuffer(lzma.decompress(path.read_bytes()), np.uint8).reshape(3, -1, 32, 32)
    residuals = residuals[:, :count].astype(np.int16)
    planes = np.zeros_like(residuals)
    for row, column in np.ndindex(32, 32):
        left = planes[..., row, column - 1] if column else 0
        up = planes[..., row - 1, column] if row else 0
        if row and column:
            corner = planes[..., row - 1, column - 1]
            low, high = np.minimum(left, up), np.maximum(left, up)
            predicted = np.clip(left + up - corner, low, high)  # the median of the three
        else:
            predicted = left + up  # the only neighbor
        planes[..., row, column] = (residuals[..., row, column] + predicted) & 255
    green, red, blue = planes
    return np.stack([(red + green) & 255, green, (blue + green) & 255], -1).astype(np.uint8)


MEAN_STD = {
    "cifar10": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar100": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
}


def normalize(images: np.ndarray, dataset: str) -> np.ndarray:
    """Scale uint8 images [N, H, W, 3] as in the networks' training; float32."""
    mean, std = np.array(MEAN_STD[dataset], np.float32)
    return (images.astype(np.float32) / 255 - mean) / std


# --- residual networks --------------------------------------------------------------------------


@jax.jit
def cifar10_resnet(weights: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    """Compute logits of the CIFAR-10 network of He et al. 2016, option A shortcuts.

    Args:
        weights: State dict; the names determine the depth.
        inputs: Normalized images `[N, 32, 32, 3]`.

    Returns:
        Logits `[N, 10]`.
    """
    x = jax.nn.relu(_conv_norm(weights, "conv1", "bn1", inputs))
    for block, stride in _blocks(weights):
        shortcut = x[:, ::stride, ::stride]
        x = _block(weights, block, x, stride)
        # Option A has no parameters: missing channels are zeros on both sides.
        missing = x.shape[-1] - shortcut.shape[-1]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (missing // 2, missing // 2)))
        x = jax.nn.relu(x + shortcut)
    return _linear(weights, x.mean((1, 2)))


@jax.jit
def cifar100_resnet(weights: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    """Compute logits of the published CIFAR-100 variant.

    The variant has a wide stem, and ReLU after stages instead of blocks.

    Args:
        weights: State dict; the names determine the depth.
        inputs: Normalized images `[N, 32, 32, 3]`.

    Returns:
        Logits `[N, 100]`.
    """
    x = jax.nn.relu(_conv_norm(weights, "conv1", "bn1", inputs))
    for block, stride in _blocks(weights):
        first = block.endswith(".0")
        if first and not block.startswith("layer1"):
            x = jax.nn.relu(x)  # the end of the stage before
        shortcut = x
        if first:
            names = f"{block}.shortcut.0", f"{block}.shortcut.1"
            shortcut = _conv_norm(weights, *names, x, stride)
        x = _block(weights, block, x, stride) + shortcut
    x = jax.nn.relu(x)
    x = x.reshape(-1, 2, 4, 2, 4, 64).mean((2, 4))  # 4x4 average pool, [N, 2, 2, 64]
    return _linear(weights, x.transpose(0, 3, 1, 2).reshape(-1, 256))  # flattened as CHW


_FORWARD = {"cifar10": cifar10_resnet, "cifar100": cifar100_resnet}


def _blocks(weights: dict[str, jax.Array]) -> list[tuple[str, int]]:
    """Return name and stride of every block; stages 2 and 3 halve the resolution."""
    names = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(len(weights))]
    return [
        (name, 2 if name in ("layer2.0", "layer3.0") else 1)
        for name in names
        if f"{name}.conv1.weight" in weights
    ]


def _block(weights: dict[str, jax.Array], name: str, x: jax.Array, stride: int) -> jax.Array:
    x = jax.nn.relu(_conv_norm(weights, f"{name}.conv1", f"{name}.bn1", x, stride))
    return _conv_norm(weights, f"{name}.conv2", f"{name}.bn2", x)


def _conv_norm(
    weights: dict[str, jax.Array], conv: str, norm: str, x: jax.Array, stride: int = 1
) -> jax.Array:
    """Apply a convolution without bias, and batch normalization as at inference; NHWC."""
    kernel = weights[f"{conv}.weight"]
    pad = (kernel.shape[-1] // 2,) * 2  # PyTorch's padding; "SAME" would shift strided windows
    x = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    scale = weights[f"{norm}.weight"] * jax.lax.rsqrt(weights[f"{norm}.running_var"] + 1e-5)
    return (x - weights[f"{norm}.running_mean"]) * scale + weights[f"{norm}.bias"]


def _linear(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ weights["linear.weight"].T + weights["linear.bias"]
