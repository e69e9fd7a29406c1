"""A corpus of files, many from fuzzing: each is refused, or loaded as recorded.

The name of a file states its outcome and the reason for keeping it. Most come from
tests/fuzz/fuzz_file.py, which also limits the time that reading takes.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from sqs_jax.artifact import SqsFileError, inspect, load, save

FILES = sorted((Path(__file__).parent / "corpus").iterdir())


def test_the_corpus_is_small():
    assert 20 <= len(FILES) <= 50 and sum(file.stat().st_size for file in FILES) <= 100_000


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_refused_or_loads(file, path):
    if file.name.startswith("valid-"):
        tree, report = load(file), inspect(file)
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))
        assert report.file_bytes == file.stat().st_size and len(str(report)) > 100
        save(path, tree)
    else:
        with pytest.raises(SqsFileError, match=file.name):
            load(file)
        try:
            inspect(file)
        except SqsFileError:
            assert file.name.startswith("refused-")
        else:
            assert file.name.startswith("undecodable-")
