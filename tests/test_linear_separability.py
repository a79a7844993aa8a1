"""Tests of linear separability: its formulas, the classifiers it asks, and the metric on small generators."""

import json
import os
import sys
import tempfile
import unittest
from unittest import mock

import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.tflib import legacy
from dnnlib.util import UserError
from metrics import classifiers, linear_separability
from metrics.evaluation import Evaluation
from metrics.linear_separability import LS, attribute_entropy, conditional_entropy
from tests import feature_testutil, testutil
from tests.metric_testutil import noisy_generator

needs_formulas = unittest.skipUnless(
    (feature_testutil.METRICS / 'formula_arrays.npz').is_file(), 'needs the golden values of formulas')


def _golden_values():
    text = (feature_testutil.METRICS / 'formula_values.json').read_text()
    return json.loads(text)['linear_separability']


def classifier_network(resolution=8, name='D_basic', module='networks_stylegan', **kwargs):
    """A small classifier with random weights."""
    kwargs = {'num_channels': 3, 'mbstd_group_size': 0, 'fmap_base': 64, 'fmap_max': 8, **kwargs}
    return tflib.Network('D', func_name=f'training.{module}.{name}', resolution=resolution, **kwargs)


def save(network, folder, name):
    path = os.path.join(folder, name)
    legacy.save_pkl(network.state(), path)
    return path


def style_generator(resolution=8, **kwargs):
    """A small StyleGAN2 generator without noise: its images are a function of z alone."""
    network = tflib.Network(
        'Gs', func_name='training.networks_stylegan2.G_main', num_channels=3, resolution=resolution,
        label_size=kwargs.pop('label_size', 0), fmap_base=64, fmap_max=8, latent_size=6, dlatent_size=8,
        mapping_fmaps=8, mapping_layers=2, randomize_noise=False, **kwargs)
    network.set_vars({name: np.zeros_like(var.value) for name, var in network.vars.items()
                      if 'noise' in name})
    return network


class FormulaTest(tf.test.TestCase):

    def test_golden_tables(self):
        arrays = testutil.load('metrics', 'metrics.npz')
        entropies = [conditional_entropy(table) for table in arrays['ls/p']]
        # The official code computes in float32.
        self.assertAllClose(entropies, arrays['f64_ls/conditional_entropy'], rtol=0, atol=1e-6)
        self.assertAllClose(linear_separability.separability_score(entropies[:6]),
                            arrays['f64_ls/score_exp2_sum'], rtol=1e-6, atol=0)

    @needs_formulas
    def test_golden_formulas(self):
        arrays = feature_testutil.load('formula_arrays.npz')
        entropies = [conditional_entropy(table) for table in arrays['ls_tables']]
        self.assertAllClose(entropies, arrays['ls_conditional_entropy_bits'], rtol=1e-7, atol=1e-12)
        expected = _golden_values()
        self.assertAllClose(linear_separability.separability_score(entropies), expected['score_2_pow_sum'],
                            rtol=1e-7, atol=0)

    @needs_formulas
    def test_golden_toy(self):
        arrays = feature_testutil.load('formula_arrays.npz')
        toy = _golden_values()['toy']
        for key, latents in (('z', arrays['ls_latents']), ('w', arrays['ls_dlatents'])):
            entropies = []
            for scores in arrays['ls_logits'].T:
                kept, targets = linear_separability.most_confident(scores, toy['num_keep'])
                entropies.append(attribute_entropy(latents[kept], targets)[0])
            self.assertAllClose(entropies, toy[key]['conditional_entropy_bits'], rtol=0, atol=0.02)
            # As 2^Σ, three errors of that size together.
            self.assertAllClose(linear_separability.separability_score(entropies), toy[key]['score'],
                                rtol=2 ** 0.06 - 1, atol=0)

    def test_entropy_is_of_the_target_given_the_prediction(self):
        # Predictions (rows) that always say yes leave all of the target open; the other way there is nothing.
        table = np.array([[0.25, 0.75], [0, 0]])
        entropy = -0.25 * np.log2(0.25) - 0.75 * np.log2(0.75)
        self.assertAllClose(conditional_entropy(table), entropy)
        self.assertEqual(conditional_entropy(table.T), 0)
        self.assertAllClose(conditional_entropy(1000 * table), entropy)     # Counts do too.

    def test_never_below_zero(self):
        rnd = np.random.RandomState(0)
        for _ in range(200):
            diagonal = np.diag(rnd.rand(2).astype(np.float32))
            self.assertGreaterEqual(conditional_entropy(diagonal), 0)

    def test_probabilities_are_the_softmax_in_float32(self):
        scores = np.array([[0, 1.5, -2], [30, -200, 1e4]], np.float32)
        expected = tf.nn.softmax(tf.stack([scores, -scores], axis=-1))
        self.assertAllClose(classifiers.probabilities(scores), expected, rtol=1e-6, atol=0)
        self.assertEqual(classifiers.probabilities(scores).dtype, np.float32)

    def test_most_confident_is_stable(self):
        scores = np.array([0.1, -3, 50, 2, -60, 2, 0, 70], np.float32)
        kept, targets = linear_separability.most_confident(scores, 6)
        # Those beyond the precision of float32 are equally sure and stay in their order.
        self.assertAllEqual(kept, [2, 4, 7, 1, 3, 5])
        self.assertAllEqual(targets, [0, 1, 0, 1, 0, 0])

    def test_missing_class_counts_as_perfect(self):
        latents = np.random.RandomState(0).randn(20, 4)
        self.assertEqual(attribute_entropy(latents, np.zeros(20, np.int64)), (0, True))
        self.assertEqual(attribute_entropy(latents[:1], np.ones(1, np.int64)), (0, True))
        self.assertEqual(linear_separability.separability_score([0, 0]), 1)

    def test_planes(self):
        rnd = np.random.RandomState(0)
        latents = rnd.randn(2000, 5)
        separable = (latents @ [1, 2, 0, 0, -1] > 0.3).astype(np.int64)
        self.assertLess(attribute_entropy(latents, separable)[0], 0.1)
        # Which side of a plane says nothing about a product of signs.
        product = (latents[:, 0] * latents[:, 1] > 0).astype(np.int64)
        self.assertGreater(attribute_entropy(latents, product)[0], 0.95)

    def test_without_scikit_learn(self):
        with mock.patch.dict(sys.modules, {'sklearn': None, 'sklearn.svm': None}):
            with self.assertRaisesRegex(UserError, 'pip install scikit-learn'):
                linear_separability.linear_svc()
            with self.assertRaisesRegex(UserError, 'pip install scikit-learn'):
                LS().check(self.get_temp_dir())


