"""The same networks by PyTorch's own operations, from its state dict."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


def forward(model: Any, weights: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Compute logits of the network that `model` describes."""
    w = {name: torch.tensor(x) for name, x in weights.items()}

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        kernel = w[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def norm(x: Any, name: str) -> Any:
        stats = (w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *stats, training=False, eps=1e-5)

    x = torch.tensor(images.transpose(0, 3, 1, 2))
    large = model.stem == "imagenet"
    x = F.relu(norm(conv(x, "conv1", 2 if large else 1), "bn1"))
    if large:
        x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(model.blocks, start=1):
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and not block else 1
            y, convolutions = x, 3 if model.bottleneck else 2
            strided = 2 if model.bottleneck else 1
            for i in range(1, convolutions + 1):
                y = norm(conv(y, f"{name}.conv{i}", stride if i == strided else 1), f"{name}.bn{i}")
                y = F.relu(y) if i < convolutions else y
            if f"{name}.downsample.0.weight" in w:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            elif x.shape != y.shape:
                extra = (y.shape[1] - x.shape[1]) // 2
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
            x = x + y
            if model.relu_after == "block" or block == count - 1:
                x = F.relu(x)
    x = F.adaptive_avg_pool2d(x, model.pool).flatten(1)
    return F.linear(x, w["fc.weight"], w["fc.bias"]).numpy()
