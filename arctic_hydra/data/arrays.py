"""Arrow arrays as numpy arrays and back, without copying and without pandas.

pyarrow's own conversions import pandas where it is installed, with the first array: a quarter of a second at each start.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, Any]


def to_numpy(array: pa.Array) -> Array:
    """Return the values of an Arrow array of numbers, as a view of its buffer; raises ValueError where some are missing."""
    if array.null_count:
        raise ValueError(f"{array.null_count} numbers are missing")
    dtype = np.dtype(str(array.type))  # such as int32; `to_pandas_dtype` may import pandas
    buffer = array.buffers()[1]
    if buffer is None:
        return np.empty(0, dtype)
    return np.frombuffer(buffer, dtype, count=len(array), offset=array.offset * dtype.itemsize)


def to_arrow(numbers: Array) -> pa.Array:
    """Return an Arrow array over the values of a numpy array of numbers, which must not change while it is used."""
    kind = pa.from_numpy_dtype(numbers.dtype)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(np.ascontiguousarray(numbers))])


Ints = np.ndarray[Any, np.dtype[np.int64]]
