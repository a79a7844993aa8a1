"""Sweeps over truncation: what is reported of a curve, and real curves of tiny networks."""

import contextlib
import csv
import io
import json
import math
import os
import tempfile

import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.util import UserError
from metrics.evaluation import Evaluation
from metrics.frechet_inception_distance import FID
from metrics.inception_score import IS
from metrics.precision_recall import PR
from metrics.truncation_sweep import TruncationSweep, special_points
from tests.metric_testutil import ArraySource, generator, measure, random_images
from training.datasets.image_files import open_image


def curve(distances, scores):
    return [dict(truncation=1 - i / 10, distance=distance, score=score, score_std=None, precision=0.5,
                 recall=0.25) for i, (distance, score) in enumerate(zip(distances, scores, strict=True))]


class PointsTest(tf.test.TestCase):
    def test_points(self):
        points = special_points(curve([9, 7, 8, 14], [10, 20, 40, 30]), 25)
        self.assertAllClose(points, dict(
            distance=9, score=10, precision=0.5, recall=0.25, min_distance=7, min_distance_truncation=0.9,
            min_distance_score=20, max_score=40, max_score_truncation=0.8, max_score_distance=8,
            distance_at_real_score=7.25))
        # The first time that the score passes that of the reals, also downwards.
        self.assertEqual(special_points(curve([1, 2, 6], [30, 10, 30]), 15)['distance_at_real_score'], 1.75)
        for score in (5, 41, None):
            self.assertNotIn('distance_at_real_score', special_points(curve([9, 7], [10, 40]), score))

    def test_without_scores(self):
        points = special_points(curve([3, 2, 4], [None] * 3), None)
        self.assertEqual(set(points), {'distance', 'precision', 'recall', 'min_distance',
                                       'min_distance_truncation'})


class SweepTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.Gs = generator()
        cls.Gs.set_var('dlatent_avg', np.full([16], 0.5))

    def sweep(self, Gs, **kwargs):
        """(metric, results, rows of the table)."""
        metric = TruncationSweep('sweep_random', 24, extractor='random', num_splits=2, **kwargs)
        with tempfile.TemporaryDirectory() as folder:
            # Though there are too few reals, none comes twice.
            results = measure(metric, folder, Gs=Gs, reals=ArraySource(random_images(0, 20), wraps=True))
            self.assertEqual(sorted(os.listdir(folder)),
                             ['sweep_random-curve.csv', 'sweep_random-curve.png'])
            with open(os.path.join(folder, 'sweep_random-curve.csv'), encoding='utf-8', newline='') as file:
                rows = list(csv.DictReader(file))
            with open_image(os.path.join(folder, 'sweep_random-curve.png')) as image:
                self.assertGreater(np.asarray(image)[..., :3].std(), 10)
        json.dumps(metric.details)
        return metric, results, rows

    def test_style_based(self):
        metric, results, rows = self.sweep(self.Gs, truncations=[0.7, None])
        self.assertEqual(list(rows[0]), ['truncation', 'fd', 'score', 'score_std', 'precision', 'recall'])
        self.assertEqual([row['truncation'] for row in rows], ['inf', '0.7'])
        self.assertEqual((metric.record()['num_reals'], metric.record()['covariance_ddof']), (20, (1, 1)))
        # A point is what the metrics by themselves say.
        singles = [FID('fd', 24, extractor='random'), IS('score', 24, 2, extractor='random'),
                   PR('pr', 24, 24, extractor='random')]
        ev, found = Evaluation(self.Gs, ArraySource(random_images(0, 20)), truncation=0.7), {}
        with contextlib.redirect_stderr(io.StringIO()), ev.group(singles):
            for single in singles:
                single.run(ev)
                found |= single.results()
        columns = 'fd', 'score', 'score_std', 'precision', 'recall'
        names = 'fd', 'score_mean', 'score_std', 'pr_precision', 'pr_recall'
        self.assertAllClose([float(rows[1][key]) for key in columns], [found[key] for key in names], 1e-4,
                            1e-5)
        self.assertNotEqual(rows[0]['fd'], rows[1]['fd'])
        self.assertAllClose(results['sweep_random_min_fd'], min(float(row['fd']) for row in rows), 1e-5)
        self.assertEqual(results['sweep_random_fd'], metric.details['curve'][0]['fd'])
        self.assertEqual(metric.details['curve'][0]['truncation'], math.inf)
        # Only with Inception features it is FID.
        self.assertFalse([name for name in results if 'fid' in name or '_is' in name])
        self.assertIn('sweep_fid', {f'sweep_{TruncationSweep("sweep")._public("distance")}'})

    def test_default_values(self):
        values = TruncationSweep('s', extractor='random')._values(type('Ev', (), dict(
            require_network=lambda _: self.Gs, sampling={}))())
        self.assertEqual((values[0], values[-1]), (1.0, 0.1))
        self.assertEqual(TruncationSweep('s', truncations=[0.3, None, 0.7])._values(type('Ev', (), dict(
            require_network=lambda _: self.Gs, sampling={}))()), [None, 0.7, 0.3])

    def test_default_values_of_biggan(self):
        """A scale above 1 would not truncate z but widen it."""
        Gs = tflib.Network('Gs', 'training.networks_biggan.G_biggan', resolution=32, ch=1, label_size=2,
                           latent_size=8, shared_dim=2)
        bounds, scales = [None, 2], [1, 0.8]
        for mode, first in ((None, bounds), ('resample', bounds), ('scale', scales), ('std', scales)):
            values = TruncationSweep('s')._values(Evaluation(Gs, truncation_mode=mode))
            self.assertEqual((values[:2], values[-1]), (first, 0.04), mode)

    def test_mistakes(self):
        for metric, Gs, text in (
                (TruncationSweep('s', 20, extractor='random'), generator('progan_label4'),
                 r's: network Gs \(G_paper\) has no truncation'),
                (TruncationSweep('s', 20, extractor='random', truncations=[]), self.Gs, 'at least one')):
            with self.assertRaisesRegex(UserError, text):
                measure(metric, Gs=Gs, reals=ArraySource(random_images(0, 30)))
        with self.assertRaisesRegex(UserError, 'needs a generator'):
            measure(TruncationSweep('s', 20, extractor='random'), reals=ArraySource(random_images(0, 30)),
                    fakes=ArraySource(random_images(0, 30)))
