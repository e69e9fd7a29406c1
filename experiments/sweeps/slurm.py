"""Points of a sweep as jobs of a Slurm cluster, by submitit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.sweeps.grid import Point
from experiments.sweeps.local_processes import start
from sqs_jax.progress import track


class PointJob:
    """Job that trains a point on the node that the scheduler chooses."""

    def __init__(self, point: Point) -> None:
        self._point = point

    def __call__(self) -> str:
        """Train the point, and return a phrase that describes the failure, or ""."""
        process = start(self._point, {})
        if process is None:
            busy = f"another process trains it in {self._point.folder}"
            return "" if self._point.finished else busy
        code = process.wait()
        return f"exit code {code}, see {self._point.folder}/log.txt" if code else ""

    def checkpoint(self) -> Any:
        """Return the job that submitit queues after a preemption, which resumes."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(
    points: list[Point],
    folder: Path,
    cluster: str,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> list[Point]:
    """Submit points as a job array, and wait for all jobs.

    Args:
      points: Points to train.
      folder: Folder of submitit's files, which all nodes of the cluster can read.
      cluster: Cluster of submitit.AutoExecutor, "slurm" or "local".
      options: Options of submitit's `update_parameters`.
      say: Function that prints a line.

    Returns:
      The points that failed.

    Raises:
      ValueError: The cluster is not available, or an option is unknown.
      ModuleNotFoundError: Submitit is not installed.
    """
    if not points:
        return []
    import submitit  # optional dependency

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
        failure = job.exception()  # of the cluster: a failed node, a time limit
        reason = str(failure).splitlines()[0] if failure else job.result()
        if reason:
            failed.append(point)
        say(f"{point.folder.name}: {reason or 'done'}")
    return failed
