"""Files of a finished run that its report needs."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax

import sqs_jax

_TRAIN = "Run the training to its end: python -m experiments.train --config=... --workdir={}"
_FILES = {
    "config.json": _TRAIN,
    "metrics.jsonl": _TRAIN,
    "model.sqs": _TRAIN,
    "distributions.json": _TRAIN,
    "evaluation.json": "Evaluate the run: python -m experiments.evaluate --workdir={}",
}


class Run(NamedTuple):
    """Files of a finished run.

    Attributes:
      config: Content of config.json.
      evaluation: Content of evaluation.json, scores by network.
      metrics: Lines of metrics.jsonl.
      distributions: Content of distributions.json, by path within the params.
      size: Sizes of the leaves of model.sqs.
      leaves: Compressed leaves of model.sqs, by path.
    """

    config: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: list[dict[str, Any]]
    distributions: dict[str, Any]
    size: sqs_jax.SizeReport
    leaves: dict[str, sqs_jax.CompressedLeaf]

    @property
    def unit(self) -> str:
        """Noun for a labeled example: image, sentence, token or position."""
        kind = self.config["data"].get("kind", "images")
        return {
            "images": "image",
            "sentences": "sentence",
            "language": "token",
            "answers": "position",
        }[kind]


def read_run(workdir: Path) -> Run:
    """Read the files of a finished run.

    Args:
      workdir: Folder of the run.

    Raises:
      FileNotFoundError: If a file is missing; the message names the command that writes it.
      ValueError: If a file is damaged, or a network was not evaluated.
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
