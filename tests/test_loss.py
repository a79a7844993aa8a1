"""The loss functions against the official ones and, where there is none, against the formula in NumPy."""

import functools

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import testutil
from training import loss
from training.networks_stylegan2 import D_stylegan2, G_main

CONDITIONS = ('f_uncond', 'f_cond5')
GENERATOR_LOSSES = ('G_logistic', 'G_logistic_ns', 'G_wgan')
DISCRIMINATOR_LOSSES = ('D_logistic', 'D_logistic_r1', 'D_logistic_r2', 'D_wgan', 'D_wgan_gp')
ARGUMENTS = {'D_logistic_r1': {'gamma': 7}, 'D_logistic_r2': {'gamma': 7}, 'D_wgan_gp': {'wgan_target': 1.5}}


@functools.cache
def golden_networks(condition):
    G, D, _ = testutil.load_networks('stylegan2', f'{condition}_Gskip_Dresnet_32.pkl')
    return testutil.fix_generator(G), D


@testutil.needs_golden
class GoldenTest(parameterized.TestCase, tf.test.TestCase):

    def _load(self, condition):
        G, D = golden_networks(condition)
        return G, D, testutil.load('stylegan2', f'{condition}_Gskip_Dresnet_32_losses.npz')

    @parameterized.product(condition=CONDITIONS, name=GENERATOR_LOSSES)
    def test_generator(self, condition, name):
        G, D, a = self._load(condition)
        ctx = testutil.RecordedContext(normals=[a['loss_latents']], labels=[a['loss_random_labels']])
        part, reg = getattr(loss, name)(G, D, ctx, 4)
        self.assertIsNone(reg)
        values, gradients = testutil.gradients(G, part)
        testutil.assert_close(self, values, a[f'loss/{name}/loss'])
        testutil.assert_gradients(self, gradients, a, f'loss/{name}/grad', 1e-3)
        self.assertTrue(ctx.all_used())

    @parameterized.product(condition=CONDITIONS, name=DISCRIMINATOR_LOSSES)
    def test_discriminator(self, condition, name):
        G, D, a = self._load(condition)
        reals, labels = tf.constant(testutil.nhwc(a['loss_reals'])), tf.constant(a['loss_labels'])

        def parts():
            ctx = testutil.RecordedContext(normals=[a['loss_latents']], uniforms=[a['loss_mixing_factors']])
            return getattr(loss, name)(G, D, ctx, 4, reals, labels, **ARGUMENTS.get(name, {}))

        values, gradients = testutil.gradients(D, lambda: parts()[0]())
        testutil.assert_close(self, values, a[f'loss/{name}/loss'])
        testutil.assert_gradients(self, gradients, a, f'loss/{name}/grad', 1e-3)
        self.assertEqual(parts()[1] is not None, f'loss/{name}/reg' in a)
        if f'loss/{name}/reg' in a:
            # On its own, and after the loss in the same pass, which shares the fakes.
            values, gradients = testutil.gradients(D, lambda: parts()[1]())
            testutil.assert_close(self, values, a[f'loss/{name}/reg'], 1e-3, 1e-4)
            if f'loss/{name}/reg_grad_names' in a:
                testutil.assert_gradients(self, gradients, a, f'loss/{name}/reg_grad', 2e-3)
            part, reg = parts()
            testutil.assert_close(self, part(), a[f'loss/{name}/loss'])
            testutil.assert_close(self, reg(), a[f'loss/{name}/reg'], 1e-3, 1e-4)

    @parameterized.product(condition=CONDITIONS, shrink=(1, 2), pl_mean=('0', '0.35'))
    def test_path_length(self, condition, shrink, pl_mean):
        G, D, a = self._load(condition)
        prefix = f'loss/G_logistic_ns_pathreg_shrink{shrink}'
        latents = a.get(f'{prefix}/pl_latents', a['loss_latents'])
        labels = a.get(f'{prefix}/pl_labels', a['loss_random_labels'])
        mean = tf.Variable(float(pl_mean))
        ctx = testutil.RecordedContext(normals=[latents, testutil.nhwc(a[f'{prefix}/pl_noise_raw'])],
                                       labels=[labels], loss_state={'pl_mean': mean})
        _, reg = loss.G_logistic_ns_pathreg(G, D, ctx, 4, pl_minibatch_shrink=shrink)
        values, gradients = testutil.gradients(G, reg)
        testutil.assert_close(self, values, a[f'{prefix}/reg_plmean{pl_mean}'], 1e-3, 1e-4)
        testutil.assert_close(self, mean, a[f'{prefix}/plmean_after_plmean{pl_mean}'])
        self.assertTrue(ctx.all_used())
        names = [str(name) for name in a[f'{prefix}/grad_names']]
        norms = a[f'{prefix}/reg_grad_norm_plmean{pl_mean}']
        self.assertEqual(list(gradients), names)
        actual = [0.0 if value is None else float(tf.norm(value)) for value in gradients.values()]
        testutil.assert_close(self, np.float32(actual), norms, 2e-3, 1e-5)

        ctx = testutil.RecordedContext(normals=[a['loss_latents']], labels=[a['loss_random_labels']])
        part, _ = loss.G_logistic_ns_pathreg(G, D, ctx, 4, pl_minibatch_shrink=shrink)
        testutil.assert_close(self, part(), a[f'{prefix}/loss'])


