"""The published layer's weights in PyTorch, transcribed from docs/math.md; autograd does the rest.

The only file that imports torch, which is an extra of its own: pip install -e '.[peers]'.
"""

from collections.abc import Mapping

import jax
import numpy as np
import torch

from benchmarks.timing import Run


class SoftWeight(torch.nn.Module):
    """sigmoid(s) sum_k phi_k mu_k of one window, nothing pruned: the mean of a sub-distribution.

    Args:
      fields: "loc" and "gate_logits", of any one shape; "means", "log_scales" and
        "mixture_logits", [K].
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
        """Return the weights, shaped as `loc`."""
        log_pi = torch.log_softmax(self.mixture_logits, dim=-1)
        z = (self.loc.reshape(-1, 1) - self.means) / self.log_scales.exp()  # [N, K]
        joint = log_pi - self.log_scales - 0.5 * z * z
        phi = torch.softmax(joint / temperature, dim=-1)
        soft = (phi * self.means).sum(dim=-1).reshape(self.loc.shape)
        return torch.sigmoid(self.gate_logits) * soft


def runs(fields: Mapping[str, jax.Array], temperature: float) -> tuple[Run, Run]:
    """Return what runs the forward pass alone, and forward and backward."""
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
