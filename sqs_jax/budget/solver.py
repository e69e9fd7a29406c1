"""Search for the largest file of at most a number of bytes."""

import math
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from sqs_jax.budget.budget_error import BudgetError

__all__ = ["Fit", "fit_bytes"]

Candidate = TypeVar("Candidate")

TOLERANCE = 0.01
"""Share of the bytes that the search may leave unused."""

_AIM = 0.4  # share of the tolerance that the search leaves unused, if the size is smooth
_LARGEST_CHANGE = 2.0  # of the logarithm of the size, in one step, by the first guess of its slope
_LEAST_SLOPE = 0.01  # share of the first guess, for a finite step where the size is constant


class Fit(NamedTuple, Generic[Candidate]):
    """Result of `fit_bytes`: the largest candidate that fits.

    Attributes:
        x: Scalar of the candidate.
        candidate: Candidate at x.
        bytes: Size of the candidate, at most the target.
        above: Candidate at the smallest x whose size exceeds the target; None if all fit.
    """

    x: float
    candidate: Candidate
    bytes: float
    above: Candidate | None


def fit_bytes(
    measure: Callable[[float], tuple[Candidate, float]],
    target: float,
    *,
    start: float = 0.0,
    slope: float = 1.0,
    bracket: tuple[float, float] = (-math.inf, math.inf),
    resolution: float = 2.0**-12,
    tolerance: float = TOLERANCE,
    tries: int = 24,
    name: str = "target",
    remedy: str = "give more bytes",
) -> Fit[Candidate]:
    """Find the scalar whose file is as large as possible and at most `target` bytes.

    The size should increase with the scalar; it may be noisy, and constant or discontinuous in
    places. The method is the secant method on the logarithm of the size, with bisection where the
    secant leaves the bracket of a fitting and a too large file, or halves that bracket too slowly.
    The search ends at a file of (1 - tolerance) * target to target bytes, and at neighboring
    scalars. Without an upper bound of the scalar it also ends if a larger scalar gives the same
    size while no file is too large.

    Args:
        measure: Function from the scalar to a candidate and the bytes of its file, > 0.
        target: Largest size, bytes, > 0.
        start: First scalar to measure, in the bracket.
        slope: Estimate of the derivative of the logarithm of the size by the scalar, > 0.
        bracket: Smallest and largest scalar to measure.
        resolution: Distance of neighboring scalars, > 0. All scalars are its multiples.
        tolerance: Share of the target that may remain unused, in [0, 1).
        tries: Largest number of calls of `measure`, >= 1.
        name: Name of the target in the error.
        remedy: Remedy in the error.

    Returns:
        The largest candidate that fits.

    Raises:
        BudgetError: If no measured candidate fits; states the smallest size.
        ValueError: If an argument is out of range.

    Example:
        >>> from sqs_jax.budget import fit_bytes
        >>> fit = fit_bytes(lambda width: (f"{width:.0f} bits", 100 * width), 550, start=8,
        ...     bracket=(1, 16), resolution=1, tolerance=0)
        >>> fit.candidate, fit.bytes, fit.above
        ('5 bits', 500, '6 bits')
    """
    checks = {
        f"target is {target}": 0 < target < math.inf,
        f"slope is {slope}": 0 < slope < math.inf,
        f"resolution is {resolution}": 0 < resolution < math.inf,
        f"tolerance is {tolerance}": 0 <= tolerance < 1,
        f"tries is {tries}": tries >= 1,
        f"start is {start}, with bracket {bracket}": bracket[0] <= start <= bracket[1],
    }
    for argument, in_range in checks.items():
        if not in_range:
            raise ValueError(f"fit_bytes: {argument}, which is out of range.")

    # Scalars are counted in units of the resolution.
    first, last = (x if math.isinf(x) else round(x / resolution) for x in bracket)
    unit_slope = slope * resolution
    longest = max(1, round(_LARGEST_CHANGE / unit_slope))
    aim = (1 - _AIM * tolerance) * target
    best: Fit[Candidate] | None = None
    above, smallest, measured = None, math.inf, 0
    low, high = -math.inf, math.inf  # measured: the last that fits, the first that is too large
    before: tuple[int, float] | None = None
    unit = round(start / resolution)
    while measured < tries:
        candidate, size = measure(unit * resolution)
        measured += 1
        smallest, width, fits = min(smallest, size), high - low, size <= target
        if fits:
            low = unit
            if best is not None and size == best.bytes and high == last == math.inf:
                break
            if best is None or size > best.bytes:
                best = Fit(unit * resolution, candidate, size, None)
        else:
            high, above = unit, candidate
        least, most = max(low + 1, first), min(high - 1, last)  # next unit
        if (fits and size >= (1 - tolerance) * target) or least > most:
            break
        distance, secant = math.log(size / aim), unit_slope
        if before is not None:
            secant = (distance - before[1]) / (unit - before[0])
            secant = max(secant, _LEAST_SLOPE * unit_slope)
        before = unit, distance
        step = min(round(abs(distance) / secant), longest)
        step = max(step, 1 << (measured - 1))  # finds the other side in a few files
        unit += step if fits else -step
        if high - low < math.inf and (width / 2 < high - low or not least <= unit <= most):
            unit = int((low + high) // 2)
        unit = int(min(max(unit, least), most))
    if best is None:
        raise BudgetError(
            f"{name} is {target:.0f}, but the smallest of {measured} files still takes "
            f"{smallest:.0f} bytes; {remedy}.",
            budget=int(target),
            least=int(smallest),
        )
    return best._replace(above=above)