class FormulaTest(tf.test.TestCase):
    """The losses without recorded numbers, and what holds for all of them."""

    def setUp(self):
        super().setUp()
        tf.keras.utils.set_random_seed(3)
        options = dict(resolution=8, fmap_base=32, fmap_max=8, latent_size=8, dlatent_size=8, mapping_fmaps=8,
                       mapping_layers=2, label_size=3)
        self.G = testutil.fix_generator(G_main(**options))
        self.D = D_stylegan2(**options, mbstd_group_size=1)
        rng = np.random.RandomState(0)
        # Scores on both sides of the hinges.
        self.D.named_variables()['Output/weight'].assign(30 * rng.randn(8, 3))
        self.latents = rng.randn(4, 8).astype(np.float32)
        self.labels = np.eye(3, dtype=np.float32)[[0, 2, 1, 1]]
        self.reals = rng.randn(4, 8, 8, 3).astype(np.float32)
        self.factors = rng.rand(4, 1, 1, 1).astype(np.float32)
        self.fakes = self.G(tf.constant(self.latents), tf.constant(self.labels), is_training=True).numpy()
        self.fake_scores, self.real_scores = [
            self.D(tf.constant(images), tf.constant(self.labels)).numpy()
            for images in (self.fakes, self.reals)]

    def _context(self):
        return testutil.RecordedContext([self.latents], uniforms=[self.factors], labels=[self.labels])

    def _parts(self, name, ctx=None, **kwargs):
        data = () if name.startswith('G_') else (tf.constant(self.reals), tf.constant(self.labels))
        return getattr(loss, name)(self.G, self.D, ctx or self._context(), 4, *data, **kwargs)

    def test_hinge_losses(self):
        self.assertAllClose(self._parts('G_hinge')[0](), -self.fake_scores)
        hinge = np.maximum(0, 1 + self.fake_scores) + np.maximum(0, 1 - self.real_scores)
        for margin in (1 + self.fake_scores, 1 - self.real_scores):
            self.assertBetween(np.sum(margin > 0), 1, 3)  # Else the test would say nothing.
        for name in ('D_hinge', 'D_hinge_gp'):
            self.assertAllClose(self._parts(name)[0](), hinge, rtol=1e-5, atol=1e-5)
        self.assertIsNone(self._parts('D_hinge')[1])

    def test_gradient_penalty_of_hinge_loss(self):
        mixed = tf.constant(self.reals + (self.fakes - self.reals) * self.factors)
        with tf.GradientTape() as tape:
            tape.watch(mixed)
            scores = self.D(mixed, tf.constant(self.labels))
        norms = np.sqrt(np.sum(tape.gradient(scores, mixed).numpy() ** 2, axis=(1, 2, 3)))
        self.assertAllClose(self._parts('D_hinge_gp')[1](), 10 * (norms - 1) ** 2, rtol=1e-4)
        self.assertAllClose(self._parts('D_hinge_gp', wgan_lambda=3, wgan_target=2.5)[1](),
                            3 / 2.5 ** 2 * (norms - 2.5) ** 2, rtol=1e-4)
        self.assertAllClose(self._parts('D_wgan_gp', wgan_lambda=3, wgan_target=2.5)[1](),
                            3 / 2.5 ** 2 * (norms - 2.5) ** 2, rtol=1e-4)

    def test_one_number_per_sample(self):
        names = [name for name in dir(loss) if name.startswith(('G_', 'D_'))]
        self.assertLen(names, 19)
        for name in names:
            normals = [self.latents] if name != 'G_logistic_ns_pathreg' else \
                [self.latents, self.latents[:2], np.random.randn(2, 8, 8, 3)]
            ctx = testutil.RecordedContext(normals, [self.factors], labels=[self.labels, self.labels[:2]],
                                           loss_state={'pl_mean': tf.Variable(0.0)})
            part, reg = self._parts(name, ctx)
            self.assertEqual(part().shape, [4, 1], name)
            self.assertIn('Loss/scores/fake', ctx.reports)
            if reg is not None:
                self.assertEqual(reg().shape, [2] if name == 'G_logistic_ns_pathreg' else [4], name)

    def test_reports(self):
        ctx = self._context()
        part, reg = self._parts('D_wgan_gp', ctx, wgan_epsilon=0.5)
        expected = self.fake_scores - self.real_scores + 0.5 * self.real_scores ** 2
        self.assertAllClose(part(), expected, rtol=1e-5)
        reg()
        self.assertAllClose(ctx.reports['Loss/scores/fake'], self.fake_scores, rtol=1e-5)
        self.assertAllClose(ctx.reports['Loss/scores/real'], self.real_scores, rtol=1e-5)
        self.assertAllClose(ctx.reports['Loss/epsilon_penalty'], self.real_scores ** 2, rtol=1e-5)
        self.assertContainsSubset({'Loss/scores/mixed', 'Loss/mixed_norms', 'Loss/gradient_penalty'},
                                  ctx.reports)

    def test_path_length_of_a_single_sample(self):
        """A minibatch of one is not shrunk to nothing."""
        mean = tf.Variable(0.0)
        ctx = testutil.RecordedContext([self.latents[:1], np.random.randn(1, 8, 8, 3)],
                                       labels=[self.labels[:1]], loss_state={'pl_mean': mean})
        _, reg = loss.G_logistic_ns_pathreg(self.G, self.D, ctx, 1, pl_decay=0.25)
        penalty = reg()
        self.assertEqual(penalty.shape, [1])
        self.assertAllClose(penalty, 2 * (ctx.reports['Loss/pl_lengths'] - mean) ** 2)
        self.assertAllClose(mean, 0.25 * ctx.reports['Loss/pl_lengths'][0])


if __name__ == '__main__':
    tf.test.main()
