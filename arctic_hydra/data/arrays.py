"""Conversion between Arrow arrays of numbers and numpy arrays, without copies and without pandas.

pyarrow's own conversions import pandas if it is installed, which costs a quarter of a second at each start.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, Any]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def to_numpy(array: pa.Array) -> Array:
    """Return an Arrow array of integers or of float32 as a view of its buffer; raises ValueError if it contains nulls."""
    if array.null_count:
        raise ValueError(f"{array.null_count} numbers are missing")
    name = str(array.type)  # such as int32; `to_pandas_dtype` may import pandas
    dtype = np.dtype("float32" if name == "float" else name)
    buffer = array.buffers()[1]
    if buffer is None:
        return np.empty(0, dtype)
    return np.frombuffer(buffer, dtype, count=len(array), offset=array.offset * dtype.itemsize)


def to_arrow(numbers: Array) -> pa.Array:
    """Return an Arrow array that shares the memory of a contiguous numpy array, which must not change while it is used."""
    kind = pa.from_numpy_dtype(numbers.dtype)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(np.ascontiguousarray(numbers))])
