"""Precision and recall: golden numbers, exact decisions from float32 products, blocks."""

import json
import os
import tempfile
import unittest.mock

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from metrics import precision_recall
from metrics.feature_rows import blocks, take, without_tf32
from metrics.precision_recall import PR, in_manifold, realism, squared_distances, squared_radii
from tests import feature_testutil, testutil
from tests.metric_testutil import ArraySource, generator, measure, random_images


def plain_form(a: np.ndarray, b: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(squared radii of a, which b are in its manifold, squared distances), by differences in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    within = np.square(a[:, None] - a[None]).sum(axis=2)
    between = np.square(b[:, None] - a[None]).sum(axis=2)
    radii = np.sort(within, axis=1)[:, k]
    return radii, np.any(between <= radii, axis=1), between


def matmul_form(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances as one writes them down first: float32, about the origin."""
    return np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T


@testutil.needs_golden
class GoldenTest(tf.test.TestCase):
    def test_formula_values(self):
        arrays = feature_testutil.load('formula_arrays.npz')
        values = json.loads((feature_testutil.METRICS / 'formula_values.json').read_text())
        for name in ('a', 'b_rank_deficient', 'c_same'):
            reals, fakes = arrays[f'{name}_real'], arrays[f'{name}_gen']
            for k in (3, 5):
                expected = values[name][f'precision_k{k}'], values[name][f'recall_k{k}']
                self.assertEqual(precision_recall.precision_recall(reals, fakes, k), expected)
                radii = squared_radii(reals, k)
                self.assertAllClose(np.sqrt(radii), arrays[f'{name}_real_radius_k{k}'], 1e-12, 0)
                self.assertAllEqual(in_manifold(fakes, reals, radii),
                                    arrays[f'{name}_gen_in_real_manifold_k{k}'])
                self.assertAllClose(realism(fakes, reals, radii), arrays[f'{name}_gen_realism_k{k}'], 1e-12,
                                    0)

    def test_official_code(self):
        golden = testutil.load('metrics', 'metrics.npz')
        reals, fakes = golden['pr/ref_features'], golden['pr/eval_features']
        for column, k in enumerate((3, 5, 10)):
            for a, b, name, result in ((reals, fakes, 'ref', 'precision'), (fakes, reals, 'eval', 'recall')):
                radii = squared_radii(a, k)
                self.assertAllClose(radii, golden[f'pr_fp32/{name}_kth_sqdist'][:, column], 1e-5, 1e-5)
                self.assertAllEqual(in_manifold(b, a, radii), golden[f'pr_fp32/{result}'][:, column])
            found = precision_recall.precision_recall(reals, fakes, k)
            for official, tolerance in (('pr_fp32', 1e-6), ('pr_fp16', 0.01)):
                expected = [golden[f'{official}/knn_{x}'][column] for x in ('precision', 'recall')]
                self.assertAllClose(found, expected, 0, tolerance)
        # Officially a realism score is that of the nearest real alone, a ratio of squares.
        nearest = golden['pr_fp32/nearest_neighbors']
        squared = squared_distances(fakes, np.arange(len(fakes)), reals, nearest)
        scores = squared_radii(reals)[nearest] / squared
        self.assertAllClose(scores, golden['pr_fp32/realism_scores'], 1e-5, 0)


class ExactTest(tf.test.TestCase):
    """Where float32 products go wrong."""

    def check(self, a, b, k=3):
        radii, inside, _ = plain_form(a, b, k)
        self.assertAllClose(squared_radii(a, k), radii, 1e-12, 0)
        self.assertAllEqual(in_manifold(b, a, squared_radii(a, k)), inside)
        return radii, inside

    def test_far_from_the_origin(self):
        rnd = np.random.RandomState(0)
        a, b = ((rnd.randn(120, 8) * scale + 1e4).astype(np.float32) for scale in (1, 1.5))
        radii, inside = self.check(a, b)
        self.assertTrue(0.1 < inside.mean() < 0.9)
        wrong = np.sort(matmul_form(a, a), axis=1)[:, 3]
        self.assertGreater(np.mean(np.any(matmul_form(b, a) <= wrong, axis=1) != inside), 0.1)

    def test_tight_clusters(self):
        # No center helps these.
        rnd = np.random.RandomState(1)
        centers = np.repeat(rnd.randn(20, 8) * 100, 5, axis=0)
        a, b = ((centers + rnd.randn(100, 8) * scale).astype(np.float32) for scale in (0.01, 0.015))
        radii, inside = self.check(a, b)
        self.assertTrue(0.1 < inside.mean() < 0.9)
        a, b = a - a.mean(axis=0), b - a.mean(axis=0)
        wrong = np.sort(matmul_form(a, a), axis=1)[:, 3]
        self.assertGreater(np.mean(np.any(matmul_form(b, a) <= wrong, axis=1) != inside), 0.05)

    def test_equal_samples(self):
        rnd = np.random.RandomState(2)
        a = (rnd.randn(60, 16) * 10 + 3e3).astype(np.float32)
        self.assertEqual(precision_recall.precision_recall(a, a), (1, 1))
        # Each real four times: radius 0, and copies are on its border.
        a = np.repeat(a, 4, axis=0)
        radii = squared_radii(a)
        self.assertAllEqual(radii, np.zeros(len(a)))
        samples = np.concatenate([a[:8], np.nextafter(a[:8], np.float32(1e9))])
        self.assertAllEqual(in_manifold(samples, a, radii), [True] * 8 + [False] * 8)
        self.assertAllEqual(realism(samples, a, radii), [1] * 8 + [0] * 8)
        # One image alone, as from a collapsed generator.
        self.assertEqual(precision_recall.precision_recall(np.ones([30, 4]), np.ones([20, 4])), (1, 1))
        self.assertEqual(precision_recall.precision_recall(rnd.randn(30, 4), np.full([20, 4], 9.)), (0, 0))

    def test_border_counts(self):
        a = np.arange(12)[:, None] * np.float32(2)      # For k = 3 the radius is 4 inside, 6 at the ends.
        self.assertAllEqual(squared_radii(a), [36, 16, *[16] * 8, 16, 36])
        self.assertAllEqual(in_manifold(np.array([[-6.], [-6.1], [28.], [28.1]]), a, squared_radii(a)),
                            [True, False, True, False])

    def test_float64(self):
        rnd = np.random.RandomState(3)
        a, b = rnd.randn(100, 6) + 1e6, rnd.randn(90, 6) + 1e6
        self.check(a, b, 5)

    def test_random_sets(self):
        for seed in range(10):
            rnd = np.random.RandomState(seed)
            d, k = rnd.randint(1, 40), rnd.randint(1, 12)
            a, b = (rnd.randn(rnd.randint(13, 90), d).astype(np.float32) * rnd.choice([1e-6, 1, 1e4])
                    for _ in range(2))
            # Few different values make many distances equal.
            a, b = (np.round(x * 2) if seed % 2 else x for x in (a, b))
            self.check(a, b, k)


class BlocksTest(tf.test.TestCase):
    def test_blocks_and_files(self):
        rnd = np.random.RandomState(0)
        a, b = (rnd.randn(n, 12).astype(np.float32) for n in (101, 83))
        expected = precision_recall.precision_recall(a, b)
        done = []
        files = [self.in_file(x) for x in (a, b)]
        with unittest.mock.patch.object(precision_recall, 'BLOCK', (32, 20)):
            self.assertEqual(precision_recall.precision_recall(*files, progress=done.append), expected)
        self.assertEqual(sum(done), 2 * (101 + 83))
        radii = squared_radii(files[0])
        self.assertEqual(precision_recall.precision_recall(*files, real_radii=radii), expected)

    def in_file(self, array):
        path = os.path.join(tempfile.mkdtemp(dir=self.get_temp_dir()), 'features')
        array.tofile(path)
        return np.memmap(path, array.dtype, 'r+', shape=array.shape)

    def test_rows_of_files(self):
        a = np.random.RandomState(0).randn(50, 3).astype(np.float32)
        file = self.in_file(a)
        file[7] = a[7] = 5      # What was written and is not on the disk yet stays.
        for rows in (a, file):
            self.assertAllEqual(take(rows, slice(40, 60)), a[40:])
            self.assertAllEqual(take(rows, np.array([7, 3, 3, 44])), a[[7, 3, 3, 44]])
            self.assertAllEqual(np.concatenate([part for _, part in blocks(rows, 16)]), a)

    def test_full_precision(self):
        # GPUs round the inputs of float32 products to 10 bits if they may.
        enabled = tf.config.experimental.tensor_float_32_execution_enabled
        before, seen = enabled(), []
        with unittest.mock.patch.object(precision_recall, '_smallest', side_effect=(
                lambda *args: seen.append(enabled()) or self.smallest(*args))):
            squared_radii(np.random.RandomState(0).randn(20, 4))
        self.assertEqual((seen, enabled()), ([False], before))
        with self.assertRaises(ZeroDivisionError), without_tf32():
            raise ZeroDivisionError
        self.assertEqual(enabled(), before)

    smallest = staticmethod(precision_recall._smallest)

    def test_mistakes(self):
        with self.assertRaisesRegex(UserError, 'need at least 4 images of each kind, received 3'):
            squared_radii(np.zeros([3, 2]))
        with self.assertRaisesRegex(UserError, 'received 3 numbers for the reals and 2 for the fakes'):
            precision_recall.precision_recall(np.zeros([5, 3]), np.zeros([5, 2]))
        with self.assertRaisesRegex(UserError, 'not all finite'):
            squared_radii(np.array([[1.], [2], [np.nan], [4], [5]]))


class PRTest(tf.test.TestCase):
    def test_metric(self):
        from metrics.feature_nets import find_extractor
        reals, fakes = random_images(0, 40), random_images(1, 30)
        metric = PR('pr_random', 30, 100, nhood_size=2, extractor='random')
        results = measure(metric, reals=ArraySource(reals, wraps=True), fakes=ArraySource(fakes))
        extractor = find_extractor('random')
        expected = precision_recall.precision_recall(extractor(reals).numpy(), extractor(fakes).numpy(), 2)
        self.assertAllClose([results['pr_random_precision'], results['pr_random_recall']], expected)
        # Reals are not repeated, which would make all radii 0.
        self.assertEqual(metric.record()['num_reals'], 40)
        self.assertIn('float32', metric.record()['distances'])

    def test_generator(self):
        metric = PR('pr_random_20', 20, extractor='random')
        results = measure(metric, reals=ArraySource(random_images(0, 40)), Gs=generator(), batch=8)
        self.assertEqual(set(results), {'pr_random_20_precision', 'pr_random_20_recall'})
        self.assertBetween(results['pr_random_20_recall'], 0, 1)


if __name__ == '__main__':
    tf.test.main()
