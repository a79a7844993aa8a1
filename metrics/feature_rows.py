"""Features of many images, as arrays in memory or in files, and exact products of blocks of them."""

import contextlib
import mmap
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError


def check_pair(reals: np.ndarray, fakes: np.ndarray) -> None:
    """Errors: UserError for features of different networks."""
    if reals.shape[1] != fakes.shape[1]:
        raise UserError(f'expected features of one network, received {reals.shape[1]} numbers for the reals '
                        f'and {fakes.shape[1]} for the fakes')


def take(features: np.ndarray, which: slice | np.ndarray) -> np.ndarray:
    """Rows of features [N, d]. Of an array in a file no page stays in the memory of this process."""
    if not isinstance(features, np.memmap):
        return features[which]
    if isinstance(which, slice):
        rows = np.array(features[which])
    else:
        rows = np.empty([len(which), features.shape[1]], features.dtype)
        for position in np.argsort(which, kind='stable'):       # In the order of the file.
            rows[position] = features[which[position]]
    if features.mode != 'c' and hasattr(mmap, 'MADV_DONTNEED'):
        features._mmap.madvise(mmap.MADV_DONTNEED)
    return rows


def blocks(features: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of up to `size` rows each."""
    for begin in range(0, len(features), size):
        yield begin, take(features, slice(begin, begin + size))


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Products of float32 with all their bits: GPUs else leave 10 of 23 by default (TensorFloat-32)."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(enabled)
