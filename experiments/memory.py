"""What would fit, where a device is out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax

from experiments.cost_model.memory import predict

Task = Literal["training", "calibration"]

_ROWS = {"training": "training, per device", "calibration": "calibration, one device"}


@contextmanager
def explained(config: Any, task: Task) -> Iterator[None]:
    """Turn a device's error into one that names the setting that would fit.

    Raises:
      MemoryError: in place of XLA's RESOURCE_EXHAUSTED.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        device = jax.local_devices()[0]
        limit = (device.memory_stats() or {}).get("bytes_limit")
        raise MemoryError(f"{device} is out of memory. {way_out(config, task, limit)}") from error


def way_out(config: Any, task: Task, limit: int | None) -> str:
    """Say which setting a device's memory would fit.

    Args:
      config: the experiment, `described`.
      task: what ran.
      limit: bytes of the device; None if it does not tell.
    """
    images = config.data.kind == "images"
    devices = jax.device_count() if task == "training" else 1
    known = None if images else limit  # of images nothing is predicted
    for fields in _smaller(config, task, devices):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(fields)
        settings = ", ".join(f"config.{name}={value}" for name, value in fields.items())
        if known is None:
            return f"Try {settings}, and go on in such steps."
        if predict(changed, devices)[_ROWS[task]] <= known:
            return f"Try {settings}: that should fit in its {known:,} bytes."
    if task == "training":
        return "Nothing smaller fits on one device: more of them share it with config.mesh.fsdp."
    return "Not even one example fits: give a smaller config.data.length, or a larger device."


def _smaller(config: Any, task: Task, devices: int) -> list[dict[str, Any]]:
    """List what takes less memory than the config, the nearest first."""
    if task == "calibration":
        return [{"batch_size": config.batch_size // n} for n in _halvings(config.batch_size)]
    parts = [n for n in _halvings(config.batch_size // devices) if n > config.accumulate]
    if config.data.kind == "images" or config.model.remat:
        return [{"accumulate": n} for n in parts]
    both = [{"accumulate": n, "model.remat": again} for n in parts for again in (False, True)]
    return [{"model.remat": True}, *both]


def _halvings(count: int) -> list[int]:
    """List 2, 4, 8, ... as far as they divide a count."""
    return [2**i for i in range(1, count.bit_length()) if count % 2**i == 0]
