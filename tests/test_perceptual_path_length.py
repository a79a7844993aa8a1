"""Perceptual path length: the official numbers, the interpolations, noise, outliers, the distribution."""

import json
import os
import tempfile
import unittest.mock

import numpy as np
import PIL.Image
import tensorflow as tf

from dnnlib import tflib
from dnnlib.util import UserError
from metrics import perceptual_path_length as ppl
from metrics.evaluation import Evaluation
from metrics.metric_base import MetricGroup
from tests import feature_testutil, testutil
from training import misc
from training.context import Context


class SquaredDifference:
    """In the place of LPIPS: what the official numbers were made with."""

    name, file, sha256 = 'lpips', '', ''

    def distance(self, images, others):
        return tf.reduce_mean(tf.square(images - others), axis=[1, 2, 3])


def squares(images):
    """Distances of neighbours, [N]."""
    return SquaredDifference().distance(images[0::2], images[1::2]).numpy()


def golden_generator():
    return misc.load_pkl(testutil.golden('metrics', 'ppl_generator.pkl'))


@testutil.needs_golden
class GoldenTest(tf.test.TestCase):
    def test_distances(self):
        arrays, Gs = testutil.load('metrics', 'metrics.npz'), golden_generator()
        for space in ppl.SPACES:
            for sampling in ppl.SAMPLINGS:
                t = arrays['ppl/lerp_t_full'] * (sampling == 'full')
                images = ppl.path_images(
                    Gs, tf.constant(arrays['ppl/latents']), tf.zeros([40, 0]), tf.constant(t), space=space,
                    epsilon=1e-2, ctx=Context(), randomize_noise=False)
                for crop in (0, 1):
                    case = f'ppl/{space}_{sampling}_crop{crop}'
                    distances = squares(ppl.perceptual_input(images, bool(crop))) / 1e-2 ** 2
                    # Differences of images 1e-2 apart: float32 leaves them about three digits.
                    self.assertAllClose(distances, arrays[f'{case}/distances'], rtol=1e-3, atol=0, msg=case)
                    self.assertAllClose(ppl.mean_length(distances), arrays[f'{case}/value'], rtol=5e-5,
                                        atol=0, msg=case)

    def test_slerp(self):
        arrays = testutil.load('metrics', 'metrics.npz')
        a, b, t = (tf.constant(arrays[f'slerp/{key}']) for key in 'abt')
        self.assertAllClose(ppl.slerp(a, b, t), arrays['slerp/out'], rtol=0, atol=1e-6)
        self.assertAllClose(ppl.normalize(a), arrays['slerp/normalize_a'], rtol=0, atol=1e-6)

    def test_formulas(self):
        with open(feature_testutil.METRICS / 'formula_values.json') as file:
            golden = json.load(file)['ppl']['reject_1_99']
        arrays = feature_testutil.load('formula_arrays.npz')
        distances = arrays['ppl_distances']
        self.assertAllClose(ppl.mean_length(distances), golden['mean_f64'], rtol=1e-12, atol=0)
        a, b, t = (tf.constant(arrays[f'slerp_{key}']) for key in 'abt')
        self.assertAllClose(ppl.slerp(a, b, t), arrays['slerp_unit'], rtol=0, atol=1e-12)
        self.assertAllClose(ppl.lerp(a, b, t), arrays['lerp'], rtol=0, atol=1e-12)
        # Other percentiles, and none: they give other numbers.
        for low, high in [(*np.percentile(distances, [1, 99]),), (-1, np.inf)]:
            kept = distances[(distances >= low) & (distances <= high)]
            self.assertGreater(abs(kept.mean(dtype=np.float64) / golden['mean_f64'] - 1), 1e-3)

    def test_images(self):
        arrays = feature_testutil.load('formula_arrays.npz')
        images = tf.constant(arrays['range_in_nchw'])
        for name, crop in [('range_vgg_0_255_nchw', False), ('ppl_crop_32_nchw', True)]:
            received = testutil.nchw(ppl.perceptual_input(images, crop))
            expected = arrays[name] if not crop else self.as_input(arrays, name)
            self.assertAllClose(received, expected, rtol=0, atol=1e-4, msg=name)
        for factor in (2, 4):
            with unittest.mock.patch.object(ppl, 'PERCEPTUAL_SIZE', 32 // factor):
                received = testutil.nchw(ppl.perceptual_input(images, False))
            name = f'box_down_{factor}_nchw'
            self.assertAllClose(received, self.as_input(arrays, name), rtol=0, atol=1e-4, msg=name)

    def as_input(self, arrays, name):
        """A golden array of images in [-1, 1] or [0, 255], as the latter."""
        images = arrays[name]
        return images if np.max(images) > 10 else (images + 1) * 127.5


class FormulaTest(tf.test.TestCase):
    def test_slerp_of_special_pairs(self):
        rnd = np.random.RandomState(0)
        a = tf.constant(rnd.randn(50, 512), tf.float32)
        for t in (0.0, 0.3, 0.99):
            t = tf.fill([50, 1], t)
            for b in (a, 3 * a, -a, 0 * a):
                step = ppl.slerp(a, b, t + 1e-4) - ppl.slerp(a, b, t)
                self.assertTrue(np.isfinite(step).all())
                if b is a:      # An identical pair does not move, not even by rounding.
                    self.assertLess(np.abs(step).max(), 1e-9)
        b = tf.constant(rnd.randn(50, 512), tf.float32)
        angle = np.arccos(np.sum(ppl.normalize(a) * ppl.normalize(b), axis=1))
        half = ppl.slerp(a, b, tf.fill([50, 1], 0.5))
        self.assertAllClose(np.arccos(np.sum(half * ppl.normalize(b), axis=1)), angle / 2, atol=1e-3)
        self.assertAllClose(np.linalg.norm(half, axis=1), np.ones(50))

    def test_shrinking(self):
        """The factor counts from the size after cropping, or before it."""
        images = np.random.RandomState(0).uniform(-1.5, 1.5, [1, 3, 1024, 1024]).astype(np.float32)
        boxed = (images.reshape(1, 3, 256, 4, 256, 4).mean(axis=(3, 5)) + 1) * 127.5
        self.assertAllClose(testutil.nchw(ppl.perceptual_input(images, False)), boxed, atol=1e-3)
        cropped = images[:, :, 384:896, 256:768]
        for generation, factor in [('stylegan2', 2), ('ada', 2), ('ada-pytorch', 4)]:
            size = 512 // factor
            expected = (cropped.reshape(1, 3, size, factor, size, factor).mean(axis=(3, 5)) + 1) * 127.5
            received = ppl.perceptual_input(images, True, generation)
            self.assertAllClose(testutil.nchw(received), expected, atol=1e-3, msg=generation)
        small = ppl.perceptual_input(images[:, :, :256, :256], False)
        self.assertAllClose(testutil.nchw(small), (images[:, :, :256, :256] + 1) * 127.5, atol=1e-3)
        self.assertLess(np.min(small), 0)    # Not clamped.

    def test_outliers(self):
        lengths = np.arange(1000.0)
        np.random.RandomState(0).shuffle(lengths)
        kept = np.arange(9, 991)    # 9.99 → 9, 989.01 → 990, both inclusive.
        self.assertEqual(ppl.mean_length(lengths), kept.mean())
        self.assertEqual(ppl.mean_length(np.zeros(7)), 0)
        self.assertEqual(ppl.mean_length(np.ones(1)), 1)
        # Infinite ones are outliers like others; where they are many the mean is infinite, but a number.
        self.assertEqual(ppl.mean_length(np.append(np.ones(999), np.inf)), 1)
        self.assertEqual(ppl.mean_length(np.append(np.ones(9), [np.inf] * 9)), np.inf)

    def test_deciles(self):
        lengths = np.random.RandomState(0).permutation(40).astype(float)
        parts = ppl.deciles(lengths)
        self.assertAllEqual(lengths[parts['lowest']], [0, 1, 2, 3])
        self.assertAllEqual(lengths[parts['highest']], [36, 37, 38, 39])
        for count in (1, 2, 3, 9, 11):
            parts = ppl.deciles(np.arange(float(count)))
            self.assertAllEqual(np.sort(np.concatenate(list(parts.values()))), np.arange(count))


class NoiseTest(tf.test.TestCase):
    def test_shared(self):
        """One noise for all images, another one for each layer and minibatch."""
        ctx = ppl.SharedNoise(tf.constant([1, 2]))
        first, second = ctx.normal([5, 8, 8, 1]), ctx.normal([5, 8, 8, 1])
        self.assertAllEqual(first, np.repeat(first[:1], 5, axis=0))
        self.assertNotAllClose(first, second)
        self.assertNotAllClose(first, ppl.SharedNoise(tf.constant([1, 3])).normal([5, 8, 8, 1]))
        self.assertAllEqual(first, ppl.SharedNoise(tf.constant([1, 2])).normal([5, 8, 8, 1]))
        self.assertBetween(np.std(first), 0.7, 1.3)


@testutil.needs_golden
class MetricTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.Gs = golden_generator()
        cls.evaluations = {}        # Whose traced functions serve again.

    def evaluate(self, name='ppl_wend', Gs=None, batch=8, seed=0, generation='stylegan2', share=True,
                 **kwargs):
        """(metric, evaluation) after a run."""
        ev = Evaluation(Gs or self.Gs, batch=batch, seed=seed, generation=generation)
        ev._extractors['lpips'] = SquaredDifference()
        if share and Gs is None:
            ev.share(self.evaluations.setdefault(batch, ev))
        group = MetricGroup([dict(func_name='metrics.perceptual_path_length.PPL', name=name,
                                  **{'num_samples': 11, **kwargs})])
        group.run('network.pkl', kwargs.get('distribution') and tempfile.mkdtemp(dir=self.get_temp_dir()),
                  evaluation=ev, log_results=False)
        return group.metrics[0], ev

    def test_against_second_formula(self):
        """What the metric says is what a NumPy user would compute from the same latents and noise."""
        for space, sampling in [('w', 'end'), ('z', 'full')]:
            metric, ev = self.evaluate(space=space, sampling=sampling, crop=False, num_samples=6, batch=6,
                                       epsilon=0.01)
            paths = ppl._Paths(metric, ev)
            lengths = []
            for minibatch in range(2):      # Of three pairs.
                latents, _, t, seeds = paths.inputs(minibatch)
                self.assertEqual(len(latents), 3)
                self.assertEqual(bool(np.any(t)), sampling == 'full')
                ctx = ppl.SharedNoise(tf.constant(seeds[0]))
                for var in self.Gs.components.synthesis.vars.values():
                    if var.name.split('/')[-1].startswith('noise') and len(var.shape) == 4:
                        var.assign(testutil.nchw(ctx.normal([1, *var.shape[2:], 1])))
                for (a, b), position in zip(latents, t, strict=True):
                    images = []
                    for x in (position, position + np.float32(0.01)):
                        if space == 'w':
                            w = self.Gs.components.mapping.run(np.stack([a, b]))
                            w = w[:1] + (w[1:] - w[:1]) * x
                        else:
                            a1, b1 = a / np.linalg.norm(a), b / np.linalg.norm(b)
                            omega = np.arccos(np.dot(a1, b1))
                            z = (np.sin((1 - x) * omega) * a1 + np.sin(x * omega) * b1) / np.sin(omega)
                            w = self.Gs.components.mapping.run(z[np.newaxis])
                        images.append(self.Gs.components.synthesis.run(w, randomize_noise=False))
                    lengths.append(np.mean(np.square((images[1] - images[0]) * 127.5)) / 0.01 ** 2)
            self.assertAllClose(metric.results()[metric.name], ppl.mean_length(lengths), rtol=2e-3)

    def test_batches_and_seeds(self):
        one, _ = self.evaluate(batch=1, num_samples=3)      # Minibatches of one pair.
        self.assertTrue(np.isfinite(one.results()['ppl_wend']))
        again, _ = self.evaluate()
        same, _ = self.evaluate()
        other, _ = self.evaluate(seed=1)
        self.assertEqual(again.results(), same.results())
        self.assertNotEqual(again.results(), other.results())
        self.assertEqual((again.details['num_samples'], again.details['epsilon']), (11, 1e-4))

    def test_half_precision(self):
        """Such a generator is evaluated in float32: neighbouring images would be equal or far apart."""
        exact, _ = self.evaluate(crop=False)
        half, _ = self.evaluate(Gs=self.Gs.clone(dtype='float16'), crop=False)
        # The weights have been rounded all the same.
        self.assertAllClose(half.results()['ppl_wend'], exact.results()['ppl_wend'], rtol=0.05)

    def test_identical_pairs(self):
        """Neither noise nor rounding shows: 0, not NaN."""
        def latents(self, rnd, n):
            return np.repeat(rnd.randn(n // 2, *self.network.input_shape[1:]), 2, axis=0)
        with unittest.mock.patch('generation.samplers.Sampler.latents', latents):
            for space, sampling in [('z', 'full'), ('w', 'full')]:
                metric, _ = self.evaluate(space=space, sampling=sampling)
                self.assertAllClose(metric.results()['ppl_wend'], 0, atol=1e-6)

    def test_diverged(self):
        with unittest.mock.patch.object(SquaredDifference, 'distance',
                                        lambda self, a, b: tf.fill([a.shape[0]], np.nan)):
            metric, _ = self.evaluate(distribution=True, share=False)
        self.assertEqual(metric.results()['ppl_wend'], np.inf)
        self.assertEndsWith(metric.get_result_str(), 'ppl_wend inf')
        self.assertEqual(set(metric.details['percentiles'].values()), {np.inf})

    def test_diverged_generator(self):
        """A distance may be 0 where both images are no numbers: the best that there is."""
        Gs = self.Gs.clone()
        variable = list(Gs.trainables.values())[-1]
        variable.assign(variable.value * np.nan)
        with unittest.mock.patch.object(SquaredDifference, 'distance',
                                        lambda self, a, b: tf.zeros([a.shape[0]])):
            metric, _ = self.evaluate(Gs=Gs, share=False)
        self.assertEqual(metric.results()['ppl_wend'], np.inf)

    def test_distribution(self):
        """The sheets show the very images that were measured."""
        metric, ev = self.evaluate(distribution=True, num_samples=33, batch=8)
        folder = ev.result_dir
        self.assertEqual(sorted(os.listdir(folder)), [
            'ppl_wend-distances.npz', 'ppl_wend-distribution.png', 'ppl_wend-highest.png',
            'ppl_wend-lowest.png'])
        with np.load(os.path.join(folder, 'ppl_wend-distances.npz')) as file:
            lengths = file['distances']
        self.assertEqual(metric.results()['ppl_wend'], ppl.mean_length(lengths))
        with PIL.Image.open(os.path.join(folder, 'ppl_wend-distribution.png')) as image:
            self.assertEqual(image.size, (960, 480))
        paths = ppl._Paths(metric, ev)
        for name, indices in [('lowest', np.argsort(lengths)[:3]), ('highest', np.argsort(lengths)[-3:])]:
            with PIL.Image.open(os.path.join(folder, f'ppl_wend-{name}.png')) as image:
                sheet = np.asarray(image)[::4, ::4]
            self.assertEqual(sheet.shape, (32, 96, 3))
            for i, index in enumerate(indices):
                latents, labels, t, seeds = (tf.constant(x) for x in paths.inputs(index // 4))
                images = ppl.path_images(self.Gs, tf.reshape(latents, [-1, 16]), labels, t, space='w',
                                         epsilon=1e-4, ctx=ppl.SharedNoise(seeds[0]))
                shown = tflib.convert_images_to_uint8(images[0::2], nchw_to_nhwc=True)[index % 4]
                difference = np.abs(sheet[:, 32 * i:32 * i + 32].astype(int) - np.asarray(shown, int))
                self.assertLessEqual(difference.max(), 1, f'{name} {i}')

    def test_distribution_of_few(self):
        """One pair has a highest tenth alone."""
        _, ev = self.evaluate(distribution=True, num_samples=1, batch=2)
        self.assertEqual(len(os.listdir(ev.result_dir)), 3)

    def test_other_generators(self):
        """ProGAN and growing ones; with labels, which a pair shares."""
        _, _, progan = misc.load_pkl(testutil.golden('progan', 'paper_label10_32.pkl'))
        metric, ev = self.evaluate(Gs=progan, space='z', sampling='full', crop=False)
        self.assertGreater(metric.results()['ppl_wend'], 0)
        paths = ppl._Paths(metric, ev)
        latents, labels, t, seeds = paths.inputs(0)
        self.assertAllEqual(labels.sum(axis=1), np.ones(4))
        images = paths._images(*(tf.constant(x) for x in (latents, labels, 0 * t, seeds)))
        # At the beginning of a path there is z itself, whose length counts beside the label.
        self.assertAllClose(images[0::2], progan.run(latents[:, 0], labels), atol=1e-4)
        _, _, growing = misc.load_pkl(testutil.golden('stylegan', 'f_cond5_32.pkl'))
        metric, _ = self.evaluate(Gs=growing, crop=False)
        self.assertGreater(metric.results()['ppl_wend'], 0)

    def test_errors(self):
        _, _, progan = misc.load_pkl(testutil.golden('progan', 'paper_uncond_32.pkl'))
        with self.assertRaisesRegex(UserError, 'G_paper. has no intermediate latents w; use ppl_zend'):
            self.evaluate(Gs=progan)
        with self.assertRaisesRegex(UserError, "expected space 'z' or 'w' and sampling"):
            self.evaluate(space='x')
        with self.assertRaisesRegex(UserError, 'measures no distances between images; use lpips or efflite0'):
            self.evaluate(extractor='random')
        small = tflib.Network('Gs', func_name='training.networks_stylegan2.G_main', num_channels=3,
                              resolution=16, fmap_base=64, latent_size=8, dlatent_size=8, mapping_fmaps=8)
        with self.assertRaisesRegex(UserError, 'images of 16×16 pixels is too small for LPIPS'):
            self.evaluate(Gs=small)
