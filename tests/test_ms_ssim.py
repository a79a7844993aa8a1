"""MS-SSIM: the official number, a second formula, pairs within classes."""

import numpy as np
import scipy.signal
import tensorflow as tf

from dnnlib.util import UserError
from metrics import ms_ssim
from metrics.evaluation import Evaluation, ImageStream
from metrics.image_sources import Source
from metrics.metric_base import MetricGroup, find_metrics
from tests import testutil
from tests.metric_testutil import noisy_generator


def windowed(x, window, dtype):
    return scipy.signal.fftconvolve(x, np.outer(window, window)[np.newaxis, :, :, np.newaxis].astype(dtype),
                                    mode='valid')


def in_float32(a, b):
    """As it was recorded: by Fourier transforms of float32 images. Independent of ms_ssim but its window."""
    a, b, result = np.float32(a), np.float32(b), 1
    for level, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
        mean_a, mean_b, aa, bb, ab = (windowed(x, ms_ssim._window(a), np.float64)
                                      for x in (a, b, a * a, b * b, a * b))
        contrast = (2 * (ab - mean_a * mean_b) + 58.5225) / (aa - mean_a ** 2 + bb - mean_b ** 2 + 58.5225)
        if level == 4:
            contrast = contrast * (2 * mean_a * mean_b + 6.5025) / (mean_a ** 2 + mean_b ** 2 + 6.5025)
        result = result * contrast.mean(axis=(1, 2, 3)) ** weight
        a, b = (x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean(axis=(2, 4))
                for x in (a, b))
    return result


class FormulaTest(tf.test.TestCase):
    @testutil.needs_golden
    def test_golden(self):
        arrays = testutil.load('metrics', 'metrics.npz')
        pair = arrays['msssim/img1_nhwc'], arrays['msssim/img2_nhwc']
        # The recorded number has the rounding of float32 Fourier transforms, which float64 does not.
        self.assertAllClose(in_float32(*pair).mean(), arrays['f64_msssim/value'], rtol=1e-12, atol=0)
        self.assertAllClose(ms_ssim.ms_ssim(*pair).mean(), arrays['f64_msssim/value'], rtol=5e-6, atol=0)

    def test_window(self):
        """Separable and inside only, for windows of even and odd size."""
        x = np.random.RandomState(0).rand(2, 9, 13, 3)
        for size in (1, 2, 3, 8, 9):
            window = np.random.RandomState(size).rand(size)
            self.assertAllClose(ms_ssim._smooth(x, window), windowed(x, window[::-1], np.float64))
        sizes = [len(ms_ssim._window(np.zeros([1, size, 20, 3]))) for size in (4, 11, 64)]
        self.assertEqual(sizes, [4, 11, 11])

    def test_halve(self):
        x = np.arange(15.0).reshape(1, 3, 5, 1)
        self.assertAllEqual(ms_ssim._halve(x)[0, :, :, 0], [[3, 5, 6.5], [10.5, 12.5, 14]])

    def test_properties(self):
        rnd = np.random.RandomState(0)
        a = np.kron(rnd.randint(0, 256, [6, 8, 8, 3]), np.ones([1, 8, 8, 1])).astype(np.uint8)
        self.assertAllClose(ms_ssim.ms_ssim(a, a), np.ones(6))
        self.assertAllEqual(ms_ssim.ms_ssim(a, 255 - a), np.zeros(6))   # Negative: no NaN.
        near = ms_ssim.ms_ssim(a, np.clip(a + rnd.randn(*a.shape) * 10, 0, 255).astype(np.uint8))
        far = ms_ssim.ms_ssim(a, a[::-1])
        self.assertTrue(np.all(near > far))
        self.assertAllEqual(ms_ssim.ms_ssim(a, a[::-1])[:3], far[:3])
        for size in (16, 5, 1):     # Small images narrow the window.
            self.assertTrue(np.isfinite(ms_ssim.ms_ssim(a[:, :size, :size], a[::-1, :size, :size])).all())


