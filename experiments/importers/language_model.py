"""Language models in Hugging Face folders and llama2.c files: weights, tokenizer."""

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
    """Language model whose weights are not read yet.

    Attributes:
      path: Folder or file of the model.
      config: Content of config.json.
      tensors: Weights by Hugging Face's names.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, LazyArray]


def open_language_model(path: Path) -> Source:
    """Open a Hugging Face folder or a llama2.c checkpoint without reading its weights.

    Args:
      path: Folder with config.json and safetensors files, or llama2.c's .bin file.

    Raises:
      FileNotFoundError: If the path or config.json does not exist.
      ValueError: If a file is damaged or a shard is missing.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}; give a folder of Hugging Face (config.json, safetensors) or a "
            "llama2.c .bin file."
        )
    if not path.is_dir():
        return Source(path, *llama2c.read_model(path))
    config_path = path / "config.json"
    if not config_path.is_file():
        raise FileNotFoundError(f"{path} has no config.json; download all files of the model.")
    try:
        config = json.loads(config_path.read_text())
    except ValueError as error:
        raise ValueError(f"{config_path} is no JSON: {error}") from error
    return Source(path, config, open_checkpoint(path).tree)


def read_tokenizer(path: Path) -> Any:
    """Read a tokenizers.Tokenizer.

    Args:
      path: File: tokenizer.json, a .bin file of llama2.c, or WordPiece's vocab.txt.

    Raises:
      FileNotFoundError: If the file does not exist.
      ValueError: If the file cannot be read.
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
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error


def weights_of(source: Source, abstract: Any, *, fresh: Callable[[], Any] | None = None) -> Any:
    """Arrange a source's tensors as the parameters of a network, without reading them.

    Args:
      source: Model to read.
      abstract: Parameters as ShapeDtypeStructs, from `jax.eval_shape`.
      fresh: Initializer of the network's variables, for heads that the source lacks; None if the
        source must have all heads.

    Returns:
      A tree with the structure of `abstract`, of LazyArrays and of arrays from `fresh`.

    Raises:
      ValueError: If tensors are unknown or missing, or have another shape or no floating dtype;
        the message lists all.
    """
    prefix = huggingface.prefix_of(source.config)
    paths, structure = jax.tree_util.tree_flatten_with_path(abstract)
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in paths
    }
    tied = source.config.get("tie_word_embeddings", False)
    leaves: dict[str, Any] = {}
    problems = []
    names = unwrapped({name: name for name in source.tensors})
    for unwrapped_name, name in names.items():
        tensor = source.tensors[name]
        path, transposed = huggingface.path_of(unwrapped_name, prefix)
        if huggingface.IGNORED.match(unwrapped_name) or (tied and path == "lm_head/kernel"):
            continue  # a tied head and the embedding are one leaf
        shape = tensor.shape[::-1] if transposed else tensor.shape
        if path not in shapes:
            if path.split("/")[0] not in huggingface.TASK_PARTS:
                problems.append(f"{name} {tensor.shape}: the network has no such weights")
            continue
        leaves[path] = _finite(name, tensor, transposed)
        if shape != shapes[path]:
            problems.append(f"{name}: as {path} its shape is {shape}, not {shapes[path]}")
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"{name}: its dtype is {tensor.dtype}, which is no floating one")
    missing = [path for path in shapes if path not in leaves]
    optional = huggingface.TASK_PARTS if fresh else ()
    heads = [path for path in missing if path.split("/")[0] in optional]
    if heads:
        assert fresh is not None
        initial = flat_leaves(fresh()["params"])
        leaves |= {path: initial[path] for path in heads}
        print(f"{source.path} has no {', '.join(heads)}: drawn from the seed.", flush=True)
    problems += [
        f"{huggingface.name_of(path, prefix)[0]} {shapes[path]} is missing"
        for path in missing
        if path not in leaves
    ]
    if problems:
        raise ValueError(
            f"{source.path} does not fit its config.json in {len(problems)} places:\n  "
            + "\n  ".join(problems)
        )
    return jax.tree.unflatten(structure, [leaves[path] for path in shapes])


def _finite(name: str, tensor: LazyArray, transposed: bool) -> LazyArray:
    """Return a LazyArray that raises ValueError on reading a value that is not finite."""

    def read() -> np.ndarray:
        array = np.asarray(tensor)
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise ValueError(f"{name}: {bad} of {array.size} values are not finite.")
        return array.T if transposed else array

    return LazyArray(tensor.shape[::-1] if transposed else tensor.shape, tensor.dtype, read)


def write_language_model(
    folder: Path, config: Mapping[str, Any], params: Any, tokenizer: Path
) -> int:
    """Write a dense model as a Hugging Face folder, atomically.

    Args:
      folder: Folder to create, or an empty folder.
      config: Content of config.json.
      params: Parameters of a `Decoder` or `Encoder`, arrays.
      tokenizer: Path of tokenizer.json, which is copied.

    Returns:
      Size of the tensors, bytes.

    Raises:
      OSError: If the folder is not empty or cannot be written.
    """
    prefix = huggingface.prefix_of(config)
    tensors, shards, size = {}, {}, 0
    for path, leaf in flat_leaves(params).items():
        name, transposed = huggingface.name_of(path, prefix)
        array = np.asarray(leaf)
        tensors[name] = array.T if transposed else array
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
    with tempfile.TemporaryDirectory() as extras:
        (Path(extras) / "config.json").write_text(json.dumps(dict(config), indent=2))
        shutil.copyfile(tokenizer, Path(extras) / "tokenizer.json")
        written, _ = write_safetensors_folder(folder, tensors, layout, others=extras)
    return written
