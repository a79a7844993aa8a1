"""Images for tests of metrics: sources in memory, the embedded data set, what makes pictures worse."""

import contextlib
import io

import numpy as np
import scipy.ndimage

from dnnlib import tflib
from metrics.evaluation import Evaluation
from metrics.image_sources import Source
from tests import testutil
from training.datasets.base import Dataset


class ArraySource(Source):
    """Images that are an array, uint8 [N, H, W, 3]."""

    name = 'array'

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None, wraps: bool = False):
        self._images, self._labels, self.wraps = images, labels, wraps
        self.num, self.shape = len(images), [3, *images.shape[1:3]]
        self.label_size = 0 if labels is None else labels.shape[1]

    def label_rows(self, indices):
        return self._labels[indices]

    def read(self, indices):
        return self._images[indices]


def random_images(seed: int, num: int, size: int = 16, mean: float = 128) -> np.ndarray:
    """Smooth noise, uint8 [num, size, size, 3]."""
    noise = np.random.RandomState(seed).randn(num, size, size, 3)
    images = scipy.ndimage.gaussian_filter(noise, (0, 1, 1, 0)) * 120 + mean
    return np.clip(images, 0, 255).astype(np.uint8)


def pictures(begin: int, end: int) -> np.ndarray:
    """Pictures of the embedded data set in a random order, uint8 [end - begin, 32, 32, 3]."""
    from training import dataset
    training_set = dataset.load_dataset(tfrecord_dir='pixelart32')
    return training_set.read(np.random.RandomState(0).permutation(len(training_set))[begin:end])[0]


def spoiled(images: np.ndarray) -> dict[str, np.ndarray]:
    """Images with noise, blurred ones, and few of them many times."""
    noise = np.random.RandomState(0).randn(*images.shape) * 10
    few = images[:max(len(images) // 8, 2)]
    return {'noise': np.clip(images + noise, 0, 255).astype(np.uint8),
            'blur': scipy.ndimage.gaussian_filter(images, (0, 0.5, 0.5, 0)),
            'mode dropping': np.resize(few, images.shape)}


def generator(name: str = 'stylegan2_f'):
    """A tiny network of the tests, 16×16: stylegan2_f, or progan_label4 with four classes."""
    import pretrained_networks
    return pretrained_networks.load_network(testutil.golden('training', f'{name}_init.pkl'), 'Gs')


def measure(metric, result_dir: str | None = None, **settings) -> dict[str, float]:
    """The results of a metric.

    Args:
        settings: Arguments of Evaluation.
    """
    evaluation = Evaluation(**settings)
    quiet = contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO())
    with quiet[0], quiet[1], evaluation.group([metric], result_dir):
        metric.run(evaluation)
    return metric.results()


SMALL = dict(num_channels=3, resolution=8, fmap_base=16, fmap_max=4, latent_size=6, dlatent_size=6,
             mapping_fmaps=6, mapping_layers=1)


def noisy_generator(**kwargs):
    """A small StyleGAN2 generator whose noise shows in its pictures."""
    Gs = tflib.Network('Gs', 'training.networks_stylegan2.G_main', **{**SMALL, **kwargs})
    for name, variable in Gs.vars.items():
        if name.endswith('noise_strength'):
            variable.assign(0.3)
    return Gs


class CountingSet(Dataset):
    """Image i is i everywhere but for a mark on the left side; labels are i % 3."""

    def __init__(self, num=10, size=8, channels=3, label_size=0):
        labels = np.eye(3, dtype=np.float32)[np.arange(num) % 3] if label_size else None
        super().__init__('counting', [channels, size, size], num, labels, max_label_size='auto')

    def _read_images(self, indices, lod):
        images = np.ones([len(indices), self.shape[1], self.shape[2], self.shape[0]], np.uint8)
        images *= indices.astype(np.uint8)[:, np.newaxis, np.newaxis, np.newaxis]
        images[:, :, :2] += 100
        return images
