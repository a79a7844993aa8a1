"""Kernel Inception distance (Bińkowski et al. 2018, arXiv:1801.01401)."""

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError

from .feature_rows import check_pair, take
from .metric_base import MetricBase

if TYPE_CHECKING:
    from .evaluation import Evaluation

MAX_FULL = 1000000      # Reals of the _full variant.


@tf.function(autograph=False, reduce_retracing=True)
def _kernel_sums(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(Σ k(xi, xj) + Σ k(yi, yj) over i ≠ j, Σ k(xi, yj)) of the kernel (x·y/d + 1)³."""
    def kernel(a, b):
        return (tf.matmul(a, b, transpose_b=True) / tf.cast(tf.shape(a)[1], a.dtype) + 1) ** 3

    def others(a):
        values = kernel(a, a)
        return tf.reduce_sum(values) - tf.linalg.trace(values)

    return others(x) + others(y), tf.reduce_sum(kernel(x, y))


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of features [m, d] both; may be negative."""
    size = len(x)
    within, between = _kernel_sums(tf.constant(x, tf.float64), tf.constant(y, tf.float64))
    return float((within / (size - 1) - 2 * between / size) / size)


def subset_distances(reals: np.ndarray, fakes: np.ndarray, rnd: np.random.RandomState,
                     num_subsets: int = 100, subset_size: int = 1000) -> np.ndarray:
    """Kernel distances of random subsets, float64 [num_subsets]; KID is their mean.

    Args:
        reals, fakes: Features [N, d], [M, d], also arrays in files.
        rnd: Draws each subset without replacement, that of the fakes first, as the official code does.
        subset_size: At most; fewer where there are fewer samples.

    Raises: UserError for fewer than two samples, and for features of different networks.
    """
    check_pair(reals, fakes)
    size = min(len(reals), len(fakes), subset_size)
    if size < 2:
        raise UserError(f'KID needs at least 2 images of each kind, received {len(reals)} real and '
                        f'{len(fakes)} generated ones')
    distances = []
    for _ in range(num_subsets):
        x = take(fakes, rnd.choice(len(fakes), size, replace=False))
        y = take(reals, rnd.choice(len(reals), size, replace=False))
        distances.append(kernel_distance(x, y))
    return np.array(distances)


class KID(MetricBase):
    """Kernel Inception distance. Reals are never repeated: the estimate is unbiased for different samples.

    Args:
        num_images: Fakes, and reals at most.
        full: Take up to a million reals from the whole data set, unflipped?
        num_subsets: Random subsets whose distances are averaged.
        max_subset_size: Their size, at most.
        extractor: Key of feature_nets.EXTRACTORS; with another than 'inception' it is no KID.
    """

    min_images = 2

    def __init__(self, name: str, num_images: int = 50000, full: bool = False, num_subsets: int = 100,
                 max_subset_size: int = 1000, extractor: str = 'inception', **kwargs: Any):
        super().__init__(name, extractor, **kwargs)
        self.num_images, self.full = num_images, full
        self.num_subsets, self.max_subset_size = num_subsets, max_subset_size

    def _evaluate(self, ev: 'Evaluation') -> None:
        num_reals = MAX_FULL if self.full else self.num_images
        reals = ev.features(ev.reals(num_reals, full=self.full, wrap=False), self.extractor).all()
        fakes = ev.features(ev.fakes(self.num_images), self.extractor).all()
        distances = subset_distances(reals, fakes, ev.rng('KID'), self.num_subsets, self.max_subset_size)
        self._report_result(distances.mean(), fmt='%-12.8f')
        self.details.update(num_subsets=self.num_subsets, std_of_subsets=float(distances.std()),
                            subset_size=min(len(reals), len(fakes), self.max_subset_size))
