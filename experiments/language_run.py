"""A language model as a finished run has left it: the network, its tokenizer, its weights."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

import sqs_jax
from experiments.importers.huggingface import decoder_config
from experiments.importers.language_model import read_tokenizer
from experiments.models.decoder import Decoder
from experiments.problem import TOKENIZER
from experiments.training.workdir import read_config
from sqs_jax.progress import progress


class LanguageRun(NamedTuple):
    """What a finished run of a language model is.

    Attributes:
      model: the decoder.
      tokenizer: tokenizers.Tokenizer.
      params: on the device.
      config: the experiment.
    """

    model: Decoder
    tokenizer: Any
    params: Any
    config: Any


def open_language_run(workdir: Path, file: str = "model.sqs") -> LanguageRun:
    """Open the folder of a run of experiments.train or experiments.calibrate.

    Raises:
      FileNotFoundError: if there is no such run or file.
      ValueError: if its network does not predict a text's next token.
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
