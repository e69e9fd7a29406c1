"""Byte planes: entropy-coded storage of integer and bool tensors.

A tensor is stored as its minimum and the differences of its values to the minimum. Plane j holds
byte j of each difference, the low byte first. Each plane is one symbol stream in its shortest form.
Position ids, masks and group indices repeat at length and take a few bytes.
"""

import dataclasses
import math

import numpy as np

from sqs_jax.artifact import coding
from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.artifact.spec import LeafSpec, SymbolsSpec

__all__ = [
    "KIND",
    "Integers",
    "check_integers",
    "from_planes",
    "is_integer",
    "planes_of",
    "worth_coding",
]

KIND = "integers"
NAMES = frozenset(name for name in DTYPES if name == "bool" or "int" in name)
ENTRY = 64
"""Upper estimate of the bytes that a leaf of this kind adds to the compressed index. Measured: 50
to 61 for the first leaf of a file, and 5 to 17 for each further leaf."""
_INCOMPRESSIBLE = 0.98  # entropy per stored byte, from which on byte planes gain nothing


@dataclasses.dataclass(frozen=True)
class Integers:
    """An integer or bool array that is to be stored as byte planes."""

    array: np.ndarray


def is_integer(array: np.ndarray) -> bool:
    """Return whether an array can be stored as byte planes."""
    return array.dtype.name in NAMES


def limits(dtype: str) -> tuple[int, int]:
    """Return the smallest and the largest value of an integer dtype, or of bool."""
    if dtype == "bool":
        return 0, 1
    bits = int(dtype.lstrip("uint"))
    return (0, 2**bits - 1) if dtype[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def planes_of(array: np.ndarray) -> tuple[int, list[np.ndarray]]:
    """Split an integer array into its minimum and byte planes.

    Args:
        array: Non-empty array of an integer dtype or bool, any shape.

    Returns:
        The minimum, and uint8 arrays of the shape of `array`, low plane first. Their number is the
        number of bytes of the largest difference, at least one.
    """
    size = array.dtype.itemsize
    dtype = np.dtype(f"{'i' if array.dtype.name[0] == 'i' else 'u'}{size}")
    values = array.reshape(-1).astype(dtype)  # numpy has no arithmetic for int2, int4 and bool
    minimum = int(values.min())
    offsets = values.view(f"u{size}")
    offsets -= offsets.dtype.type(minimum % 256**size)  # modulo 256**size: exact for any range
    count = max(1, math.ceil(int(offsets.max()).bit_length() / 8))
    digits = offsets.astype(f"<u{size}", copy=False).view(np.uint8).reshape(-1, size)
    return minimum, [np.ascontiguousarray(digits[:, j]).reshape(array.shape) for j in range(count)]


def from_planes(spec: LeafSpec, planes: list[np.ndarray]) -> np.ndarray:
    """Rebuild an integer array from its byte planes.

    Args:
        spec: Description of a leaf, which `check_integers` has accepted.
        planes: Unsigned arrays of the leaf's shape, values below 256, low plane first.

    Returns:
        A writable array of the leaf's shape and dtype.

    Raises:
        ValueError: If a value is beyond the dtype's range.
    """
    dtype, minimum = DTYPES[spec.dtype], spec.attributes["minimum"]
    unsigned = np.dtype(f"u{dtype.itemsize}")
    values = np.zeros(math.prod(spec.shape), unsigned)
    for j, plane in enumerate(planes):
        values |= plane.reshape(-1).astype(unsigned) << unsigned.type(8 * j)
    largest = minimum + int(values.max(initial=0))
    if largest > limits(spec.dtype)[1]:
        raise ValueError(f"the value {largest} is beyond the range of {spec.dtype}")
    values += unsigned.type(minimum % 256**dtype.itemsize)
    signed = values.view(f"i{dtype.itemsize}") if spec.dtype[0] == "i" else values
    return signed.reshape(spec.shape).astype(dtype, copy=False)


def check_integers(spec: LeafSpec) -> None:
    """Raise ValueError unless the parts of a leaf are byte planes of integers."""
    if spec.dtype not in NAMES or not 1 <= len(spec.parts) <= DTYPES[spec.dtype].itemsize:
        raise ValueError(f"{len(spec.parts)} planes of integers of dtype {spec.dtype}")
    for plane in spec.parts:
        if not isinstance(plane, SymbolsSpec) or plane.shape != spec.shape or plane.alphabet > 256:
            raise ValueError("a plane of integers is symbols of the leaf's shape, below 256")
    minimum, (low, high) = spec.attributes.get("minimum"), limits(spec.dtype)
    if (
        set(spec.attributes) != {"minimum"}
        or type(minimum) is not int
        or not low <= minimum <= high
    ):
        raise ValueError(f"integers of dtype {spec.dtype} with {spec.attributes!r:.80}")


def worth_coding(array: np.ndarray) -> bool:
    """Return a quick estimate of whether byte planes make an array smaller.

    The entropy of the planes rules out random integers, such as packed 4-bit codes. The dictionary
    coder would need a second for 2 MB of such integers.
    """
    if not is_integer(array) or array.nbytes <= ENTRY:
        return False
    _, planes = planes_of(array)
    counts = (coding.histogram(plane.reshape(-1), 256) for plane in planes)
    entropy = sum(map(coding.entropy_bits, counts)) / 8
    return entropy < _INCOMPRESSIBLE * array.nbytes or any(map(coding.repetitive, planes))
