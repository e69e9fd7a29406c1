"""Write the report of a run as a self-contained HTML file.

    python -m experiments.report --workdir=runs/digits

Reads config.json, metrics.jsonl, evaluation.json, distributions.json and model.sqs of the folder,
and writes report.html. Equal files give equal bytes under the same software.
"""

import platform
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import jax
from absl import app, flags

import sqs_jax
from experiments.files import write_text
from experiments.pages.reproducibility import command
from experiments.pages.run_files import read_run
from experiments.pages.sections import sections
from experiments.pages.summary import summary
from experiments.pages.tables import config_table

_TEMPLATE = Path(__file__).parent / "pages" / "report_template.html"


def write_report(workdir: Path) -> Path:
    """Write report.html of a finished run atomically, and return its path.

    Args:
      workdir: Folder of the run.

    Raises:
      FileNotFoundError: If a file is missing; the message names the command that writes it.
      ValueError: If a file is damaged, or a network was not evaluated.
    """
    run = read_run(workdir)
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        summary(run)
        | sections(run)
        | command(run.config, workdir.resolve().name)
        | {"software": _software(), "config": config_table(run.config)}
    )
    page = page.replace(" %", "\N{NO-BREAK SPACE}%")  # a line must not begin with the sign
    path = workdir / "report.html"
    write_text(path, page)
    return path


def _software() -> str:
    """Describe the versions of the software and the device."""
    packages = [f"{name} {version(name)}" for name in ("jax", "flax", "optax", "numpy")]
    device = jax.devices()[0]
    device_name = " ".join(dict.fromkeys((device.platform, device.device_kind)))
    return escape(
        f"Report written with sqs_jax {sqs_jax.__version__}, {', '.join(packages)}, Python "
        f"{platform.python_version()}, on {device_name}."
    )


def main(_: Any) -> None:
    print(write_report(Path(flags.FLAGS.workdir)))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    app.run(main)
