"""Asymmetric numeral systems (ANS), with constriction: symbols as 32-bit words."""

from typing import Any

import constriction
import numpy as np

from sqs_jax.artifact.coding.frequency_table import PRECISION

# Attributes of compiled submodules, which `from ... import` does not find.
AnsCoder = constriction.stream.stack.AnsCoder
Categorical = constriction.stream.model.Categorical

__all__ = ["Model", "coder_of", "words_of"]

STEP = 1 << 14
"""Symbols per call of the coder: few enough for results to stay in the CPU cache. A call holds the
global interpreter lock; between calls, threads can receive the results of other processes."""
MAX_PAIRED_SYMBOLS = 64
"""Largest number of present symbols that are coded in pairs: a table of 4,096 pairs."""


class Model:
    """An ANS model of symbols with known frequencies.

    A paired model codes two symbols in one step, at the product of their frequencies. It takes the
    same bits in half the steps. An odd number of symbols is padded with the first present symbol.

    Attributes:
        present: Symbols with a frequency above 0, ascending, int64 array `[n]`.
        paired: True if symbols are coded in pairs.
    """

    def __init__(self, frequencies: np.ndarray, *, paired: bool) -> None:
        """Create a model.

        Args:
            frequencies: int64 array `[alphabet]`; the sum is a power of two of at most 2**24.
            paired: True to code symbols in pairs if their number and frequencies allow it.
        """
        self.present = np.flatnonzero(frequencies)
        bits = int(frequencies.sum()).bit_length() - 1
        self.paired = paired and 2 * bits <= PRECISION and self.present.size <= MAX_PAIRED_SYMBOLS
        self._alphabet = frequencies.size
        shares = frequencies[self.present]
        if self.paired:
            shares = np.outer(shares, shares).ravel()
            bits *= 2
        # With `perfect=False`, constriction gives each of n symbols 1 of 2**24 and divides the rest
        # in proportion to the probabilities, rounding down. The frequencies minus 1 sum to
        # 2**24 - n, so the scale of this division is exactly 1. Integers below 2**24 are exact in
        # float64: nothing depends on the platform's arithmetic or on constriction's search.
        exact = ((shares << (PRECISION - bits)) - 1).astype(np.float64)
        self._model = Categorical(exact, lazy=False, perfect=False) if exact.size > 1 else None

    def encode(self, coder: Any, symbols: np.ndarray) -> None:
        """Push symbols onto the coder, for `decode` to pop in order.

        Args:
            coder: constriction's `AnsCoder`.
            symbols: Unsigned array `[N]` of present symbols.
        """
        if self._model is None or not symbols.size:
            return
        rank = np.zeros(self._alphabet, np.int32)
        rank[self.present] = np.arange(self.present.size)
        width = 2 * STEP if self.paired else STEP
        # ANS is a stack: the symbol coded last is decoded first.
        for start in reversed(range(0, symbols.size, width)):
            ranks = rank[symbols[start : start + width]]
            if self.paired:
                ranks = np.append(ranks, np.zeros(ranks.size % 2, np.int32))
                ranks = ranks[::2] * np.int32(self.present.size) + ranks[1::2]
            coder.encode_reverse(ranks, self._model)

    def decode(self, coder: Any, out: np.ndarray) -> None:
        """Pop symbols from the coder.

        Args:
            coder: constriction's `AnsCoder`.
            out: Unsigned array `[N]` that is filled with the symbols.

        Raises:
            ValueError: If the padding of an odd number of symbols is not the first present symbol.
        """
        if self._model is None:
            out[:] = self.present[0]
            return
        symbols = self.present.astype(out.dtype)
        if not self.paired:
            for start in range(0, out.size, STEP):
                part = out[start : start + STEP]
                np.take(symbols, coder.decode(self._model, part.size), out=part, mode="clip")
            return
        size = symbols.size
        # A pair of symbols is looked up as one integer of twice the width, in one gather.
        pair = np.dtype(f"u{2 * out.dtype.itemsize}")
        pairs = np.stack([np.repeat(symbols, size), np.tile(symbols, size)], 1).view(pair)[:, 0]
        even = out[: out.size - out.size % 2].view(pair)
        for start in range(0, even.size, STEP):
            part = even[start : start + STEP]
            np.take(pairs, coder.decode(self._model, part.size), out=part, mode="clip")
        if out.size % 2:
            last = pairs[coder.decode(self._model, 1)].view(out.dtype)
            if last[1] != symbols[0]:
                raise ValueError("a symbol stream does not end where its symbols do")
            out[-1] = last[0]


def words_of(coder: Any) -> bytes:
    """Return the words of a coder, little-endian, without trailing zero bytes."""
    return bytes(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


def coder_of(words: bytes) -> Any:
    """Return a coder that pops the symbols of `words`, the inverse of `words_of`.

    Raises:
        ValueError: If the last byte is zero; `words_of` strips zeros.
    """
    if words.endswith(b"\0"):
        raise ValueError("bytes are left over after a symbol stream")
    padded = words + b"\0" * (-len(words) % 4)
    return AnsCoder(np.frombuffer(padded, "<u4").astype(np.uint32))
