"""Compare the deployed network with Bayesian averages of K-level draws.

    python -m experiments.inference --workdir=runs/digits --samples=50 --temperatures=0.25,1

Reads the posterior from the checkpoints of a finished run. Measures accuracy, NLL and expected
calibration error of averages of 1, 2, 4, ... draws, on the held-out images and on corrupted copies,
with the bytes and forward passes of each average. Writes inference.json and inference.html.
"""

from pathlib import Path
from typing import Any

from absl import app, flags, logging

from experiments.files import write_json
from experiments.studies.averaging_page import write_study
from experiments.studies.bayesian_averaging import study
from experiments.training.run import run_trainings
from experiments.training.workdir import read_config


def main(_: Any) -> None:
    options = flags.FLAGS
    workdir = Path(options.workdir)
    if not (workdir / "evaluation.json").is_file():
        raise app.UsageError(f"--workdir={workdir} is not the folder of a finished run.")
    if not (workdir / "checkpoints" / "sqs").is_dir():
        raise app.UsageError(f"{workdir / 'checkpoints'} is gone, and with it the posterior.")
    temperatures = [float(text) for text in options.temperatures]
    if min(temperatures) <= 0:
        raise app.UsageError(f"--temperatures={options.temperatures}: they must be > 0.")
    logging.set_verbosity(logging.WARNING)  # orbax logs every restore
    config = read_config(workdir)
    trained = run_trainings(config, workdir)  # restores the finished trainings
    results = study(trained, config, options.samples, temperatures, options.images, options.seed)
    write_json(workdir / "inference.json", results)
    print(f"page: {write_study(workdir, results)}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_integer("samples", 50, "Largest number of networks to average.", lower_bound=1)
    flags.DEFINE_list("temperatures", ["0.25", "0.5", "1"], "Temperatures of the draws.")
    flags.DEFINE_integer("images", 0, "Number of held-out images; 0: all.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Seed of the draws and of the noise.")
    app.run(main)
