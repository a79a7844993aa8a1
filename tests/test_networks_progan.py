"""The ProGAN networks against the official ones: names, shapes, outputs, features, gradients."""

import dataclasses

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib.tflib import Network, legacy
from dnnlib.tflib.network import find_network_class
from dnnlib.util import UserError
from tests import testutil
from tests.growing_testutil import PickleChecks, StructureChecks, VariableTableChecks, randomized, recorded
from training.context import Context
from training.networks_progan import D_paper, G_paper

SNAPSHOTS = ('paper_uncond_32', 'paper_label10_32', 'paper_unfused_32')
TINY = dict(num_channels=3, resolution=32, fmap_base=64, fmap_max=8)


@testutil.needs_golden
class VariableTableTest(VariableTableChecks, tf.test.TestCase):

    table, version, num_rows = 'progan', 2, 4


@testutil.needs_golden
class GoldenTest(PickleChecks, parameterized.TestCase, tf.test.TestCase):

    def _load(self, snapshot, **options):
        return (testutil.load('progan', f'{snapshot}.npz'),
                testutil.load_networks('progan', f'{snapshot}.pkl', **options))

    @parameterized.parameters(*SNAPSHOTS)
    def test_generator(self, snapshot):
        a, (G, _, Gs) = self._load(snapshot)
        latents, labels = tf.constant(a['latents']), tf.constant(a['labels'])
        cases = recorded(a, 'image')
        self.assertLen(cases, 2 * len(a['lods']))
        for (structure, lod, image), (*same, gradient) in zip(cases, recorded(a, 'dsum_dz'), strict=True):
            self.assertEqual([structure, lod], same)
            with self.subTest(structure=structure, lod=lod):
                G.lod.assign(lod)
                with tf.GradientTape() as tape:
                    tape.watch(latents)
                    images = G(latents, labels, structure=structure)
                    total = tf.reduce_sum(images * testutil.nhwc(a['grad_seed']))
                testutil.assert_close(self, testutil.nchw(images.numpy()), image)
                testutil.assert_close(self, tape.gradient(total, latents), gradient, 0, 1e-3)
        for structure, lod, image in recorded(a, 'Gs_image'):
            Gs.lod.assign(lod)
            testutil.assert_close(self, Gs(latents, labels, structure=structure), testutil.nhwc(image))

    @parameterized.parameters(*SNAPSHOTS)
    def test_discriminator(self, snapshot):
        a, (_, D, _) = self._load(snapshot)
        images = tf.constant(testutil.nhwc(a['d_images']))
        cases = recorded(a, 'd_scores')
        self.assertLen(cases, 2 * len(a['lods']))
        for (structure, lod, scores), (*same, logits) in zip(cases, recorded(a, 'd_labels_out'), strict=True):
            self.assertEqual([structure, lod], same)
            with self.subTest(structure=structure, lod=lod):
                D.lod.assign(lod)
                outputs = D(images, structure=structure)
                testutil.assert_close(self, outputs[0], scores)
                testutil.assert_close(self, outputs[1], logits)
        D.lod.assign(0)
        for count in (1, 2, 3):
            testutil.assert_close(self, D(images[:count])[0], a[f'd_scores_first{count}_linear_lod0'])

    @parameterized.parameters(*SNAPSHOTS)
    def test_gradient_penalty(self, snapshot):
        # In float64. The official float32 numbers of two cases have one activation that lies within 1e-6 of
        # zero on the other side of the kink of the leaky ReLU; with its slope exchanged all digits agree.
        a, (_, D, _) = self._load(snapshot, dtype='float64')
        images = tf.constant(testutil.nhwc(a['d_images']), tf.float64)
        for structure, lod, penalty in recorded(a, 'r1_penalty'):
            D.lod.assign(lod)
            with tf.GradientTape() as tape:
                tape.watch(images)
                total = tf.reduce_sum(D(images, structure=structure)[0])
            gradient = testutil.nchw(tape.gradient(total, images).numpy())
            actual = np.sum(gradient ** 2, axis=(1, 2, 3))
            testutil.assert_close(self, actual, penalty, 2e-3, 0)
            agree = np.abs(actual / penalty - 1) < 1e-5
            kinks = {('paper_label10_32', 0.0), ('paper_unfused_32', 0.0), ('paper_unfused_32', 0.4)}
            self.assertEqual(np.sum(~agree), (snapshot, lod) in kinks)
            key = f'r1_grads_{structure}_lod{lod:g}'
            self.assertEqual(key in a, lod < 1)
            if key in a:
                testutil.assert_close(self, gradient[agree], a[key][agree], 0, 1e-5)

    def test_features(self):
        a, (G, D, _) = self._load(SNAPSHOTS[0])
        G.lod.assign(0.4)
        D.lod.assign(0.4)
        features = {}
        for role, run in (('G', lambda ctx: G(tf.constant(a['latents'][:2]), structure='linear', ctx=ctx)),
                          ('D', lambda ctx: D(tf.constant(testutil.nhwc(a['d_images'][:8])), ctx=ctx,
                                              structure='linear'))):
            ctx = Context(keep_features=True)
            run(ctx)
            features |= {f'{role}/{name}': value[:2].numpy() for name, value in ctx.features.items()}
        names = [key.removeprefix('feat_linear_lod0.4/') for key in a if key.startswith('feat_')]
        self.assertLen(names, 33)
        self.assertEqual(set(features), {name for name in names if name in features})
        self.assertAllInSet([name.split('/')[1][:5] for name in set(names) - set(features)], {'Grow_'})
        for name, value in features.items():
            value = testutil.nchw(value) if value.ndim == 4 else value
            testutil.assert_close(self, value, a[f'feat_linear_lod0.4/{name}'], msg=name)

    @parameterized.parameters(*SNAPSHOTS)
    def test_pickles_behind_the_facade(self, snapshot):
        self.check_pickle('progan', snapshot, 'image', 'tfutil.Network', 2)

    def test_pickles_of_the_program_of_stylegan_stay_so(self):
        # StyleGAN's program writes the networks of ProGAN in its own form.
        states = [dataclasses.replace(state, version=3, components={}, class_name=legacy.NETWORK_CLASS,
                                      key_order=legacy.STATE_KEYS)
                  for state in legacy.load_pkl(testutil.golden('progan', f'{SNAPSHOTS[0]}.pkl'))]
        self.check_pickle('progan', SNAPSHOTS[0], 'image', legacy.NETWORK_CLASS, 3, states)
        copy = Network.from_state(states[0]).clone('Gs').state()
        self.assertEqual((copy.name, copy.version, copy.class_name), ('Gs', 3, legacy.NETWORK_CLASS))

    def test_facade_has_two_outputs(self):
        a, (_, D, _) = self._load('paper_label10_32')
        D.lod.assign(1.0)
        scores, logits = Network('D', layer=D).run(a['d_images'])
        testutil.assert_close(self, scores, a['d_scores_linear_lod1'])
        testutil.assert_close(self, logits, a['d_labels_out_linear_lod1'])


