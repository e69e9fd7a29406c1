"""Compare the deployed network with Bayesian averages of K-level draws, and what each costs.

    python -m experiments.inference --workdir=runs/digits --samples=50 --temperatures=0.25,1

Takes the posterior from the checkpoints of a finished run. Judges every average of 1, 2, 4, ... of
the draws by accuracy, NLL and expected calibration error, on the held-out images and on corrupted
copies of them, at its bytes and forward passes. Writes inference.json and inference.html.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

import sqs_jax
from experiments.atomic_files import write_json
from experiments.data import Dataset
from experiments.data.corruptions import CORRUPTIONS, corrupt
from experiments.export import as_stored, codes_of, deployed, shipped
from experiments.pages.page import table, write_page
from experiments.pages.panels import COLORS, INK, QUIET, line_color, panel, styled, svg
from experiments.scores import calibration, judge, metrics
from experiments.task.prediction import probabilities
from experiments.training.pipeline import Trained, run_trainings
from experiments.training.sharding import fetch
from experiments.training.workdir import read_config
from sqs_jax.progress import track

_CLEAN = "clean"


def counts(most: int) -> list[int]:
    """Return 1, 2, 4, ... and `most`."""
    return sorted({2**i for i in range(most.bit_length())} | {most})


def study(
    trained: Trained, config: Any, samples: int, temperatures: list[float], images: int, seed: int
) -> dict[str, Any]:
    """Measure the deployed network and averages of draws.

    Returns:
      "rows": a dict per network and condition: network, temperature, passes, bytes, condition and
      its metrics; "reliability": network -> [confidence, accuracy, share] of each bin, clean.
    """
    model, splits, phase, state = trained.model, trained.splits, trained.phase, trained.state
    holdout = splits.holdout
    if images:
        holdout = holdout._replace(
            examples=holdout.examples[:images], labels=holdout.labels[:images]
        )
    conditions = {_CLEAN: holdout}
    conditions |= {name: corrupt(holdout, name, seed) for name in CORRUPTIONS}
    model_state = fetch(state.model_state)
    compressed = fetch(phase.transform.compress(state.posterior))
    draw = phase.transform.sample
    if draw is None:
        raise ValueError(
            "This run has nothing to draw from: codes that stay, and DGMS, have one network each."
        )
    rows: list[dict[str, Any]] = []
    reliability: dict[str, Any] = {}

    def add(network: str, passes: int, size: int, found: dict[str, Any], **more: Any) -> None:
        judged = {name: judge(each, conditions[name].labels) for name, each in found.items()}
        for condition, each in judged.items():
            row = {"network": network, "passes": passes, "bytes": size, "condition": condition}
            rows.append({**row, **more, **metrics(each)})
        reliability[f"{network}, M = {passes}"] = calibration(judged[_CLEAN])

    def predicted(variables: Any, dataset: Dataset) -> np.ndarray:
        return np.concatenate([found for _, found in probabilities(model, variables, dataset)])

    def size_of(tree: Any) -> int:
        return sqs_jax.summarize(tree, **options).file_bytes

    tree, options = shipped(compressed, model_state, config)
    mode = deployed(phase, state, config)
    found = {name: predicted(mode, dataset) for name, dataset in conditions.items()}
    add("mode", 1, size_of(tree), found, temperature=0.0)
    sample = jax.jit(lambda key, t: draw(state.posterior, key, temperature=t, hard=True))
    wanted = counts(samples)
    for temperature in temperatures:
        network, drawn = f"averaged at {temperature:g}", []
        total: dict[str, Any] = dict.fromkeys(conditions, 0.0)
        for i in track(range(samples), network, keep=True):
            key = jax.random.fold_in(jax.random.key(seed), i)
            drawn.append(codes_of(fetch(sample(key, jnp.float32(temperature))), compressed))
            weights = sqs_jax.materialize(drawn[-1])
            variables = as_stored({"params": weights, **model_state}, options["dense_dtype"])
            for name, dataset in conditions.items():
                total[name] = total[name] + predicted(variables, dataset)
            if i + 1 in wanted:
                mean = {name: each / (i + 1) for name, each in total.items()}
                size = size_of({"draws": drawn, **model_state})
                add(network, i + 1, size, mean, temperature=temperature)
    return {"rows": rows, "reliability": reliability}


_METRICS = {"accuracy": ("Accuracy, %", 100), "nll": ("NLL, nats", 1)}
_METRICS |= {"calibration_error": ("Calibration error, points", 100)}


@styled
def _against_passes(rows: list[dict[str, Any]], metric: str) -> str:
    """Draw a metric on the clean images against the number of networks."""
    title, scale = _METRICS[metric]
    picture, axes = panel(360, 260, title, left=48, bottom=44)
    clean = [row for row in rows if row["condition"] == _CLEAN]
    (mode,) = (row for row in clean if row["network"] == "mode")
    axes.axhline(scale * mode[metric], color=COLORS["mode"], lw=1.6, label="mode, one network")
    for i, network in enumerate(dict.fromkeys(r["network"] for r in clean if r is not mode)):
        line = [row for row in clean if row["network"] == network]
        axes.plot(
            [row["passes"] for row in line], [scale * row[metric] for row in line],
            "o-", ms=4, lw=1.4, color=line_color(1 + i), label=network,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlabel("networks averaged, M")
    if metric == "accuracy":
        axes.legend(frameon=False, fontsize=9)
    return svg(picture, metric, title)


@styled
def _reliability(bins: dict[str, Any]) -> str:
    """Draw accuracy against confidence; on the diagonal a network knows what it knows."""
    picture, axes = panel(360, 260, "Reliability: accuracy, %", left=48, bottom=44)
    axes.plot([0, 100], [0, 100], color=QUIET, lw=1, ls=(0, (4, 3)))
    last = {name.split(",")[0]: name for name in bins}  # of each network, the most draws
    for i, name in enumerate(last.values()):
        sure, right, _ = np.transpose(bins[name])
        axes.plot(100 * sure, 100 * right, "o-", ms=4, lw=1.4, color=line_color(i), label=name)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    axes.set_xlabel("confidence, %")
    return svg(picture, "reliability", "accuracy against confidence")


def write_study(workdir: Path, found: dict[str, Any]) -> Path:
    """Write inference.html; returns its path."""
    rows = found["rows"]
    cells = [
        [
            row["network"], row["condition"], str(row["passes"]), f"{row['bytes']:,}",
            f"{100 * row['accuracy']:.2f}", f"{row['nll']:.4f}",
            f"{100 * row['calibration_error']:.2f}",
        ]
        for row in sorted(rows, key=lambda row: row["condition"] != _CLEAN)
    ]  # fmt: skip
    columns = [
        "network", "images", "forward passes", "bytes", "accuracy, %", "NLL",
        "calibration error, points",
    ]  # fmt: skip
    figures = "".join(_against_passes(rows, metric) for metric in _METRICS)
    return write_page(
        workdir / "inference.html",
        f"Inference: {workdir.resolve().name}",
        f"The deployed network beside averages of K-level draws, on {rows[0]['count']:,} held-out "
        "images and corrupted copies of them. Bytes are those of a file with all codes.",
        f'<div class="panels">{figures}{_reliability(found["reliability"])}</div>',
        table(columns, cells, [i for i, row in enumerate(cells) if row[0] == "mode"]),
    )


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
    logging.set_verbosity(logging.WARNING)  # orbax tells of every restore
    config = read_config(workdir)
    trained = run_trainings(config, workdir)  # all of them are finished: restores
    found = study(trained, config, options.samples, temperatures, options.images, options.seed)
    write_json(workdir / "inference.json", found)
    print(f"page: {write_study(workdir, found)}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_integer("samples", 50, "Most networks that are averaged.", lower_bound=1)
    flags.DEFINE_list("temperatures", ["0.25", "0.5", "1"], "Of the draws.")
    flags.DEFINE_integer("images", 0, "Held-out images that are used; 0: all.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Of draws and noise.")
    app.run(main)
