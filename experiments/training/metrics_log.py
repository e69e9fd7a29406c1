"""Metrics of a training: the lines of metrics.jsonl and the progress bar."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.atomic_files import write_text
from experiments.training.processes import is_writer
from sqs_jax.progress import progress

Write = Callable[[int, dict[str, float]], None]


@contextmanager
def metrics_log(path: Path, phase: str, start: int, total: int) -> Iterator[Write]:
    """Append the lines of a phase to a file and show progress.

    Lines of the phase after step `start` are dropped first, because a resumed run writes them
    again. Only one of several processes writes the file and shows progress.

    Args:
      path: File metrics.jsonl.
      phase: Name of the phase.
      start: Number of steps that are done, at least 0.
      total: Number of steps of the phase.

    Yields:
      Function write(step, metrics).
    """
    if not is_writer():
        yield lambda step, metrics: None
        return
    forget_after(path, phase, start)
    done = start
    with (
        open(path, "a") as log,
        progress(phase, total, completed=start, keep=True) as advance,
    ):

        def write(step: int, metrics: dict[str, float]) -> None:
            nonlocal done
            log.write(json.dumps({"phase": phase, "step": step, **metrics}) + "\n")
            log.flush()
            advance(step - done, _figures(metrics))
            done = step

        yield write


def forget_after(path: Path, phase: str, step: int) -> None:
    """Drop the lines of a phase after a step."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text().splitlines(keepends=True):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # The run was killed while it wrote this line.
        if line["phase"] != phase or line["step"] <= step:
            kept.append(text)
    write_text(path, "".join(kept))


def _figures(metrics: dict[str, float]) -> str:
    """Format the metrics for the progress bar."""
    figures = f"nll {metrics['nll']:.4f}  accuracy {metrics['accuracy']:.3f}"
    return figures + (f"  sparsity {metrics['sparsity']:.3f}" if metrics["sparsity"] else "")
