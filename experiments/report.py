"""Write a run's report: one HTML file that needs nothing but a browser.

python -m experiments.report --workdir=runs/digits

Reads config.json, metrics.jsonl, evaluation.json, distributions.json and model.sqs of the folder,
writes report.html. The same files give the same bytes, where the same software reads them.
"""

import json
import platform
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

import sqs_jax
from experiments.atomic_files import write_text
from experiments.pages import figures
from experiments.pages.reproduce import command
from experiments.pages.tables import (
    NETWORKS,
    config_table,
    leaves_table,
    networks_table,
    percent,
    plural,
    points,
)

_TEMPLATE = Path(__file__).parent / "pages" / "report_template.html"
_MOST_HISTOGRAMS = 6
_TRAIN = "Run the training to its end: python -m experiments.train --config=... --workdir={}"
_FILES = {
    "config.json": _TRAIN,
    "metrics.jsonl": _TRAIN,
    "model.sqs": _TRAIN,
    "distributions.json": _TRAIN,
    "evaluation.json": "Evaluate the run: python -m experiments.evaluate --workdir={}",
}


class Run(NamedTuple):
    """What the report is written from.

    Attributes:
      config: config.json.
      evaluation: evaluation.json, scores by network.
      metrics: lines of metrics.jsonl.
      distributions: distributions.json, by path within the params.
      size: what the leaves of model.sqs weigh.
      leaves: the compressed leaves of model.sqs, by path.
    """

    config: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: list[dict[str, Any]]
    distributions: dict[str, Any]
    size: sqs_jax.SizeReport
    leaves: dict[str, sqs_jax.CompressedLeaf]


def read_run(workdir: Path) -> Run:
    """Read a finished run.

    Raises:
      FileNotFoundError: if a file is missing; names it and what writes it.
      ValueError: if a file is damaged, or only some networks are evaluated.
    """
    for name, remedy in _FILES.items():
        if not (workdir / name).is_file():
            raise FileNotFoundError(f"{workdir} has no {name}. {remedy.format(workdir)}")

    def parse(name: str, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            remedy = _FILES[name].format(workdir)
            raise ValueError(f"{workdir / name} is damaged ({error}). {remedy}") from error

    texts = {name: (workdir / name).read_text() for name in _FILES if name != "model.sqs"}
    lines = texts.pop("metrics.jsonl").splitlines()
    parsed = {name: parse(name, text) for name, text in texts.items()}
    if missing := {"dense", "mean", "mode"} - parsed["evaluation.json"].keys():
        remedy = _FILES["evaluation.json"].format(workdir)
        raise ValueError(
            f"{workdir / 'evaluation.json'} has no {', '.join(sorted(missing))}. {remedy}"
        )
    pairs, _ = jax.tree_util.tree_flatten_with_path(
        sqs_jax.load(workdir / "model.sqs"),
        is_leaf=lambda x: isinstance(x, sqs_jax.CompressedLeaf),
    )
    return Run(
        config=parsed["config.json"],
        evaluation=parsed["evaluation.json"],
        metrics=[parse("metrics.jsonl", line) for line in lines],
        distributions=parsed["distributions.json"],
        size=sqs_jax.inspect(workdir / "model.sqs"),
        leaves={
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in pairs
            if isinstance(leaf, sqs_jax.CompressedLeaf)
        },
    )


def write_report(workdir: Path) -> Path:
    """Write report.html of a finished run, whole or not at all; returns its path.

    Raises:
      FileNotFoundError, ValueError: as `read_run`.
    """
    run = read_run(workdir)
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        _summary(run)
        | _sections(run)
        | command(run.config, workdir.resolve().name)
        | {"software": _software(), "config": config_table(run.config)}
    )
    page = page.replace(" %", "\N{NO-BREAK SPACE}%")  # a line must not begin with the sign
    path = workdir / "report.html"
    write_text(path, page)
    return path


