"""Convert downloaded archives to the data files of the experiments.

    python -m experiments.prepare --output=DATA cifar-10-binary.tar.gz wikitext-2-raw-v1.zip

The binary versions of CIFAR-10 and CIFAR-100, https://www.cs.toronto.edu/~kriz/cifar.html, become
cifar10.npz and cifar100.npz (fine labels). WikiText-2, raw or tokenized, becomes
wikitext2_train.txt, wikitext2_valid.txt and wikitext2_test.txt. The Python versions of CIFAR are
refused, because reading a pickle can run arbitrary code.
"""

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from absl import app, flags

from experiments.files import write_bytes
from sqs_jax.progress import progress

_IMAGE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
# Stems of the members' names, with the part of the dataset.
_CIFAR100 = {"train": "train", "test": "test"}
_BATCHES = {"test_batch": "test"} | {f"data_batch_{i}": "train" for i in range(1, 6)}
_COUNTS = {"train": 50_000, "test": 10_000}
Batch = tuple[np.ndarray, np.ndarray]


@progress("reading an archive")
def prepare(archive: Path, output: Path) -> list[Path]:
    """Convert an archive, and return the paths of the files.

    Args:
      archive: Archive of CIFAR-10 or CIFAR-100 (.tar.gz), or of WikiText-2 (.zip).
      output: Folder of the files; created if missing.

    Raises:
      FileNotFoundError: If the archive does not exist.
      ValueError: If the archive is damaged or unknown.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"{archive} is not there; download it first.")
    try:
        if zipfile.is_zipfile(archive):
            files = _texts(archive)
        elif tarfile.is_tarfile(archive):
            files = _images(archive)
        else:
            raise ValueError("it is neither a tar nor a zip file")
    except Exception as error:  # tarfile, zipfile and zlib raise exceptions of different classes
        raise ValueError(f"{archive} cannot be used: {error}. Download it again.") from error
    output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(output / name, content)
    return [output / name for name in files]


def _images(archive: Path) -> dict[str, bytes]:
    """Return {name: content} of the .npz file of a CIFAR archive."""
    parts: dict[tuple[str, str], list[Batch]] = {}
    with tarfile.open(archive) as tar:
        names = sorted(member.name for member in tar if member.isfile())
        if any(PurePosixPath(name).name in {*_BATCHES, *_CIFAR100} for name in names):
            raise ValueError("it is the version for Python; its page has a binary version, too")
        for name in names:
            path = PurePosixPath(name)
            part = _BATCHES.get(path.stem) or _CIFAR100.get(path.stem)
            if part is None or path.suffix != ".bin":
                continue
            dataset = "cifar10" if path.stem in _BATCHES else "cifar100"
            stream = tar.extractfile(name)
            assert stream is not None  # the member is a file
            parts.setdefault((dataset, part), []).append(_read(stream.read(), dataset))
    datasets = {dataset for dataset, _ in parts}
    if len(datasets) != 1:
        raise ValueError("it holds no batches of CIFAR-10 or CIFAR-100")
    (dataset,) = datasets
    arrays: dict[str, Any] = {}
    for part, count in _COUNTS.items():
        batches = parts.get((dataset, part), [])
        images_read = sum(len(labels) for _, labels in batches)
        if images_read != count:
            raise ValueError(
                f"it has {images_read:,} images for {part} of {dataset}, not {count:,}"
            )
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        arrays[f"{part}_images"] = images.reshape(-1, *_IMAGE).transpose(0, 2, 3, 1)
        arrays[f"{part}_labels"] = labels.astype(np.int32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return {f"{dataset}.npz": buffer.getvalue()}


def _read(content: bytes, dataset: str) -> Batch:
    """Return (pixels, labels) of records; of two labels the fine label is returned."""
    labels = 1 if dataset == "cifar10" else 2  # CIFAR-100 has a coarse and a fine label
    records = np.frombuffer(content, np.uint8).reshape(-1, labels + _PIXELS)
    return records[:, labels:], records[:, labels - 1]


def _texts(archive: Path) -> dict[str, bytes]:
    """Return {name: content} of the three texts of a WikiText-2 archive."""
    files = dict(_parts_of_text(archive))
    if missing := {"train", "valid", "test"} - files.keys():
        raise ValueError(f"it holds no wiki.{'.*, wiki.'.join(sorted(missing))}.*")
    return {f"wikitext2_{part}.txt": content for part, content in files.items()}


def _parts_of_text(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (part, content) of the members wiki.PART.raw or wiki.PART.tokens."""
    with zipfile.ZipFile(archive) as members:
        for name in members.namelist():
            stem, _, ending = PurePosixPath(name).name.rpartition(".")
            if stem.startswith("wiki.") and ending in ("raw", "tokens"):
                yield stem.removeprefix("wiki."), members.read(name)


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        raise app.UsageError("Name the archives that you have downloaded.")
    for archive in map(Path, arguments[1:]):
        for path in prepare(archive, Path(flags.FLAGS.output)):
            print(f"{path}: {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "Folder of the files.", required=True)
    app.run(main)
