"""Weights of the published layer in PyTorch, from docs/math.md, by autograd.

The only file that imports torch, which needs an extra: pip install -e '.[peers]'.
"""

from collections.abc import Mapping

import jax
import numpy as np
import torch

from benchmarks.timing import Run


class SoftWeight(torch.nn.Module):
    """Mean of a sub-distribution, sigmoid(s) sum_k phi_k mu_k.

    There is a single window, and no weight is pruned.

    Args:
        fields: Arrays "loc" and "gate_logits" of equal shape; "means", "log_scales" and
            "mixture_logits" `[K]`.
    """

    def __init__(self, fields: Mapping[str, jax.Array]) -> None:
        super().__init__()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tensors = {
            name: torch.tensor(np.asarray(array), device=device) for name, array in fields.items()
        }
        self.loc, self.gate_logits, self.means = (
            torch.nn.Parameter(tensors[name]) for name in ("loc", "gate_logits", "means")
        )
        self.log_scales, self.mixture_logits = tensors["log_scales"], tensors["mixture_logits"]

    def forward(self, temperature: float) -> torch.Tensor:
        """Return the weights in the shape of `loc`."""
        log_pi = torch.log_softmax(self.mixture_logits, dim=-1)
        z = (self.loc.reshape(-1, 1) - self.means) / self.log_scales.exp()  # [N, K]
        joint = log_pi - self.log_scales - 0.5 * z * z
        phi = torch.softmax(joint / temperature, dim=-1)
        soft = (phi * self.means).sum(dim=-1).reshape(self.loc.shape)
        return torch.sigmoid(self.gate_logits) * soft


def runs(fields: Mapping[str, jax.Array], temperature: float) -> tuple[Run, Run]:
    """Return runs of the forward pass, and of forward and backward."""
    layer = SoftWeight(fields)
    cotangent = torch.ones_like(layer.loc)

    def forward(count: int) -> None:
        with torch.no_grad():
            for _ in range(count):
                layer(temperature)
        _await()

    def both(count: int) -> None:
        for _ in range(count):
            layer.zero_grad()
            layer(temperature).backward(cotangent)
        _await()

    return forward, both


def _await() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
