"""One price per bit for all tensors together, found such that a file has a size."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sqs_jax.transform.alternatives import Choice, Tensor

_CODER = 0.97  # a stream's bits over the estimate, before a file has shown them
_TELLING_BITS = 2048  # of a stream that says something of the coder
_LEAST_SLOPE, _MOST_SLOPE = 1e-30, 1e6  # pruning everything has a distortion of 1
_CLOSE, _GAP = 5e-4, 5e-3  # of a size: near enough for an estimate; not near


class Point(NamedTuple):
    """What the tensors choose at one slope, and about how many bytes the file then has."""

    slope: float
    choices: list[Choice]
    bytes: float


class Allocation:
    """Choose for all tensors; learn from files what the choices take.

    Args:
      tensors: all that may be compressed; their distortions add up to 1 if all are pruned.
      rest: bits of the file that are not theirs, about.
    """

    def __init__(self, tensors: Sequence[Tensor], rest: float) -> None:
        self._tensors = tensors
        self._allowed = [tensor.fixed for tensor in tensors]
        self._coder = [_CODER] * len(tensors)
        self._rest = rest
        self._slope = 0.0  # where the last search ended

    def least(self) -> list[Choice]:
        """Return the choices of the smallest file."""
        return [tensor.choose(_MOST_SLOPE, tensor.fixed) for tensor in self._tensors]

    def exact(self) -> list[Choice]:
        """Return the choices of the smallest file that loses nothing."""
        return [tensor.exact() for tensor in self._tensors]

    def learn(self, choices: Sequence[Choice], bits: Sequence[int], file_bits: int) -> None:
        """Take in what tensors and file have really taken: `bytes` is then right for them."""
        for i, (choice, real) in enumerate(zip(choices, bits, strict=True)):
            if choice.quantiser is not None and choice.bits > _TELLING_BITS:
                self._coder[i] = real / choice.bits
        self._rest = 0.0
        self._rest = file_bits - 8 * self.bytes(choices)

    def bytes(self, choices: Sequence[Choice]) -> float:
        """Estimate the file's size."""
        return max(1.0, (self._rest + sum(map(self._bits, range(len(choices)), choices))) / 8)

    def _bits(self, i: int, choice: Choice) -> float:
        """Estimate what a choice of tensor i takes."""
        return choice.bits if choice.quantiser is None else choice.bits * self._coder[i]

    def at(self, slope: float) -> Point:
        """Let every tensor choose at a slope."""
        choices = [t.choose(slope, f) for t, f in zip(self._tensors, self._allowed, strict=True)]
        return Point(slope, choices, self.bytes(choices))

    def search(self, size: float) -> list[Choice]:
        """Find the smallest slope at which the file takes at most `size` bytes.

        Sizes jump where a tensor turns dense, or gets a level more. A tensor that would turn dense
        and then take more than is left is kept from doing so, and the slope sinks further; of what
        remains to jump, as many tensors jump as fit, and one more with fewer bits in its codes.

        Args:
          size: bytes.
        """
        self._allowed = [tensor.fixed for tensor in self._tensors]
        self._slope = self._slope or self._guess(size)
        below, above = self._next_to(size, self.at(self._slope))
        self._slope = below.slope
        while below.bytes < (1 - _GAP) * size and self._ban(below, size):
            below, above = self._next_to(size, below)
        if below.bytes < (1 - _GAP) * size:
            return self._fill(below, above, size)
        return below.choices

    def _fill(self, below: Point, above: Point, size: float) -> list[Choice]:
        """Let tensors jump from one point to the other, as many as fit."""
        choices = list(below.choices)
        for i, (tensor, choice) in enumerate(zip(self._tensors, above.choices, strict=True)):
            most = self._bits(i, choices[i]) + 8 * (size - self.bytes(choices))
            if self._bits(i, choice) <= most:
                choices[i] = choice
            elif choice.quantiser is not None:
                choices[i] = tensor.thinned(choice, most / self._coder[i]) or choices[i]
        return choices

    def _guess(self, size: float) -> float:
        """Take D = 4^-rate, and its derivative."""
        weights = max(1.0, sum(float(s.sums[0, -1]) for t in self._tensors for s in t.sources))
        rate = max(0.0, 8 * size - self._rest) / weights
        return max(_LEAST_SLOPE, 2 * math.log(2) / weights * 4.0 ** -min(rate, 40.0))

    def _next_to(self, size: float, point: Point) -> tuple[Point, Point]:
        """Bracket a size: the points that take at most so much, and more; by false position."""
        below = above = point
        while below.bytes > size and below.slope < _MOST_SLOPE:
            above = below
            below = point = self.at(below.slope * 8)
        while above.bytes <= size and above.slope > _LEAST_SLOPE:
            below = above
            above = point = self.at(above.slope / 8)
        if below.bytes > size or above.bytes <= size:
            return point, point
        for step in range(40):
            gap = math.log(below.slope / above.slope)
            if below.bytes > (1 - _CLOSE) * size or gap < 1e-4:
                break
            over, under = math.log(above.bytes / size), math.log(size / below.bytes)
            share = over / (over + under) if step < 6 else 0.5
            point = self.at(above.slope * math.exp(gap * min(max(share, 0.05), 0.95)))
            if point.bytes > size:
                above = point
            else:
                below = point
        return below, above

    def _ban(self, point: Point, size: float) -> bool:
        """Forbid fixed alternatives that are larger than the gap; return whether any was new."""
        banned = False
        for i, choice in enumerate(point.choices):
            most = self._bits(i, choice) + 8 * (size - point.bytes)
            allowed = [fixed for fixed in self._allowed[i] if self._bits(i, fixed) <= most]
            banned |= len(allowed) < len(self._allowed[i])
            self._allowed[i] = allowed
        return banned
