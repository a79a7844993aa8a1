"""Multi-scale structural similarity of pairs of generated images: the more alike they are, the less varied
is what the generator makes (ProGAN, section 5; Odena et al., section 4.2).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage

from dnnlib.util import UserError

from .metric_base import MetricBase

if TYPE_CHECKING:
    from .evaluation import Evaluation

WEIGHTS = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])   # Of the scales, fine to coarse.
FILTER_SIZE, FILTER_SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def _window(images: np.ndarray) -> np.ndarray:
    """The Gaussian that images [N, H, W, C] are looked at through, [size]; small images narrow it."""
    size = min(FILTER_SIZE, *images.shape[1:3])
    x = np.arange(size) - (size - 1) / 2
    window = np.exp(-0.5 * np.square(x / (FILTER_SIGMA * size / FILTER_SIZE)))
    return window / window.sum()


def _smooth(images: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] seen through the window, wherever all of it is inside."""
    before, after = (len(window) - 1) // 2, len(window) // 2
    for axis in (1, 2):
        images = scipy.ndimage.correlate1d(images, window, axis, mode='constant',
                                           origin=len(window) % 2 - 1)   # An even window leans to the left.
        images = np.take(images, range(before, images.shape[axis] - after), axis)
    return images


def ssim(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The similarity of images float64 [N, H, W, C] in 0…255, and its part without luminance: [N] each."""
    window = _window(a)
    mean_a, mean_b = _smooth(a, window), _smooth(b, window)
    aa, bb, ab = mean_a * mean_a, mean_b * mean_b, mean_a * mean_b
    var_a, var_b = _smooth(a * a, window) - aa, _smooth(b * b, window) - bb
    covariance = _smooth(a * b, window) - ab
    contrast = (2 * covariance + C2) / (var_a + var_b + C2)
    luminance = (2 * ab + C1) / (aa + bb + C1)
    return (luminance * contrast).mean(axis=(1, 2, 3)), contrast.mean(axis=(1, 2, 3))


def _halve(images: np.ndarray) -> np.ndarray:
    """Means of 2×2 pixels of images [N, H, W, C]; an odd last row or column is repeated."""
    height, width = images.shape[1:3]
    images = np.pad(images, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], 'edge')
    rows = images[:, ::2] + images[:, 1::2]
    return (rows[:, :, ::2] + rows[:, :, 1::2]) / 4


def ms_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multi-scale structural similarity of images uint8 [N, H, W, C], pair by pair: float64 [N].

    Wang et al., Multi-scale Structural Similarity for Image Quality Assessment, with five scales.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    result = np.ones(len(a))
    for level, weight in enumerate(WEIGHTS):
        whole, contrast = ssim(a, b)
        # Opposite images have negative similarity, of which there are no powers.
        result *= np.maximum(whole if level == len(WEIGHTS) - 1 else contrast, 0) ** weight
        a, b = _halve(a), _halve(b)
    return result


def similarities(batches: Iterable[np.ndarray]) -> np.ndarray:
    """Similarity of images 0 and 1, 2 and 3, … of minibatches uint8 [n, H, W, C] of any size: [N / 2]."""
    values, waiting = [], None
    for images in batches:
        images = images if waiting is None else np.concatenate([waiting, images])
        even = len(images) // 2 * 2
        values.append(ms_ssim(images[0:even:2], images[1:even:2]))
        waiting = images[even:]
    return np.concatenate(values) if values else np.zeros([0])


def pair_classes(num_pairs: int, num_classes: int, rnd: np.random.RandomState) -> np.ndarray:
    """The class of each pair [num_pairs]: every one as often as any other, as far as that goes."""
    return np.concatenate([rnd.permutation(num_classes)
                           for _ in range(-(-num_pairs // num_classes))])[:num_pairs]


def label_name(label: np.ndarray) -> str:
    """The number of a class, or the components of a label that is not one-hot."""
    is_class = np.count_nonzero(label) == 1 and label.max() == 1
    return str(int(np.argmax(label))) if is_class else ' '.join(f'{x:g}' for x in label)


class MSSSIM(MetricBase):
    """The mean similarity of pairs of generated images, of conditional networks of pairs within a class.

    Args:
        num_images: Twice the number of pairs.
    """

    needs_reals = False
    min_images = 2

    def __init__(self, name: str, num_images: int = 10000, **kwargs: Any):
        super().__init__(name, **kwargs)
        self.num_images = num_images

    def _evaluate(self, ev: 'Evaluation') -> None:
        num = ev.count(self.num_images)
        labels = classes = None
        if ev.label_size:
            table = ev.distinct_labels
            classes = pair_classes((num + 1) // 2, len(table), ev.rng('msssim'))
            labels = np.repeat(table[classes], 2, axis=0)[:num]
        values = similarities(ev.fakes(num, labels))
        if not len(values):
            raise UserError(f'{self.name}: expected at least two images, received {num}')
        self.details.update(num_pairs=len(values), std=float(values.std()))
        if classes is None:
            self._report_result(values.mean())
            return
        classes = classes[:len(values)]
        by_class = {label_name(table[i]): float(values[classes == i].mean()) for i in np.unique(classes)}
        self._report_result(np.mean(list(by_class.values())))
        self.details.update(num_classes=len(by_class), by_class=by_class)
