"""Make the files that experiments read from archives as they are downloaded.

    python -m experiments.prepare --output=DATA cifar-10-binary.tar.gz wikitext-2-raw-v1.zip

CIFAR-10 and CIFAR-100, https://www.cs.toronto.edu/~kriz/cifar.html, in their binary versions,
become cifar10.npz and cifar100.npz (fine labels); WikiText-2, raw or tokenised, becomes
wikitext2_train.txt, wikitext2_valid.txt and wikitext2_test.txt. The Python versions of CIFAR are
pickles, which run code when they are read.
"""

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from absl import app, flags

from experiments.atomic_files import write_bytes
from sqs_jax.progress import progress

_IMAGE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
# A member's name, without its ending -> (dataset, part); CIFAR-10's are batches.
_CIFAR100 = {"train": "train", "test": "test"}
_BATCHES = {"test_batch": "test"} | {f"data_batch_{i}": "train" for i in range(1, 6)}
_COUNTS = {"train": 50_000, "test": 10_000}
Batch = tuple[np.ndarray, np.ndarray]


@progress("reading an archive")
def prepare(archive: Path, output: Path) -> list[Path]:
    """Write the files of one archive to a folder, which is made; returns their paths.

    Args:
      archive: of CIFAR-10, CIFAR-100 (.tar.gz) or WikiText-2 (.zip).
      output: the folder.

    Raises:
      FileNotFoundError: if there is no archive.
      ValueError: if it is damaged, or none of these.
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
    except Exception as error:  # tarfile, zipfile and zlib each have their own
        raise ValueError(f"{archive} cannot be used: {error}. Download it again.") from error
    output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_bytes(output / name, content)
    return [output / name for name in files]


def _images(archive: Path) -> dict[str, bytes]:
    """Return the .npz of a CIFAR archive, by its name."""
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
            assert stream is not None  # it is a file
            parts.setdefault((dataset, part), []).append(_read(stream.read(), dataset))
    datasets = {dataset for dataset, _ in parts}
    if len(datasets) != 1:
        raise ValueError("it holds no batches of CIFAR-10 or CIFAR-100")
    (dataset,) = datasets
    arrays: dict[str, Any] = {}
    for part, count in _COUNTS.items():
        batches = parts.get((dataset, part), [])
        found = sum(len(labels) for _, labels in batches)
        if found != count:
            raise ValueError(f"it has {found:,} images for {part} of {dataset}, not {count:,}")
        images, labels = (np.concatenate(each) for each in zip(*batches, strict=True))
        arrays[f"{part}_images"] = images.reshape(-1, *_IMAGE).transpose(0, 2, 3, 1)
        arrays[f"{part}_labels"] = labels.astype(np.int32)
    whole = io.BytesIO()
    np.savez_compressed(whole, **arrays)
    return {f"{dataset}.npz": whole.getvalue()}


def _read(content: bytes, dataset: str) -> Batch:
    """Read records of a label, or a coarse and a fine one, and the pixels, plane after plane."""
    labels = 1 if dataset == "cifar10" else 2
    records = np.frombuffer(content, np.uint8).reshape(-1, labels + _PIXELS)
    return records[:, labels:], records[:, labels - 1]


def _texts(archive: Path) -> dict[str, bytes]:
    """Return the three texts of WikiText-2, by the names they get."""
    files = dict(_parts_of_text(archive))
    if missing := {"train", "valid", "test"} - files.keys():
        raise ValueError(f"it holds no wiki.{'.*, wiki.'.join(sorted(missing))}.*")
    return {f"wikitext2_{part}.txt": content for part, content in files.items()}


def _parts_of_text(archive: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as found:
        for name in found.namelist():
            owner, _, ending = PurePosixPath(name).name.rpartition(".")
            if owner.startswith("wiki.") and ending in ("raw", "tokens"):
                yield owner.removeprefix("wiki."), found.read(name)


def main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        raise app.UsageError("Name the archives that you have downloaded.")
    for archive in map(Path, arguments[1:]):
        for path in prepare(archive, Path(flags.FLAGS.output)):
            print(f"{path}: {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "Folder that the files go to.", required=True)
    app.run(main)
