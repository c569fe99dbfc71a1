"""Arrays as .npy files, format 1.0, with one way to write them and nothing executable in them.

The rule: a header that lies about its size is refused before any memory is taken, and object arrays do not exist.
Source: NumPy's `numpy.lib.format` documentation.
"""

from __future__ import annotations

import ast
import math
from typing import TYPE_CHECKING, Any

from edgeexport.errors import CorruptFile, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = b"\x93NUMPY\x01\x00"
KINDS = "biuf"
LONGEST_HEADER = 4096


def dump(array: NDArray[Any]) -> bytes:
    """Return the .npy bytes of an array of numbers or booleans, little-endian, C order. Raises DataError otherwise."""
    import numpy as np

    if array.dtype.kind not in KINDS:
        raise DataError(f"cannot store an array of dtype {array.dtype}, only numbers and booleans")
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    header = f"{{'descr': '{plain.dtype.str}', 'fortran_order': False, 'shape': {plain.shape}, }}"
    padding = -(len(MAGIC) + 2 + len(header) + 1) % 64
    text = header.encode("ascii") + b" " * padding + b"\n"
    return MAGIC + len(text).to_bytes(2, "little") + text + plain.tobytes()


def load(data: bytes, *, origin: str) -> NDArray[Any]:
    """Read .npy bytes. Raises CorruptFile naming `origin` and the reason."""
    import numpy as np

    if not data.startswith(MAGIC):
        raise CorruptFile(f"{origin}: not an .npy file of format 1.0")
    start = len(MAGIC) + 2
    end = start + int.from_bytes(data[start - 2 : start], "little")
    dtype, shape = _header(data[start:end], origin=origin)
    if math.prod(shape) * dtype.itemsize != len(data) - end:
        raise CorruptFile(f"{origin}: {len(data) - end} bytes do not hold an array of shape {shape} and dtype {dtype}")
    return np.frombuffer(data, dtype, offset=end).reshape(shape)


def _header(text: bytes, *, origin: str) -> tuple[Any, tuple[int, ...]]:
    import numpy as np

    if len(text) > LONGEST_HEADER:
        raise CorruptFile(f"{origin}: a header of {len(text)} bytes, at most {LONGEST_HEADER} are allowed")
    try:
        fields = ast.literal_eval(text.decode("ascii").strip())
        dtype, order, shape = np.dtype(fields["descr"]), fields["fortran_order"], fields["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise CorruptFile(f"{origin}: not a readable .npy header: {error}") from error
    whole = isinstance(shape, tuple) and all(type(length) is int and length >= 0 for length in shape)
    if order is not False or not whole or dtype.kind not in KINDS or dtype.subdtype is not None:
        raise CorruptFile(f"{origin}: shape {shape}, dtype {dtype}, Fortran order {order}: not an array this reads")
    return dtype, shape