class FindTest(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        cache = self.enterContext(tempfile.TemporaryDirectory())
        self.enterContext(mock.patch('dnnlib.util._cache_dir', cache))
        self.enterContext(mock.patch.dict(os.environ))
        os.environ.pop('STYLEGAN_WEIGHTS_DIR', None)

    def make(self, *names, folder=None):
        for name in names:
            with open(os.path.join(folder or self.folder, name), 'wb'):
                pass

    def test_order_and_numbers(self):
        self.make('celebahq-classifier-10-big-lips.pkl', 'celebahq-classifier-02-attractive.pkl',
                  'd41d8cd98f00b204e9800998ecf8427e_celebahq-classifier-00-male.pkl', 'network-final.pkl',
                  'celebahq-classifier-00-male.pkl', 'celebahq-classifier-05-5-o-clock-shadow.pkl.part',
                  'snapshot-00-male-000010.pkl')
        name, files = classifiers.find_classifiers(self.folder)
        self.assertEqual(name, 'celebahq')
        self.assertEqual([(file.index, file.name) for file in files],
                         [(0, 'male'), (2, 'attractive'), (10, 'big-lips')])
        self.assertEqual(os.path.basename(files[0].path), 'celebahq-classifier-00-male.pkl')
        _, files = classifiers.find_classifiers(self.folder, indices=[10, 0])
        self.assertEqual([file.index for file in files], [0, 10])
        with self.assertRaisesRegex(UserError, 'numbered 1, 39'):
            classifiers.find_classifiers(self.folder, indices=[0, 1, 39])

    def test_sets(self):
        self.make('cats-classifier-00-tail.pkl', 'dogs-classifier-00-tail.pkl', 'dogs-classifier-01-ears.pkl')
        with self.assertRaisesRegex(UserError, 'several sets of classifiers, cats, dogs'):
            classifiers.find_classifiers(self.folder)
        self.assertLen(classifiers.find_classifiers(self.folder, 'dogs')[1], 2)
        with self.assertRaisesRegex(UserError, "did you mean 'dogs'"):
            classifiers.find_classifiers(self.folder, 'dog')

    def test_places(self):
        other = self.enterContext(tempfile.TemporaryDirectory())
        self.make('cats-classifier-00-tail.pkl')
        self.make('dogs-classifier-00-tail.pkl', folder=other)
        self.assertEqual(classifiers.find_classifiers(self.folder, other)[0], 'dogs')
        os.environ['STYLEGAN_WEIGHTS_DIR'] = other
        self.assertEqual(classifiers.find_classifiers()[0], 'dogs')
        self.assertEqual(classifiers.find_classifiers(self.folder)[0], 'cats')

    def test_missing(self):
        message = 'celebahq-classifier-00-male.pkl.*train_classifiers.py'
        with self.assertRaisesRegex(UserError, message) as error:
            classifiers.find_classifiers(self.folder)
        self.assertIn(self.folder, str(error.exception))
        self.assertNotIn('\n', str(error.exception))


class ClassifierTest(tf.test.TestCase):

    def load(self, network, name='x-classifier-00-y.pkl'):
        path = save(network, self.get_temp_dir(), name)
        return classifiers.load_classifier(classifiers.ClassifierFile(0, 'y', path))

    def test_round_trip(self):
        network = classifier_network()
        images = np.random.RandomState(0).uniform(-1, 1, [6, 3, 8, 8]).astype(np.float32)
        loaded = self.load(network)
        self.assertEqual(loaded.network.version, 3)
        scores = classifiers.logits([loaded, loaded], tf.constant(images))
        self.assertAllClose(scores, np.repeat(network.run(images), 2, axis=1), rtol=1e-5, atol=1e-6)
        # What else is in the batch has no influence.
        self.assertAllClose(scores[2:3], classifiers.logits([loaded] * 2, images[2:3]), rtol=1e-4, atol=1e-5)

    def test_other_discriminators(self):
        images = tf.random.uniform([2, 3, 8, 8], -1, 1, seed=1)
        for name, module in (('D_paper', 'networks_progan'), ('D_stylegan2', 'networks_stylegan2')):
            network = classifier_network(name=name, module=module)
            expected = network.run(images.numpy())
            expected = expected[0] if isinstance(expected, tuple) else expected
            scores = classifiers.logits([self.load(network)], images)
            self.assertAllClose(scores, expected, rtol=1e-4, atol=1e-5)

    def test_arguments_without_the_layer(self):
        state = classifier_network().state()
        state.static_kwargs = {key: value for key, value in state.static_kwargs.items()
                               if key != 'mbstd_group_size'}
        path = os.path.join(self.get_temp_dir(), 'own-classifier-00-source.pkl')
        legacy.save_pkl(state, path)
        loaded = classifiers.load_classifier(classifiers.ClassifierFile(0, 'source', path))
        self.assertLess(loaded.network.layer.mbstd_group_size, 2)

    def test_no_classifiers(self):
        cases = [(classifier_network(mbstd_group_size=4), 'minibatch standard deviation'),
                 (classifier_network(label_size=3), 'without labels'),
                 (classifier_network(name='D_paper', module='networks_progan', label_size=2),
                  'without labels'),
                 (style_generator(), 'from images to scores')]
        for network, message in cases:
            with self.assertRaisesRegex(UserError, f'x-classifier-00-y.pkl: .*{message}'):
                self.load(network)
        path = os.path.join(self.get_temp_dir(), 'x-classifier-00-z.pkl')
        legacy.save_pkl((classifier_network().state(),) * 2, path)
        with self.assertRaisesRegex(UserError, 'expected one network, found 2'):
            classifiers.load_classifier(classifiers.ClassifierFile(0, 'z', path))
        with open(path, 'wb') as file:
            file.write(b'no pickle')
        with self.assertRaisesRegex(UserError, 'x-classifier-00-z.pkl'):
            classifiers.load_classifier(classifiers.ClassifierFile(0, 'z', path))

    def test_input(self):
        images = tf.random.normal([2, 3, 16, 16])
        self.assertAllClose(classifiers.classifier_input(images, [3, 4, 4]), testutil.nchw(
            tf.nn.avg_pool2d(testutil.nhwc(images), 4, 4, 'VALID')), rtol=1e-5, atol=1e-6)
        self.assertAllEqual(classifiers.classifier_input(images, [3, 16, 16]), images)
        gray = classifiers.classifier_input(images[:, :1], [3, 8, 8])
        self.assertAllEqual(gray[:, 0], gray[:, 2])
        for found, shape in ((images, [3, 32, 32]), (images, [1, 16, 16])):
            with self.assertRaisesRegex(UserError, r'the generator makes \[3, 16, 16\]'):
                classifiers.classifier_input(found, shape)


class MetricTest(tf.test.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        tf.keras.utils.set_random_seed(1)
        cls.networks = [classifier_network(4), classifier_network(8), classifier_network(4)]

    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        for index, network in enumerate(self.networks):
            save(network, self.folder, f'own-classifier-{index:02d}-a{index}.pkl')

    def measure(self, Gs, batch=16, num_samples=96, **kwargs):
        metric = LS('ls96', num_samples=num_samples, num_keep=num_samples // 2)
        metric.run(Evaluation(Gs, seed=3, batch=batch, weights_dir=self.folder, **kwargs), 'network.pkl')
        return metric

    def test_images_that_are_too_small(self):
        """Said before other metrics are computed, which may take hours."""
        save(classifier_network(16), self.folder, 'own-classifier-00-a0.pkl')
        ev = Evaluation(noisy_generator(), weights_dir=self.folder)
        with self.assertRaisesRegex(UserError, r'is for images \[3, 16, 16\] and larger ones'):
            LS('ls96', num_samples=96, num_keep=48).check_images(ev)

    def test_against_separate_steps(self):
        Gs = style_generator(label_size=2)
        metric = self.measure(Gs)
        self.assertEqual(sorted(metric.results()), ['ls96_w', 'ls96_z'])
        self.assertRegex(metric.get_result_str(), r' ls96_z \d+\.\d{4} +ls96_w \d+\.\d{4}$')
        # The same by official means: run the networks, average, ask, fit.
        z, labels = (np.concatenate(parts) for parts in list(zip(*Evaluation(Gs, seed=3).fakes(96).inputs(96),
                                                                 strict=True))[:2])
        z = z[:, 0]
        images = Gs.run(z, labels, truncation_psi=1, randomize_noise=False)
        small = images.reshape(96, 3, 4, 2, 4, 2).mean(axis=(3, 5))
        w = Gs.components.mapping.run(z, labels)[:, -1]
        for suffix, latents in (('_z', z), ('_w', w)):
            total = 0
            for index, inputs in enumerate((small, images, small)):
                scores = self.networks[index].run(inputs)[:, 0]
                order = np.argsort(-np.abs(scores), kind='stable')[:48]
                entropy = attribute_entropy(latents[order], (scores[order] <= 0).astype(np.int64))[0]
                self.assertAllClose(metric.details[f'conditional_entropy{suffix}'][f'a{index}'], entropy,
                                    rtol=0, atol=0.05)
                total += entropy
            self.assertAllClose(np.log2(metric.results()[f'ls96{suffix}']), total, rtol=0, atol=0.1)
        self.assertEqual(metric.details['num_attributes'], 3)
        self.assertEqual(metric.details['num_keep'], 48)
        self.assertBetween(metric.details['kept_positive']['a1'], 0, 48)

    def test_batch_and_seed(self):
        Gs = style_generator()
        np.random.seed(7)
        before = np.random.get_state()[1].copy()
        results = self.measure(Gs, batch=16).results()
        self.assertAllEqual(np.random.get_state()[1], before)   # Those of the training are left alone.
        self.assertAllClose(self.measure(Gs, batch=7).results(), results, rtol=0.02)

    def test_networks_without_w(self):
        Gs = tflib.Network('Gs', func_name='training.networks_progan.G_paper', num_channels=1, resolution=8,
                           fmap_base=64, fmap_max=8, latent_size=5)
        metric = self.measure(Gs, num_images=10)
        self.assertEqual(list(metric.results()), ['ls96_z'])
        self.assertEqual((metric.details['num_samples'], metric.details['num_keep']), (10, 5))

    def test_no_variety_is_separable(self):
        Gs = style_generator()
        Gs.set_vars({name: np.zeros_like(var.value) for name, var in Gs.trainables.items()
                     if 'ToRGB' in name})
        self.assertEqual(self.measure(Gs).results(), {'ls96_z': 1, 'ls96_w': 1})

    def test_diverged_generator(self):
        Gs = style_generator()
        name = next(name for name in Gs.trainables if 'ToRGB/bias' in name)
        Gs.set_var(name, np.full_like(Gs.get_var(name), np.nan))
        self.assertAllEqual(np.isnan(list(self.measure(Gs).results().values())), [True, True])

    def test_needs(self):
        with self.assertRaisesRegex(UserError, r'own-classifier-01-a1.pkl .* generator makes \[3, 4, 4\]'):
            self.measure(style_generator(4))
        with self.assertRaisesRegex(UserError, 'needs a generator'):
            LS().run(Evaluation(fakes=mock.Mock(), weights_dir=self.folder))
        with self.assertRaisesRegex(UserError, 'num_keep'):
            LS(num_samples=10, num_keep=11)


if __name__ == '__main__':
    tf.test.main()
