"""Image datasets in a single .npz file."""

from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]

_PARTS = ("train", "test")


def load(path: Path) -> tuple[Arrays, Arrays]:
    """Return (train, test), each as (images, labels).

    Args:
      path: File with train_images and test_images, uint8 [n, height, width, channels], and
        train_labels and test_labels, integers [n].

    Raises:
      ValueError: If the file cannot be read or arrays are missing or of another kind; the message
        lists every problem.
    """
    names = [f"{part}_{field}" for part in _PARTS for field in ("images", "labels")]
    try:
        # The stream is opened here, because np.load(path) does not close a file it cannot read.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file}
    except Exception as error:  # zipfile, zlib and numpy raise exceptions of different classes
        raise ValueError(f"{path} cannot be read: {error}. Make it again.") from error
    problems = [f"{name} is missing" for name in names if name not in arrays]
    for part in _PARTS:
        images, labels = (arrays.get(f"{part}_{field}") for field in ("images", "labels"))
        if images is not None and (images.ndim != 4 or images.dtype != np.uint8):
            problems.append(f"{part}_images are {images.dtype} {images.shape}, not uint8 [n,h,w,c]")
        if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
            problems.append(f"{part}_labels are {labels.dtype} {labels.shape}, not integers [n]")
        if images is not None and labels is not None and len(images) != len(labels):
            problems.append(f"there are {len(images)} {part}_images, but {len(labels)} labels")
        if images is not None and not len(images):
            problems.append(f"there are no {part}_images")
    if problems:
        raise ValueError(f"{path} is no dataset of images: {'; '.join(problems)}.")
    train, test = (
        (arrays[f"{part}_images"], arrays[f"{part}_labels"].astype(np.int32)) for part in _PARTS
    )
    return train, test
