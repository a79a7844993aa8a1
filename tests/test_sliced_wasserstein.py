"""Sliced Wasserstein distance: the official numbers at every step, its order, memory, the metric."""

import contextlib
import io
import unittest.mock

import numpy as np
import scipy.stats
import tensorflow as tf

from dnnlib.util import UserError
from metrics import sliced_wasserstein as swd
from metrics.evaluation import Evaluation
from metrics.metric_base import MetricGroup, find_metrics
from tests import testutil
from tests.metric_testutil import ArraySource


@testutil.needs_golden
class GoldenTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        arrays = testutil.load('metrics', 'metrics.npz')
        self.meta = arrays['meta']['swd']
        self.arrays = {key[4:]: value for key, value in arrays.items() if key.startswith('swd/')}
        self.value = arrays['f64_swd/value']

    def test_pyramid(self):
        images = self.arrays['images'].copy()
        # The first two were replaced by their finest level when the numbers were recorded.
        images[:2] += self.arrays['pyr_up_of_pyr_down'][:2]
        half = swd.pyr_down(images)
        # float32 sums of numbers up to 255.
        self.assertAllClose(half, self.arrays['pyr_down'], rtol=0, atol=1e-4)
        self.assertAllClose(swd.pyr_up(half), self.arrays['pyr_up_of_pyr_down'], rtol=0, atol=1e-4)
        before = images.copy()
        for i, level in enumerate(swd.laplacian_pyramid(images, 3)):
            self.assertAllClose(level[:2], self.arrays[f'laplacian_level{i}_first2'], rtol=0, atol=1e-4)
        self.assertAllEqual(images, before)

    def test_distance(self):
        rnd = np.random.RandomState(self.meta['np_random_seed_descriptors'])
        found = [swd.descriptors(self.arrays[key], self.meta['nhoods_per_image'], rnd)
                 for key in ('images', 'images2')]
        self.assertAllEqual(found[0], self.arrays['descriptors'])
        vectors = [swd.finalize(values.copy()) for values in found]
        for received, key in zip(vectors, ('finalized', 'finalized2'), strict=True):
            self.assertAllClose(received, self.arrays[key], rtol=0, atol=1e-5)
        rnd = np.random.RandomState(self.meta['np_random_seed_directions'])
        with unittest.mock.patch.object(swd, 'DIRS_AT_ONCE', 5):
            distance = swd.sliced_wasserstein(*vectors, rnd, self.meta['dir_repeats'],
                                              self.meta['dirs_per_repeat'])
        self.assertAllClose(distance, self.value, rtol=1e-6, atol=0)


class FormulaTest(tf.test.TestCase):
    def test_against_scipy(self):
        rnd = np.random.RandomState(0)
        a, b = (rnd.randn(200, 30).astype(np.float32) for _ in range(2))
        b = 1.5 * b + 0.3
        directions = np.random.RandomState(5).randn(30, 8)
        directions /= np.linalg.norm(directions, axis=0)
        expected = np.mean([scipy.stats.wasserstein_distance(a @ d, b @ d) for d in directions.T])
        self.assertAllClose(swd.sliced_wasserstein(a, b, np.random.RandomState(5), 1, 8), expected, rtol=1e-5)
        self.assertAllClose(swd.sliced_wasserstein(a, rnd.permutation(a), rnd, 1, 8), 0, atol=1e-6)

    def test_descriptors_stay_inside(self):
        """Every pixel of the smallest image can be in one, none from outside."""
        images = np.arange(2 * 3 * 8 * 9, dtype=np.float32).reshape(2, 3, 8, 9)
        found = swd.descriptors(images, 300, np.random.RandomState(0))
        self.assertEqual(found.shape, (600, 3, 7, 7))
        self.assertAllEqual(np.unique(found), images.ravel())
        # Column by column: the step to the right comes before the step down.
        self.assertAllEqual(found[:, :, 1, 0] - found[:, :, 0, 0], np.full([600, 3], 1))
        self.assertAllEqual(found[:, :, 0, 1] - found[:, :, 0, 0], np.full([600, 3], 9))
        self.assertAllEqual(found[:300] < 3 * 8 * 9, np.ones([300, 3, 7, 7], bool))

    def test_large_sets_lie_in_files(self):
        images = np.random.RandomState(0).randint(0, 256, [24, 32, 64, 3]).astype(np.uint8)
        results = []
        for limit in (1 << 30, 0):
            with unittest.mock.patch.multiple(swd, IN_MEMORY=limit, BLOCK=1000):
                found = swd.Descriptors(24, (32, 64, 3))
                rnd = np.random.RandomState(1)
                for part in (images[:10], images[10:]):
                    found.add(part, rnd)
                self.assertEqual(isinstance(found._levels[0], np.memmap), limit == 0)
                results.append([found.vectors(level) for level in range(2)])
        self.assertEqual(found.sizes, [(32, 64), (16, 32)])
        for a, b in zip(*results, strict=True):
            self.assertAllEqual(a, b)
            parts = a.reshape(-1, 3, 49)
            self.assertAllClose(parts.mean(axis=(0, 2)), np.zeros(3), atol=1e-5)
            self.assertAllClose(parts.std(axis=(0, 2)), np.ones(3), atol=1e-4)

    def test_sizes(self):
        self.assertEqual([height for height, _ in swd.level_sizes(1024, 1024)],
                         [1024, 512, 256, 128, 64, 32, 16])
        self.assertEqual(swd.level_sizes(100, 80), [(100, 80), (50, 40), (25, 20)])
        with self.assertRaisesRegex(UserError, 'images of at least 16×16; received 15×40'):
            swd.level_sizes(40, 15)


