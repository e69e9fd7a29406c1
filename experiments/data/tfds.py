"""Image datasets through tensorflow-datasets' random-access sources; needs no TensorFlow."""

from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]


def load(name: str, directory: str | None) -> tuple[Arrays, Arrays]:
    """Return (train, test) of a prepared dataset with the features "image" and "label".

    Args:
      name: dataset name, with its config if it has one ("cifar10").
      directory: where datasets are prepared; None for tensorflow-datasets' own default.

    Raises:
      FileNotFoundError: if the dataset is not prepared there as array_record.
      ValueError: if it has other splits or features, images that cannot be read, or of several
        shapes.
    """
    import tensorflow_datasets as tfds  # slow to import; only experiments that read it pay

    prepare = (
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
        f"data_dir={directory!r}, file_format='array_record').download_and_prepare()\""
    )
    # Looking first: without a network a download would fail only after minutes of retries.
    try:
        builder = tfds.builder(name, data_dir=directory, file_format="array_record")
        prepared = builder.is_prepared()
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            f"No dataset {name!r} under {directory or 'the default directory'}: {error}. "
            f"Prepare it: {prepare}"
        ) from error
    if not prepared:
        raise FileNotFoundError(
            f"Dataset {name!r} is not prepared as array_record in {builder.data_dir}. "
            f"Prepare it: {prepare}"
        )
    missing = {"train", "test"} - set(builder.info.splits)
    lacking = {"image", "label"} - set(builder.info.features)
    if missing or lacking:
        raise ValueError(
            f"Dataset {name!r} lacks the splits {sorted(missing)} and the features "
            f"{sorted(lacking)}; this loader needs 'train', 'test', 'image' and 'label'."
        )
    return _read(builder, "train"), _read(builder, "test")


def _read(builder: Any, split: str) -> Arrays:
    source = builder.as_data_source(split=split)
    images, labels, problems = [], [], []
    for i in range(len(source)):
        try:
            example = source[i]
        except Exception as error:  # decoders have their own
            problems.append(f"example {i}: {error}")
            continue
        images.append(example["image"])
        labels.append(example["label"])
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        problems.append(f"images have {len(shapes)} shapes, {sorted(shapes)[:3]}, ...")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{builder.data_dir}, split {split!r}, cannot be used: {'; '.join(problems[:5])}{more}."
            " Remove the folder, and prepare it again."
        )
    return np.stack(images), np.asarray(labels)
