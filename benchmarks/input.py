"""Speed of reading batches, compared with training steps."""

import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.timing import compare, least_seconds
from experiments.configs import cifar10_resnet20
from experiments.data import Dataset, batch_indices
from experiments.data.lazy_images import LazyImages
from experiments.models import build_model
from experiments.training.phases import phases
from experiments.training.sharding import make_mesh, share_out
from experiments.training.step import init_state, make_gradient

_EXAMPLES = 50_000


class _Photographs:
    """JPEG files of ImageNet's average size, decoded on access."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        buffer = io.BytesIO()
        small.resize((500, 375)).save(buffer, "jpeg", quality=90)
        self._files = [buffer.getvalue()] * count

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.asarray(Image.open(io.BytesIO(self._files[index])))}


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Print and return a row per kind of images.

    Batches are read while a step runs. Training waits only if reading takes longer than a step.
    """
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (_EXAMPLES, 32, 32, 3), np.uint8)
    photographs = LazyImages(_Photographs(_EXAMPLES), 224)
    print(f"{'images':>28} {'images/s':>9} {'a step of':>14} {'of a step':>9}")
    return [
        _row("32x32 in memory", small, "resnet20", "cifar", batch_size=64),
        _row("JPEGs of 500x375 to 224x224", photographs, "resnet50", "imagenet", batch_size=8),
    ]


def _row(name: str, images: Any, network: str, stem: str, batch_size: int) -> dict[str, Any]:
    """Compare the seconds to read a batch with the seconds of a training step."""
    config = cifar10_resnet20.get_config()
    config.model.name, config.model.stem, config.batch_size = network, stem, batch_size
    labels = np.random.default_rng(1).integers(0, 10, _EXAMPLES).astype(np.int32)
    train = Dataset(images, labels, np.float32(120), np.float32(64))
    mesh = make_mesh(config)
    model = build_model(config.model, 10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.asarray(train.inputs(slice(1))))
    phase = phases(config, _EXAMPLES)[-1]._replace(distill_weight=0.0)
    state = init_state(phase, variables)
    gradient = jax.jit(make_gradient(model, phase, train, config))

    def read(step: int) -> Any:
        return share_out(train, batch_indices(_EXAMPLES, batch_size, 0, step), mesh)

    batch = read(0)
    seed = jax.random.key_data(jax.random.key(0))

    def steps(count: int) -> None:
        for i in range(count):
            result = gradient(state, batch, {}, np.int32(i), seed)
        jax.block_until_ready(result)

    def reads(count: int) -> None:
        for i in range(count):
            jax.block_until_ready(read(i))

    timing = compare(steps, reads, pairs=5, least_seconds=least_seconds())
    rate = batch_size / timing.seconds
    print(f"{name:>28} {rate:>9,.0f} {network:>14} {timing.ratio:>9.4f}", flush=True)
    return {"images": name, "network": network, "per_second": rate, "ratio": timing.ratio}