class MetricTest(tf.test.TestCase):
    def evaluate(self, reals, fakes, name='swd100', **kwargs):
        group = MetricGroup([dict(find_metrics(name)[0], nhoods_per_image=64, dirs_per_repeat=16)])
        group.run(evaluation=Evaluation(None, ArraySource(reals), ArraySource(fakes), **kwargs))
        return group.metrics[0].results()

    def test_orders(self):
        """Noise is seen where it is, blur at the finest level; a set is closest to others like it."""
        rnd = np.random.RandomState(0)
        images = rnd.randint(0, 256, [200, 8, 8, 3]).astype(np.float32)
        images = np.kron(images, np.ones([1, 4, 4, 1])) + rnd.randn(200, 32, 32, 3) * 8
        reals, fakes = images[:100], images[100:]
        blurred = (fakes + np.roll(fakes, 1, 2) + np.roll(fakes, 1, 1)) / 3
        noisy = fakes + rnd.randn(*fakes.shape) * 60
        sets = [np.clip(x, 0, 255).astype(np.uint8) for x in (reals, fakes, blurred, noisy)]
        same, blur, noise = (self.evaluate(sets[0], x) for x in sets[1:])
        self.assertEqual(list(same), ['swd100_32', 'swd100_16', 'swd100_avg'])
        self.assertAllClose(same['swd100_avg'], (same['swd100_32'] + same['swd100_16']) / 2)
        for other in (blur, noise):
            self.assertGreater(other['swd100_32'], 1.5 * same['swd100_32'])
        self.assertEqual(same, self.evaluate(*sets[:2]))
        self.assertNotEqual(same, self.evaluate(*sets[:2], seed=1))
        for fewer in ((sets[0], sets[1][:30]), (sets[0][:30], sets[1])):    # Pairs of 30.
            with contextlib.redirect_stderr(io.StringIO()) as err:
                self.assertEqual(self.evaluate(*fewer).keys(), same.keys())
            self.assertRegex(err.getvalue(), 'Warning: .*swd100: .*30 ')

    def test_errors(self):
        images = np.zeros([4, 32, 32, 3], np.uint8)
        self.assertEqual(set(self.evaluate(images, images).values()), {0.0})
        reads = []
        with unittest.mock.patch.object(ArraySource, 'read', lambda self, indices: reads.append(indices)):
            # Before anything is looked at.
            with self.assertRaisesRegex(UserError, 'images of 16×16 and of 32×32 pixels.*--resolution'):
                self.evaluate(images, images[:, ::2, ::2])
            with self.assertRaisesRegex(UserError, 'images of at least 16×16; received 8×8'):
                self.evaluate(images[:, ::4, ::4], images[:, ::4, ::4])
        self.assertEmpty(reads)