class MetricTest(tf.test.TestCase):
    def test_batches(self):
        images = np.random.RandomState(0).randint(0, 256, [11, 16, 16, 3]).astype(np.uint8)
        expected = ms_ssim.ms_ssim(images[0:10:2], images[1:10:2])
        for cuts in ([], [1, 2, 5], [4, 8], [3, 6, 9]):
            self.assertAllClose(ms_ssim.similarities(np.split(images, cuts)), expected)
        self.assertEqual(len(ms_ssim.similarities([])), 0)

    def test_classes(self):
        classes = ms_ssim.pair_classes(23, 5, np.random.RandomState(0))
        self.assertEqual(len(classes), 23)
        self.assertEqual(sorted(np.bincount(classes)), [4, 4, 5, 5, 5])

    def evaluate(self, images, table=None, name='msssim1k'):
        """The metric of a generator whose images are those of a class."""
        received = []

        class Fixed(Evaluation):
            label_size = 0 if table is None else table.shape[1]

            def _label_rows(self):
                return len(table), lambda indices: table[indices]

            def fakes(self, num, labels=None, **_):
                received.append(labels)
                chosen = images[:num] if labels is None else images(labels)
                return ImageStream(len(chosen), ('fakes',), lambda: iter(np.array_split(chosen, 7)))
        group = MetricGroup(find_metrics(name))
        group.run(evaluation=Fixed())
        return group.metrics[0], received[0]

    def test_within_classes(self):
        """Two classes, each with one picture: the generator has no variety within a class."""
        table = np.eye(3, dtype=np.float32)[[0, 2, 2, 2]]
        pictures = np.random.RandomState(0).randint(0, 256, [3, 16, 16, 3]).astype(np.uint8)
        for name in ('msssim20', 'msssim21'):
            metric, labels = self.evaluate(lambda labels: pictures[labels.argmax(axis=1)], table, name)
            self.assertEqual(len(labels), int(name[6:]))
            self.assertAllClose(metric.results(), {name: 1.0})
            self.assertEqual((metric.details['num_pairs'], metric.details['num_classes']), (10, 2))
            self.assertAllEqual(labels[0:20:2], labels[1:20:2])
            self.assertAllEqual(labels[:20].sum(axis=0), [10, 0, 10])

        def own_noise(labels):  # The second class is noise, the first is one picture.
            noise = np.random.RandomState(1).randint(0, 256, [len(labels), 16, 16, 3])
            return np.where(labels[:, 2].reshape(-1, 1, 1, 1) > 0, noise, pictures[0]).astype(np.uint8)
        metric, _ = self.evaluate(own_noise, table)
        self.assertLess(metric.details['by_class']['2'], 0.5)
        self.assertAllClose(metric.results()['msssim1k'], np.mean(list(metric.details['by_class'].values())))
        self.assertAllClose(metric.details['by_class']['0'], 1)
        self.assertEqual(ms_ssim.label_name(np.float32([1, 0, 1])), '1 0 1')

    def test_large_data_set(self):
        """Of a million images with labels of a thousand classes no table of all labels is made."""
        reals = Source()
        reals.num, reals.label_size = 1000000, 3
        reals.classes = np.zeros([reals.num], np.int32)
        reals.classes[-1] = 2
        asked = []

        def label_rows(indices):
            asked.append(len(indices))
            return np.eye(3, dtype=np.float32)[reals.classes[indices]]
        reals.label_rows = label_rows
        metric, ev = ms_ssim.MSSSIM('m', 4), Evaluation(noisy_generator(label_size=3, resolution=16), reals)
        metric.run(ev)
        self.assertEqual(set(metric.details['by_class']), {'0', '2'})
        self.assertLess(max(asked), 1000)

    def test_without_classes(self):
        images = np.random.RandomState(0).randint(0, 256, [9, 16, 16, 3]).astype(np.uint8)
        metric, labels = self.evaluate(images)
        self.assertIsNone(labels)
        expected = ms_ssim.ms_ssim(images[0:8:2], images[1:8:2]).mean()
        self.assertAllClose(metric.results(), {'msssim1k': expected})
        self.assertFalse(metric.needs_reals)
        with self.assertRaisesRegex(UserError, 'msssim1 needs at least 2 generated images, received 1'):
            self.evaluate(images, name='msssim1')
