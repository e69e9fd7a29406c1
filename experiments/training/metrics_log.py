"""The lines of metrics.jsonl, and a bar to look at."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.files import write_text
from experiments.training.processes import is_writer

Write = Callable[[int, dict[str, float]], None]


@contextmanager
def metrics_log(path: Path, phase: str, start: int, total: int) -> Iterator[Write]:
    """Append a phase's lines to a file and show a bar; yields write(step, metrics).

    What the file has of the phase after step `start` is dropped first: a resumed run writes it
    again. Only one of several processes writes and shows anything.
    """
    if not is_writer():
        yield lambda step, metrics: None
        return
    forget_after(path, phase, start)
    with open(path, "a") as log, _progress(phase, start, total) as advance:

        def write(step: int, metrics: dict[str, float]) -> None:
            log.write(json.dumps({"phase": phase, "step": step, **metrics}) + "\n")
            log.flush()
            advance(step, metrics)

        yield write


def forget_after(path: Path, phase: str, step: int) -> None:
    """Drop a phase's lines after a step."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text().splitlines(keepends=True):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # cut off in the middle when the run was killed
        if line["phase"] != phase or line["step"] <= step:
            kept.append(text)
    write_text(path, "".join(kept))


@contextmanager
def _progress(name: str, start: int, total: int) -> Iterator[Write]:
    """Show a bar; yields advance(step, metrics)."""
    columns = (
        TextColumn(f"{name:>9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(name, total=total, completed=start, figures="")

        def advance(step: int, metrics: dict[str, float]) -> None:
            figures = f"nll {metrics['nll']:.4f}  accuracy {metrics['accuracy']:.3f}"
            if metrics["sparsity"]:
                figures += f"  sparsity {metrics['sparsity']:.3f}"
            bar.update(task, completed=step, figures=figures)

        yield advance
