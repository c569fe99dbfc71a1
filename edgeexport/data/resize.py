"""Resizing pictures, with the kernel and antialiasing named.

With `antialias` Pillow does it: its filters grow with the reduction. Without, each output pixel takes the kernel's
fixed number of taps (2 bilinear, 4 bicubic with a = -0.5, 6 lanczos) around its half-pixel centre, edges repeated: the
plain sampling of OpenCV and of torch's `interpolate(antialias=False, align_corners=False)`, equal to both for bilinear
(torch's bicubic has a = -0.75). "nearest" is Pillow's (centre of the pixel) either way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeexport.errors import DataError, MissingExtra
from edgeexport.records.recipe import Resize

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_TAPS = {"bilinear": 2, "bicubic": 4, "lanczos": 6}


def resize(array: Array, how: Resize) -> Array:
    """Resize (height, width, channels). uint8 stays uint8 (rounded), anything else becomes float32."""
    import numpy as np

    height, width = resized_shape(array.shape[:2], how)
    if (height, width) == array.shape[:2]:
        return array
    plain = array if array.dtype == np.uint8 else array.astype(np.float32)
    if how.antialias or how.kernel == "nearest":
        return _pillow(plain, (height, width), kernel=how.kernel)
    rows = _sample(plain.astype(np.float32), height, kernel=how.kernel)
    both = _sample(rows.swapaxes(0, 1), width, kernel=how.kernel).swapaxes(0, 1)
    return np.clip(np.floor(both + 0.5), 0, 255).astype(np.uint8) if array.dtype == np.uint8 else both


def resized_shape(shape: tuple[int, ...], how: Resize) -> tuple[int, int]:
    """Return (height, width) after resizing; with `shorter`, the longer side is cut down to a whole number."""
    if how.size is not None:
        return how.size
    if how.shorter is None:
        raise DataError("`resize` says neither `size` nor `shorter`")
    height, width = shape
    if height <= width:
        return how.shorter, int(how.shorter * width / height)
    return int(how.shorter * height / width), how.shorter


def _pillow(array: Array, size: tuple[int, int], *, kernel: str) -> Array:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("pillow", extra="export", purpose="resizing pictures") from None
    import numpy as np

    method = Image.Resampling[kernel.upper()]
    planes = [
        Image.fromarray(np.ascontiguousarray(array[..., channel])).resize((size[1], size[0]), method)
        for channel in range(array.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def _sample(array: Array, size: int, *, kernel: str) -> Array:
    """Sample the first axis at `size` half-pixel centres."""
    import numpy as np

    taps = _TAPS[kernel]
    centre = (np.arange(size) + 0.5) * (array.shape[0] / size) - 0.5
    first = np.floor(centre).astype(np.int64) - (taps // 2 - 1)
    positions = first[:, None] + np.arange(taps)
    weights = _weight(positions - centre[:, None], kernel)
    weights /= weights.sum(axis=1, keepdims=True)
    taken = array[np.clip(positions, 0, array.shape[0] - 1)]
    result: Array = np.einsum("st,st...->s...", weights.astype(np.float32), taken)
    return result


def _weight(distance: Array, kernel: str) -> Array:
    import numpy as np

    x = np.abs(distance)
    if kernel == "bilinear":
        return np.maximum(0.0, 1.0 - x)
    if kernel == "lanczos":
        return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
