"""Tests of the conversion of downloaded archives to data files."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments import prepare as prepare_module
from experiments.data import npz_file
from experiments.data.text import read_texts
from experiments.prepare import prepare


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "_COUNTS", {"train": 20, "test": 4})


def _planes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def _tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _cifar10() -> dict[str, bytes]:
    """Return batches of four images; image i of batch b has the label (b + i) % 10."""
    members = {}
    for number, name in enumerate([f"data_batch_{b}" for b in range(1, 6)] + ["test_batch"]):
        labels = np.array([(number + i) % 10 for i in range(4)], np.uint8)
        records = np.concatenate([labels[:, None], _planes(4, number)], 1)
        members[f"cifar-10-batches-bin/{name}.bin"] = records.tobytes()
    return members | {"cifar-10-batches-bin/readme.html": b"<html>"}


def test_cifar10_keeps_labels_and_pixels(tmp_path: Path) -> None:
    (path,) = prepare(_tar(tmp_path / "download", _cifar10()), tmp_path / "data")
    assert path == tmp_path / "data" / "cifar10.npz"
    (images, labels), (test_images, test_labels) = npz_file.load(path)
    assert labels[:6].tolist() == [0, 1, 2, 3, 1, 2] and test_labels.tolist() == [5, 6, 7, 8]
    # A record stores the red, green and blue planes, each row by row.
    planes = _planes(4, 1)[2].reshape(3, 32, 32)
    np.testing.assert_array_equal(images[6, 5, 7], planes[:, 5, 7])
    np.testing.assert_array_equal(
        test_images[0, 31, 0], _planes(4, 5)[0].reshape(3, 32, 32)[:, 31, 0]
    )


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    members = {"cifar-100-binary/fine_label_names.txt": b"apple"}
    for name, count in (("train", 20), ("test", 4)):
        fine = np.arange(count, dtype=np.uint8) + 70
        records = np.concatenate([fine[:, None] // 5, fine[:, None], _planes(count, 0)], 1)
        members[f"cifar-100-binary/{name}.bin"] = records.tobytes()
    (path,) = prepare(_tar(tmp_path / "download", members), tmp_path)
    (_, labels), _ = npz_file.load(path)
    assert path.name == "cifar100.npz" and labels.tolist() == list(range(70, 90))


def test_wikitext_keeps_its_texts(tmp_path: Path) -> None:
    archive = tmp_path / "wikitext-2-raw-v1.zip"
    with zipfile.ZipFile(archive, "w") as members:
        for part in ("train", "valid", "test"):
            members.writestr(f"wikitext-2-raw/wiki.{part}.raw", f" = {part} = \n\n caf\u00e9 .\n")
    paths = prepare(archive, tmp_path / "data")
    assert [path.name for path in paths] == [
        "wikitext2_train.txt", "wikitext2_valid.txt", "wikitext2_test.txt",
    ]  # fmt: skip
    train, test = read_texts(tmp_path / "data", "wikitext2")
    assert train == " = train = \n\n caf\u00e9 .\n" and test.startswith(" = test =")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": b"text"}, "holds no batches of CIFAR-10 or CIFAR-100"),
        (_cifar10() | {"x/test_batch.bin": b"1" * 100}, "cannot reshape"),
        ({"cifar-10-batches-py/data_batch_1": b""}, "version for Python; .* a binary version"),
        ({"cifar-100-python/train": b""}, "version for Python; .* a binary version"),
        ({k: v for k, v in _cifar10().items() if "batch_3" not in k},
         "16 images for train of cifar10, not 20"),
    ],
)  # fmt: skip
def test_archives_of_other_contents_are_refused(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    archive = _tar(tmp_path / "download.tar.gz", members)
    with pytest.raises(ValueError, match=message) as error:
        prepare(archive, tmp_path / "data")
    assert str(archive) in str(error.value) and "Download it again" in str(error.value)
    assert not (tmp_path / "data").exists()


def test_truncated_and_missing_archives_are_refused(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "download.tar.gz", _cifar10())
    archive.write_bytes(archive.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"download.tar.gz cannot be used: .*Download it again"):
        prepare(archive, tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="other is not there"):
        prepare(tmp_path / "other", tmp_path / "data")
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(ValueError, match="neither a tar nor a zip"):
        prepare(tmp_path / "text", tmp_path / "data")
