"""Image datasets as one plain .npz file."""

from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]

_PARTS = ("train", "test")


def load(path: Path) -> tuple[Arrays, Arrays]:
    """Return (train, test) of a file with train_images, train_labels, test_images, test_labels.

    Args:
      path: images uint8 [n, height, width, channels], labels integers [n].

    Raises:
      ValueError: if the file cannot be read, or is not that; all that is wrong is listed.
    """
    names = [f"{part}_{what}" for part in _PARTS for what in ("images", "labels")]
    try:
        # opened here: numpy leaves a file open that it cannot read
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = {name: file[name] for name in names if name in file}
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise ValueError(f"{path} cannot be read: {error}. Make it again.") from error
    problems = [f"{name} is missing" for name in names if name not in found]
    for part in _PARTS:
        images, labels = (found.get(f"{part}_{what}") for what in ("images", "labels"))
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
        (found[f"{part}_images"], found[f"{part}_labels"].astype(np.int32)) for part in _PARTS
    )
    return train, test