class StructureTest(StructureChecks, tf.test.TestCase):

    def test_generator(self):
        G = randomized(G_paper(**TINY, label_size=2, dtype='float64'), 1)
        latents = tf.constant(np.random.RandomState(0).randn(3, 8))
        labels = tf.one_hot([0, 1, 1], 2, dtype=tf.float64)
        self.check_generator(lambda ctx, **options: G(latents, labels, ctx=ctx, **options), G)

    def test_discriminator(self):
        images = tf.constant(np.random.RandomState(0).randn(4, 32, 32, 3))
        for fused_scale in (True, False):
            D = randomized(D_paper(**TINY, label_size=2, fused_scale=fused_scale, dtype='float64'), 2)
            self.check_discriminator(lambda x, ctx, D=D, **options: D(x, ctx=ctx, **options), D, images)


class ArgumentsTest(tf.test.TestCase):

    def test_derivatives_of_both_orders(self):
        rng = np.random.RandomState(0)
        latents, images = rng.randn(2, 8), rng.randn(2, 8, 8, 3)
        for options in ({}, dict(fused_scale=False, use_pixelnorm=False)):
            kwargs = {**TINY, 'resolution': 8, 'dtype': 'float64', **options}
            G, D = randomized(G_paper(**kwargs), 1), randomized(D_paper(**kwargs), 2)
            G.lod.assign(0.3)
            D.lod.assign(0.3)
            seed = rng.randn(2, 8, 8, 3)

            def of_latents(z, G=G, seed=seed):
                return tf.reduce_sum(G(z) * seed)

            def of_images(x, D=D):
                return tf.reduce_sum(tf.nn.softplus(D(x)[0]))

            for func, value in ((of_latents, latents), (of_images, images)):
                testutil.assert_derivative(self, func, [value])
                testutil.assert_derivative(self, testutil.gradient_sum(func), [value])

    def test_defaults(self):
        G, D = G_paper(), D_paper()
        self.assertEqual(G.input_shapes, [[None, 512], [None, 0]])
        self.assertEqual(G.output_shapes, [[None, 1, 32, 32]])
        self.assertEqual(D.output_shapes, [[None, 1], [None, 0]])
        self.assertEqual(G_paper(fmap_base=64, fmap_max=100).input_shapes[0], [None, 64])
        self.assertEqual(G_paper(**TINY, latent_size=5).input_shapes[0], [None, 5])

    def test_options_do_what_they_say(self):
        latents = tf.constant(np.random.RandomState(0).randn(4, 8), tf.float32)

        def images(**options):
            return randomized(G_paper(**TINY, **options), 1)(latents).numpy()

        base = images()
        self.assertNotAllClose(base, images(normalize_latents=False))
        self.assertNotAllClose(base, images(use_leakyrelu=False))
        self.assertNotAllClose(base, images(use_pixelnorm=False))
        self.assertNotAllClose(base, images(pixelnorm_epsilon=0.5))
        self.assertAllClose(images(tanh_at_end=1.5), 1.5 * np.tanh(base), rtol=1e-4, atol=1e-5)
        self.assertAllEqual(base, images(architecture='skip', is_template_graph=True))
        # Without use_wscale the weights are used as they are: here larger by sqrt(fan_in / 2) per layer.
        self.assertNotAllClose(base, images(use_wscale=False))
        weights = {name: variable.shape for name, variable in
                   G_paper(**TINY, fused_scale=False).named_variables().items()}
        self.assertIn('8x8/Conv0/weight', weights)
        self.assertNotIn('8x8/Conv0_up/weight', weights)

    def test_labels(self):
        G, D = G_paper(**TINY, label_size=3), D_paper(**TINY, label_size=3)
        latents, labels = tf.random.normal([2, 8]), tf.one_hot([0, 2], 3)
        self.assertNotAllClose(G(latents, labels), G(latents, labels[::-1]))
        scores, logits = D(G(latents, labels))
        self.assertEqual((scores.shape, logits.shape), ([2, 1], [2, 3]))
        self.assertAllEqual(D(G(latents, labels), labels)[0], scores)  # Labels are not its input.
        self.assertEqual(D_paper(**TINY)(tf.zeros([2, 32, 32, 3]))[1].shape, [2, 0])

    def test_minibatch_stddev_can_be_off(self):
        D = D_paper(**TINY, mbstd_group_size=1)
        images = tf.random.normal([4, 32, 32, 3])
        self.assertEqual(D.named_variables()['4x4/Conv/weight'].shape, (3, 3, 8, 8))
        self.assertAllClose(D(images)[0][:1], D(images[:1])[0], rtol=1e-4, atol=1e-5)

    def test_gradients_reach_every_variable_of_the_levels_that_run(self):
        G, D = G_paper(**TINY, label_size=3), D_paper(**TINY, label_size=3)
        latents, labels = tf.random.normal([2, 8]), tf.one_hot([0, 2], 3)
        for network in (G, D):
            G.lod.assign(0.5)
            D.lod.assign(0.5)
            _, gradients = testutil.gradients(network, lambda: sum(
                tf.reduce_sum(tf.square(x)) for x in D(G(latents, labels))))
            unused = {name.split('/')[0] for name, value in gradients.items() if value is None}
            self.assertEqual(len(unused), 2, unused)
            self.assertTrue(all(name.endswith(('_lod2', '_lod3')) for name in unused), unused)

    def test_state_versions(self):
        self.assertEqual(Network('G', G_paper, **TINY).state().version, 2)
        for version in (2, 3):
            self.assertIs(find_network_class('D_paper', version), D_paper)
        for name, version in (('G_paper', 4), ('G_style', 2), ('GrowingGenerator', 2)):
            with self.assertRaisesRegex(UserError, f'^network function .{name}. of .* {version} is unknown'):
                find_network_class(name, version)

    def test_bad_arguments(self):
        for make, message in [
            (lambda: G_paper(**{**TINY, 'resolution': 48}), 'power of two from 4 up. Received: 48$'),
            (lambda: D_paper(**{**TINY, 'resolution': 2}), 'power of two from 4 up. Received: 2$'),
            (lambda: G_paper(**TINY, structure='spiral'), "Received: 'spiral'$"),
            (lambda: D_paper(**TINY)(tf.zeros([1, 32, 32, 3]), structure='spiral'), "Received: 'spiral'$"),
            (lambda: G_paper(**TINY, fused_scale='auto'), "one of .True, False.. Received: 'auto'$"),
            (lambda: G_paper(**TINY, label_size=3)(tf.zeros([2, 8])), r'shape \[N, 3\]. Received: None$'),
        ]:
            with self.assertRaisesRegex(UserError, message):
                make()


if __name__ == '__main__':
    tf.test.main()
