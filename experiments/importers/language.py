"""Language models in folders of Hugging Face or files of llama2.c: shape, weights, tokenizer."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.importers import huggingface, llama2c
from experiments.trees import flat_leaves
from sqs_jax.checkpoints import (
    LazyArray,
    open_checkpoint,
    unwrapped,
    write_safetensors_folder,
)

_TENSORS = ".safetensors"
_SHARD_BYTES = 5 << 30


class Source(NamedTuple):
    """A language model whose weights are still in their files.

    Attributes:
      path: where it is.
      config: what config.json says.
      tensors: by Hugging Face's names.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, LazyArray]


def open_language_model(path: Path) -> Source:
    """Open a folder of Hugging Face, or a llama2.c checkpoint; weights are not read yet.

    Args:
      path: the folder, with config.json and safetensors; or the .bin file.

    Raises:
      FileNotFoundError: if there is no such thing.
      ValueError: for a damaged file or a shard that is missing.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}; give a folder of Hugging Face (config.json, safetensors) or a "
            "llama2.c .bin file."
        )
    if not path.is_dir():
        return Source(path, *llama2c.read_model(path))
    described = path / "config.json"
    if not described.is_file():
        raise FileNotFoundError(f"{path} has no config.json; download all files of the model.")
    try:
        config = json.loads(described.read_text())
    except ValueError as error:
        raise ValueError(f"{described} is no JSON: {error}") from error
    return Source(path, config, open_checkpoint(path).tree)


def read_tokenizer(path: Path) -> Any:
    """Read a tokenizers.Tokenizer from tokenizer.json, llama2.c's .bin, or WordPiece's vocab.txt.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: if it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no tokenizer {path}.")
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    if path.suffix == ".bin":
        return llama2c.read_tokenizer(path)
    try:
        if path.suffix == ".txt":
            return Tokenizer.from_str(BertWordPieceTokenizer(str(path), lowercase=True).to_str())
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error


def weights_of(source: Source, wanted: Any, *, fresh: Callable[[], Any] | None = None) -> Any:
    """Lay a source's tensors out as the params of a network; they are read when they are used.

    Args:
      source: the model.
      wanted: the params as shapes, as `jax.eval_shape` gives them.
      fresh: returns such variables anew: of them are the heads that the source lacks.

    Returns:
      A tree as `wanted`, of LazyArrays and of what was fresh.

    Raises:
      ValueError: listing all that is unknown, missing, of another shape or no number.
    """
    prefix = huggingface.prefix_of(source.config)
    paths, structure = jax.tree_util.tree_flatten_with_path(wanted)
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in paths
    }
    tied = source.config.get("tie_word_embeddings", False)
    found: dict[str, Any] = {}
    problems = []
    plain = unwrapped({name: name for name in source.tensors})
    for bare, name in plain.items():
        tensor = source.tensors[name]
        path, swapped = huggingface.path_of(bare, prefix)
        if huggingface.IGNORED.match(bare) or (tied and path == "lm_head/kernel"):
            continue  # a tied head is the embedding: one leaf
        shape = tensor.shape[::-1] if swapped else tensor.shape
        if path not in shapes:
            if path.split("/")[0] not in huggingface.OF_THE_TASK:
                problems.append(f"{name} {tensor.shape}: the network has no such weights")
            continue
        found[path] = _finite(name, tensor, swapped)
        if shape != shapes[path]:
            problems.append(f"{name}: as {path} its shape is {shape}, not {shapes[path]}")
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"{name}: its dtype is {tensor.dtype}, which is no floating one")
    missing = [path for path in shapes if path not in found]
    new = huggingface.OF_THE_TASK if fresh else ()
    heads = [path for path in missing if path.split("/")[0] in new]
    if heads:
        assert fresh is not None
        made = flat_leaves(fresh()["params"])
        found |= {path: made[path] for path in heads}
        print(f"{source.path} has no {', '.join(heads)}: drawn from the seed.", flush=True)
    problems += [
        f"{huggingface.name_of(path, prefix)[0]} {shapes[path]} is missing"
        for path in missing
        if path not in found
    ]
    if problems:
        raise ValueError(
            f"{source.path} does not fit its config.json in {len(problems)} places:\n  "
            + "\n  ".join(problems)
        )
    return jax.tree.unflatten(structure, [found[path] for path in shapes])


def _finite(name: str, tensor: LazyArray, swapped: bool) -> LazyArray:
    """Return the tensor with our axes, which refuses to be read if it holds no numbers."""

    def read() -> np.ndarray:
        array = np.asarray(tensor)
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise ValueError(f"{name}: {bad} of {array.size} values are not finite.")
        return array.T if swapped else array

    return LazyArray(tensor.shape[::-1] if swapped else tensor.shape, tensor.dtype, read)


def write_language_model(
    folder: Path, config: Mapping[str, Any], params: Any, tokenizer: Path
) -> int:
    """Write a dense model as Hugging Face has them, whole or not at all.

    Args:
      folder: to make; it may exist if it is empty.
      config: what config.json is to say.
      params: of one of the networks here, arrays.
      tokenizer: tokenizer.json, which is copied.

    Returns:
      The bytes of its tensors.

    Raises:
      OSError: if something stands at `folder`, or it cannot be written.
    """
    prefix = huggingface.prefix_of(config)
    tensors, shards, size = {}, {}, 0
    for path, leaf in flat_leaves(params).items():
        name, swapped = huggingface.name_of(path, prefix)
        array = np.asarray(leaf)
        tensors[name] = array.T if swapped else array
        size += array.nbytes
        shards[name] = size // _SHARD_BYTES
    count = max(shards.values()) + 1
    files = [f"model-{i + 1:05}-of-{count:05}{_TENSORS}" for i in range(count)]
    files = ["model" + _TENSORS] if count == 1 else files
    layout = {
        "index": f"model{_TENSORS}.index.json" if count > 1 else None,
        "index_metadata": {"metadata": {"total_size": size}} if count > 1 else None,
        "weight_map": {name: files[shard] for name, shard in shards.items()},
        "shards": {file: {"format": "pt"} for file in files},
    }
    with tempfile.TemporaryDirectory() as others:
        (Path(others) / "config.json").write_text(json.dumps(dict(config), indent=2))
        shutil.copyfile(tokenizer, Path(others) / "tokenizer.json")
        written, _ = write_safetensors_folder(folder, tensors, layout, others=others)
    return written
