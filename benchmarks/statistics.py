"""Accuracy of dense networks with re-estimated batch statistics, by augmentation.

The published networks were trained on shifted images with black borders. Statistics of 1,024
training images without shifts, or with repeated edges, differ from those of the training.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.calibration.batch_statistics import training_batches
from experiments.configs import cifar10_resnet20
from experiments.scores import metrics
from experiments.task.initial_weights import starting_variables
from experiments.task.load import load_task
from experiments.task.prediction import predict
from experiments.training.batch_norm import estimate_statistics
from experiments.trees import other_collections

_NETWORKS = ("resnet20", "resnet56")
_IMAGES = 1024
_AUGMENTATIONS = {
    "kept": {},
    "shifted, black borders": {"pad": "black"},
    "shifted, edges repeated": {"pad": "edge"},
    "as they are": {"shift": 0, "flip": False},
}


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Print accuracies on all test images; `data` contains cifar10.npz and the networks."""
    rows = []
    print(f"{'network':>10} {'statistics of training images':>30} {'accuracy, %':>12}")
    for name in _NETWORKS:
        config = cifar10_resnet20.get_config()
        config.data.directory = str(data)
        config.model.name, config.model.weights = name, str(data / f"cifar10_{name}.npz")
        problem = load_task(config, workdir)
        variables = starting_variables(problem, config)
        for augmentation, fields in _AUGMENTATIONS.items():
            config.data.update(fields)
            state = other_collections(variables)
            if fields:
                batches = training_batches(
                    problem.splits.train, config, _IMAGES // config.batch_size
                )
                state = estimate_statistics(problem.model, variables["params"], state, batches)
            deployed = jax.tree.map(np.asarray, {"params": variables["params"], **state})
            accuracy = (
                100
                * metrics(predict(problem.model, [deployed], problem.splits.holdout))["accuracy"]
            )
            print(f"{name:>10} {augmentation:>30} {accuracy:>12.2f}", flush=True)
            rows.append({"network": name, "statistics": augmentation, "accuracy": accuracy})
    return rows
