"""Run fifty steps of compression on several meshes, and print metrics as JSON.

python -m tests.experiments.fifty_steps FOLDER [COORDINATOR PROCESSES INDEX]
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.configs import digits
from experiments.data import Dataset
from experiments.models import build_model
from experiments.training.loop import run_phase
from experiments.training.phases import phases
from experiments.training.processes import is_writer, joined
from experiments.training.sharding import AXES
from experiments.training.step import TrainState

STEPS = 50
BATCH = 64


def experiment() -> Any:
    config = digits.get_config()
    config.batch_size = BATCH
    config.checkpoint_every = STEPS
    config.model.features = (4,)
    config.model.hidden = 64
    config.sqs.epochs = STEPS // 4
    config.sqs.pattern = "Dense_0/kernel"
    return config


def dataset() -> Dataset:
    """Four batches of blobs in the corner that the label says."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 4 * BATCH)
    images = rng.normal(size=(len(labels), 8, 8, 1)) / 2
    images[np.arange(len(labels)), labels % 8, labels % 7] += 4
    return Dataset(images.astype(np.float32), labels.astype(np.int32))


def train(config: Any, workdir: Path, mesh: Any) -> TrainState:
    data, model = dataset(), build_model(config.model, 10)
    phase = phases(config, len(data.labels))[-1]._replace(steps=STEPS, distill_weight=0.0)

    start = jax.device_get(jax.jit(model.init)(jax.random.key(0), data.examples[:1]))
    workdir.mkdir(parents=True, exist_ok=True)
    return run_phase(phase, model, start, {}, data, config, workdir, mesh)


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def check_layout(state: TrainState, parts: int) -> None:
    """Check that large leaves are split, after mask decisions too, and tables are whole."""
    leaf = state.posterior["Dense_0"]["kernel"]
    moments = [
        array
        for path, array in jax.tree_util.tree_flatten_with_path(state.optimizer_state)[0]
        if "Dense_0/kernel/loc" in jax.tree_util.keystr(path, simple=True, separator="/")
    ]
    assert len(moments) == 2
    for array in (leaf.loc, leaf.gate_logits, leaf.kept, *moments):
        assert array.addressable_shards[0].data.size == array.size // parts, array.sharding
    assert not bool(leaf.kept.all())
    assert leaf.means.is_fully_replicated


def main() -> None:
    folder, *place = sys.argv[1:]
    coordinator, count, index = place or (None, None, None)
    config, found = experiment(), {}
    with joined(coordinator, count and int(count), index and int(index)):
        if place:
            meshes = [(2, 2)]
        else:
            meshes = [(1, 1), (2, 1), (8, 1), (2, 2), (1, 8)]
        for shape in meshes:
            mesh = jax.make_mesh(
                shape,
                AXES,
                axis_types=(jax.sharding.AxisType.Auto,) * 2,
                devices=jax.devices()[: shape[0] * shape[1]],
            )
            name = f"{shape[0]} x {shape[1]}" + (f" on {count} processes" if count else "")
            workdir = Path(folder) / name
            check_layout(train(config, workdir, mesh), shape[1])
            if is_writer():
                found[name] = lines(workdir)
        if is_writer():
            print(json.dumps(found))


if __name__ == "__main__":
    main()
