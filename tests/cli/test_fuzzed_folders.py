"""Folders with random damage: first cases and past failures of fuzz_folder.py."""

import pytest

from tests.fuzz import fuzz_folder

SEEDS = [*range(40), 10125, 10518, 21893]  # the last three are past failures


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_folder_is_refused_or_nothing_of_it_is_lost(seed):
    assert fuzz_folder.one(seed) in ("whole", "named", "refused")


def test_the_cases_are_of_all_sorts():
    results = {fuzz_folder.one(seed) for seed in range(100, 130)}
    assert results == {"whole", "named", "refused"}
