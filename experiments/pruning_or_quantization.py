"""Compare pruning with quantization of a tensor at equal size.

    python -m experiments.pruning_or_quantization \\
        --config=experiments/configs/pruning_or_quantization.py --workdir=runs/study

Kuzmin, Nagel, van Baalen, Behboodi and Blankevoort 2023 (arXiv:2307.02973) compare by the
signal-to-noise ratio, 10 log10 of E w^2 / E (w - v)^2, on normal and heavy-tailed tensors and on
tensors of networks. This study does so for two counts of bits.

- As published: b bits per weight are a uniform grid of 2^b levels, or a share b / 16 of the weights
  in 16 bits, without the bits of their positions.
- As coded: the bits of an ideal coder, positions included. `compress_to_budget`, which prunes and
  quantizes at once, counts the bytes of its file.

Writes study.json and study.html.
"""

from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from experiments.files import write_json
from experiments.pages.page import table, write_page
from experiments.studies.signal_to_noise import crossing, figure, kurtosis, study, tensors
from sqs_jax.progress import track


def main(_: Any) -> None:
    config, workdir = flags.FLAGS.config, Path(flags.FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    weights_by_name = tensors(config)
    results = {
        name: study(weights, tuple(config.bits))
        for name, weights in track(weights_by_name.items(), "tensors")
    }
    write_json(workdir / "study.json", results)
    head = [
        "tensor",
        "kurtosis",
        "pruning ahead, bits as published",
        "pruning ahead, bits as coded",
    ]
    rows = [
        [
            name,
            f"{kurtosis(weights_by_name[name]):.1f}",
            crossing(curves, "bits"),
            crossing(curves, "coded"),
        ]
        for name, curves in results.items()
    ]
    for row in [head, *rows]:
        print(f"{row[0]:>40} {row[1]:>9} {row[2]:>33} {row[3]:>29}")
    panels = [
        figure(name, curves, by) for name, curves in results.items() for by in ("bits", "coded")
    ]
    intro = "Signal-to-noise ratio of pruning, of quantization, and of both at once, at equal size."
    page = write_page(
        workdir / "study.html", "Pruning or quantization?", intro,
        f'<div class="panels">{"".join(panels)}</div>', table(head, rows),
    )  # fmt: skip
    print(f"page: {page}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Study: configs/pruning_or_quantization.py.")
    flags.DEFINE_string("workdir", None, "Folder of the study; made if missing.", required=True)
    flags.mark_flag_as_required("config")
    app.run(main)
