"""Kernel Inception distance: golden numbers, subsets."""

import json

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from metrics.feature_nets import find_extractor
from metrics.kernel_inception_distance import KID, kernel_distance, subset_distances
from tests import feature_testutil, testutil
from tests.metric_testutil import ArraySource, measure, random_images


class KernelDistanceTest(tf.test.TestCase):
    @testutil.needs_golden
    def test_golden(self):
        arrays = feature_testutil.load('formula_arrays.npz')
        values = json.loads((feature_testutil.METRICS / 'formula_values.json').read_text())
        for name in ('a', 'b_rank_deficient', 'c_same'):
            reals, fakes = arrays[f'{name}_real'], arrays[f'{name}_gen']
            # The draws are those of the official code: the other order gives other numbers.
            distances = subset_distances(reals, fakes, np.random.RandomState(123), 20, 60)
            self.assertAllClose(distances.mean(), values[name]['kid_20x60_seed123_mean'], 1e-7, 0)
            self.assertAllClose(distances.std(), values[name]['kid_20x60_seed123_std'], 1e-7, 0)
            size = min(len(reals), len(fakes))
            self.assertAllClose(kernel_distance(reals[:size], fakes[:size]),
                                values[name]['kid_first_min_n_rows_unbiased'], 1e-7, 0)

    def test_plain_form(self):
        rnd = np.random.RandomState(0)
        x, y = rnd.randn(9, 5), rnd.randn(9, 5)

        def kernel(a, b):
            return (np.dot(a, b) / 5 + 1) ** 3
        pairs = [(i, j) for i in range(9) for j in range(9)]
        within = np.mean([kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j])
        expected = within - 2 * np.mean([kernel(x[i], y[j]) for i, j in pairs])
        self.assertAllClose(kernel_distance(x, y), expected, 1e-12, 0)

    def test_unbiased(self):
        # Around zero for equal distributions, at any size; what has i = j among its pairs is far above.
        rnd = np.random.RandomState(0)
        x, y = rnd.randn(3000, 8), rnd.randn(3000, 8)
        for size in (5, 50):
            distances = subset_distances(x, y, rnd, 200, size)
            self.assertLess(abs(distances.mean()), 4 * distances.std() / 200 ** 0.5)
            self.assertEqual(len(distances), 200)

    def test_sizes(self):
        # Fewer samples than a subset wants: all of the smaller set.
        rnd = np.random.RandomState(0)
        x, y = rnd.randn(40, 8), rnd.randn(30, 8)
        expected = kernel_distance(x[np.random.RandomState(1).choice(40, 30, replace=False)], y)
        self.assertAllClose(subset_distances(y, x, np.random.RandomState(1), 1), [expected], 1e-9, 0)
        order = np.random.RandomState(1)
        fakes = y[order.choice(30, 30, replace=False)]
        expected = kernel_distance(fakes, x[order.choice(40, 30, replace=False)])
        self.assertAllClose(subset_distances(x, y, np.random.RandomState(1), 1), [expected], 1e-9, 0)

    def test_mistakes(self):
        rnd = np.random.RandomState(0)
        with self.assertRaisesRegex(UserError, 'at least 2 images of each kind, received 1 real and 5'):
            subset_distances(np.ones([1, 3]), np.ones([5, 3]), rnd)
        with self.assertRaisesRegex(UserError, '3 numbers for the reals and 4 for the fakes'):
            subset_distances(np.ones([5, 3]), np.ones([5, 4]), rnd)

    def test_metric(self):
        reals, fakes = random_images(0, 40), random_images(1, 30, mean=100)
        metric = KID('kd_random', 30, full=True, num_subsets=50, max_subset_size=20, extractor='random')
        results = measure(metric, reals=ArraySource(reals, wraps=True), fakes=ArraySource(fakes))
        extractor = find_extractor('random')
        distances = subset_distances(extractor(reals).numpy(), extractor(fakes).numpy(),
                                     np.random.RandomState(0), 50, 20)
        self.assertLess(abs(results['kd_random'] / distances.mean() - 1), 0.2)
        record = metric.record()
        self.assertEqual([record[key] for key in ('num_reals', 'num_subsets', 'subset_size')], [40, 50, 20])
        self.assertIn(' kd_random ', metric.get_result_str())
        self.assertRegex(metric.get_result_str(), r' kd_random -?\d+\.\d{8}$')
        # Where there are too few reals none comes twice: then the estimate were biased.
        metric = KID('kd_random_50', 50, extractor='random')
        measure(metric, reals=ArraySource(reals, wraps=True), fakes=ArraySource(fakes))
        self.assertEqual(metric.record()['num_reals'], 40)
