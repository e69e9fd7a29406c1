"""Errors of exhausted device memory that suggest a smaller setting."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax

from experiments.predict import predict

Task = Literal["training", "calibration"]

_ROWS = {"training": "training, per device", "calibration": "calibration, one device"}


@contextmanager
def explained(config: Any, task: Task) -> Iterator[None]:
    """Convert XLA's out-of-memory error to an error that names a smaller setting.

    Args:
      config: Config of the experiment, `described`.
      task: Task that runs in the context.

    Raises:
      MemoryError: Instead of XLA's RESOURCE_EXHAUSTED.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        device = jax.local_devices()[0]
        limit = (device.memory_stats() or {}).get("bytes_limit")
        raise MemoryError(f"{device} is out of memory. {remedy(config, task, limit)}") from error


def remedy(config: Any, task: Task, limit: int | None) -> str:
    """Return a sentence with the nearest setting that should fit in a device's memory.

    Args:
      config: Config of the experiment, `described`.
      task: Task that exhausted the memory.
      limit: Memory of the device, bytes; None if unknown.
    """
    images = config.data.kind == "images"
    devices = jax.device_count() if task == "training" else 1
    if images:  # the memory of image models is not predicted
        limit = None
    for fields in _smaller(config, task, devices):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(fields)
        settings = ", ".join(f"config.{name}={value}" for name, value in fields.items())
        if limit is None:
            return f"Try {settings}, and repeat in such steps until the task fits."
        if predict(changed, devices)[_ROWS[task]] <= limit:
            return f"Try {settings}: that should fit in its {limit:,} bytes."
    if task == "training":
        return "Nothing smaller fits on one device: more of them share it with config.mesh.fsdp."
    return "Not even one example fits: give a smaller config.data.length, or a larger device."


def _smaller(config: Any, task: Task, devices: int) -> list[dict[str, Any]]:
    """List settings that need less memory than the config, the nearest first."""
    if task == "calibration":
        return [{"batch_size": config.batch_size // n} for n in _halvings(config.batch_size)]
    counts = [n for n in _halvings(config.batch_size // devices) if n > config.accumulate]
    if config.data.kind == "images" or config.model.remat:
        return [{"accumulate": n} for n in counts]
    both = [{"accumulate": n, "model.remat": remat} for n in counts for remat in (False, True)]
    return [{"model.remat": True}, *both]


def _halvings(count: int) -> list[int]:
    """List the powers of two, from 2 on, that divide a count."""
    return [2**i for i in range(1, count.bit_length()) if count % 2**i == 0]
