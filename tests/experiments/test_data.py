"""Tests of image datasets: batches, splits, augmentation, files, lazy images."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from experiments import data
from experiments.data import Dataset, augment, augmented, batch_indices
from experiments.data.lazy_images import LazyImages
from experiments.data.tfds import read_split


def settings(**changes: Any) -> SimpleNamespace:
    fields = {"name": "digits", "directory": "", "holdout": "test", "mean": (), "deviation": ()}
    fields |= {"test_split": "test", "image_size": 8, "pad": "black"}
    return SimpleNamespace(**fields | changes)


def test_an_epoch_visits_every_example_once() -> None:
    seen = np.concatenate([batch_indices(100, 10, seed=3, step=s) for s in range(10)])
    assert sorted(seen) == list(range(100))
    again = np.concatenate([batch_indices(100, 10, seed=3, step=s) for s in range(10, 20)])
    assert sorted(again) == list(range(100)) and (seen != again).any()


def test_a_batch_depends_only_on_seed_and_step() -> None:
    np.testing.assert_array_equal(batch_indices(50, 8, 1, 17), batch_indices(50, 8, 1, 17))
    assert (batch_indices(50, 8, 1, 17) != batch_indices(50, 8, 2, 17)).any()
    with pytest.raises(ValueError, match="batch_size is 51"):
        batch_indices(50, 51, 0, 0)


def test_the_split_of_digits_is_stratified_and_depends_on_the_seed() -> None:
    splits = data.load(settings(), seed=0)
    assert splits.train.examples.shape == (1257, 8, 8, 1)
    assert splits.holdout.examples.shape == (540, 8, 8, 1)
    shares = [np.bincount(part.labels) / len(part.labels) for part in splits[:2]]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.005)
    other = data.load(settings(), seed=1)
    assert (other.holdout.examples != splits.holdout.examples).any()


def test_the_validation_part_is_taken_from_the_training_part() -> None:
    whole = data.load(settings(), seed=0)
    chosen = data.load(settings(holdout="validation"), seed=0)
    assert len(chosen.train.labels) + len(chosen.holdout.labels) == len(whole.train.labels)


def test_augmentation_shifts_and_mirrors_images() -> None:
    images = jnp.arange(2 * 6 * 6, dtype=jnp.float32).reshape(2, 6, 6, 1)
    key = jax.random.key(0)
    np.testing.assert_array_equal(augment(key, images, shift=0, flip=False), images)
    moved = augment(key, images, shift=2, flip=False)
    padded = np.pad(np.asarray(images), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    for image, source in zip(np.asarray(moved), padded, strict=True):
        assert any(
            (image == source[i : i + 6, j : j + 6]).all() for i in range(5) for j in range(5)
        )
    many = jnp.repeat(images[:1], 200, axis=0)
    mirrored = np.asarray(augment(key, many, shift=0, flip=True))
    flipped = (mirrored != np.asarray(many)).any((1, 2, 3))
    assert 60 < flipped.sum() < 140


@pytest.mark.parametrize("pad", ["black", "edge"])
def test_pixels_that_enter_with_a_shift_are_black_or_repeat_the_edge(pad: str) -> None:
    """A black pixel is -mean / deviation of its channel; the stored images have none."""
    stored = np.random.default_rng(0).integers(1, 256, (64, 6, 6, 3), np.uint8)
    labels = np.zeros(64, np.int32)
    dataset = Dataset(stored, labels, np.float32([100, 120, 90]), np.float32([50, 60, 70]))
    config = settings(shift=2, flip=True, pad=pad)
    seen = np.asarray(augmented(jax.random.key(0), stored, dataset, config))
    assert seen.shape == stored.shape
    black = (np.abs(seen - np.float32([-2, -2, -9 / 7])) < 1e-6).all(-1)
    if pad == "edge":
        assert not black.any()
        return
    # Over 5 shifts, (0 + 1 + 2 + 1 + 2) / 5 = 1.2 of 6 rows enter on average, and of 6 columns.
    assert black.mean() == pytest.approx(1 - 0.8**2, abs=0.06)
    assert black[:, 2:4, 2:4].sum() == 0
    unshifted = np.asarray(dataset.standardize(stored))
    for image, original, entered in zip(seen, unshifted, black, strict=True):
        values = {tuple(x) for x in np.round(image[~entered], 5)}
        assert values <= {tuple(x) for x in np.round(original.reshape(-1, 3), 5)}


def test_an_unknown_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="pad is 'white'; it must be 'black' or 'edge'"):
        data.load(settings(pad="white"), seed=0)


_SIZES = {"train": 30, "test": 12}


class TinyDigits(tfds.core.GeneratorBasedBuilder):
    """Digits as a dataset; a Tensor feature, because encoding images needs TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = epath.Path(__file__).parent

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager: object) -> dict[str, object]:
        return {name: self._generate_examples(name) for name in _SIZES}

    def _generate_examples(self, name: str) -> object:
        whole = data.load(settings(), seed=0).train
        for i in range(_SIZES[name]):
            image = whole.examples[i].astype(np.uint8)
            yield i, {"image": image, "label": int(whole.labels[i])}


