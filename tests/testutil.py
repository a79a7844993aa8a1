"""What the tests share: where the golden reference data lies and how to compare with it.

The golden data (numbers computed with the official TensorFlow 1 code) is looked for in `$STYLEGAN_GOLDEN`, then in
`../shared/golden` beside the checkout. The few small files that a clone alone needs are in `tests/data`.
"""

import json
import os
import pathlib
import unittest

import numpy as np
import tensorflow as tf

from training.context import Context

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / 'tests' / 'data'
GOLDEN = pathlib.Path(os.environ.get('STYLEGAN_GOLDEN', ROOT.parent / 'shared' / 'golden'))

needs_golden = unittest.skipUnless(GOLDEN.is_dir(), f'the golden reference data is not at {GOLDEN}')


def golden(*parts: str) -> str:
    """Path of a golden file; a copy in tests/data serves where the golden folder is absent."""
    path = GOLDEN.joinpath(*parts)
    return str(path if path.exists() else DATA.joinpath(*parts))


def load(*parts: str) -> dict[str, np.ndarray]:
    """All arrays of a golden npz file; `meta_json` is returned parsed under the key 'meta'."""
    with np.load(golden(*parts)) as file:
        arrays = {key: file[key] for key in file.files}
    arrays['meta'] = json.loads(str(arrays.pop('meta_json', '{}')))
    return arrays


def cases(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, dict[str, np.ndarray]]:
    """Groups arrays named `prefix/case/array` by case: {case: {array: value}}."""
    groups = {}
    for key, value in arrays.items():
        if key.startswith(prefix + '/'):
            case, _, name = key[len(prefix) + 1:].partition('/')
            groups.setdefault(case, {})[name] = value
    return groups


def nhwc(images: np.ndarray) -> np.ndarray:
    """[N, C, H, W] → [N, H, W, C]."""
    return np.transpose(images, [0, 2, 3, 1])


def nchw(images: np.ndarray) -> np.ndarray:
    """[N, H, W, C] → [N, C, H, W]."""
    return np.transpose(images, [0, 3, 1, 2])


def assert_close(test, actual, expected, rtol: float = 1e-4, atol_rel: float = 1e-4, msg: str = '') -> None:
    """|actual - expected| <= rtol·|expected| + atol_rel·max|expected|, shapes equal."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    test.assertEqual(actual.shape, expected.shape, msg)
    if expected.size:
        atol = atol_rel * float(np.max(np.abs(expected)))
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=msg)


class RecordedContext(Context):
    """A context whose random numbers are given arrays, in the order in which they are asked for.

    Args:
        normals: arrays for normal(); each must have the shape asked for.
        uniforms: arrays for uniform(). integers: numbers for integers(). labels: arrays for random_labels().
        loss_state: {name: variable}.
    """

    def __init__(self, normals=(), uniforms=(), integers=(), labels=(), loss_state=None):
        super().__init__(keep_features=True, loss_state=loss_state)
        self._queues = {'normal': list(normals), 'uniform': list(uniforms), 'integers': list(integers),
                        'labels': list(labels)}
        self.reports = {}

    def _next(self, kind, shape):
        if not self._queues[kind]:
            raise AssertionError(f'no recorded {kind} left for shape {tuple(np.asarray(shape))}')
        value = np.asarray(self._queues[kind].pop(0))
        if list(value.shape) != list(np.asarray(shape)):
            raise AssertionError(f'recorded {kind} has shape {value.shape}, asked for {tuple(np.asarray(shape))}')
        return value

    def normal(self, shape, dtype=tf.float32):
        return tf.constant(self._next('normal', shape), dtype)

    def uniform(self, shape, dtype=tf.float32):
        return tf.constant(self._next('uniform', shape), dtype)

    def integers(self, shape, low, high):
        return tf.constant(self._next('integers', shape), tf.int32)

    def random_labels(self, minibatch_size):
        return tf.constant(self._queues['labels'].pop(0)) if self._queues['labels'] else tf.zeros([minibatch_size, 0])

    def report(self, name, values):
        self.reports[name] = values
        return values

    def all_used(self) -> bool:
        """True when every recorded number was asked for."""
        return not any(self._queues.values())
