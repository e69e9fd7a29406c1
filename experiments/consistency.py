"""Show that the posterior concentrates on a sparse quantized truth as the data grow.

    python -m experiments.consistency --config=experiments/configs/consistency.py \\
        --workdir=runs/consistency

Teachers are ReLU networks whose weights are zero or one of a few levels; students have the same
shape. Two posteriors are fitted to n noisy examples, SQS and dense Gaussian variational inference.
Both minimize the negative ELBO itself (estimator "sample", all of the KL). The function error is
the root of E_x E_q (f_w(x) - f(x))^2, which converges to zero by the theory (arXiv:2510.08999).
Writes consistency.json, and consistency.html with the error against n and fitted slopes.
"""

from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from experiments.files import write_json
from experiments.studies.consistency_page import write_consistency
from experiments.studies.posterior_fit import students
from experiments.studies.teacher_network import make_task
from sqs_jax.progress import track


def measure(config: Any) -> list[dict[str, Any]]:
    """Return a row per posterior, size, seed and number of examples.

    Args:
      config: Config of the study.
    """
    rows = []
    for hidden in config.hidden:
        tasks = {seed: make_task(seed, hidden, config) for seed in config.seeds}
        for name, student in students(config).items():
            cases = [(seed, n) for seed in config.seeds for n in config.examples]
            for seed, n in track(cases, f"{name}, {hidden} hidden units", keep=True):
                error = student.error(tasks[seed], n)
                rows.append(
                    {"posterior": name, "hidden": hidden, "seed": seed, "n": n, "error": error}
                )
    return rows


def main(_: Any) -> None:
    workdir, config = Path(flags.FLAGS.workdir), flags.FLAGS.config
    workdir.mkdir(parents=True, exist_ok=True)
    rows = measure(config)
    write_json(workdir / "consistency.json", rows)
    page = workdir / "consistency.html"
    for cells in write_consistency(page, rows, config):
        print("  ".join(f"{text:>8}" for text in cells))
    print(f"page: {page}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment.")
    flags.DEFINE_string("workdir", None, "Folder of the results; made if it is not there.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
