"""Points of a sweep as jobs of a cluster's own scheduler, by submitit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.sweeps.grid import Point, start
from sqs_jax.progress import track


class PointJob:
    """Trains a point, where the scheduler puts it."""

    def __init__(self, point: Point) -> None:
        self._point = point

    def __call__(self) -> str:
        """Train the point; returns what went wrong, or ""."""
        process = start(self._point, {})
        if process is None:
            at_it = f"another training is at it in {self._point.folder}"
            return "" if self._point.finished else at_it
        code = process.wait()
        return f"exit code {code}, see {self._point.folder}/log.txt" if code else ""

    def checkpoint(self) -> Any:
        """Return what submitit is to queue again when the job is preempted: it goes on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(
    points: list[Point],
    folder: Path,
    cluster: str,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> list[Point]:
    """Submit points as one array, wait for all, and return those that failed.

    Args:
      points: to train.
      folder: of submitit's files; on a cluster, one that all machines see.
      cluster: of submitit.AutoExecutor: "slurm", or "local".
      options: of its `update_parameters`.
      say: prints a line.

    Raises:
      ValueError: if there is no such cluster here, or it does not know an option.
      ModuleNotFoundError: without submitit.
    """
    if not points:
        return []
    import submitit  # an extra: only who has a cluster needs it

    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**options)
    except (RuntimeError, ValueError, NameError) as error:
        raise ValueError(
            f"--cluster={cluster}, --cluster_options={options} cannot be used: {error}"
        ) from error
    with executor.batch():
        jobs = [executor.submit(PointJob(point)) for point in points]
    failed = []
    for point, job in zip(points, jobs, strict=True):
        say(f"{point.folder.name}: job {job.job_id}")
    for point, job in track(list(zip(points, jobs, strict=True)), "jobs"):
        lost = job.exception()  # a node that failed, a time limit
        reason = str(lost).splitlines()[0] if lost else job.result()
        if reason:
            failed.append(point)
        say(f"{point.folder.name}: {reason or 'done'}")
    return failed
