"""Write the language model of a finished run as a dense Hugging Face folder.

    python -m experiments.to_huggingface --workdir=runs/stories260k --output=stories260k

The folder has the weights of model.sqs in the dtype of the training, config.json and
tokenizer.json, so that transformers and tools that read its folders can load the model.
"""

import json
from pathlib import Path
from typing import Any

from absl import app, flags, logging

import sqs_jax
from experiments.importers.language_model import write_language_model
from experiments.problem import TOKENIZER
from sqs_jax.progress import progress


@progress("writing")
def convert(workdir: Path, output: Path) -> int:
    """Write the folder, and return the size of the tensors in bytes.

    Args:
      workdir: Folder of a finished run.
      output: Folder to create, or an empty folder.

    Raises:
      FileNotFoundError: If the run is not finished.
      ValueError: If the run is not of a language model.
      OSError: If the output folder is not empty or cannot be written.
    """
    if not (workdir / "model.sqs").is_file():
        raise FileNotFoundError(f"{workdir} holds no finished run: it has no model.sqs.")
    shape = json.loads((workdir / "config.json").read_text())["model"].get("shape")
    if not shape:
        raise ValueError(f"{workdir} is no run of a language model.")
    params = sqs_jax.materialize(sqs_jax.load(workdir / "model.sqs"))["params"]
    return write_language_model(output, shape, params, workdir / TOKENIZER)


def main(_: Any) -> None:
    logging.set_verbosity(logging.WARNING)  # jax logs every backend that is not available
    output = Path(flags.FLAGS.output)
    written = convert(Path(flags.FLAGS.workdir), output)
    print(f"{output}: {written:,} bytes of tensors")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_string("output", None, "Folder to create.", required=True)
    app.run(main)
