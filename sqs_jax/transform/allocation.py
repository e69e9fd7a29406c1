"""One price per bit for all tensors together, found such that a file has a size.

The slopes are the powers of a step, so that all budgets see the same choices. Between two slopes
tensors change one after another, those first that gain the most per bit: what a budget buys, a
larger budget buys too, and more.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sqs_jax.transform.alternatives import Choice, Tensor, coded_choices

_CODER = 0.97  # a stream's bits over the estimate, before a file has shown them
_TELLING_BITS = 2048  # of a stream that says something of the coder
# Of neighboring slopes: a sixteenth of a bit per weight; of so many tensors that those which
# change between two slopes are a fair sample of all, a quarter.
_RATIO, _RATIO_OF_MANY, _MANY = 2 ** (1 / 8), 2 ** (1 / 2), 1024
_LEAST, _MOST = 1e-30, 1e6  # slopes; pruning everything costs 1
_CLOSE, _GAP = 5e-4, 5e-3  # shares of a size: near enough for an estimate; not near
_SAMPLE = 256  # tensors that stand for many more
_LONGEST = 16.0  # step in search of a size, by the factor between the slopes
_FILLED = 8  # tensors that get a slope of their own
_HALVINGS = 8  # of the interval in which that is


class Point(NamedTuple):
    """What the tensors choose at one slope, and about how many bytes the file then has."""

    power: int
    choices: list[Choice]
    bytes: float


class Allocation:
    """Choose for all tensors; learn from files what the choices take.

    Args:
      tensors: all that may be compressed; their distortions add up to 1 if all are pruned.
      rest: bits of the file that are not theirs, about.
      ratio: of neighboring slopes; by default as suits so many tensors.
    """

    def __init__(self, tensors: Sequence[Tensor], rest: float, ratio: float | None = None) -> None:
        self._tensors = tensors
        self._ratio = ratio or (_RATIO if len(tensors) < _MANY else _RATIO_OF_MANY)
        self._lowest, self._highest = (round(math.log(s, self._ratio)) for s in (_LEAST, _MOST))
        self._longest = round(math.log(_LONGEST, self._ratio))
        self._limits = [math.inf] * len(tensors)  # every choice must have fewer bits
        self._coder = [_CODER] * len(tensors)
        self._rest = rest
        self._weights = max(1.0, sum(float(s.sums[0, -1]) for t in tensors for s in t.sources))
        self._power: int | None = None  # where the last search ended
        self._coded: dict[int, dict[int, Choice | None]] = {}  # by power and tensor
        self._fine: dict[tuple[int, float], Choice] = {}  # by tensor and slope

    def least(self) -> list[Choice]:
        """Return the choices of the smallest file."""
        self._limits = [math.inf] * len(self._tensors)
        return self.at(self._highest).choices

    def exact(self) -> list[Choice]:
        """Return the choices of the smallest file that loses nothing."""
        return [tensor.exact() for tensor in self._tensors]

    def learn(self, choices: Sequence[Choice], bits: Sequence[int], file_bits: int) -> None:
        """Correct the estimates by a file: `bytes` is then exact for its choices."""
        self._learn_coder(range(len(choices)), choices, bits)
        self._rest = 0.0
        self._rest = file_bits - 8 * self.bytes(choices)

    def learn_from_some(
        self, numbers: Sequence[int], choices: Sequence[Choice], bits: Sequence[int], rest: float
    ) -> None:
        """Correct the estimates by the streams of some tensors.

        Args:
          numbers: Numbers of these tensors.
          choices: Their choices.
          bits: Bits of their streams.
          rest: Bits of the file that are no tensor's, about.
        """
        self._learn_coder(numbers, choices, bits)
        mean = sum(map(self._coder.__getitem__, numbers)) / len(numbers)
        for i in set(range(len(self._tensors))).difference(numbers):
            self._coder[i] = mean
        self._rest = rest

    def _learn_coder(
        self, numbers: Sequence[int], choices: Sequence[Choice], bits: Sequence[int]
    ) -> None:
        """Correct the estimated bits of streams.

        Streams that are too short to say much of the coder are counted together.
        """
        coded = [
            (i, choice.bits, real)
            for i, choice, real in zip(numbers, choices, bits, strict=True)
            if choice.quantiser is not None
        ]
        short = [streams for streams in coded if streams[1] <= _TELLING_BITS]
        estimate, real_bits = (sum(stream[k] for stream in short) for k in (1, 2))
        for i, expected, real in coded:
            if expected > _TELLING_BITS:
                self._coder[i] = real / expected
            elif estimate > _TELLING_BITS:
                self._coder[i] = real_bits / estimate

    def bytes(self, choices: Sequence[Choice]) -> float:
        """Estimate the file's size."""
        return max(1.0, (self._rest + sum(map(self._bits, range(len(choices)), choices))) / 8)

    def _bits(self, i: int, choice: Choice) -> float:
        """Estimate what a choice of tensor i takes."""
        return choice.bits if choice.quantiser is None else choice.bits * self._coder[i]

    def at(self, power: int) -> Point:
        """Let every tensor choose at a slope: levels for this slope, or a fixed choice."""
        slope = self._ratio**power

        def objective(choice: Choice) -> float:
            return choice.distortion + slope * choice.bits

        fixed = [
            min((c for c in tensor.fixed if self._bits(i, c) < limit), key=objective, default=None)
            for i, (tensor, limit) in enumerate(zip(self._tensors, self._limits, strict=True))
        ]
        cached = self._coded.setdefault(power, {})
        missing = [i for i in range(len(self._tensors)) if i not in cached]
        if missing:
            rivals = [math.inf if (f := fixed[i]) is None else objective(f) for i in missing]
            coded = coded_choices([self._tensors[i] for i in missing], slope, rivals)
            cached.update(zip(missing, coded, strict=True))
        choices = []
        for i, best in enumerate(fixed):
            coded_choice = cached[i]
            if best is None:
                assert coded_choice is not None  # it had no rival
                best = coded_choice
            elif coded_choice is not None and self._bits(i, coded_choice) < self._limits[i]:
                best = min(coded_choice, best, key=objective)
            choices.append(best)
        return Point(power, choices, self.bytes(choices))

    def search(self, size: float) -> list[Choice]:
        """Find the choices of least distortion with which the file takes at most `size` bytes.

        Sizes jump where a tensor turns dense, or gets a level more. A tensor whose next choice
        would take more than is left is kept from it, and the slope sinks further for the others.

        Args:
          size: bytes.
        """
        self._limits = [math.inf] * len(self._tensors)
        if self._power is None and len(self._tensors) > 2 * _SAMPLE:
            self._power = self._sampled_guess(size)
        if self._power is None:
            below, above = self._next_to(size, self._guess(size))
        else:
            below, above = self._next_to(size, self._power, 1)
        self._power = below.power
        best = self._between(below, above, size)
        while self.bytes(best) < (1 - _GAP) * size and self._limit(best, above, size):
            below, above = self._next_to(size, below.power)
            best = min(best, self._between(below, above, size), key=_distortion)
        return best

    def _between(self, below: Point, above: Point, size: float) -> list[Choice]:
        """Change tensors from one point to the other, in the order of their gain per bit.

        The step that does not fit is taken in part. No later step overtakes it, so that a larger
        budget takes the same steps and more.
        """
        choices = list(below.choices)
        spare = 8 * (size - below.bytes)
        if spare <= 0:
            return choices
        pairs = enumerate(zip(below.choices, above.choices, strict=True))
        steps = [(*self._step(i, *pair), i) for i, pair in pairs if pair[0] is not pair[1]]
        filled = 0
        for gain, bits, i in sorted(steps, key=lambda step: (-step[0], step[2])):
            if spare < 8 * _CLOSE * size:
                break
            old, new = choices[i], above.choices[i]
            if gain > 0 and bits <= spare:
                choices[i] = new
            elif filled < _FILLED:
                most = (self._bits(i, old) + spare) / self._coder[i]
                choices[i] = self._filled(i, old, new, most, below.power)
                filled += 1
            spare -= self._bits(i, choices[i]) - self._bits(i, old)
        return choices

    def _step(self, i: int, old: Choice, new: Choice) -> tuple[float, float]:
        """Return the gain per bit of another choice of tensor i, and its bits."""
        bits = self._bits(i, new) - self._bits(i, old)
        less = old.distortion - new.distortion
        return (less / bits if bits > 0 else math.copysign(math.inf, less)), bits

    def _filled(self, i: int, old: Choice, new: Choice, most: float, power: int) -> Choice:
        """Find a choice for tensor i between two others that takes at most `most` bits."""
        tensor, high, low = self._tensors[i], self._ratio ** (power + 1), None
        best, larger = old, new
        for _ in range(_HALVINGS):
            slope = math.sqrt(high * low) if low else high / 2
            if (i, slope) not in self._fine:
                self._fine[i, slope] = tensor.coded(slope)
            coded = self._fine[i, slope]
            if coded.bits > most:
                low, larger = slope, coded
            else:
                high = slope
                best = min(best, coded, key=lambda choice: choice.distortion)
        if best.bits < (1 - _GAP) * most:
            best = tensor.refined(best, most)
        if best.bits < (1 - _GAP) * most:
            thinned = [tensor.thinned(choice, most) or best for choice in (larger, new)]
            best = min(best, *thinned, key=lambda choice: choice.distortion)
        return best

    def _guess(self, size: float) -> int:
        """Guess the power at which the file takes `size` bytes, from D = 4^-rate."""
        rate = max(0.0, 8 * size - self._rest) / self._weights
        slope = 2 * math.log(2) / self._weights * 4.0 ** -min(rate, 40.0)
        return max(self._lowest, round(math.log(slope, self._ratio)))

    def _sampled_guess(self, size: float) -> int:
        """Search with some of many tensors only, and return the power."""
        part = Allocation(self._tensors[:: len(self._tensors) // _SAMPLE], 0.0, self._ratio)
        share = part._weights / self._weights
        part._rest = share * self._rest
        return part._next_to(share * size, part._guess(share * size))[0].power

    def _next_to(self, size: float, power: int, longest: int | None = None) -> tuple[Point, Point]:
        """Bracket a size: neighboring points that take at most so much, and more.

        Args:
          size: bytes.
          power: Where to begin.
          longest: Longest first step, by default the longest of all; later ones may be twice as
            long as those before.
        """
        below = above = None
        longest = longest or self._longest
        last = 0.0
        while below is None or above is None or below.power - above.power > 1:
            point = self.at(power)
            if power == (self._highest if point.bytes > size else self._lowest):
                return point, point
            if point.bytes > size:
                above = point
            else:
                below = point
            if below is not None and above is not None:
                power = (below.power + above.power) // 2
                continue
            # at high rates a weight takes half a bit less where the slope doubles
            steps = 8 * abs(point.bytes - size) / (self._weights * math.log2(self._ratio) / 2)
            unchanged = point.bytes == last  # far from the next change, maybe
            stride = longest if unchanged else max(1, min(math.ceil(steps), longest))
            last, longest = (
                point.bytes,
                2 * longest if unchanged else min(2 * longest, self._longest),
            )
            power += stride if point is above else -stride
            power = min(max(power, self._lowest), self._highest)
        return below, above

    def _limit(self, choices: Sequence[Choice], above: Point, size: float) -> bool:
        """Forbid choices that are larger than the gap; return whether any was new."""
        limited = False
        spare = 8 * (size - self.bytes(choices))
        for i, (choice, following) in enumerate(zip(choices, above.choices, strict=True)):
            most = self._bits(i, choice) + spare
            bits = [self._bits(i, other) for other in (following, *self._tensors[i].fixed)]
            limit = min((b for b in bits if b > most), default=math.inf)
            if limit < self._limits[i]:
                limited = True
                self._limits[i] = limit
                for cached in self._coded.values():
                    if cached.get(i, choice) is None:  # beaten, maybe by a forbidden choice
                        del cached[i]
        return limited


def _distortion(choices: Sequence[Choice]) -> float:
    return sum(choice.distortion for choice in choices)
