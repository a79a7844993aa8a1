"""Labels as classes, and as rows of floats where rows are wanted; names of classes.

One-hot rows of all images of a large data set would not fit into memory; their classes do.
"""

import json
import os
from collections.abc import Iterator

import numpy as np

from dnnlib.util import UserError

LABEL_CHUNK = 4096          # Rows of labels that are expanded at a time.
MAX_NAMES_BYTES = 64 << 20


def check_classes(classes: np.ndarray, where: str, num_classes: int | None = None) -> tuple[np.ndarray, int]:
    """Integers [N] → classes int32 [N] and their number. Errors: UserError, naming `where`."""
    limit = num_classes or max(len(classes), 10000)     # More classes than images is no classification.
    if classes.dtype.kind not in 'iu' or classes.min() < 0 or classes.max() >= limit:
        raise UserError(f'{where} is {classes.dtype} from {classes.min()} to {classes.max()}; expected '
                        f'integers from 0 to at most {limit - 1}, or one-hot floats.')
    return classes.astype(np.int32), num_classes or int(classes.max()) + 1


def expand_classes(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Classes [N] → one-hot float32 [N, num_classes]; a class from num_classes up gives zeros."""
    labels = np.zeros([len(classes), num_classes], np.float32)
    rows = np.flatnonzero(classes < num_classes)
    labels[rows, classes[rows]] = 1
    return labels


def one_hot(classes: np.ndarray, where: str, num_classes: int | None = None) -> np.ndarray:
    """int [N] → float32 [N, num_classes or largest class + 1]. Errors: as of `check_classes`."""
    return expand_classes(*check_classes(classes, where, num_classes))


def label_chunks(labels: np.ndarray | None, size: int, count: int) -> Iterator[np.ndarray]:
    """Labels of `count` images as rows float32 [n, size], some images at a time.

    Args:
        labels: Classes [count] or rows [count, size]; None, or size 0, for rows without components.
    """
    for begin in range(0, count, LABEL_CHUNK):
        end = min(begin + LABEL_CHUNK, count)
        if labels is None or not size:
            yield np.zeros([end - begin, 0], np.float32)
        elif labels.ndim == 1:
            yield expand_classes(labels[begin:end], size)
        else:
            yield np.ascontiguousarray(labels[begin:end], '<f4')


def find_classes(labels: np.ndarray) -> np.ndarray | None:
    """The classes of one-hot rows [N, K], int32 [N]; None where a row is not one-hot. In bounded memory."""
    result = np.empty(len(labels), np.int32)
    if not labels.shape[1]:
        return None
    for begin in range(0, len(labels), LABEL_CHUNK):
        rows = np.asarray(labels[begin:begin + LABEL_CHUNK])
        found = rows.argmax(axis=1)
        if np.count_nonzero(rows) != len(rows) or (rows[np.arange(len(rows)), found] != 1).any():
            return None
        result[begin:begin + len(rows)] = found
    return result


def count_labels(labels: np.ndarray | None, size: int) -> np.ndarray:
    """Number of images of each label component: int [size]. Labels are classes [N] or rows [N, size]."""
    if labels is None or not size:
        return np.zeros(size, np.int64)
    if labels.ndim == 1:
        return np.bincount(labels, minlength=size)[:size]
    return np.count_nonzero(labels > 0, axis=0)


def split_labels(labels: np.ndarray | None, size: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Labels with `size` components as (classes int32 [N], None) if all are one-hot, or (None, rows)."""
    if labels is None or not size:
        return None, None
    classes = labels if labels.ndim == 1 else find_classes(labels[:, :size])
    if classes is not None and (classes < size).all():
        return np.ascontiguousarray(classes, np.int32), None
    rows = expand_classes(labels, size) if labels.ndim == 1 else labels[:, :size]
    return None, np.ascontiguousarray(rows, np.float32)


def read_names(path: str | os.PathLike) -> list[str]:
    """Names of classes: the lines of a text, a JSON list, or the dataset.json of a data set."""
    with open(path, 'rb') as file:
        data = file.read(MAX_NAMES_BYTES)
    try:
        text = data.decode('utf-8-sig')
        if not os.fspath(path).lower().endswith('.json'):
            return [line.strip() for line in text.splitlines() if line.strip()]
        names = json.loads(text)
        names = names.get('label_names') if isinstance(names, dict) else names
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
        reason = 'it holds no list of names'
    except (ValueError, RecursionError) as error:
        reason = ' '.join(str(error).split())
    raise UserError(f'{os.fspath(path)}: expected lines of text, a JSON list, or a dataset.json with '
                    f'label_names ({reason:.80})')
