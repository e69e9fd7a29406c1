"""Multi-process training, and the signal that ends a training in good order."""

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command resumes.
STOPPED = 75
# Counts the steps of all trainings of this process, because the step on which the processes agree
# may belong to the next training.
_STEPS = itertools.count()


@contextmanager
def joined(coordinator: str | None, count: int | None, index: int | None) -> Iterator[None]:
    """Join a multi-process training within the context.

    Args:
      coordinator: Address host:port of process 0; None for a single process.
      count: Number of processes.
      index: Index of this process, from 0.

    Raises:
      ValueError: Some of the three are None, and some are not.
    """
    options = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    missing = [name for name, value in options.items() if value is None]
    if missing and len(missing) < len(options):
        raise ValueError(
            f"--{' and --'.join(missing)} is missing: several processes need all of "
            f"--{', --'.join(options)}, a single one none of them."
        )
    if missing:
        yield
        return
    jax.distributed.initialize(coordinator, count, index)
    try:
        yield
    except Exception:
        # A regular exit of Python waits for the other processes, which wait for this process.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def is_writer() -> bool:
    """Return whether this process writes the metrics, the files and the report."""
    return jax.process_index() == 0


def wait_for_all(label: str) -> None:
    """Wait until every process reaches this call with an equal label."""
    multihost_utils.sync_global_devices(label)


def all_agree(fine: bool) -> bool:
    """Return whether a condition holds on every process."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Catch SIGTERM within the context.

    Several processes agree on the last step, whichever process received the signal; every process
    calls stop() after every step. In that case jax.distributed handles SIGTERM.

    Yields:
      Function stop(), which returns whether the training stops after the present step.
    """
    if jax.process_count() > 1:
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_STEPS))
        return
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
