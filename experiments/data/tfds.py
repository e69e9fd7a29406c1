"""Prepared datasets of tensorflow-datasets, read by index without TensorFlow."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.lazy_images import LazyImages
from sqs_jax.progress import track

Arrays = tuple[Any, np.ndarray]
Examples = list[dict[str, Any]]


def load(name: str, directory: str | None, test_split: str, size: int) -> tuple[Arrays, Arrays]:
    """Return (train, test), each as (images, labels), of a prepared dataset.

    Args:
      name: Name of the dataset, with its config if it has one, such as "cifar10".
      directory: Data folder; None for the default of tensorflow-datasets.
      test_split: Name of the split for evaluation.
      size: Side of the center crops of images of several sizes, pixels.

    Raises:
      FileNotFoundError: If the dataset is not prepared as array_record in the folder.
      ValueError: If splits or the features "image" and "label" are missing, images cannot be read,
        or images that are not cropped differ in shape.
    """
    builder = prepared(name, directory, ("train", test_split), ("image", "label"))
    return read_split(builder, "train", size), read_split(builder, test_split, size)


def read_examples(
    name: str, directory: str | None, test_split: str, features: Sequence[str]
) -> tuple[Examples, Examples]:
    """Return all examples of (train, test) as dictionaries, with bytes decoded to text.

    Args:
      name: Name of the dataset, see `load`.
      directory: Data folder, see `load`.
      test_split: Name of the split for evaluation.
      features: Names of the features that the dataset needs.

    Raises:
      FileNotFoundError: If the dataset is not prepared as array_record in the folder.
      ValueError: If splits or features are missing, or an example cannot be read.
    """
    builder = prepared(name, directory, ("train", test_split), features)
    return _examples(builder, "train"), _examples(builder, test_split)


def prepared(
    name: str, directory: str | None, splits: Sequence[str], features: Sequence[str]
) -> Any:
    """Return the builder of a prepared dataset, with its splits and features checked.

    Args:
      name: Name of the dataset, see `load`.
      directory: Data folder, see `load`.
      splits: Names of the splits that the dataset needs.
      features: Names of the features that the dataset needs.

    Raises:
      FileNotFoundError: If the dataset is not prepared as array_record in the folder.
      ValueError: If splits or features are missing.
    """
    import tensorflow_datasets as tfds  # slow import, only for experiments that need it

    prepare = (
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
        f"data_dir={directory!r}, file_format='array_record').download_and_prepare()\""
    )
    # Checked first, because without a network a download fails only after minutes of retries.
    try:
        builder = tfds.builder(name, data_dir=directory, file_format="array_record")
        ready = builder.is_prepared()
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        first = str(error).splitlines()[0]  # the next lines list hundreds of names
        raise FileNotFoundError(
            f"No dataset {name!r} under {directory or 'the default directory'}: {first} "
            f"Prepare it: {prepare}"
        ) from error
    if not ready:
        raise FileNotFoundError(
            f"Dataset {name!r} is not prepared as array_record in {builder.data_dir}. "
            f"Prepare it: {prepare}"
        )
    missing, lacking = (
        set(splits) - set(builder.info.splits),
        set(features) - set(builder.info.features),
    )
    if missing or lacking:
        needed = ", ".join(map(repr, (*splits, *features)))
        raise ValueError(
            f"Dataset {name!r} lacks the splits {sorted(missing)} and the features "
            f"{sorted(lacking)}; this loader needs {needed}. "
            f"There are {sorted(builder.info.splits)}: config.data.test_split names one."
        )
    return builder


def _examples(builder: Any, split: str) -> Examples:
    """Read a split without images."""
    examples: Examples = []
    try:
        source = builder.as_data_source(split=split)
        for i in track(range(len(source)), f"reading {split}"):
            examples.append(_decoded(source[i]))
    except Exception as error:  # missing or truncated files; the exception depends on the decoder
        number = len(examples)
        raise ValueError(
            f"{builder.data_dir}, split {split!r}, cannot be used: example {number}: {error}. "
            "Remove the folder, and prepare it again."
        ) from error
    return examples


def _decoded(value: Any) -> Any:
    """Decode all bytes of a nested value to text."""
    if isinstance(value, dict):
        return {name: _decoded(item) for name, item in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype.kind in "OS"):
        return [_decoded(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def read_split(builder: Any, split: str, size: int) -> Arrays:
    """Read the images and labels of a split.

    Images of several sizes stay in their files; their labels need a pass over the whole split and
    are cached in a file beside the dataset.

    Args:
      builder: Builder of a prepared dataset.
      split: Name of the split.
      size: Side of the center crops of images of several sizes, pixels.

    Returns:
      (images, labels); images are an array, or LazyImages if they have several sizes.

    Raises:
      ValueError: If examples cannot be read, or shapes differ; the message lists them.
    """
    import tensorflow_datasets as tfds

    several_sizes = None in builder.info.features["image"].shape
    cache = Path(builder.data_dir) / f"{split}_labels.npy"
    if several_sizes and cache.is_file():
        labels = np.load(cache, allow_pickle=False)
        if len(labels) == builder.info.splits[split].num_examples:
            return LazyImages(builder.as_data_source(split=split), size), labels
    undecoded = {"image": tfds.decode.SkipDecoding()} if several_sizes else None
    images, labels, problems = [], [], []
    try:
        source = builder.as_data_source(split=split, decoders=undecoded)
    except Exception as error:  # missing or truncated files
        source, problems = (), [str(error)]
    for i in track(range(len(source)), f"reading {split}"):
        try:
            example = source[i]
        except Exception as error:  # the exception depends on the decoder
            problems.append(f"example {i}: {error}")
            continue
        if example["image"] is None or example["label"] is None:  # in a truncated file
            problems.append(f"example {i} is empty")
            continue
        labels.append(example["label"])
        if not several_sizes:
            images.append(example["image"])
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        problems.append(f"images have {len(shapes)} shapes, {sorted(shapes)[:3]}, ...")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{builder.data_dir}, split {split!r}, cannot be used: {'; '.join(problems[:5])}{more}."
            " Remove the folder, and prepare it again."
        )
    if several_sizes:
        _cache_labels(cache, np.asarray(labels))
        return LazyImages(builder.as_data_source(split=split), size), np.asarray(labels)
    return np.stack(images), np.asarray(labels)


def _cache_labels(path: Path, labels: np.ndarray) -> None:
    """Write labels atomically, or print a message if the folder is read-only."""
    partial_file = path.with_suffix(".part")
    try:
        with partial_file.open("wb") as file:
            np.save(file, labels)
        os.replace(partial_file, path)
    except OSError as error:
        print(f"{path} cannot be written ({error}): the labels are read anew at every start.")
