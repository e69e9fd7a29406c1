"""What would fit, where a device is out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax

from experiments.predict import predict

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
    devices = 1  # a calibration's
    smaller = [{"batch_size": config.batch_size // n} for n in _halvings(config.batch_size)]
    if task == "training":
        devices = jax.device_count()
        shared = config.batch_size // devices
        parts = [n for n in _halvings(shared) if n > config.accumulate]
        smaller = [
            {"accumulate": n, "model.remat": remat} for n in parts for remat in (False, True)
        ]
        smaller.insert(0, {"accumulate": config.accumulate, "model.remat": True})
    known = limit if config.data.kind != "images" else None  # else nothing is predicted
    for fields in smaller:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(fields)
        if known is None or predict(changed, devices)[_ROWS[task]] <= known:
            settings = ", ".join(f"config.{name}={value}" for name, value in fields.items())
            there = "" if known is None else f" in its {known:,} bytes"
            return f"Try {settings}: that should fit{there}."
    if task == "training":
        return "Nothing smaller fits on one device: more of them share it with config.mesh.fsdp."
    return "Not even one example fits: give a smaller config.data.length, or a larger device."


def _halvings(count: int) -> list[int]:
    """List 2, 4, 8, ... as far as they divide a count."""
    return [2**i for i in range(1, count.bit_length()) if count % 2**i == 0]
