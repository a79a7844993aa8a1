"""The StyleGAN networks against the official ones: names, shapes, outputs, features, gradients."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib.tflib import Network, legacy
from dnnlib.util import UserError
from tests import testutil
from tests.growing_testutil import PickleChecks, StructureChecks, VariableTableChecks, randomized, recorded
from training.context import Context
from training.networks_stylegan import D_basic, G_mapping, G_style, G_synthesis

FULL_CASE = 'f_default_uncond_32'
SNAPSHOTS = ('b_tuned_baseline_32', 'c_mapping_and_styles_32', 'd_no_traditional_input_32', 'f_cond5_32',
             FULL_CASE, 'f_fused_scale_32')
TINY = dict(num_channels=3, resolution=32, fmap_base=64, fmap_max=8, latent_size=8, dlatent_size=8,
            mapping_fmaps=8, mapping_layers=2)
# Config B of the paper's table 1: no mapping network, no styles, no noise, a traditional input.
TRADITIONAL = dict(use_styles=False, use_pixel_norm=True, use_instance_norm=False, truncation_psi=None,
                   const_input_layer=False, style_mixing_prob=0.0, use_noise=False, mapping_layers=0)


@testutil.needs_golden
class VariableTableTest(VariableTableChecks, tf.test.TestCase):

    table, version, num_rows = 'stylegan', 3, 6

    def test_static_kwargs_of_components(self):
        for snapshot in SNAPSHOTS:
            for state in legacy.load_pkl(testutil.golden('stylegan', f'{snapshot}.pkl')):
                network = testutil.build_network(state)
                self.assertEqual(list(network.named_variables()), list(state.all_variables()))
                for key, component in state.components.items():
                    self.assertEqual(list(network.components[key].static_kwargs.items()),
                                     list(component.static_kwargs.items()))


@testutil.needs_golden
class GoldenTest(PickleChecks, parameterized.TestCase, tf.test.TestCase):

    def _load(self, snapshot, **options):
        return (testutil.load('stylegan', f'{snapshot}.npz'),
                testutil.load_networks('stylegan', f'{snapshot}.pkl', **options))

    @parameterized.parameters(*SNAPSHOTS)
    def test_generator(self, snapshot):
        a, (G, _, _) = self._load(snapshot)
        latents, labels = tf.constant(a['latents']), tf.constant(a['labels'])
        testutil.assert_close(self, G.mapping(latents, labels), a['dlatents'])
        for prefix, options in (('image_psi1', dict(truncation_psi=1)),
                                ('image_psi0.6_cutoff3', dict(truncation_psi=0.6, truncation_cutoff=3))):
            cases = recorded(a, prefix)
            self.assertLen(cases, 2 * len(a['lods']) + 1)
            for structure, lod, image in cases:
                with self.subTest(prefix, structure=structure, lod=lod):
                    G.lod.assign(lod)
                    images = G(latents, labels, randomize_noise=False, structure=structure, **options)
                    testutil.assert_close(self, testutil.nchw(images.numpy()), image)

    @parameterized.parameters(*SNAPSHOTS)
    def test_gradients_of_the_generator(self, snapshot):
        a, (G, _, _) = self._load(snapshot, dtype='float64')
        latents, labels = tf.constant(a['latents'], tf.float64), tf.constant(a['labels'], tf.float64)
        cases = recorded(a, 'dsum_dz')
        self.assertLen(cases, 2 * len(a['lods']) + 1)
        for structure, lod, gradient in cases:
            with self.subTest(structure=structure, lod=lod):
                G.lod.assign(lod)
                with tf.GradientTape() as tape:
                    tape.watch(latents)
                    images = G(latents, labels, truncation_psi=1, randomize_noise=False, structure=structure)
                    total = tf.reduce_sum(images * testutil.nhwc(a['grad_seed']))
                testutil.assert_close(self, tape.gradient(total, latents), gradient, 0, 1e-4)

    def test_truncation(self):
        a, (G, _, Gs) = self._load(FULL_CASE)
        latents = tf.constant(a['latents'])

        def close(key, network=G, **options):
            images = network(latents, randomize_noise=False, structure='fixed', **options)
            testutil.assert_close(self, images, testutil.nhwc(a[f'{key}_fixed_lod0']), msg=key)

        cases = [key for key in a if key.startswith('image_psi') and '_cutoff' in key and '_fixed' in key]
        self.assertLen(cases, 5)
        for key in cases:
            psi, cutoff = key.removeprefix('image_psi').removesuffix('_fixed_lod0').split('_cutoff')
            close(key.removesuffix('_fixed_lod0'), truncation_psi=float(psi),
                  truncation_cutoff=None if cutoff == 'None' else int(cutoff))
        close('image_default')
        close('image_default', truncation_psi=0.7, truncation_cutoff=8)
        close('image_validation', is_validation=True)
        close('image_psi0.5_cutoff2', is_validation=True, truncation_psi_val=0.5, truncation_cutoff_val=2)
        close('image_psi1', is_validation=True, truncation_psi_val=0.5)     # Both are needed.
        close('image_psi1', truncation_psi=None)
        close('Gs_image_psi1', Gs, truncation_psi=1)

    def test_synthesis_of_independent_dlatents(self):
        a, (G, _, _) = self._load(FULL_CASE)
        images = G.synthesis(tf.constant(a['wplus']), randomize_noise=False, structure='fixed')
        testutil.assert_close(self, images, testutil.nhwc(a['wplus_image_fixed_lod0']))

    def test_training_mode(self):
        a, (G, _, _) = self._load(FULL_CASE)
        for lod in (0, 1):
            G.lod.assign(lod)
            G.dlatent_avg.assign(a['train_dlatent_avg_before'])
            ctx = testutil.RecordedContext(normals=[a['train_latents2']], uniforms=[np.float32(0.5)],
                                           integers=[3])
            images = G(tf.constant(a['latents']), is_training=True, randomize_noise=False, structure='linear',
                       ctx=ctx)
            self.assertTrue(ctx.all_used())
            testutil.assert_close(self, images, testutil.nhwc(a[f'train_image_mix_cut3_linear_lod{lod}']))
            testutil.assert_close(self, G.dlatent_avg, a['train_dlatent_avg_after'])

    def test_features(self):
        a, (G, _, _) = self._load(FULL_CASE)
        for structure, lod, count in (('fixed', 0.0, 9), ('linear', 0.4, 7)):
            ctx = Context(keep_features=True)
            G.lod.assign(lod)
            G(tf.constant(a['latents'][:2]), truncation_psi=1, randomize_noise=False, structure=structure,
              ctx=ctx)
            prefix = f'feat_{structure}_lod{lod:g}/'
            names = [key.removeprefix(prefix) for key in a if key.startswith(prefix)]
            self.assertLen(names, count)
            for name in names:
                if name in ctx.features or not name.startswith('Grow_'):
                    testutil.assert_close(self, testutil.nchw(ctx.features[name].numpy()), a[prefix + name],
                                          msg=name)

    @parameterized.parameters(*SNAPSHOTS)
    def test_discriminator(self, snapshot):
        a, (_, D, _) = self._load(snapshot)
        images, labels = tf.constant(testutil.nhwc(a['d_images'])), tf.constant(a['d_labels'])
        cases = recorded(a, 'd_scores')
        self.assertLen(cases, 2 * len(a['lods']) + 1)
        for structure, lod, scores in cases:
            with self.subTest(structure=structure, lod=lod):
                D.lod.assign(lod)
                testutil.assert_close(self, D(images, labels, structure=structure), scores)
        for count in (1, 2, 3):
            testutil.assert_close(self, D(images[:count], labels[:count], structure='fixed'),
                                  a[f'd_scores_first{count}_fixed_lod0'])

    @parameterized.parameters(*SNAPSHOTS)
    def test_gradient_penalty(self, snapshot):
        a, (_, D, _) = self._load(snapshot, dtype='float64')
        images, labels = (tf.constant(value, tf.float64)
                          for value in (testutil.nhwc(a['d_images']), a['d_labels']))
        for structure, lod, penalty in recorded(a, 'r1_penalty'):
            D.lod.assign(lod)
            with tf.GradientTape() as tape:
                tape.watch(images)
                total = tf.reduce_sum(D(images, labels, structure=structure))
            gradient = testutil.nchw(tape.gradient(total, images).numpy())
            testutil.assert_close(self, np.sum(gradient ** 2, axis=(1, 2, 3)), penalty, 1e-4, 0)
            key = f'r1_grads_{structure}_lod{lod:g}'
            self.assertEqual(key in a, structure == 'linear' and lod < 1)
            if key in a:
                testutil.assert_close(self, gradient, a[key], 0, 1e-4)

    @parameterized.parameters(*SNAPSHOTS)
    def test_pickles_behind_the_facade(self, snapshot):
        self.check_pickle('stylegan', snapshot, 'image_psi1', 'dnnlib.tflib.network.Network', 3,
                          truncation_psi=1, randomize_noise=False)

    @parameterized.parameters(*SNAPSHOTS)
    def test_synthesis_component_behind_the_facade(self, snapshot):
        a = testutil.load('stylegan', f'{snapshot}.npz')
        state = legacy.find_network(legacy.load_pkl(testutil.golden('stylegan', f'{snapshot}.pkl')), 'G')
        synthesis = Network.from_state(state).components.synthesis
        for _, lod, image in recorded(a, 'image_psi1'):
            synthesis.set_var('lod', lod)
            testutil.assert_close(self, synthesis.run(a['dlatents'], randomize_noise=False), image)


class StructureTest(StructureChecks, tf.test.TestCase):

    def test_generator(self):
        latents = tf.constant(np.random.RandomState(0).randn(3, 8))
        for options in ({}, TRADITIONAL):
            G = randomized(G_style(**{**TINY, 'dtype': 'float64', **options}), 1)
            self.check_generator(lambda ctx, G=G, **dynamic: G(latents, ctx=ctx, randomize_noise=False,
                                                               **dynamic), G)

    def test_discriminator(self):
        images = tf.constant(np.random.RandomState(0).randn(4, 32, 32, 3))
        D = randomized(D_basic(**TINY, label_size=2, dtype='float64'), 2)
        labels = tf.one_hot([0, 1, 1, 0], 2, dtype=tf.float64)
        self.check_discriminator(lambda x, ctx, **dynamic: D(x, labels, ctx=ctx, **dynamic), D, images)

    def test_levels_that_do_not_run_draw_no_noise(self):
        G = G_style(**TINY)
        for lod, count in ((0, 8), (0.5, 8), (1, 6), (3, 2)):
            G.lod.assign(lod)
            noises = [np.random.randn(2, 2 ** (i // 2 + 2), 2 ** (i // 2 + 2), 1) for i in range(8)]
            ctx = testutil.RecordedContext(normals=noises[:count])
            G(tf.random.normal([2, 8]), ctx=ctx)
            self.assertTrue(ctx.all_used())

    def test_lod_of_the_generator_counts(self):
        G = randomized(G_style(**TINY), 1)
        latents = tf.random.normal([2, 8])
        G.lod.assign(2.0)
        images = G(latents, truncation_psi=None, randomize_noise=False)
        self.assertEqual(float(G.synthesis.lod.numpy()), 0)
        dlatents = G.mapping(latents)
        self.assertAllClose(G.synthesis(dlatents, randomize_noise=False, lod=tf.constant(2.0)), images)
        self.assertNotAllClose(G.synthesis(dlatents, randomize_noise=False), images)


class ArgumentsTest(parameterized.TestCase, tf.test.TestCase):

    def _images(self, seed=1, **options):
        G = randomized(G_style(**{**TINY, **options}), seed)
        latents = tf.constant(np.random.RandomState(0).randn(4, 8), tf.float32)
        return G(latents, randomize_noise=False, truncation_psi=None).numpy()

    def test_options_do_what_they_say(self):
        base = self._images()
        for options in (dict(use_pixel_norm=True), dict(use_instance_norm=False), dict(blur_filter=None),
                        dict(blur_filter=[1, 3, 3, 1]), dict(nonlinearity='relu'), dict(fused_scale=True),
                        dict(mapping_nonlinearity='relu'), dict(normalize_latents=False),
                        dict(use_wscale=False), dict(mapping_lrmul=0.1)):
            self.assertNotAllClose(base, self._images(**options), msg=str(options))
        for options in (dict(fused_scale=False), dict(structure='linear'), dict(structure=None),
                        dict(architecture='skip', is_template_graph=True, force_clean_graph=True)):
            self.assertAllClose(base, self._images(**options), rtol=1e-4, atol=1e-4, msg=str(options))
        names = G_style(**TINY, use_noise=False, use_styles=False).named_variables()
        self.assertEmpty([name for name in names if 'oise' in name or 'StyleMod' in name])

    @parameterized.parameters(*range(9))
    def test_numbers_of_mapping_layers(self, mapping_layers):
        for traditional in (False, True):
            options = {**TINY, **(TRADITIONAL if traditional else {}), 'mapping_layers': mapping_layers}
            G = G_style(**options)
            self.assertLen(G.mapping.layers, mapping_layers)
            latents = tf.random.normal([2, 8])
            images, dlatents = G(latents, is_training=True, return_dlatents=True)
            self.assertEqual(images.shape, [2, 32, 32, 3])
            self.assertEqual(dlatents.shape, [2, 1 if traditional else 8, 8])
            if mapping_layers == 0:
                power = tf.reduce_mean(tf.square(latents), axis=1, keepdims=True)
                self.assertAllClose(G.mapping(latents)[:, 0], latents / tf.sqrt(power), rtol=1e-5)

    @parameterized.parameters(4, 8, 64)
    def test_resolutions(self, resolution):
        options = {**TINY, 'resolution': resolution}
        G, D = G_style(**options), D_basic(**options)
        images = G(tf.random.normal([2, 8]))
        self.assertEqual(images.shape, [2, resolution, resolution, 3])
        self.assertEqual(D(images).shape, [2, 1])
        self.assertLen(G.synthesis.noise_inputs, 2 * int(np.log2(resolution)) - 2)

    def test_fused_layers_of_auto(self):
        G = G_synthesis(**{**TINY, 'resolution': 256})
        flipped = {res: layers[0].flipped for res, layers in G.levels.items() if res > 2}
        self.assertEqual(flipped, {3: False, 4: False, 5: False, 6: False, 7: True, 8: True})

    def test_defaults(self):
        G, D = G_style(resolution=8), D_basic()
        self.assertEqual((G.truncation_psi, G.truncation_cutoff), (0.7, 8))
        self.assertEqual((G.truncation_psi_val, G.truncation_cutoff_val), (None, None))
        self.assertEqual((G.dlatent_avg_beta, G.style_mixing_prob), (0.995, 0.9))
        self.assertEqual(D.input_shapes, [[None, 1, 32, 32], [None, 0]])
        self.assertEqual(G.mapping.output_shapes, [[None, 4, 512]])
        self.assertEqual(G_mapping().output_shapes, [[None, 512]])

    def test_initial_values(self):
        tf.keras.utils.set_random_seed(1)
        G = G_style(resolution=16, fmap_base=1024, fmap_max=64)
        value = {name: variable.numpy() for name, variable in G.named_variables().items()}
        self.assertNear(value['G_synthesis/8x8/Conv1/weight'].std(), 1, 0.02)
        self.assertNear(value['G_mapping/Dense0/weight'].std(), 100, 1)
        self.assertNear(value['G_synthesis/noise5'].std(), 1, 0.2)
        self.assertAllEqual(value['G_synthesis/4x4/Const/const'], np.ones([1, 64, 4, 4]))
        for name in ('lod', 'dlatent_avg', 'G_mapping/Dense3/bias', 'G_synthesis/8x8/Conv1/Noise/weight',
                     'G_synthesis/8x8/Conv1/StyleMod/bias', 'G_synthesis/ToRGB_lod1/bias'):
            self.assertAllEqual(value[name], np.zeros_like(value[name]))

    def test_mixing_draws_every_cutoff_of_the_running_levels(self):
        G = G_style(**TINY)
        latents = tf.random.normal([1, 8])
        first = G.mapping(latents)[0, 0]
        mixed = tf.function(lambda: G(latents, is_training=True, style_mixing_prob=0.8, randomize_noise=False,
                                      return_dlatents=True)[1], autograph=False)
        for lod, expected in ((0, range(1, 9)), (2.4, (1, 2, 3, 4))):
            G.lod.assign(lod)
            seen = set()
            for _ in range(120):
                layers = np.all(np.isclose(mixed()[0], first), axis=1)
                self.assertAllEqual(layers, np.sort(layers)[::-1])
                seen.add(int(layers.sum()))
            self.assertEqual(seen, set(expected))  # The last one where styles are not mixed.

    def test_noise(self):
        G = G_style(**TINY)
        latents = tf.random.normal([2, 8])
        self.assertAllClose(G(latents), G(latents, randomize_noise=False), rtol=1e-5, atol=1e-5)
        G.synthesis.named_variables()['32x32/Conv1/Noise/weight'].assign(tf.ones([4]))
        self.assertNotAllClose(G(latents), G(latents))
        self.assertAllEqual(G(latents, randomize_noise=False), G(latents, randomize_noise=False))

    def test_derivatives_of_both_orders(self):
        rng = np.random.RandomState(0)
        dlatents, images, seed = rng.randn(2, 4, 8), rng.randn(2, 8, 8, 3), rng.randn(2, 8, 8, 3)
        for options in ({}, dict(use_pixel_norm=True, nonlinearity='relu', blur_filter=[1, 3, 3, 1])):
            kwargs = {**TINY, 'resolution': 8, 'dtype': 'float64', **options}
            G, D = randomized(G_synthesis(**kwargs), 1), randomized(D_basic(**kwargs), 2)
            G.lod.assign(0.3)
            D.lod.assign(0.3)

            def of_dlatents(w, G=G):
                return tf.reduce_sum(G(w, randomize_noise=False) * seed)

            def of_images(x, D=D):
                return tf.reduce_sum(tf.nn.softplus(D(x)))

            for func, value in ((of_dlatents, dlatents), (of_images, images)):
                testutil.assert_derivative(self, func, [value])
                testutil.assert_derivative(self, testutil.gradient_sum(func), [value])

    def test_gradients_reach_every_variable_of_the_levels_that_run(self):
        latents, labels = tf.random.normal([2, 8]), tf.one_hot([0, 2], 3)
        for options in ({}, {**TRADITIONAL, 'mapping_layers': 2}):
            options = {**TINY, 'label_size': 3, **options}
            G, D = G_style(**options), D_basic(**options)
            G.lod.assign(0.5)
            D.lod.assign(0.5)
            for network in (G, D):
                _, gradients = testutil.gradients(network, lambda G=G, D=D: D(G(latents, labels), labels))
                unused = [name for name, value in gradients.items() if value is None]
                self.assertLen(unused, 4)
                self.assertTrue(all('RGB_lod2' in name or 'RGB_lod3' in name for name in unused), unused)

    def test_print_layers(self):
        G = Network('G', G_style, **TINY)
        names = [name for name, _, _ in G.list_layers()]
        for name in ('G_mapping/Dense1', 'G_synthesis/4x4/Const', 'G_synthesis/32x32/Conv0_up',
                     'G_synthesis/ToRGB_lod0', 'G_synthesis/ToRGB_lod3'):
            self.assertIn(name, names)
        G.print_layers()

    def test_bad_arguments(self):
        for make, message in [
            (lambda: G_style(**{**TINY, 'resolution': 48}), 'power of two from 4 up. Received: 48$'),
            (lambda: G_style(**TINY, structure='spiral'), "Received: 'spiral'$"),
            (lambda: G_style(**TINY, fused_scale='yes'), "Received: 'yes'$"),
            (lambda: G_style(**TINY, nonlinearity='swish'), "one of relu, lrelu. Received: 'swish'$"),
            (lambda: D_basic(**TINY, nonlinearity='swish'), "one of relu, lrelu. Received: 'swish'$"),
            (lambda: G_style(**TINY, mapping_nonlinearity='elu'), "one of relu, lrelu. Received: 'elu'$"),
            (lambda: G_style(**{**TINY, 'mapping_layers': -1}), 'Received: -1$'),
            (lambda: G_style(**{**TINY, 'mapping_layers': 0, 'label_size': 2}), 'of dlatent_size 8.*: 16$'),
            (lambda: G_style(**TINY, label_size=3)(tf.zeros([2, 8])), r'shape \[N, 3\]. Received: None$'),
            (lambda: D_basic(**TINY, label_size=3)(tf.zeros([2, 32, 32, 3])), r'\[N, 3\]. Received: None$'),
        ]:
            with self.assertRaisesRegex(UserError, message):
                make()


if __name__ == '__main__':
    tf.test.main()
