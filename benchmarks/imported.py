"""Accuracy of imported published weights on whole test sets."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.networks import MEAN_STD, test_set
from experiments.data import Dataset
from experiments.importers import import_weights
from experiments.models import build_model
from experiments.task.prediction import predict

_IMAGES = 10_000

# file -> (network, dataset, classes, published accuracy in percent)
NETWORKS = {
    "cifar10_resnet20": ("resnet20", "cifar10", 10, 91.73),
    "cifar10_resnet56": ("resnet56", "cifar10", 10, 93.39),
    "cifar100_resnet20": ("staged_resnet20", "cifar100", 100, 69.69),
    "cifar100_resnet32": ("staged_resnet32", "cifar100", 100, 71.69),
}


def run(workdir: Path, data: Path) -> list[dict[str, Any]]:
    """Print and return a row per network."""
    rows = []
    print(f"{'weights':>18} {'network':>16} {'images':>7} {'accuracy':>9} {'published':>10}")
    for file, (name, dataset, classes, published) in NETWORKS.items():
        images, targets = test_set(dataset, data, _IMAGES)
        mean_std = 255 * np.asarray(MEAN_STD[dataset], np.float32)
        test = Dataset(images, targets, mean_std[0], mean_std[1])
        model = build_model(SimpleNamespace(name=name, stem="cifar", dtype="float32"), classes)
        variables = import_weights(data / f"{file}.npz", model, test.inputs(slice(1)))
        accuracy = 100 * float(predict(model, [variables], test).correct.mean())
        rows.append({"weights": file, "network": name, "images": len(targets),
                     "accuracy": accuracy, "published": published})  # fmt: skip
        print(f"{file:>18} {name:>16} {len(targets):>7,} {accuracy:>8.2f}% {published:>9.2f}%",
              flush=True)  # fmt: skip
    return rows
