"""What training takes of memory, in bytes per weight, by setting: a model on paper.

Per weight, a step holds from its start to its end
- its state: the weight (latent, for SQS), gate logit and pruning decision, and the optimiser's;
- gradients: one per number that is trained, if all wait for the update;
- a dense copy (SQS): the weights that the network computes with, until the backward pass;
and, of one tensor at a time, what the soft weight and its gradient need: `TRANSIENT`.
Codebooks and activations are left out.
"""

from typing import Literal, NamedTuple

TRANSIENT = 24  # bytes a weight of the largest tensor: 6 float32
KEPT = 1  # a bool


class Setting(NamedTuple):
    """How a model is trained.

    Attributes:
      estimator: of the weights; "dense" is training without sub-distributions.
      weight_bytes: of a weight, its gradient, and its dense copy.
      gate_bytes: of a gate logit and its gradient.
      train_loc: whether the (latent) weights are trained.
      train_gates: whether the gates are.
      moment_bytes: of optimiser state per trained number; Adam in float32 has 8, momentum 4.
    """

    estimator: Literal["dense", "mean", "sample", "mode"]
    weight_bytes: int = 4
    gate_bytes: int = 4
    train_loc: bool = True
    train_gates: bool = True
    moment_bytes: int = 8


class Footprint(NamedTuple):
    """Bytes per weight.

    Attributes:
      state: of weights, gates and decisions.
      optimizer: its state.
      gradients: of what is trained.
      copy: the dense weights that the network computes with.
    """

    state: int
    optimizer: int
    gradients: int
    copy: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(self)


def per_weight(setting: Setting) -> Footprint:
    """Return what a setting takes per weight."""
    weight, gate = setting.weight_bytes, setting.gate_bytes
    if setting.estimator == "dense":
        return Footprint(weight, setting.moment_bytes, weight, 0)
    trained = setting.train_loc + setting.train_gates
    return Footprint(
        state=weight + gate + KEPT,
        optimizer=setting.moment_bytes * trained,
        gradients=weight * setting.train_loc + gate * setting.train_gates,
        copy=weight,
    )


class Network(NamedTuple):
    """A model on paper: its compressed weights, all of them."""

    name: str
    weights: float


class Device(NamedTuple):
    """A device on paper; memory in bytes."""

    name: str
    memory: float


NETWORKS = (Network("Llama 3 8B", 8.03e9), Network("Llama 3 70B", 70.55e9))
DEVICES = (Device("H200", 141e9), Device("TPU v5p", 95e9))
COUNTS = (1, 8, 64)
SETTINGS = {
    "dense, float32": Setting("dense"),
    "dense, bfloat16": Setting("dense", weight_bytes=2),
    "mean, float32": Setting("mean"),
    "mean, bfloat16": Setting("mean", weight_bytes=2),
    "mean, bfloat16, θ frozen": Setting("mean", weight_bytes=2, train_loc=False),
    "mode, float32": Setting("mode", gate_bytes=2, train_gates=False),
    "mode, bfloat16": Setting("mode", weight_bytes=2, gate_bytes=2, train_gates=False),
    "mode, bfloat16, θ frozen": Setting(
        "mode", weight_bytes=2, gate_bytes=2, train_loc=False, train_gates=False
    ),
}  # by name: dtype of the weights; the optimiser's is float32, the untrained gates' bfloat16
SHARE = 0.8  # of the memory: activations, a gathered layer and the runtime have the rest


def per_device(network: Network, setting: Setting, devices: int) -> float:
    """Return the bytes on each device when all is sharded evenly."""
    return network.weights * per_weight(setting).total / devices


def fits(network: Network, setting: Setting, device: Device, devices: int) -> bool:
    """Return whether that is at most `SHARE` of a device's memory."""
    return per_device(network, setting, devices) <= SHARE * device.memory