def _summary(run: Run) -> dict[str, str]:
    """Return the top of the page."""
    size, scores = run.size, run.evaluation
    mode = scores["mode"]
    rivals = [n for n in ("dense", "finetune") if n in scores]
    name = max(rivals, key=lambda n: (scores[n]["accuracy"], -scores[n]["nll"]))
    dense, other = scores[name], next((scores[n] for n in rivals if n != name), None)
    count, missed = mode["count"], dense["correct"] - mode["correct"]
    unit = _unit(run)
    part = f"{run.config['data']['holdout']} {unit}s"
    accuracy, apart = percent(mode["accuracy"], count), points(dense, mode)
    dtypes = " and ".join(sorted({leaf.dtype for leaf in size.leaves}))
    headline = (
        f"<b>{accuracy} accuracy in {size.file_bytes:,} bytes</b>: {size.ratio:.1f} times smaller "
        f"than the dense network’s {size.original_bytes:,} bytes of {dtypes}, "
    )
    if unit == "token":
        above = 100 * (mode["perplexity"] / dense["perplexity"] - 1)
        headline = headline.replace(
            f"{accuracy} accuracy", f"A perplexity of {mode['perplexity']:.3f}"
        )
        headline += f"{above:.2f} % above its {dense['perplexity']:.3f}."
    elif missed:
        headline += f"{apart} points {'below' if missed > 0 else 'above'} it."
    else:
        headline += "at the same accuracy."
    weights = run.config["model"].get("weights")
    origin = f"imported from {escape(Path(weights).name)}" if weights else "trained from scratch"
    label = {"dense": origin, "finetune": "trained on (finetuned)"}[name]
    if other is None:
        chosen = "which was not trained on"
    elif dense["correct"] != other["correct"]:
        chosen = "the better of the two in accuracy"
    else:
        chosen = "with the lower loss of the two, which tie in accuracy"
    subline = (
        f"Measured on {count:,} {part}, of which one is worth {100 / count:.2g} points. The dense "
        f"network here is the one {label}, {chosen}: {percent(dense['accuracy'], count)}. The file "
        "holds everything a fresh process needs to run."
    )
    low, high = figures.wilson(mode["correct"], count)
    sign = "−" if missed > 0 else "+" if missed else ""
    tiles = [
        ("The file", f"{size.file_bytes:,} bytes", f"{size.file_bits_per_weight:.2f} bits/weight"),
        ("Smaller by", f"{size.ratio:.1f}×", f"from {size.original_bytes:,} bytes"),
        ("Accuracy, deployed", accuracy, f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"),
        ("Against dense", f"{sign}{apart} points", f"{plural(abs(missed), unit)} of {count:,}"),
        (
            "Sparsity",
            f"{100 * size.sparsity:.1f} %",
            f"{size.kept:,} of {size.compressed_weights:,} kept",
        ),
    ]
    notice = ""
    if run.config["data"]["holdout"] == "validation":
        notice = (
            '<p class="notice"><strong>Validation, not test.</strong> These numbers come from a '
            "part of the training data that was held out to choose settings by; the test data was "
            "not read. Train with <code>--config.data.holdout=test</code> for numbers to "
            "publish.</p>"
        )
    data = escape(run.config["data"]["name"])
    return {
        "title": f"{accuracy} in {size.file_bytes:,} bytes: SQS on {data}",
        "kicker": f"SQS report · {data} · {size.weights:,} weights",
        "headline": headline,
        "subline": subline,
        "notice": notice,
        "tiles": "\n".join(
            f'<div class="tile"><dt>{label}</dt><dd class="value">{value}</dd><dd>{note}</dd></div>'
            for label, value, note in tiles
        ),
        "count": f"{count:,}",
        "examples": part,
    }


def _unit(run: Run) -> str:
    """Name what is predicted."""
    kind = run.config["data"].get("kind", "images")
    return {
        "images": "image",
        "sentences": "sentence",
        "language": "token",
        "answers": "position",
    }[kind]


def _sections(run: Run) -> dict[str, str]:
    """Return tables and figures."""
    mean, mode = run.evaluation["mean"], run.evaluation["mode"]
    missed = mean["correct"] - mode["correct"]
    gap = "Mean to mode: 0 points. One value of the codebook for every weight costs no accuracy."
    if missed:
        gap = (
            f"Mean to mode: {'−' if missed > 0 else '+'}{points(mean, mode)} points "
            f"({plural(abs(missed), _unit(run))}). That is what it changes to give every weight "
            "one value of the codebook instead of its average."
        )
    distill = run.config["sqs"]["distill_weight"]
    loss = "The loss is the negative log-likelihood of the labels, without the KL term."
    if distill:
        loss = (
            "The loss is the negative log-likelihood of the labels, without the KL term; after "
            f"the dashed line {100 * distill:g} % of it is the distance to the first dense "
            "network’s softened predictions, so the levels before and after do not compare."
        )
    drawn = sorted(run.distributions, key=lambda p: -sum(run.distributions[p]["all"]))
    shown = drawn[:_MOST_HISTOGRAMS]
    return {
        "networks": networks_table(run.evaluation, perplexity=_unit(run) == "token"),
        "gap": gap,
        "comparison": "\n".join(
            figures.comparison(
                run.evaluation,
                {n: label for n, (label, _) in NETWORKS.items() if n in run.evaluation},
            )
        ),
        "sizes": "\n".join(figures.sizes(run.size)),
        "histogram_count": (
            "largest first" if len(shown) == len(drawn) else f"the {len(shown)} largest"
        ),
        "histogram_panels": "panels" if len(shown) in (3, 5, 6) else "panels two",
        "histograms": "\n".join(
            figures.histogram(f"histogram-{i}", path, _distribution(run, path))
            for i, path in enumerate(shown)
        ),
        "layers": "\n".join(figures.layers(run.size)),
        "leaves": leaves_table(run.size),
        "curves": "\n".join(figures.curves(run.metrics)),
        "loss": loss,
    }


def _distribution(run: Run, path: str) -> figures.Distribution:
    """Join what training said of a tensor with what ships of it."""
    described = run.distributions[path]
    leaf = run.leaves[f"params/{path}"]
    codes, book = np.asarray(leaf.codes), np.asarray(leaf.codebook, np.float64)
    *stack, windows, components = book.shape
    # How many weights have each value, [slices, W, K]; stacked axes have codebooks of their own.
    users = np.stack(
        [
            np.bincount(part, minlength=windows * components + 1)[1:]
            for part in codes.reshape(int(np.prod(stack)), -1)
        ]
    ).reshape(-1, windows, components)
    # of a window; a component at zero, which comes first, ships as no level
    means, scales, shares = (
        np.array(described[name])[-users.size :] for name in ("means", "scales", "shares")
    )
    shares = shares.reshape(users.shape)
    return figures.Distribution(
        edges=np.array(described["edges"]),
        all=np.array(described["all"]),
        kept=np.array(described["kept"]),
        means=means,
        scales=scales,
        counts=(shares * users.sum(-1, keepdims=True)).ravel(),
        values=book.ravel(),
        users=users.ravel(),
    )


def _software() -> str:
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
