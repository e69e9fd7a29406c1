"""Frequency tables: exact, complete, nearly optimal, and safe on any bytes."""

import numpy as np
import pytest

from sqs_jax.artifact.coding import frequency_table
from sqs_jax.artifact.coding.frequency_table import best_table, quantize, read_table, write_table

RNG = np.random.default_rng(0)


def counts_of(symbols, alphabet):
    return np.bincount(np.asarray(symbols), minlength=alphabet).astype(np.int64)


COUNTS = {
    "one": np.array([7]),
    "only the last": np.array([0, 0, 0, 5]),
    "two": np.array([1, 1]),
    "pruned": np.array([9000, 250, 240, 260, 250]),
    "huge and tiny": np.array([10**11, 0, 1, 1, 7, 0, 10**6]),
    "normal": counts_of(np.clip(RNG.normal(128, 20, 50_000), 0, 255).astype(int), 256),
    "geometric": counts_of(np.minimum(RNG.geometric(0.02, 3000), 999), 1000),
    "few of many": counts_of(
        RNG.choice([0, 77, 5000, 65_535], 900, p=[0.9, 0.05, 0.03, 0.02]), 65_536
    ),
    "each once": np.ones(65_536, np.int64),
    "each once but for 0": np.concatenate([[0], np.ones(65_535, np.int64)]),
    "half of them": RNG.integers(0, 2, 65_536) * RNG.integers(1, 9, 65_536),
    "a run at the end": counts_of(RNG.integers(60_000, 65_536, 10_000), 65_536),
}


@pytest.mark.parametrize("name", COUNTS)
def test_frequencies_are_exact_and_never_lose_a_symbol(name):
    counts = COUNTS[name]
    least = int(np.count_nonzero(counts) - 1).bit_length()
    for bits in {least, min(least + 3, 24), 24}:
        frequencies = quantize(counts, bits)
        assert frequencies.sum() == 2**bits
        assert ((frequencies > 0) == (counts > 0)).all()
        # Proportional, but for the 1 that each has for certain.
        ideal = 1 + counts[counts > 0] / counts.sum() * (2**bits - np.count_nonzero(counts))
        assert np.abs(frequencies[counts > 0] - ideal).max() <= 1


@pytest.mark.parametrize("name", COUNTS)
def test_tables_are_read_back(name):
    counts = COUNTS[name]
    least = int(np.count_nonzero(counts) - 1).bit_length()
    for bits in range(least, 25, 1 if counts.size <= 1000 else 7):
        frequencies = quantize(counts, bits)
        data = write_table(frequencies)
        again, end = read_table(b"before" + data + b"\xffwords", 6, counts.size)
        assert end == 6 + len(data) and again.dtype == np.int64
        np.testing.assert_array_equal(again, frequencies)


def test_both_forms_are_used_where_they_are_short():
    def form(name):
        return best_table(COUNTS[name])[1][1] // 16

    assert form("few of many") == 1 and form("a run at the end") == 1
    assert form("pruned") == best_table(np.arange(1, 50))[1][1] // 16 == 0
    # Absent symbols are nearly free, wherever they lie.
    few = np.zeros(65_536, np.int64)
    few[[0, 30_000, 65_535]] = 4
    assert len(write_table(quantize(few, 2))) <= 14
    assert len(best_table(np.eye(1, 65_536, dtype=np.int64)[0])[1]) == 3


@pytest.mark.parametrize("name", COUNTS)
def test_the_best_table_is_near_the_optimum(name):
    counts = COUNTS[name]
    frequencies, data, size = best_table(counts)
    present = counts > 0

    def cost(frequencies):
        bits = np.log2(frequencies.sum()) - np.log2(frequencies[present])
        return len(write_table(frequencies)) + float(counts[present] @ bits) / 8

    assert data == write_table(frequencies)
    assert size == pytest.approx(cost(frequencies))
    least = int(np.count_nonzero(counts) - 1).bit_length()
    exhaustive = min(cost(quantize(counts, bits)) for bits in range(least, 25))
    assert size <= 1.001 * exhaustive + 1


def test_lengths_of_golomb_codes():
    values = [0, 1, 2, 7, 30, 2**15, 2**24]
    lengths = frequency_table._golomb_bits(np.asarray(values), np.arange(16))
    for order in range(16):
        assert lengths[order] == sum(len(frequency_table._golomb(value, order)) for value in values)
    assert [frequency_table._golomb(value, 0) for value in (0, 1, 2, 6)] == [
        "1",
        "010",
        "011",
        "00111",
    ]
    assert frequency_table._golomb(6, 2) == "01010"


def test_too_many_symbols_for_a_table_are_refused():
    with pytest.raises(ValueError, match="5 symbols do not fit"):
        best_table(np.ones(5, np.int64), 2)


def test_numbers_are_read_back():
    numbers = [0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**21, 2**28 - 1]
    data = frequency_table.write_numbers(numbers)
    again, end = frequency_table.read_numbers(b"x" + data + b"rest", 1, len(numbers))
    assert again.tolist() == numbers and end == 1 + len(data)
    assert frequency_table.write_numbers([5, 300]) == bytes([5, 300 % 128 + 128, 2])
    assert frequency_table.read_numbers(b"", 0, 0)[1] == 0
    for data, count in [(b"\x01", 2), (b"\x80", 1), (b"", 1), (b"\xff\xff\xff\xff\x01", 1)]:
        with pytest.raises(ValueError, match="numbers"):
            frequency_table.read_numbers(data, 0, count)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut short"),
        (bytes([5, 0]), "cut short"),
        (bytes([25, 0, 128]), "of 25 bits"),
        (bytes([5, 32, 128]), "form 32"),
        (bytes([5, 0, 0, 0, 0, 0]), "cut short or invalid"),
        (bytes([5, 0, 0b00110000]), "for 5"),  # last = 5
        (bytes([5, 0, 0b11000000]), "left over"),
        (bytes([5, 0, 0b01010000]), "absent"),  # last = 1, frequency 0
        (bytes([0, 0, 0b01001100]), "does not fit"),  # last = 1, frequency 2
        (bytes([5, 16, 0b01001000]), "past its end"),  # last = 1, one absent before it
    ],
)
def test_invalid_tables_are_refused(data, says):
    with pytest.raises(ValueError, match=says):
        read_table(data, 0, 5)


def test_any_bytes_give_a_table_or_a_value_error():
    rng = np.random.default_rng(0)
    good = 0
    for _ in range(4000):
        data = rng.integers(0, 256, rng.integers(0, 40), np.uint8)
        data[:2] = [rng.integers(0, 26), rng.integers(0, 34)][: len(data)]
        alphabet = int(rng.choice([1, 2, 5, 300, 65_536]))
        try:
            frequencies, end = read_table(data.tobytes(), 0, alphabet)
        except ValueError:
            continue
        good += 1
        assert frequencies.sum() == 2 ** int(data[0]) and frequencies.min() >= 0
        assert frequencies.size == alphabet and 3 <= end <= len(data)
    assert good > 50
