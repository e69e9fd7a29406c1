"""Allowances of an allocation, until the calibrated file nearly fills its budget."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.calibration import bit_allocation
from experiments.configs import base

BUDGET = 1000


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record allowances; a network is the number of bytes allocated to the network."""
    rooms: list[int] = []

    def allocate(*given: Any) -> int:
        rooms.append(given[-1])
        return given[-1]

    monkeypatch.setattr(bit_allocation, "allocate", allocate)
    monkeypatch.setattr(
        bit_allocation, "recode_stages", lambda model, variables, compressed, *_: compressed
    )
    monkeypatch.setattr(bit_allocation, "shipped", lambda compressed, *_: (compressed, {}))
    monkeypatch.setattr(bit_allocation, "other_collections", lambda _: {})
    return rooms


def compress(monkeypatch: pytest.MonkeyPatch, file_bytes: Callable[[int], int]) -> int:
    """Return the room of the network that is chosen."""

    def summarize(room: Any) -> Any:
        return SimpleNamespace(file_bytes=file_bytes(int(room)))

    monkeypatch.setattr(bit_allocation.sqs_jax, "summarize", summarize)
    config = base.experiment()
    config.sqs.target_bytes = BUDGET
    return bit_allocation.compress(None, {}, None, [], config, Path("unused"))


@pytest.mark.parametrize(
    ("file_bytes", "least", "trials"),
    [
        (lambda room: room - 5, 995, 1),
        (lambda room: 9 * room // 10, 990, 2),
        (lambda room: 600, 600, 2),  # more room gives nothing
        (lambda room: 105 * room // 100, 990, 2),
        (lambda room: 900 if room < 1050 else 1300, 900, 4),  # a jump between
    ],
)
def test_a_file_fits_and_fills_its_budget(
    monkeypatch: pytest.MonkeyPatch, tried: list[int], file_bytes: Any, least: int, trials: int
) -> None:
    assert least <= file_bytes(compress(monkeypatch, file_bytes)) <= BUDGET
    assert tried[0] == BUDGET and len(tried) <= trials


def test_a_file_that_never_fits_is_refused(
    monkeypatch: pytest.MonkeyPatch, tried: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"config\.sqs\.target_bytes is 1000, .* takes 2000 bytes"):
        compress(monkeypatch, lambda room: 2000)
    assert len(tried) == 4