def test_tensorflow_datasets_are_read_without_tensorflow(tmp_path: Path) -> None:
    builder = TinyDigits(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    splits = data.load(settings(name="tiny_digits", directory=str(tmp_path)), seed=0)
    assert splits.train.examples.shape == (30, 8, 8, 1)
    assert splits.train.examples.dtype == np.uint8 and splits.train.labels.dtype == np.int32
    assert splits.holdout.examples.shape == (12, 8, 8, 1)
    inputs = splits.train.inputs(slice(None))
    assert inputs.dtype == np.float32
    assert abs(float(inputs.mean())) < 1e-6
    assert float(inputs.std()) == pytest.approx(1, abs=1e-5)


def test_errors_of_partial_and_damaged_datasets_name_the_dataset(tmp_path: Path) -> None:
    builder = TinyDigits(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    section = settings(name="tiny_digits", directory=str(tmp_path))
    (shard,) = Path(builder.data_dir).glob("*train*array_record*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"tiny_digits.*'train', cannot be used.*prepare it again"):
        data.load(section, seed=0)
    shard.unlink()
    with pytest.raises(ValueError, match=r"tiny_digits.*'train', cannot be used.*prepare it again"):
        data.load(section, seed=0)
    (Path(builder.data_dir) / "dataset_info.json").unlink()
    with pytest.raises(FileNotFoundError, match="download_and_prepare"):
        data.load(section, seed=0)


def test_a_split_is_chosen_by_name_and_unknown_names_are_refused(tmp_path: Path) -> None:
    TinyDigits(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    location = {"name": "tiny_digits", "directory": str(tmp_path)}
    with pytest.raises(ValueError, match=r"\['validation'\].*\['test', 'train'\].*test_split"):
        data.load(settings(**location, test_split="validation"), seed=0)
    assert len(data.load(settings(**location, test_split="train"), seed=0).holdout.labels) == 30


class Photographs:
    """Source of decoded images of several sizes, of which image 3 cannot be read."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 3:
            raise OSError("cut short")
        ramp = np.linspace(0, 255, 60 + 10 * index)
        return {"image": np.repeat(ramp[None, :, None], 80, 0).repeat(3, 2).astype(np.uint8)}


def test_lazy_images_are_center_crops_read_on_indexing() -> None:
    images = LazyImages(Photographs(), size=28)
    assert images.shape == (5, 28, 28, 3) and len(images.part(slice(3))) == 3
    crops = images[np.array([2, 0])]
    assert crops.shape == (2, 28, 28, 3) and crops.dtype == np.uint8
    # The crop keeps the middle 7/8 of a ramp from left to right.
    assert crops[0].mean() == pytest.approx(127.5, abs=2)
    assert np.ptp(crops[0]) == pytest.approx(255 * 7 / 8, abs=10)
    np.testing.assert_array_equal(images.part(slice(2, None))[[0]], crops[:1])
    assert images[slice(0)].shape == (0, 28, 28, 3)
    with pytest.raises(ValueError, match="example 3: cut short"):
        images[1:]


def test_labels_of_lazy_images_are_cached(tmp_path: Path) -> None:
    passes = []

    def source(split: str, decoders: Any = None) -> list[dict[str, Any]]:
        passes.append(decoders)
        return [{"image": b"", "label": i} for i in range(4)]

    info = SimpleNamespace(
        features={"image": SimpleNamespace(shape=(None, None, 3))},
        splits={"train": SimpleNamespace(num_examples=4)},
    )
    builder = SimpleNamespace(info=info, data_dir=str(tmp_path), as_data_source=source)
    for _ in range(2):
        images, labels = read_split(builder, "train", 8)
        assert isinstance(images, LazyImages) and images.shape == (4, 8, 8, 3)
        np.testing.assert_array_equal(labels, range(4))
    # Only the first pass reads labels, without decoding the images.
    assert [decoders is not None for decoders in passes] == [True, False, False]
    np.save(tmp_path / "train_labels.npy", np.arange(3))  # stale cache
    assert len(read_split(builder, "train", 8)[1]) == 4


def test_the_error_of_an_unprepared_dataset_gives_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*cifar10\.npz.*download_and_prepare"):
        data.load(settings(name="cifar10", directory=str(tmp_path)), seed=0)
    with pytest.raises(FileNotFoundError, match="no_such_data"):
        data.load(settings(name="no_such_data", directory=str(tmp_path)), seed=0)


def arrays(**changes: Any) -> dict[str, Any]:
    images = np.arange(20 * 4 * 4 * 3, dtype=np.uint8).reshape(20, 4, 4, 3)
    labels = np.arange(20) % 5
    return {
        "train_images": images,
        "train_labels": labels,
        "test_images": images[:6],
        "test_labels": labels[:6],
    } | changes


def test_an_npz_file_is_a_dataset_with_the_same_splits(tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", **arrays())
    location = {"name": "small", "directory": str(tmp_path)}
    splits = data.load(settings(**location), seed=0)
    assert len(splits.train.labels) == 20 and len(splits.holdout.labels) == 6
    assert splits.num_classes == 5
    last = data.load(settings(holdout="validation", **location), seed=0)
    np.testing.assert_array_equal(last.holdout.examples, arrays()["train_images"][18:])
    np.testing.assert_array_equal(last.train.labels, arrays()["train_labels"][:18])


def test_mismatching_parts_are_refused(tmp_path: Path) -> None:
    unlabeled = {"test_images": np.zeros((6, 5, 5, 3), np.uint8), "test_labels": -np.ones(6, int)}
    np.savez(tmp_path / "odd.npz", **arrays(**unlabeled))
    with pytest.raises(ValueError) as error:
        data.load(settings(name="odd", directory=str(tmp_path)), seed=0)
    assert "6 labels of the test part are negative" in str(error.value)
    assert "training images are (4, 4, 3), test images (5, 5, 3)" in str(error.value)


def test_channels_are_standardized_by_the_config(tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", **arrays())
    location = {"name": "small", "directory": str(tmp_path)}
    moments = {"mean": (0.5, 0.4, 0.3), "deviation": (0.2, 0.3, 0.4)}
    train = data.load(settings(**location, **moments), seed=0).train
    expected = (train.examples[[3, 1]] / 255 - moments["mean"]) / moments["deviation"]
    np.testing.assert_allclose(train.inputs([3, 1]), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="1 numbers, the images 3 channels"):
        data.load(settings(**location, mean=(0.5,), deviation=(0.2, 0.3, 0.4)), seed=0)
    with pytest.raises(ValueError, match="must be positive"):
        data.load(settings(**location, mean=(0, 0, 0), deviation=(0.2, 0, 0.4)), seed=0)


def test_the_error_of_an_npz_file_lists_all_problems(tmp_path: Path) -> None:
    wrong = arrays(train_images=np.zeros((20, 4, 4), np.float32), test_labels=np.zeros(5, np.int64))
    wrong.pop("train_labels")
    np.savez(tmp_path / "wrong.npz", **wrong)
    with pytest.raises(ValueError) as error:
        data.load(settings(name="wrong", directory=str(tmp_path)), seed=0)
    for problem in ("train_labels is missing", "float32 (20, 4, 4)", "6 test_images, but 5 labels"):
        assert problem in str(error.value)
    (tmp_path / "half.npz").write_bytes((tmp_path / "wrong.npz").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"half\.npz cannot be read"):
        data.load(settings(name="half", directory=str(tmp_path)), seed=0)
