"""Inception score: golden numbers, splits, probabilities of zero."""

import json
from unittest import mock

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from metrics import feature_nets
from metrics.evaluation import Evaluation
from metrics.extractor import Extractor
from metrics.feature_nets import find_extractor
from metrics.frechet_inception_distance import FID
from metrics.inception_score import IS, inception_score, softmax
from tests import feature_testutil, testutil
from tests.metric_testutil import ArraySource, measure, random_images


class InceptionScoreTest(tf.test.TestCase):
    @testutil.needs_golden
    def test_golden(self):
        golden = testutil.load('metrics', 'metrics.npz')
        probs = golden['is/softmax']
        for splits in (1, 7, 10):
            # Also in blocks that end inside of splits.
            for blocks in ([probs], np.array_split(probs, 9), probs[:, None]):
                mean, std = inception_score(iter(blocks), len(probs), splits)
                self.assertNear(mean, golden[f'f64_is/mean_splits{splits}'], 1e-6)
                self.assertNear(std, golden[f'f64_is/std_splits{splits}'], 1e-6)
        logits = feature_testutil.load('formula_arrays.npz')['is_logits']
        values = json.loads((feature_testutil.METRICS / 'formula_values.json').read_text())['inception_score']
        for splits in (1, 10):
            mean, std = inception_score([softmax(logits)], len(logits), splits)
            self.assertNear(mean, values[f'splits{splits}_mean'], 1e-7)
            self.assertNear(std, values[f'splits{splits}_std'], 1e-7)

    def test_zero_probabilities(self):
        # Sure of one of five classes, all alike: as many as there are classes.
        probs = np.eye(5)[np.arange(100) % 5]
        self.assertAllClose(inception_score([probs], 100, 10), (5, 0), 1e-12, 1e-12)
        self.assertAllClose(inception_score([probs[:1].repeat(40, 0)], 40), (1, 0), 1e-12, 1e-12)
        logits = np.where(probs > 0, 5e3, -5e3)
        self.assertAllClose(inception_score([softmax(logits)], 100, 10), (5, 0), 1e-12, 1e-12)
        self.assertAllClose(softmax(logits), probs)

    def test_mistakes(self):
        with self.assertRaisesRegex(UserError, 'in each of its 10 splits, received 9'):
            inception_score([np.ones([9, 2]) / 2], 9)
        with self.assertRaisesRegex(UserError, 'expected 20 images, received 15'):
            inception_score([np.ones([15, 2]) / 2], 20)

    def test_network_without_classes(self):
        """Said before anything is computed."""
        ev = Evaluation()
        with mock.patch.dict(feature_nets.EXTRACTORS, random=lambda *_: object.__new__(Extractor)):
            with self.assertRaisesRegex(UserError, 'has no classes'):
                IS('is', extractor='random').check_extractors(ev)
            FID('fid', extractor='random').check_extractors(ev)

    def test_metric(self):
        fakes = random_images(0, 50)
        results = measure(IS('is_random', 50, 4, extractor='random'), fakes=ArraySource(fakes))
        logits = find_extractor('random')(fakes, 'logits').numpy()
        expected = inception_score([softmax(logits)], 50, 4)
        self.assertAllClose([results['is_random_mean'], results['is_random_std']], expected, 1e-5, 1e-6)
