"""Tokenizer of a run: stored, configured, pretrained, or trained on the text."""

from pathlib import Path
from typing import Any

from experiments.data import text
from experiments.importers import language_model

TOKENIZER = "tokenizer.json"


def load_tokenizer(config: Any, workdir: Path, train: str) -> Any:
    """Load the tokenizer of a run.

    The first of these that exists is used: the tokenizer in the folder of the run, that of
    `config.data.tokenizer`, and that beside the pretrained weights. Without pretrained weights a
    tokenizer is trained.

    Args:
      config: Config of the experiment.
      workdir: Folder of the run.
      train: Training text.

    Raises:
      FileNotFoundError: Pretrained weights have no tokenizer.
      ValueError: The tokenizer has more tokens than the embedding has rows.
    """
    weights, configured = config.model.weights, config.data.tokenizer
    # The weights of a run, a file .sqs, have their tokenizer in the folder of that run.
    folder = Path(weights).parent if weights.endswith(".sqs") else Path(weights)
    if (workdir / TOKENIZER).is_file():
        tokenizer = language_model.read_tokenizer(workdir / TOKENIZER)
    elif configured:
        tokenizer = language_model.read_tokenizer(Path(configured))
    elif weights and (folder / TOKENIZER).is_file():
        tokenizer = language_model.read_tokenizer(folder / TOKENIZER)
    elif weights:  # Pretrained weights work with their own tokenizer only.
        raise FileNotFoundError(
            f"{folder} has no {TOKENIZER}; name the one it was trained with, as "
            "config.data.tokenizer."
        )
    else:
        tokenizer = text.train_tokenizer(train, config.model.shape.vocab_size)
    size, rows = tokenizer.get_vocab_size(), config.model.shape.vocab_size
    if size > rows:
        raise ValueError(
            f"The tokenizer has {size} tokens, the model an embedding of {rows}: they do not "
            "belong together. config.data.tokenizer names another."
        )
    return tokenizer
