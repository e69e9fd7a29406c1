"""Write the language model of a finished run as a dense folder of Hugging Face.

    python -m experiments.to_huggingface --workdir=runs/stories260k --output=stories260k

Weights are those of model.sqs, in the dtype they were trained in; config.json and tokenizer.json
stand beside them, so that transformers and every tool that reads its folders load it.
"""

import json
from pathlib import Path
from typing import Any

from absl import app, flags, logging

import sqs_jax
from experiments.importers.language import write_language_model
from experiments.task.tokenizer import TOKENIZER
from sqs_jax.progress import progress


@progress("writing")
def convert(workdir: Path, output: Path) -> int:
    """Write the folder; returns the bytes of its tensors.

    Raises:
      FileNotFoundError: if there is no finished run.
      ValueError: if it is not of a language model.
      OSError: if something stands at `output`.
    """
    if not (workdir / "model.sqs").is_file():
        raise FileNotFoundError(f"{workdir} holds no finished run: it has no model.sqs.")
    shape = json.loads((workdir / "config.json").read_text())["model"].get("shape")
    if not shape:
        raise ValueError(f"{workdir} is no run of a language model.")
    params = sqs_jax.materialize(sqs_jax.load(workdir / "model.sqs"))["params"]
    return write_language_model(output, shape, params, workdir / TOKENIZER)


def main(_: Any) -> None:
    logging.set_verbosity(logging.WARNING)  # jax tells of every backend that is not there
    output = Path(flags.FLAGS.output)
    written = convert(Path(flags.FLAGS.workdir), output)
    print(f"{output}: {written:,} bytes of tensors")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_string("output", None, "Folder to make.", required=True)
    app.run(main)
