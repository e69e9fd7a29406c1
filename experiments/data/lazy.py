"""Images that are too many for the memory: read and resized when they are needed."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

_MARGIN = 8 / 7  # of the shorter side to the side of the square: 256 to 224
_THREADS = ThreadPoolExecutor(16)  # decoders let go of Python's lock


class LazyImages:
    """Squares from the middle of images of any size, as ResNets are evaluated on ImageNet.

    The shorter side is resized to 8/7 of the square's.

    Attributes:
      shape, dtype: of the array that all of them would be, [n, size, size, 3] uint8.
    """

    def __init__(self, source: Any, size: int, which: Any = None) -> None:
        """Read nothing yet.

        Args:
          source: gives {"image": uint8 [height, width, 3], ...} when indexed by a number.
          size: side of the square, pixels.
          which: examples of the source; all by default.
        """
        self._source, self._size = source, size
        self._which = np.arange(len(source)) if which is None else np.asarray(which)
        self.shape, self.dtype = (len(self._which), size, size, 3), np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._which)

    def part(self, chosen: slice) -> "LazyImages":
        """Return some of the images, still unread."""
        return LazyImages(self._source, self._size, self._which[chosen])

    def __getitem__(self, chosen: Any) -> np.ndarray:
        """Read images [len(chosen), size, size, 3].

        Raises:
          ValueError: naming every example that cannot be read.
        """
        found = list(_THREADS.map(self._read, self._which[chosen]))
        problems = [each for each in found if isinstance(each, str)]
        if problems:
            raise ValueError(f"Images cannot be read: {'; '.join(problems[:5])}.")
        return np.stack(found) if found else np.zeros((0, *self.shape[1:]), np.uint8)

    def _read(self, index: int) -> np.ndarray | str:
        try:
            image = Image.fromarray(self._source[int(index)]["image"]).convert("RGB")
        except Exception as error:  # decoders have their own
            return f"example {index}: {error}"
        scale = _MARGIN * self._size / min(image.size)
        width, height = (round(scale * side) for side in image.size)
        left, top = (width - self._size) // 2, (height - self._size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image.crop((left, top, left + self._size, top + self._size)))
