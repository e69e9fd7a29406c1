"""Asymmetric numeral systems (ANS): symbols to 32-bit words and back, by constriction."""

from typing import Any

import constriction
import numpy as np

from sqs_jax.artifact.coding.frequency_table import PRECISION

# Compiled submodules, which cannot be imported from.
AnsCoder = constriction.stream.stack.AnsCoder
Categorical = constriction.stream.model.Categorical

__all__ = ["Model", "coder_of", "words_of"]

STEP = 1 << 14
"""Symbols per call of the coder. What it returns stays in the cache, and what other processes send
can be read between calls, which hold Python's lock."""
MOST_PAIRED = 64
"""The most present symbols that are coded two at a time: their pairs fit a table of 4,096."""


class Model:
    """Code symbols whose frequencies are known.

    Where `paired`, two symbols take one step of the coder, at the product of their frequencies: the
    same bits, in half the steps. The last symbol of an odd number is then followed by the first
    present one.
    """

    def __init__(self, frequencies: np.ndarray, *, paired: bool) -> None:
        """Prepare for an int64 array `[alphabet]`, the sum a power of two of at most 2**24."""
        self.present = np.flatnonzero(frequencies)
        bits = int(frequencies.sum()).bit_length() - 1
        self.paired = paired and 2 * bits <= PRECISION and self.present.size <= MOST_PAIRED
        self._alphabet = frequencies.size
        shares = frequencies[self.present]
        if self.paired:
            shares = np.outer(shares, shares).ravel()
            bits *= 2
        # Without `perfect`, constriction gives each of n symbols 1 of 2**24 and divides the rest
        # in proportion to the probabilities, rounding down. Frequencies less 1, which sum to
        # 2**24 - n, make the scale exactly 1, and integers below 2**24 are exact in any float:
        # nothing depends on the platform's arithmetic or on constriction's search.
        exact = ((shares << (PRECISION - bits)) - 1).astype(np.float64)
        self._model = Categorical(exact, lazy=False, perfect=False) if exact.size > 1 else None

    def encode(self, coder: Any, symbols: np.ndarray) -> None:
        """Push symbols `[N]`, all of them present, so that `decode` pops them in order."""
        if self._model is None or not symbols.size:
            return
        rank = np.zeros(self._alphabet, np.int32)
        rank[self.present] = np.arange(self.present.size)
        width = 2 * STEP if self.paired else STEP
        # ANS is a stack: what is coded last is decoded first.
        for start in reversed(range(0, symbols.size, width)):
            ranks = rank[symbols[start : start + width]]
            if self.paired:
                ranks = np.append(ranks, np.zeros(ranks.size % 2, np.int32))
                ranks = ranks[::2] * np.int32(self.present.size) + ranks[1::2]
            coder.encode_reverse(ranks, self._model)

    def decode(self, coder: Any, out: np.ndarray) -> None:
        """Pop as many symbols as `out`, `[N]`, has places.

        Raises:
            ValueError: If an odd number of symbols is not followed by the first present one.
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
        # Two symbols looked up as one integer of twice the width.
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
    """Return what was pushed, little-endian words without the zero bytes of the last one."""
    return bytes(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


def coder_of(words: bytes) -> Any:
    """Return a coder to pop from.

    Raises:
        ValueError: If the last byte is zero: `words_of` writes none.
    """
    if words.endswith(b"\0"):
        raise ValueError("bytes are left over after a symbol stream")
    padded = words + b"\0" * (-len(words) % 4)
    return AnsCoder(np.frombuffer(padded, "<u4").astype(np.uint32))
