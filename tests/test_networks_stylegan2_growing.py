"""The growing networks of StyleGAN2's configs B to D: official numbers, and every level of detail."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib.tflib import legacy
from dnnlib.util import UserError
from tests import testutil
from tests.growing_testutil import PickleChecks, StructureChecks, randomized, recorded
from training.context import Context
from training.growing import Stage
from training.networks_stylegan2 import D_stylegan, G_main, G_synthesis_stylegan_revised

SNAPSHOT = 'bcd_revised_uncond_32'
TINY = dict(resolution=32, fmap_base=64, fmap_max=8, latent_size=8, dlatent_size=8, mapping_fmaps=8,
            mapping_layers=2, synthesis_func='G_synthesis_stylegan_revised')


def tiny_networks(**kwargs) -> list:
    """(G, D) in float64 without anything that is zero at the start."""
    options = {**TINY, 'dtype': 'float64', **kwargs}
    return [randomized(G_main(**options), 1), randomized(D_stylegan(**options), 2)]


@testutil.needs_golden
class GoldenTest(PickleChecks, tf.test.TestCase):

    def _load(self, role):
        state = legacy.find_network(legacy.load_pkl(testutil.golden('stylegan2', f'{SNAPSHOT}.pkl')), role)
        return testutil.build_network(state), testutil.load('stylegan2', f'{SNAPSHOT}.npz')

    def test_generator(self):
        G, a = self._load('G')
        latents, seed = tf.constant(a['latents']), testutil.nhwc(a['grad_seed'])
        cases = recorded(a, 'image_psi0.6')
        self.assertLen(cases, 9)
        for (structure, lod, image), (*same, gradient) in zip(cases, recorded(a, 'dsum_dz'), strict=True):
            self.assertEqual([structure, lod], same)
            with self.subTest(structure=structure, lod=lod):
                # The level of detail of the generator counts, not the one that is left in its component.
                G.lod.assign(lod)
                with tf.GradientTape() as tape:
                    tape.watch(latents)
                    images, dlatents = G(latents, truncation_psi=0.6, randomize_noise=False,
                                         structure=structure, return_dlatents=True)
                    total = tf.reduce_sum(images * seed)
                testutil.assert_close(self, images, testutil.nhwc(image))
                testutil.assert_close(self, dlatents, a['dlatents_psi0.6'])
                testutil.assert_close(self, tape.gradient(total, latents), gradient, 0, 1e-3)

    def test_discriminator(self):
        D, a = self._load('D')
        images = tf.constant(testutil.nhwc(a['d_images']))
        penalties = {case[:2]: case[2] for case in recorded(a, 'r1_penalty')}
        gradients = {case[:2]: case[2] for case in recorded(a, 'r1_grads')}
        self.assertLen(penalties, 5)
        self.assertLen(gradients, 2)
        cases = recorded(a, 'd_scores')
        self.assertLen(cases, 9)
        for structure, lod, expected in cases:
            with self.subTest(structure=structure, lod=lod):
                D.lod.assign(lod)
                with tf.GradientTape() as tape:
                    tape.watch(images)
                    scores = D(images, structure=structure)
                testutil.assert_close(self, scores, expected)
                gradient = testutil.nchw(tape.gradient(scores, images).numpy())
                if (structure, lod) in gradients:
                    testutil.assert_close(self, gradient, gradients[structure, lod], 0, 1e-3)
                # Recorded for 'linear'; the other structures give the same.
                expected = penalties.get((structure, lod), penalties['linear', lod])
                testutil.assert_close(self, np.sum(gradient ** 2, axis=(1, 2, 3)), expected, 1e-3, 0)

    def test_pickles_behind_the_facade(self):
        self.check_pickle('stylegan2', SNAPSHOT, 'image_psi0.6', legacy.NETWORK_CLASS, 4, truncation_psi=0.6,
                          randomize_noise=False)


class StructureTest(StructureChecks, tf.test.TestCase):

    def test_generator(self):
        G, _ = tiny_networks()
        latents = tf.constant(np.random.RandomState(1).randn(3, 8))
        self.check_generator(lambda ctx, **options: G(latents, ctx=ctx, randomize_noise=False, **options), G)

    def test_synthesis(self):
        synthesis = tiny_networks()[0].synthesis
        dlatents = tf.constant(np.random.RandomState(1).randn(4, 8, 8))
        self.check_generator(lambda ctx, **options: synthesis(dlatents, ctx=ctx, randomize_noise=False,
                                                              **options), synthesis, lods=(0.0, 1.7, 3.0))

    def test_discriminator(self):
        _, D = tiny_networks(label_size=2)
        images = tf.constant(np.random.RandomState(1).randn(4, 32, 32, 3))
        labels = tf.one_hot([0, 1, 1, 0], 2, dtype=tf.float64)
        self.check_discriminator(lambda x, ctx, **options: D(x, labels, ctx=ctx, **options), D, images)


class LevelOfDetailTest(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        rng = np.random.RandomState(1)
        self.latents, self.dlatents = tf.constant(rng.randn(4, 8)), tf.constant(rng.randn(4, 8, 8))
        self.images = tf.constant(rng.randn(4, 32, 32, 3))

    def _images(self, G, **kwargs):
        return G.synthesis(self.dlatents, randomize_noise=False, **kwargs)

    def test_only_the_layers_of_the_stage_run(self):
        G, D = tiny_networks()
        testutil.set_lod([G, D], 1.5)
        ctx = Context(keep_features=True)
        self._images(G, ctx=ctx)
        D(self.images, ctx=ctx)
        self.assertContainsSubset({'16x16/Conv1', 'ToRGB_lod1', 'ToRGB_lod2', 'FromRGB_lod1', 'FromRGB_lod2',
                                   '16x16/Conv1_down'}, ctx.features)
        self.assertNoCommonElements({'32x32/Conv0_up', 'ToRGB_lod0', 'ToRGB_lod3', 'FromRGB_lod0',
                                     '32x32/Conv0', 'FromRGB_lod3'}, ctx.features)
        ctx = Context(keep_features=True, stage=Stage(1, False))
        self._images(G, ctx=ctx)
        self.assertNotIn('ToRGB_lod2', ctx.features)
        # Random numbers are drawn for the noise of these layers alone.
        normals = [np.zeros([4, size, size, 1]) for size in (4, 8, 8, 16, 16)]
        ctx = testutil.RecordedContext(normals)
        G.synthesis(self.dlatents, ctx=ctx)
        self.assertTrue(ctx.all_used())

    def test_fading_is_linear_in_lod(self):
        G, D = tiny_networks()
        images = {}
        for lod in (1.0, 1.25, 2.0):
            testutil.set_lod([G, D], lod)
            images[lod] = self._images(G)
        self.assertAllClose(images[1.25], 0.75 * images[1.0] + 0.25 * images[2.0], rtol=1e-9, atol=1e-9)

    def test_gradients_reach_the_layers_of_the_stage_alone(self):
        G, D = tiny_networks()
        testutil.set_lod([G, D], 1.5)
        for network, rgb in [(G, 'ToRGB'), (D, 'FromRGB')]:
            _, gradients = testutil.gradients(network, lambda: D(G(self.latents, randomize_noise=False)))
            unused = {name for name, value in gradients.items() if value is None}
            self.assertEqual(unused, {name for name in gradients if '32x32/' in name or f'{rgb}_lod0' in name
                                      or f'{rgb}_lod3' in name})

    def test_styles_are_mixed_among_the_layers_of_the_stage(self):
        G, _ = tiny_networks()
        first = G.mapping(self.latents[:1])[0, 0]
        for lod, layers in [(0.0, 8), (1.5, 6), (2.0, 4)]:
            testutil.set_lod([G], lod)
            seen = set()
            for _ in range(60):
                _, dlatents = G(self.latents[:1], is_training=True, style_mixing_prob=0.7,
                                dlatent_avg_beta=None, return_dlatents=True)
                seen.add(int(np.sum(np.all(np.isclose(dlatents[0], first), axis=1))))
            self.assertEqual(seen, set(range(1, layers + 1)))

    def test_gradients_of_second_order(self):
        G, D = tiny_networks(resolution=8, nonlinearity='swish')
        testutil.set_lod([G, D], 0.3)
        images = np.random.RandomState(0).randn(4, 8, 8, 3)
        testutil.assert_derivative(
            self, testutil.gradient_sum(lambda x: tf.reduce_sum(tf.nn.softplus(D(x)))), [images])
        seed = np.random.RandomState(2).randn(2, 8, 8, 3)
        testutil.assert_derivative(
            self, testutil.gradient_sum(
                lambda w: tf.reduce_sum(G.synthesis(w, randomize_noise=False) * seed)),
            [np.random.RandomState(3).randn(2, 4, 8)])


class ShapesTest(parameterized.TestCase, tf.test.TestCase):

    @parameterized.parameters(4, 8)
    def test_smallest_resolutions(self, resolution):
        G, D = tiny_networks(resolution=resolution)
        for lod in (0.0, 0.5, 1.0):
            testutil.set_lod([G, D], lod)
            images = G(tf.constant(np.random.randn(2, 8)))
            self.assertEqual(images.shape, [2, resolution, resolution, 3])
            self.assertEqual(D(images).shape, [2, 1])

    def test_images_that_are_not_square(self):
        G, D = tiny_networks(base_shape=(4, 3), num_channels=1)
        testutil.set_lod([G, D], 1.5)
        images = G(tf.constant(np.random.randn(2, 8)))
        self.assertEqual(images.shape, [2, 32, 24, 1])
        self.assertEqual(D(images).shape, [2, 1])

    def test_label_picks_the_output(self):
        _, D = tiny_networks(label_size=3)
        images = tf.constant(np.random.randn(3, 32, 32, 3))
        ctx = Context(keep_features=True)
        scores = D(images, tf.one_hot([2, 0, 1], 3, dtype=tf.float64), ctx=ctx)
        outputs = ctx.features['Output'].numpy()
        self.assertAllClose(scores[:, 0], [outputs[0, 2], outputs[1, 0], outputs[2, 1]])

    def test_minibatch_stddev_is_optional(self):
        _, D = tiny_networks(mbstd_group_size=1)
        images = tf.constant(np.random.randn(4, 32, 32, 3))
        self.assertAllClose(D(images)[:1], D(images[:1]))
        _, D = tiny_networks(mbstd_num_features=2)
        self.assertEqual(D.named_variables()['4x4/Conv/weight'].shape, (3, 3, 10, 8))

    def test_structure_none_is_auto(self):
        for build in (G_synthesis_stylegan_revised, D_stylegan):
            self.assertEqual(build(resolution=8, fmap_max=4, structure=None).structure, 'auto')

    def test_messages(self):
        for build in (G_synthesis_stylegan_revised, D_stylegan):
            with self.assertRaisesRegex(UserError, "linear, recursive. Received: 'looped'$"):
                build(resolution=8, fmap_max=4, structure='looped')
        G, D = tiny_networks()
        with self.assertRaisesRegex(UserError, "Received: 'looped'$"):
            G(tf.zeros([1, 8], tf.float64), structure='looped')
        with self.assertRaisesRegex(UserError, "Received: 'looped'$"):
            D(tf.zeros([1, 32, 32, 3], tf.float64), structure='looped')


if __name__ == '__main__':
    tf.test.main()
