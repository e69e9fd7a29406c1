"""How fast batches are read, beside the training step that waits for them or does not."""

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
from experiments.data.lazy import LazyImages
from experiments.layout import make_mesh, share_out
from experiments.models import build_model
from experiments.phases import phases
from experiments.step import init_state, make_gradient

_EXAMPLES = 50_000


class _Photographs:
    """JPEGs of the size that ImageNet's have on average, decoded when they are read."""

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
    """Print a row per kind of images; returns the rows.

    The base is a step of the ResNet-20 that compresses, for as many images of 32x32; what reads
    less than 1 times as long is never waited for, since it is read while the step runs.
    """
    config = cifar10_resnet20.get_config()
    mesh = make_mesh(config)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_EXAMPLES, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, _EXAMPLES).astype(np.int32)
    train = Dataset(images, labels, np.float32(120), np.float32(64))
    photographs = Dataset(LazyImages(_Photographs(_EXAMPLES), 224), labels)

    model = build_model(config.model, 10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    phase = phases(config, _EXAMPLES)[-1]._replace(distill_weight=0.0)
    state = init_state(phase, variables)
    gradient = jax.jit(make_gradient(model, phase, train, config))

    def read(dataset: Dataset, step: int) -> Any:
        chosen = batch_indices(_EXAMPLES, config.batch_size, 0, step)
        return share_out(dataset, chosen, mesh)

    batch = read(train, 0)

    def steps(count: int) -> None:
        for i in range(count):
            result = gradient(state, batch, {}, np.int32(i))
        jax.block_until_ready(result)

    rows = []
    print(f"a step: ResNet-20, {config.batch_size} images of 32x32")
    print(f"{'images':>28} {'images/s':>9} {'of a step':>9}")
    for name, dataset in (("32x32 in memory", train), ("JPEGs of 500x375 to 224x224", photographs)):

        def reads(count: int, dataset: Dataset = dataset) -> None:
            for i in range(count):
                jax.block_until_ready(read(dataset, i))

        found = compare(steps, reads, pairs=5, least_seconds=least_seconds())
        rate = config.batch_size / found.seconds
        rows.append({"images": name, "per_second": rate, "ratio": found.ratio})
        print(f"{name:>28} {rate:>9,.0f} {found.ratio:>9.4f}", flush=True)
    return rows
