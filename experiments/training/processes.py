"""Several processes as one training, and the signal that ends it in good order."""

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

# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on from here.
STOPPED = 75
# Steps of all trainings of this process: the one that is agreed on may lie in the next training.
_ASKED = itertools.count()


@contextmanager
def joined(coordinator: str | None, count: int | None, index: int | None) -> Iterator[None]:
    """Make this process one of several for as long as the context lasts.

    Args:
      coordinator: host:port of process 0; None for a single process.
      count: number of processes.
      index: of this process.

    Raises:
      ValueError: if only some of the three are given.
    """
    given = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(
            f"--{' and --'.join(missing)} is missing: several processes need all of "
            f"--{', --'.join(given)}, a single one none of them."
        )
    if missing:
        yield
        return
    jax.distributed.initialize(coordinator, count, index)
    try:
        yield
    except Exception:
        # Python's own exit would wait for the other processes, and they wait for this one.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def is_writer() -> bool:
    """Return whether this process writes what one process writes: metrics, files, the report."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Wait until every process is here; all must name the same `what`."""
    multihost_utils.sync_global_devices(what)


def all_agree(fine: bool) -> bool:
    """Return whether it is true on every process."""
    return bool(np.all(multihost_utils.process_allgather(np.asarray(fine))))


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Catch SIGTERM; yields stop(), which says after a step whether to stop there.

    Several processes agree on the step, whichever of them got the signal; each must ask at each
    step. They then leave SIGTERM to jax.distributed, which spreads the news.
    """
    if jax.process_count() > 1:
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_ASKED))
        return
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
