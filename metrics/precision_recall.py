"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991).

The manifold of a set of samples is the union of balls around them, each with the k-th nearest other sample on
its border. Precision is the share of the fakes in the manifold of the reals, recall the share of the reals in
that of the fakes.

Distances are products of matrices in float32 (the official code: float16), block by block, on a GPU where
there is one. They only find candidates: whatever is within their rounding error of a decision is decided by
differences in float64, so cancellation loses no neighbor, and equal samples have distance exactly 0.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError

from .feature_rows import blocks, check_pair, take, without_tf32
from .metric_base import MetricBase

if TYPE_CHECKING:
    from .evaluation import Evaluation

CANDIDATES = 8          # Pairs that are looked at for each sample, beyond the neighbors asked for.
BLOCK = (8192, 4096)    # Rows and columns of a block of distances.
DISTANCES = 'float32, near ties float64 (official: float16)'     # For records.
Progress = Callable[[int], None]


@tf.function(autograph=False, reduce_retracing=True)
def _smallest(a: tf.Tensor, a_norms: tf.Tensor, b: tf.Tensor, b_norms: tf.Tensor, weights: tf.Tensor,
              count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The `count` smallest of weights·(a_norms + b_norms − 2·a·bᵀ) in each row, ascending; their columns.

    Args:
        a, b: [n, d], [m, d]. a_norms: [n]. b_norms, weights: [m].
    """
    values = (a_norms[:, None] + (b_norms - 2 * tf.matmul(a, b, transpose_b=True))) * weights
    values, columns = tf.math.top_k(-values, count)
    return -values, columns


class _Samples:
    """Features about a center, with their squared lengths.

    Errors: UserError where they are not finite.
    """

    def __init__(self, features: np.ndarray, center: np.ndarray):
        self.features = features
        self._center = center.astype(np.result_type(features.dtype, np.float32))
        self.norms = np.concatenate([np.einsum('nd,nd->n', x, x, dtype=np.float64)
                                     for _, x in self.blocks(BLOCK[1])])
        if not np.isfinite(self.norms).all():
            raise UserError('features are not all finite; expected those of ordinary images')

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows float32) of up to `size` rows each."""
        for begin, rows in blocks(self.features, size):
            yield begin, (rows - self._center).astype(np.float32)


def _center(features: np.ndarray) -> np.ndarray:
    """The mean [d], in float64."""
    return sum(rows.sum(axis=0, dtype=np.float64) for _, rows in blocks(features, BLOCK[1])) / len(features)


def _search(samples: _Samples, others: _Samples, count: int, scale: float = 1.0,
            offsets: np.ndarray | float = 0.0, weights: np.ndarray | float = 1.0,
            progress: Progress | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The `count` others b with the least weights·(‖a‖²·scale + ‖b‖²·scale + offsets − 2·a·b) of each a.

    Yields: for each block of samples their indices [n], the values [n, count] ascending, which others.
    """
    other_norms = (others.norms * scale + offsets).astype(np.float32)
    weights = np.broadcast_to(np.float32(weights), other_norms.shape)
    for begin, a in samples.blocks(BLOCK[0]):
        index = np.arange(begin, begin + len(a))
        a, norms = tf.constant(a), tf.constant(samples.norms[index] * scale, tf.float32)
        best = np.empty([len(index), 0], np.float32), np.empty([len(index), 0], np.int64)
        for start, b in others.blocks(BLOCK[1]):
            part = slice(start, start + len(b))
            with without_tf32():
                found = _smallest(a, norms, tf.constant(b), tf.constant(other_norms[part]),
                                  tf.constant(weights[part]), tf.constant(min(count, len(b))))
            values = np.concatenate([best[0], found[0].numpy()], axis=1)
            columns = np.concatenate([best[1], start + found[1].numpy().astype(np.int64)], axis=1)
            order = np.argsort(values, axis=1, kind='stable')[:, :count]
            best = np.take_along_axis(values, order, axis=1), np.take_along_axis(columns, order, axis=1)
        yield index, *best
        if progress is not None:
            progress(len(index))


def _rounding(num_features: int) -> float:
    """Greatest error of ‖a‖² + ‖b‖² − 2·a·b in float32, relative to ‖a‖² + ‖b‖²."""
    return (num_features / 2 + 16) * float(np.finfo(np.float32).eps)


def squared_distances(a: np.ndarray, a_index: np.ndarray, b: np.ndarray, b_index: np.ndarray) -> np.ndarray:
    """‖a[i] − b[j]‖² of pairs, float64 [n], by differences; exactly 0 for equal features."""
    result = np.empty(len(a_index))
    step = max((16 << 20) // (8 * a.shape[1]), 1)
    for begin in range(0, len(a_index), step):
        pairs = slice(begin, begin + step)
        difference = take(a, a_index[pairs]).astype(np.float64) - take(b, b_index[pairs])
        result[pairs] = np.einsum('nd,nd->n', difference, difference)
    return result


def squared_radii(features: np.ndarray, k: int = 3, progress: Progress | None = None) -> np.ndarray:
    """Squared distance of each sample from its k-th nearest other one, float64 [N].

    Args:
        features: [N, d], also an array in a file.

    Raises: UserError for fewer than k + 1 samples.
    """
    if len(features) <= k:
        raise UserError(f'precision and recall with the {k} nearest neighbors need at least {k + 1} images '
                        f'of each kind, received {len(features)}')
    samples = _Samples(features, _center(features))
    radii = np.empty(len(features))
    for index, values, columns in _search(samples, samples, k + 1 + CANDIDATES, progress=progress):
        values = np.where(columns == index[:, None], np.inf, values)    # No sample is its own neighbor.
        order = np.argsort(values, axis=1, kind='stable')
        values, columns = (np.take_along_axis(x, order, axis=1) for x in (values, columns))
        error = _rounding(features.shape[1]) * (samples.norms[index] + samples.norms[columns].max(axis=1))
        kth = values[:, k - 1:k]
        rows, places = np.nonzero(np.isfinite(values) & (np.abs(values - kth) <= 2 * error[:, None]))
        # What is clearly nearer or farther only has to stay so.
        exact = np.where(values < kth, -np.inf, np.inf)
        exact[rows, places] = squared_distances(features, index[rows], features, columns[rows, places])
        radii[index] = np.sort(exact, axis=1)[:, k - 1]
    return radii


def in_manifold(samples: np.ndarray, reference: np.ndarray, radii: np.ndarray,
                progress: Progress | None = None) -> np.ndarray:
    """Which samples are within the radius of any reference sample, its border included: bool [N].

    Args:
        radii: Squared ones of the reference samples, see squared_radii.
    """
    check_pair(reference, samples)
    center, rounding = _center(reference), _rounding(samples.shape[1])
    a, b = _Samples(samples, center), _Samples(reference, center)
    inside = np.empty(len(samples), bool)
    offsets = -radii * (1 + rounding)
    for index, least, columns in _search(a, b, CANDIDATES, 1 - rounding, offsets, progress=progress):
        # What squared distance minus squared radius is at least, and at most.
        most = least + 2 * rounding * (a.norms[index][:, None] + b.norms[columns] + radii[columns])
        inside[index] = np.any(most < 0, axis=1)
        rows, places = np.nonzero((least <= 0) & ~inside[index][:, None])
        which = columns[rows, places]
        exact = squared_distances(samples, index[rows], reference, which) <= radii[which]
        inside[index[rows[exact]]] = True
    return inside


def realism(samples: np.ndarray, reference: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Greatest radius / distance of each sample over the reference samples, float64 [N]; 1 or more: inside.

    Args:
        radii: Squared ones of the reference samples, see squared_radii.
    """
    check_pair(reference, samples)
    center = _center(reference)
    a, b = _Samples(samples, center), _Samples(reference, center)
    result = np.empty(len(samples))
    for index, _, columns in _search(a, b, CANDIDATES, weights=1 / np.maximum(radii, 1e-20)):
        rows, places = np.indices(columns.shape).reshape(2, -1)
        which = columns[rows, places]
        squared = squared_distances(samples, index[rows], reference, which)
        with np.errstate(divide='ignore', invalid='ignore'):
            ratio = np.where((squared == 0) & (radii[which] == 0), 1, np.sqrt(radii[which] / squared))
        result[index] = ratio.reshape(columns.shape).max(axis=1)
    return result


def precision_recall(reals: np.ndarray, fakes: np.ndarray, k: int = 3, progress: Progress | None = None,
                     real_radii: np.ndarray | None = None) -> tuple[float, float]:
    """(precision, recall) of features [N, d] and [M, d].

    Args:
        progress: Called with numbers of samples, 2·(N + M) in all.
        real_radii: squared_radii of the reals where they are known.
    """
    check_pair(reals, fakes)
    if real_radii is None:
        real_radii = squared_radii(reals, k, progress)
    precision = in_manifold(fakes, reals, real_radii, progress)
    recall = in_manifold(reals, fakes, squared_radii(fakes, k, progress), progress)
    return float(precision.mean()), float(recall.mean())


class PR(MetricBase):
    """Precision and recall; results NAME_precision and NAME_recall.

    Reals are never repeated, as copies would have radius 0; so there may be fewer than the name says.

    Args:
        num_images: Fakes.
        num_reals: Reals, at most. None = as many as fakes.
        full: Take reals from the whole data set, unflipped?
        nhood_size: k, the neighbor that is on the border of a ball.
        extractor: Key of feature_nets.EXTRACTORS; officially 'vgg16'.
    """

    def __init__(self, name: str, num_images: int = 50000, num_reals: int | None = None, full: bool = False,
                 nhood_size: int = 3, extractor: str = 'vgg16', **kwargs: Any):
        super().__init__(name, extractor, **kwargs)
        self.num_images, self.num_reals = num_images, num_reals or num_images
        self.full, self.nhood_size = full, nhood_size
        self.min_images = nhood_size + 1

    def _evaluate(self, ev: 'Evaluation') -> None:
        reals = ev.features(ev.reals(self.num_reals, full=self.full, wrap=False), self.extractor).all()
        fakes = ev.features(ev.fakes(self.num_images), self.extractor).all()
        with ev.progress('neighbors', 2 * (len(reals) + len(fakes)), 'samples') as progress:
            precision, recall = precision_recall(reals, fakes, self.nhood_size, progress.update)
        self._report_result(precision, '_precision')
        self._report_result(recall, '_recall')
        self.details.update(nhood_size=self.nhood_size, distances=DISTANCES)
