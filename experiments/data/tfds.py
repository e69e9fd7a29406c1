"""Datasets through tensorflow-datasets' random-access sources; needs no TensorFlow."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.lazy import LazyImages
from sqs_jax.progress import track

Arrays = tuple[Any, np.ndarray]
Examples = list[dict[str, Any]]


def load(name: str, directory: str | None, test_split: str, size: int) -> tuple[Arrays, Arrays]:
    """Return (train, test) of a prepared dataset with the features "image" and "label".

    Args:
      name: dataset name, with its config if it has one ("cifar10").
      directory: where datasets are prepared; None for tensorflow-datasets' own default.
      test_split: its name for what is evaluated at the end.
      size: side, in pixels, of the squares that are made of images of several sizes.

    Raises:
      FileNotFoundError: if the dataset is not prepared there as array_record.
      ValueError: if it has other splits or features, images that cannot be read, or of several
        shapes.
    """
    builder = prepared(name, directory, ("train", test_split), ("image", "label"))
    return read_split(builder, "train", size), read_split(builder, test_split, size)


def read_examples(
    name: str, directory: str | None, test_split: str, features: Sequence[str]
) -> tuple[Examples, Examples]:
    """Return (train, test) of a prepared dataset, all examples as dictionaries, bytes as text.

    Args:
      name, directory, test_split: as `load`.
      features: that it must have.

    Raises:
      FileNotFoundError, ValueError: as `load`.
    """
    builder = prepared(name, directory, ("train", test_split), features)
    return _examples(builder, "train"), _examples(builder, test_split)


def prepared(
    name: str, directory: str | None, splits: Sequence[str], features: Sequence[str]
) -> Any:
    """Return the builder of a dataset that is prepared and has these splits and features.

    Raises:
      FileNotFoundError: if the dataset is not prepared there as array_record.
      ValueError: if it has other splits or features.
    """
    import tensorflow_datasets as tfds  # slow to import; only experiments that read it pay

    prepare = (
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
        f"data_dir={directory!r}, file_format='array_record').download_and_prepare()\""
    )
    # Looking first: without a network a download would fail only after minutes of retries.
    try:
        builder = tfds.builder(name, data_dir=directory, file_format="array_record")
        ready = builder.is_prepared()
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        first = str(error).splitlines()[0]  # hundreds of names follow
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
    found: Examples = []
    try:
        source = builder.as_data_source(split=split)
        for i in track(range(len(source)), f"reading {split}"):
            found.append(_texts(source[i]))
    except Exception as error:  # files that are missing or cut short: decoders have their own
        raise ValueError(
            f"{builder.data_dir}, split {split!r}, cannot be used: example {len(found)}: {error}. "
            "Remove the folder, and prepare it again."
        ) from error
    return found


def _texts(value: Any) -> Any:
    """Turn bytes into text, wherever they are."""
    if isinstance(value, dict):
        return {name: _texts(each) for name, each in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype.kind in "OS"):
        return [_texts(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value


def read_split(builder: Any, split: str, size: int) -> Arrays:
    """Read a split; of images of several sizes, the labels, which are kept beside the dataset.

    Args:
      builder: of a prepared dataset.
      split: its name.
      size: side of the squares, pixels.

    Returns:
      (images, labels).

    Raises:
      ValueError: listing examples that cannot be read, or shapes that differ.
    """
    import tensorflow_datasets as tfds

    several_sizes = None in builder.info.features["image"].shape
    kept = Path(builder.data_dir) / f"{split}_labels.npy"
    if several_sizes and kept.is_file():
        labels = np.load(kept, allow_pickle=False)
        if len(labels) == builder.info.splits[split].num_examples:
            return LazyImages(builder.as_data_source(split=split), size), labels
    undecoded = {"image": tfds.decode.SkipDecoding()} if several_sizes else None
    images, labels, problems = [], [], []
    try:
        source = builder.as_data_source(split=split, decoders=undecoded)
    except Exception as error:  # files that are missing or cut short
        source, problems = (), [str(error)]
    for i in track(range(len(source)), f"reading {split}"):
        try:
            example = source[i]
        except Exception as error:  # decoders have their own
            problems.append(f"example {i}: {error}")
            continue
        if example["image"] is None or example["label"] is None:  # what a cut file gives
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
        _keep(kept, np.asarray(labels))
        return LazyImages(builder.as_data_source(split=split), size), np.asarray(labels)
    return np.stack(images), np.asarray(labels)


def _keep(path: Path, labels: np.ndarray) -> None:
    """Write labels that took a pass over all images, where that is allowed."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.save(file, labels)
        os.replace(part, path)
    except OSError as error:
        print(f"{path} cannot be written ({error}): the labels are read anew at every start.")
