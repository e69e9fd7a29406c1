"""Data: deterministic batches, splits by the seed, and the path through tensorflow-datasets."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from experiments import data
from experiments.data import augment, batch_indices


def settings(**changes: str) -> SimpleNamespace:
    return SimpleNamespace(**{"name": "digits", "directory": "", "holdout": "test"} | changes)


def test_an_epoch_visits_every_example_once() -> None:
    seen = np.concatenate([batch_indices(100, 10, seed=3, step=s) for s in range(10)])
    assert sorted(seen) == list(range(100))
    again = np.concatenate([batch_indices(100, 10, seed=3, step=s) for s in range(10, 20)])
    assert sorted(again) == list(range(100)) and (seen != again).any()


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    np.testing.assert_array_equal(batch_indices(50, 8, 1, 17), batch_indices(50, 8, 1, 17))
    assert (batch_indices(50, 8, 1, 17) != batch_indices(50, 8, 2, 17)).any()
    with pytest.raises(ValueError, match="batch_size is 51"):
        batch_indices(50, 51, 0, 0)


def test_digits_split_is_stratified_and_drawn_by_the_seed() -> None:
    splits = data.load(settings(), seed=0)
    assert splits.train.images.shape == (1257, 8, 8, 1)
    assert splits.holdout.images.shape == (540, 8, 8, 1)
    shares = [np.bincount(part.labels) / len(part.labels) for part in splits[:2]]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.005)
    other = data.load(settings(), seed=1)
    assert (other.holdout.images != splits.holdout.images).any()


def test_validation_part_comes_from_the_training_part() -> None:
    whole = data.load(settings(), seed=0)
    chosen = data.load(settings(holdout="validation"), seed=0)
    assert len(chosen.train.labels) + len(chosen.holdout.labels) == len(whole.train.labels)


def test_augment_shifts_and_flips_whole_images() -> None:
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


_SIZES = {"train": 30, "test": 12}


class TinyDigits(tfds.core.GeneratorBasedBuilder):
    """Real digits as a dataset; a Tensor feature, since encoding images needs TensorFlow."""

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
            image = np.clip(whole.images[i] * 6 + 5, 0, 16).astype(np.uint8)
            yield i, {"image": image, "label": int(whole.labels[i])}


def test_tensorflow_datasets_are_read_without_tensorflow(tmp_path: Path) -> None:
    builder = TinyDigits(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    splits = data.load(settings(name="tiny_digits", directory=str(tmp_path)), seed=0)
    assert splits.train.images.shape == (30, 8, 8, 1)
    assert splits.train.images.dtype == np.float32 and splits.train.labels.dtype == np.int32
    assert splits.holdout.images.shape == (12, 8, 8, 1)
    assert abs(float(splits.train.images.mean())) < 1e-6
    assert float(splits.train.images.std()) == pytest.approx(1, abs=1e-5)


def test_a_dataset_that_is_not_prepared_says_how_to(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="download_and_prepare"):
        data.load(settings(name="cifar10", directory=str(tmp_path)), seed=0)
    with pytest.raises(FileNotFoundError, match="no_such_data"):
        data.load(settings(name="no_such_data", directory=str(tmp_path)), seed=0)
