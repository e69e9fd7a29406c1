"""Language model of a finished run: network, tokenizer, weights."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

import sqs_jax
from experiments.importers.huggingface import decoder_config
from experiments.importers.language_model import read_tokenizer
from experiments.models.decoder import Decoder
from experiments.task.tokenizer import TOKENIZER
from experiments.training.workdir import read_config
from sqs_jax.progress import progress


class LanguageRun(NamedTuple):
    """A finished run of a language model.

    Attributes:
      model: Decoder.
      tokenizer: Tokenizer, a tokenizers.Tokenizer.
      params: Params on the device.
      config: Config of the experiment.
    """

    model: Decoder
    tokenizer: Any
    params: Any
    config: Any


def open_language_run(workdir: Path, file: str = "model.sqs") -> LanguageRun:
    """Open a run of experiments.train or experiments.calibrate.

    Args:
      workdir: Folder of the run.
      file: Name of the file with the weights.

    Raises:
      FileNotFoundError: The folder, the tokenizer or the file is missing.
      ValueError: The network does not predict the next token of a text.
    """
    for name in ("config.json", TOKENIZER, file):
        if not (workdir / name).is_file():
            raise FileNotFoundError(
                f"{workdir} has no {name}: it must be the folder of a finished run of a language "
                "model, of experiments.train or experiments.calibrate."
            )
    config = read_config(workdir)
    if config.data.kind != "language":
        raise ValueError(
            f"config.data.kind of {workdir} is {config.data.kind!r}; only 'language' models write."
        )
    model = Decoder(decoder_config(config.model.shape.to_dict()), dtype=config.model.dtype)
    tokenizer = read_tokenizer(workdir / TOKENIZER)
    with progress(f"reading {file}"):
        params = jax.device_put(sqs_jax.materialize(sqs_jax.load(workdir / file))["params"])
        return LanguageRun(model, tokenizer, jax.block_until_ready(params), config)
