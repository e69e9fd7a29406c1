"""Loading of the learning task that a config describes."""

from pathlib import Path
from typing import Any

from experiments import data
from experiments.importers import language_model
from experiments.models import build_model
from experiments.task.language_tasks import load_answers, load_sentences, load_texts
from experiments.task.task import Task
from sqs_jax.progress import progress


def described(config: Any) -> Any:
    """Add the shape of a pretrained language model, from its config.json, to a config."""
    if config.data.kind == "images" or not config.model.weights:
        return config
    path = Path(config.model.weights)
    complete = config.copy_and_resolve_references()
    if path.suffix != ".sqs":
        with complete.unlocked():
            complete.model.shape = language_model.open_language_model(path).config
    return complete


@progress("reading the data")
def load_task(config: Any, workdir: Path) -> Task:
    """Load the network and the data of an experiment.

    Args:
      config: Config of the experiment, `described`.
      workdir: Folder of the run; a tokenizer in the folder is that of the run.

    Raises:
      FileNotFoundError: A file of the data, the model or the tokenizer is missing.
      ValueError: Data, model and tokenizer cannot be read or do not fit each other.
    """
    if config.data.kind == "images":
        splits = data.load(config.data, config.seed)
        return Task(build_model(config.model, splits.num_classes), splits)
    shape = config.model.shape.to_dict()
    if not shape:
        raise ValueError(
            "config.model.shape is empty; give the fields of a config.json, or a folder of Hugging "
            "Face as config.model.weights."
        )
    loaders = {"language": load_texts, "sentences": load_sentences, "answers": load_answers}
    load = loaders.get(config.data.kind)
    if load is None:
        raise ValueError(
            f"config.data.kind is {config.data.kind!r}; it must be 'images', 'language', "
            "'sentences' or 'answers'."
        )
    context = shape.get("max_position_embeddings", 0)
    if config.data.length > context:
        raise ValueError(
            f"config.data.length is {config.data.length}, but the model's context is {context} "
            "tokens; give a smaller length."
        )
    return load(config, workdir, shape)
