"""Bit allocation over tensors, at a common rate-distortion slope.

Every tensor minimizes D + slope * bits, and a search finds the slope at which the file has a given
size. Slopes are powers of one ratio, so that all budgets consider the same options. Between two
slopes, tensors change one after another, the largest gain per bit first. A larger budget
therefore makes every change of a smaller budget, and more.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sqs_jax.budget.options import Option, Tensor, coded_options

_CODER_RATIO = 0.97  # bits of a stream over their estimate, before a file has been coded
_RELIABLE_BITS = 2048  # length from which one stream alone measures the coder's ratio
# Ratio of neighboring slopes, a sixteenth of a bit per weight. With _MANY tensors the ones that
# change between two slopes represent all, and a quarter of a bit is fine enough.
_RATIO, _RATIO_OF_MANY, _MANY = 2 ** (1 / 8), 2 ** (1 / 2), 1024
_SMALLEST_SLOPE, _LARGEST_SLOPE = 1e-30, 1e6  # where pruning everything has D = 1
_CLOSE, _GAP = 5e-4, 5e-3  # unused shares of a size: below the estimate's error; worth filling
_SAMPLE = 256  # tensors that represent many more
_LONGEST_STEP = 16.0  # factor between the slopes of two search steps
_FILLED = 8  # tensors that may get a slope of their own
_HALVINGS = 8  # bisection steps of that slope


class Point(NamedTuple):
    """Options of all tensors at a common slope.

    Attributes:
        power: Exponent of the slope, ratio**power.
        options: Option of each tensor.
        bytes: Estimated size of the file, bytes.
    """

    power: int
    options: list[Option]
    bytes: float


class Allocation:
    """Choice of an option for every tensor, with size estimates that coded files correct.

    Args:
        tensors: Tensors that may be compressed; pruning everything has a total distortion of 1.
        rest: Estimated bits of the file that belong to no tensor.
        ratio: Ratio of neighboring slopes, > 1; by default chosen by the number of tensors.
    """

    def __init__(self, tensors: Sequence[Tensor], rest: float, ratio: float | None = None) -> None:
        self._tensors = tensors
        self._ratio = ratio or (_RATIO if len(tensors) < _MANY else _RATIO_OF_MANY)
        self._lowest, self._highest = (
            round(math.log(slope, self._ratio)) for slope in (_SMALLEST_SLOPE, _LARGEST_SLOPE)
        )
        self._longest = round(math.log(_LONGEST_STEP, self._ratio))
        self._limits = [math.inf] * len(tensors)  # exclusive bound of an option's bits
        self._coder_ratios = [_CODER_RATIO] * len(tensors)
        self._rest = rest
        self._weights = max(1.0, sum(float(s.sums[0, -1]) for t in tensors for s in t.sources))
        self._power: int | None = None  # end of the last search
        self._coded: dict[int, dict[int, Option | None]] = {}  # by power and tensor
        self._fine: dict[tuple[int, float], Option] = {}  # by tensor and slope

    def smallest(self) -> list[Option]:
        """Return the options of the smallest file."""
        self._limits = [math.inf] * len(self._tensors)
        return self.at(self._highest).options

    def exact(self) -> list[Option]:
        """Return the options of the smallest lossless file."""
        return [tensor.exact() for tensor in self._tensors]

    def learn(self, options: Sequence[Option], bits: Sequence[int], file_bits: int) -> None:
        """Correct the estimates by a coded file; `bytes` is then exact for its options.

        Args:
            options: Option of each tensor.
            bits: Coded bits of each tensor.
            file_bits: Bits of the whole file.
        """
        self._learn_coder(range(len(options)), options, bits)
        self._rest = 0.0
        self._rest = file_bits - 8 * self.bytes(options)

    def learn_from_sample(
        self, indices: Sequence[int], options: Sequence[Option], bits: Sequence[int], rest: float
    ) -> None:
        """Correct the estimates by the coded streams of a sample of the tensors.

        Args:
            indices: Indices of the sampled tensors.
            options: Option of each sampled tensor.
            bits: Coded bits of each sampled tensor.
            rest: Estimated bits of the file that belong to no tensor.
        """
        self._learn_coder(indices, options, bits)
        mean = sum(map(self._coder_ratios.__getitem__, indices)) / len(indices)
        for i in set(range(len(self._tensors))).difference(indices):
            self._coder_ratios[i] = mean
        self._rest = rest

    def _learn_coder(
        self, indices: Sequence[int], options: Sequence[Option], bits: Sequence[int]
    ) -> None:
        """Measure the ratio of coded to estimated bits.

        Short streams share one ratio, because the overhead of one stream varies too much.
        """
        coded = [
            (i, option.bits, coded_bits)
            for i, option, coded_bits in zip(indices, options, bits, strict=True)
            if option.quantizer is not None
        ]
        short = [stream for stream in coded if stream[1] <= _RELIABLE_BITS]
        short_estimate, short_bits = (sum(stream[k] for stream in short) for k in (1, 2))
        for i, estimate, coded_bits in coded:
            if estimate > _RELIABLE_BITS:
                self._coder_ratios[i] = coded_bits / estimate
            elif short_estimate > _RELIABLE_BITS:
                self._coder_ratios[i] = short_bits / short_estimate

    def bytes(self, options: Sequence[Option]) -> float:
        """Return the estimated size of the file, bytes."""
        return max(1.0, (self._rest + sum(map(self._bits, range(len(options)), options))) / 8)

    def _bits(self, i: int, option: Option) -> float:
        """Return the estimated bits of an option of tensor i."""
        return option.bits if option.quantizer is None else option.bits * self._coder_ratios[i]

    def at(self, power: int) -> Point:
        """Choose the best option of every tensor at the slope ratio**power."""
        slope = self._ratio**power

        def objective(option: Option) -> float:
            return option.distortion + slope * option.bits

        fixed = [
            min(
                (option for option in tensor.fixed if self._bits(i, option) < limit),
                key=objective,
                default=None,
            )
            for i, (tensor, limit) in enumerate(zip(self._tensors, self._limits, strict=True))
        ]
        cached = self._coded.setdefault(power, {})
        missing = [i for i in range(len(self._tensors)) if i not in cached]
        if missing:
            rivals = [
                math.inf if (option := fixed[i]) is None else objective(option) for i in missing
            ]
            coded = coded_options([self._tensors[i] for i in missing], slope, rivals)
            cached.update(zip(missing, coded, strict=True))
        options = []
        for i, best in enumerate(fixed):
            coded_option = cached[i]
            if best is None:
                assert coded_option is not None  # without a rival, quantization always succeeds
                best = coded_option
            elif coded_option is not None and self._bits(i, coded_option) < self._limits[i]:
                best = min(coded_option, best, key=objective)
            options.append(best)
        return Point(power, options, self.bytes(options))

    def search(self, size: float) -> list[Option]:
        """Return the options of least distortion whose file takes at most `size` bytes.

        Sizes jump where a tensor becomes dense or gains a level. A tensor whose next option exceeds
        the unused bytes is excluded from that option, and the slope decreases for the others.

        Args:
            size: Size limit, bytes.

        Returns:
            Option of each tensor.
        """
        self._limits = [math.inf] * len(self._tensors)
        if self._power is None and len(self._tensors) > 2 * _SAMPLE:
            self._power = self._guess_from_sample(size)
        if self._power is None:
            below, above = self._bracket(size, self._guess(size))
        else:
            below, above = self._bracket(size, self._power, 1)
        self._power = below.power
        best = self._interpolate(below, above, size)
        while self.bytes(best) < (1 - _GAP) * size and self._limit(best, above, size):
            below, above = self._bracket(size, below.power)
            best = min(best, self._interpolate(below, above, size), key=_distortion)
        return best

    def _interpolate(self, below: Point, above: Point, size: float) -> list[Option]:
        """Change tensors between the options of two points, the largest gain per bit first.

        A change that does not fit is made in part. Later changes do not precede it, so that a
        larger budget makes the same changes and more.

        Args:
            below: Point whose file takes at most `size` bytes.
            above: Point of the next smaller slope.
            size: Size limit, bytes.

        Returns:
            Option of each tensor.
        """
        options = list(below.options)
        spare = 8 * (size - below.bytes)
        if spare <= 0:
            return options
        pairs = enumerate(zip(below.options, above.options, strict=True))
        steps = [(*self._step(i, *pair), i) for i, pair in pairs if pair[0] is not pair[1]]
        filled = 0
        for gain, bits, i in sorted(steps, key=lambda step: (-step[0], step[2])):
            if spare < 8 * _CLOSE * size:
                break
            old, new = options[i], above.options[i]
            if gain > 0 and bits <= spare:
                options[i] = new
            elif filled < _FILLED:
                most_bits = (self._bits(i, old) + spare) / self._coder_ratios[i]
                options[i] = self._fill(i, old, new, most_bits, below.power)
                filled += 1
            spare -= self._bits(i, options[i]) - self._bits(i, old)
        return options

    def _step(self, i: int, old: Option, new: Option) -> tuple[float, float]:
        """Return the gain per bit of a change of tensor i, and the added bits."""
        bits = self._bits(i, new) - self._bits(i, old)
        gain = old.distortion - new.distortion
        return (gain / bits if bits > 0 else math.copysign(math.inf, gain)), bits

    def _fill(self, i: int, old: Option, new: Option, most_bits: float, power: int) -> Option:
        """Return an option of tensor i between two options, of at most `most_bits` bits.

        Args:
            i: Index of the tensor.
            old: Option that takes fewer bits.
            new: Option that takes too many bits.
            most_bits: Bound of the estimated bits, before the coder's ratio.
            power: Exponent of the slope of `old`.

        Returns:
            The option of least distortion, or `old`.
        """
        tensor, high, low = self._tensors[i], self._ratio ** (power + 1), None
        best, larger = old, new
        for _ in range(_HALVINGS):
            slope = math.sqrt(high * low) if low else high / 2
            if (i, slope) not in self._fine:
                self._fine[i, slope] = tensor.coded(slope)
            coded = self._fine[i, slope]
            if coded.bits > most_bits:
                low, larger = slope, coded
            else:
                high = slope
                best = min(best, coded, key=lambda option: option.distortion)
        if best.bits < (1 - _GAP) * most_bits:
            best = tensor.refined(best, most_bits)
        if best.bits < (1 - _GAP) * most_bits:
            thinned = [tensor.thinned(option, most_bits) or best for option in (larger, new)]
            best = min(best, *thinned, key=lambda option: option.distortion)
        return best

    def _guess(self, size: float) -> int:
        """Estimate the power at which the file takes `size` bytes, by D = 4^-rate."""
        rate = max(0.0, 8 * size - self._rest) / self._weights
        slope = 2 * math.log(2) / self._weights * 4.0 ** -min(rate, 40.0)
        return max(self._lowest, round(math.log(slope, self._ratio)))

    def _guess_from_sample(self, size: float) -> int:
        """Estimate the power at which the file takes `size` bytes, from a sample of tensors."""
        sample = Allocation(self._tensors[:: len(self._tensors) // _SAMPLE], 0.0, self._ratio)
        share = sample._weights / self._weights
        sample._rest = share * self._rest
        return sample._bracket(share * size, sample._guess(share * size))[0].power

    def _bracket(self, size: float, power: int, longest: int | None = None) -> tuple[Point, Point]:
        """Return two neighboring points whose files bracket a size.

        Args:
            size: Size, bytes.
            power: Exponent of the slope at which the search begins.
            longest: Longest first step, in powers; by default the longest step of the search. Each
                step may be twice as long as the step before.

        Returns:
            Pair of points: at most `size` bytes, more than `size` bytes. Both are the same point
            at the ends of the range of slopes.
        """
        below = above = None
        longest = longest or self._longest
        last_bytes = 0.0
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
            # At high rates, doubling the slope saves half a bit per weight.
            steps = 8 * abs(point.bytes - size) / (self._weights * math.log2(self._ratio) / 2)
            unchanged = point.bytes == last_bytes  # the next change may be far
            stride = longest if unchanged else max(1, min(math.ceil(steps), longest))
            last_bytes, longest = (
                point.bytes,
                2 * longest if unchanged else min(2 * longest, self._longest),
            )
            power += stride if point.bytes > size else -stride
            power = min(max(power, self._lowest), self._highest)
        return below, above

    def _limit(self, options: Sequence[Option], above: Point, size: float) -> bool:
        """Exclude options that exceed the unused bytes; return whether any limit decreased."""
        limited = False
        spare = 8 * (size - self.bytes(options))
        for i, (option, following) in enumerate(zip(options, above.options, strict=True)):
            most_bits = self._bits(i, option) + spare
            larger = [self._bits(i, other) for other in (following, *self._tensors[i].fixed)]
            limit = min((bits for bits in larger if bits > most_bits), default=math.inf)
            if limit < self._limits[i]:
                limited = True
                self._limits[i] = limit
                for cached in self._coded.values():
                    # None says that a rival was better, and the new limit may exclude that rival.
                    if cached.get(i, option) is None:
                        del cached[i]
        return limited


def _distortion(options: Sequence[Option]) -> float:
    return sum(option.distortion for option in options)
