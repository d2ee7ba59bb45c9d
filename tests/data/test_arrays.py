"""Arrow arrays as numpy arrays and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from arctic_hydra.data.arrays import to_arrow, to_numpy


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64, np.float32])
def test_numbers_are_viewed_both_ways(dtype: type) -> None:
    numbers = np.arange(10, dtype=dtype)
    array = to_arrow(numbers)
    assert array.to_pylist() == numbers.tolist()
    back = to_numpy(array)
    assert back.dtype == dtype and np.shares_memory(back, numbers)
    assert to_numpy(array.slice(3, 4)).tolist() == [3, 4, 5, 6]


def test_empty_arrays_and_missing_numbers() -> None:
    assert to_numpy(pa.array([], pa.int32())).tolist() == []
    assert to_arrow(np.arange(6)[::2]).to_pylist() == [0, 2, 4], "a strided array is copied"
    with pytest.raises(ValueError, match="1 numbers are missing"):
        to_numpy(pa.array([1, None], pa.int32()))
