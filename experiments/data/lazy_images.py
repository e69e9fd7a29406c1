"""Images that exceed the memory: each is read and resized when indexed."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

_RESIZE_RATIO = 8 / 7  # shorter side to the side of the square, such as 256 to 224
_THREADS = ThreadPoolExecutor(16)  # threads suffice: the decoders release Python's lock


class LazyImages:
    """Center crops of images of any size, as ResNets are evaluated on ImageNet.

    The shorter side of an image is resized to 8/7 of the side of the square.

    Attributes:
      shape: Shape of the array of all images, [n, size, size, 3].
      dtype: Data type of the array, uint8.
    """

    def __init__(self, source: Any, size: int, which: Any = None) -> None:
        """Store the source without reading an image.

        Args:
          source: Sequence of dictionaries {"image": uint8 [height, width, 3], ...}.
          size: Side of the square, pixels.
          which: Indices of the source's examples; None for all.
        """
        self._source, self._size = source, size
        self._which = np.arange(len(source)) if which is None else np.asarray(which)
        self.shape, self.dtype = (len(self._which), size, size, 3), np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._which)

    def part(self, chosen: slice) -> "LazyImages":
        """Return a slice of the images without reading an image."""
        return LazyImages(self._source, self._size, self._which[chosen])

    def __getitem__(self, chosen: Any) -> np.ndarray:
        """Read the images at a slice or index array, uint8 [len(chosen), size, size, 3].

        Raises:
          ValueError: If images cannot be read; the message names the first five examples.
        """
        results = list(_THREADS.map(self._read, self._which[chosen]))
        problems = [result for result in results if isinstance(result, str)]
        if problems:
            raise ValueError(f"Images cannot be read: {'; '.join(problems[:5])}.")
        return np.stack(results) if results else np.zeros((0, *self.shape[1:]), np.uint8)

    def _read(self, index: int) -> np.ndarray | str:
        """Read an image, or return a description of the error."""
        try:
            image = Image.fromarray(self._source[int(index)]["image"]).convert("RGB")
        except Exception as error:  # the decoders raise exceptions of several classes
            return f"example {index}: {error}"
        scale = _RESIZE_RATIO * self._size / min(image.size)
        width, height = (round(scale * side) for side in image.size)
        left, top = (width - self._size) // 2, (height - self._size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image.crop((left, top, left + self._size, top + self._size)))
