"""Memory model of training: bytes per weight by setting.

Per weight, a step holds
- the state: the weight (latent, for SQS), gate logit and pruning decision, and optimizer state;
- gradients: one per trained number, if all gradients exist at the update;
- a dense copy (SQS): the deployed weights, until the backward pass.
In addition, the soft weight and its gradient need `TRANSIENT` bytes for one tensor at a time. The
model omits codebooks and activations.
"""

from typing import Literal, NamedTuple

TRANSIENT = 24  # bytes per weight of the largest tensor: 6 float32
KEPT = 1  # bytes of a bool


class Setting(NamedTuple):
    """Setting of a training.

    Attributes:
        estimator: Estimator of `sqs_jax.elbo`, or "dense" without sub-distributions.
        weight_bytes: Bytes of a weight, of its gradient and of its dense copy.
        gate_bytes: Bytes of a gate logit and of its gradient.
        train_loc: Whether the (latent) weights are trained.
        train_gates: Whether the gates are trained.
        moment_bytes: Bytes of optimizer state per trained number: 8 for Adam in float32, 4 for
            momentum.
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
        state: Bytes of weights, gates and pruning decisions.
        optimizer: Bytes of optimizer state.
        gradients: Bytes of gradients.
        copy: Bytes of the dense weights of the forward pass.
    """

    state: int
    optimizer: int
    gradients: int
    copy: int

    @property
    def total(self) -> int:
        """Return the sum of all fields."""
        return sum(self)


def per_weight(setting: Setting) -> Footprint:
    """Return the bytes per weight of a setting."""
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
    """Name and number of compressed weights of a model."""

    name: str
    weights: float


class Device(NamedTuple):
    """Name and memory of a device, bytes."""

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
}  # dtype of the weights; optimizer state is float32, untrained gates are bfloat16
SHARE = 0.8  # usable share of the memory; activations, a gathered layer and the runtime need space


def per_device(network: Network, setting: Setting, devices: int) -> float:
    """Return the bytes per device with all arrays sharded evenly."""
    return network.weights * per_weight(setting).total / devices


def fits(network: Network, setting: Setting, device: Device, devices: int) -> bool:
    """Return whether a training takes at most `SHARE` of the memory of each device."""
    return per_device(network, setting, devices) <= SHARE * device.memory
