"""Evaluate a compressed language model from its file on tasks of the lm-eval harness.

    python -m experiments.harness --workdir=runs/stories260k --tasks=lambada_openai,piqa

Reads a finished run of experiments.train or experiments.calibrate; --file=dense.sqs evaluates the
dense network. Tasks are those of the harness, which downloads them, or files in the folder of
--include. Prints the metrics, and writes harness_<file>.json to the run's folder. Needs the extra
`harness`.
"""

from pathlib import Path
from typing import Any

from absl import app, flags, logging
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from experiments.files import write_json
from experiments.language_run import open_language_run
from experiments.models.lm_eval_adapter import HarnessModel


def judge(
    workdir: Path, tasks: list[str], *, file: str, include: str, batch: int, limit: int
) -> dict[str, Any]:
    """Return the metrics of each task.

    Args:
      workdir: Folder of a finished run.
      tasks: Names of the harness's tasks.
      file: Name of the .sqs file in the folder.
      include: Folder with files of more tasks; "" for none.
      batch: Number of texts per batch.
      limit: Number of examples of each task; 0 for all.

    Raises:
      FileNotFoundError: If the run or the file does not exist.
      ValueError: If the harness does not know a task.
    """
    run = open_language_run(workdir, file)
    manager = TaskManager(include_path=include or None)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ValueError(
            f"The harness knows no task {', '.join(unknown)}; give names of its own, or "
            "--include, a folder with their files."
        )
    evaluation = simple_evaluate(
        HarnessModel(run, batch), tasks=tasks, task_manager=manager, limit=limit or None,
        log_samples=False, bootstrap_iters=0,
    )  # fmt: skip
    assert evaluation is not None  # None only in processes after the first
    return {
        task: {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        for task, metrics in evaluation["results"].items()
    }


def main(_: Any) -> None:
    options = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    workdir = Path(options.workdir)
    results = judge(
        workdir, options.tasks, file=options.file, include=options.include, batch=options.batch,
        limit=options.limit,
    )  # fmt: skip
    write_json(workdir / f"harness_{Path(options.file).stem}.json", results)
    for task, metrics in results.items():
        for name, value in metrics.items():
            print(f"{task:24} {name.split(',')[0]:20} {value:.4f}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_list("tasks", None, "Names of the harness's tasks.", required=True)
    flags.DEFINE_string("file", "model.sqs", "Name of the file: model.sqs, dense.sqs, ...")
    flags.DEFINE_string("include", "", "A folder with files of more tasks.")
    flags.DEFINE_integer("batch", 16, "Texts per batch.", lower_bound=1)
    flags.DEFINE_integer("limit", 0, "Examples per task; 0: all.", lower_bound=0)
    app.run(main)
