"""Streams of features: moments in bounded memory, what metrics share, replicas."""

import resource
from unittest import mock

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from metrics.evaluation import Evaluation, ImageStream
from metrics.feature_nets import LPIPS
from metrics.feature_streams import FeatureStream, Moments
from metrics.image_sources import DatasetSource
from metrics.metric_base import MetricBase
from tests.metric_testutil import CountingSet, noisy_generator


class FeatureTest(tf.test.TestCase):

    def test_moments(self):
        rnd = np.random.RandomState(0)
        rows = 1e4 + rnd.randn(1000, 5) * [1, 2, 3, 4, 1e-3]
        for size in (1, 300, 1000):
            moments = Moments()
            for begin in range(0, 1000, size):
                moments.add(rows[begin:begin + size])
            for ddof in (0, 1):
                mean, covariance = moments.result(ddof)
                self.assertAllClose(mean, rows.mean(axis=0), rtol=1e-14)
                self.assertAllClose(covariance, np.cov(rows, rowvar=False, ddof=ddof), rtol=1e-9, atol=1e-12)
        with self.assertRaisesRegex(UserError, 'at least 2 images, received 1'):
            one = Moments()
            one.add(rows[:1])
            one.result(1)

    def test_streams(self):
        images = np.random.RandomState(0).randint(0, 256, [50, 8, 8, 3]).astype(np.uint8)
        ev = Evaluation()
        calls = []

        def batches():
            calls.append(1)
            return (images[i:i + 20] for i in range(0, 50, 20))
        features = ev.features(ImageStream(50, ('mine',), batches), 'random')
        expected = ev.extractor('random')(images).numpy()
        self.assertAllClose(np.concatenate(list(features)), expected)
        mean, covariance = features.moments(ddof=1)
        self.assertEqual(mean.dtype, np.float64)
        self.assertAllClose(covariance, np.cov(np.float64(expected), rowvar=False), rtol=1e-5, atol=1e-9)
        self.assertAllClose(features.moments(ddof=0)[1], covariance * 49 / 50)
        self.assertAllClose(features.all(), expected)
        self.assertLen(calls, 3)                                # Blocks, moments, all.
        self.assertAllClose(np.concatenate(list(features)), expected)
        self.assertLen(calls, 3)
        logits = ev.features(ImageStream(50, ('mine',), batches), 'random', 'logits').all()
        self.assertAllClose(logits, ev.extractor('random')(images, 'logits'))
        with self.assertRaisesRegex(UserError, 'expected 51 images, received 50'):
            ev.features(ImageStream(51, ('short',), batches), 'random').all()

    def test_metrics_of_a_group_share_features(self):
        Gs = noisy_generator()
        ev = Evaluation(Gs)
        metrics = [MetricBase(name, 'random') for name in 'ab']
        computed = []
        compute = FeatureStream._computed

        def counted(stream):
            computed.append(stream.key)
            return compute(stream)
        with mock.patch.object(FeatureStream, '_computed', counted):
            with ev.group(metrics):
                mean, _ = ev.features(ev.fakes(20), 'random').moments()
                array = ev.features(ev.fakes(20), 'random').all()
                self.assertAllClose(mean, array.mean(axis=0))
                self.assertLen(computed, 1)
                ev.features(ev.fakes(21), 'random').moments()
                ev.features(ev.fakes(20, name='x'), 'random').moments()
                ev.features(ev.fakes(20), 'random', 'logits').all()
                self.assertLen(computed, 4)
            with ev.group(metrics):                     # The network may have changed by now.
                ev.features(ev.fakes(20), 'random').all()
                self.assertLen(computed, 5)

    def test_logits_of_features(self):
        """Metrics of a group that want features and classes pass the network once, in either order."""
        Gs = noisy_generator()
        expected = np.concatenate(list(Evaluation(Gs).features(Evaluation(Gs).fakes(20), 'random', 'logits')))
        for outputs in (('features', 'logits'), ('logits', 'features')):
            ev, passes = Evaluation(Gs), []
            compute = ev._store.compute
            ev._store.compute = lambda *args, p=passes, c=compute: p.append(args[2]) or c(*args)
            with ev.group([MetricBase(name, 'random') for name in 'ab']):
                found = {output: np.concatenate(list(ev.features(ev.fakes(20), 'random', output)))
                         for output in outputs}
            self.assertEqual(passes, ['features'])
            self.assertAllClose(found['logits'], expected, rtol=1e-5, atol=1e-6)
        with self.assertRaisesRegex(UserError, 'has no classes'):
            LPIPS.logits_of(mock.Mock(), None)

    def test_unshared_features_are_forgotten(self):
        ev = Evaluation(noisy_generator(), DatasetSource(CountingSet()))
        with ev.group([MetricBase(name, 'random') for name in 'ab']):
            for stream in (ev.fakes(8), ev.reals(8)):
                features = ev.features(stream, 'random', keep=False)
                features.all()
                self.assertIsNot(ev.features(stream, 'random', keep=False), features)
            self.assertEqual((ev._store._streams, ev._store.reals), ({}, {}))

    def test_large_features_lie_in_a_file(self):
        ev = Evaluation()
        images = np.zeros([40, 8, 8, 3], np.uint8)
        with mock.patch('metrics.feature_streams.MAX_MEMORY', 1000):
            array = ev.features(ImageStream(40, ('x',), lambda: [images]), 'random').all()
        self.assertIsInstance(array, np.memmap)
        self.assertAllClose(array, ev.extractor('random')(images))

    def test_bounded_memory(self):
        """10,000 images of 64 pixels pass through without a trace."""
        images = np.zeros([32, 64, 64, 3], np.uint8)
        ev = Evaluation()

        def run(num):
            stream = ImageStream(32 * num, ('zeros', num), lambda: (images.copy() for _ in range(num)),
                                 function_key='zeros')
            return ev.features(stream, 'random').moments()
        run(20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        mean, _ = run(300)
        self.assertLess(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 60 << 10)  # KiB
        self.assertAllClose(mean, ev.extractor('random')(images[:1])[0])

    def test_error_of_a_source(self):
        def batches():
            yield np.zeros([4, 8, 8, 3], np.uint8)
            raise UserError('image 5 is damaged')
        with self.assertRaisesRegex(UserError, 'image 5 is damaged'):
            Evaluation().features(ImageStream(8, ('x',), batches), 'random').all()
