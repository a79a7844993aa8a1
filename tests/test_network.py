"""The Network facade: NumPy in and out, official names, traced functions, reports."""

import contextlib
import io
import threading
import warnings
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.tflib import network_run
from dnnlib.util import UserError
from tests import testutil

G_MAIN = 'training.networks_stylegan2.G_main'
D_MAIN = 'training.networks_stylegan2.D_stylegan2'
TINY = dict(resolution=8, fmap_base=32, fmap_max=8, latent_size=8, dlatent_size=6, mapping_fmaps=8,
            mapping_layers=2)


def generator(name='G', **kwargs) -> tflib.Network:
    """With values that show in the images, where official initial ones are 0."""
    G = tflib.Network(name, G_MAIN, **{**TINY, **kwargs})
    rnd = np.random.RandomState(1)
    G.set_vars({key: rnd.randn(*var.shape) for key, var in G.vars.items()
                if key.endswith(('noise_strength', 'bias', 'dlatent_avg'))})
    return G


def discriminator(**kwargs) -> tflib.Network:
    return tflib.Network('D', D_MAIN, **{'resolution': 8, 'fmap_base': 32, 'fmap_max': 8, **kwargs})


class RunTest(tf.test.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.G, cls.D = generator(), discriminator()
        cls.latents = np.random.RandomState(0).randn(5, 8)
        cls.images = np.random.RandomState(0).randn(8, 3, 8, 8).astype(np.float32)

    def test_run_speaks_nchw_and_does_not_depend_on_the_minibatch_size(self):
        whole = self.G.run(self.latents, None, randomize_noise=False)
        self.assertEqual(whole.shape, (5, 3, 8, 8))
        self.assertEqual([None, *whole.shape[1:]], self.G.output_shape)
        for size in (1, 2, 3, 9):
            parts = self.G.run(self.latents, None, randomize_noise=False, minibatch_size=size)
            self.assertAllClose(parts, whole, rtol=1e-4, atol=1e-5)
        layer = self.G.layer(tf.constant(self.latents, tf.float32), randomize_noise=False)
        self.assertAllClose(whole, np.transpose(layer, [0, 3, 1, 2]), rtol=1e-4, atol=1e-5)

    def test_a_smaller_last_minibatch_of_the_discriminator_is_a_group_of_its_own(self):
        parts = [self.D.layer(tf.constant(testutil.nhwc(self.images[part])))
                 for part in (slice(0, 4), slice(4, 7))]
        scores = self.D.run(self.images[:7], None, minibatch_size=4)
        self.assertAllClose(scores, np.concatenate(parts), rtol=1e-4, atol=1e-5)
        with self.assertRaisesRegex(UserError, 'divisible by 4.*Received: 7 samples; pass minibatch_size=4'):
            self.D.run(self.images[:7])

    def test_one_trace_for_all_sizes_and_strengths(self):
        G = generator()
        for _ in range(2):
            for count in (5, 3, 1, 4):
                for size in (None, 1, 2, 3):
                    for psi in (0.5, np.float64(0.5000000001), 0, np.float32(-1), tf.constant(0.7)):
                        G.run(self.latents[:count], None, truncation_psi=psi, randomize_noise=False,
                              minibatch_size=size)
        self.assertEqual((len(G._functions), G._functions.tracing_count()), (1, 1))
        for psi in (1, 1.0, None, None):
            G.run(self.latents, None, truncation_psi=psi, randomize_noise=False)
        self.assertEqual(len(G._functions), G._functions.tracing_count())
        D = discriminator()
        for count in (1, 2, 3, 4, 8):
            D.run(self.images[:count])
        self.assertEqual(D._functions.tracing_count(), 1)

    def test_truncation_as_input_of_the_trace_is_that_of_the_layer(self):
        x = tf.constant(self.latents, tf.float32)
        for psi in (-0.7, 0, 0.5, 1, None):
            for cutoff in (None, 2):
                kwargs = dict(truncation_cutoff=cutoff, randomize_noise=False)
                expected = testutil.nchw(self.G.layer(x, truncation_psi=psi, **kwargs).numpy())
                actual = self.G.run(self.latents, None, truncation_psi=psi, **kwargs)
                self.assertAllClose(actual, expected, rtol=1e-5, atol=1e-5)

    def test_within_a_function_it_names_get_output_for(self):
        function = tf.function(lambda z: self.G.run(z, None), autograph=False)
        with self.assertRaisesRegex(UserError, 'in a tf.function call get_output_for'):
            tf.function(lambda: self.G.run(self.latents, None), autograph=False)()
        self.assertLen(self.G.run(self.latents, None), len(self.latents))   # The attempt has broken nothing.
        with self.assertRaisesRegex(UserError, 'in a tf.function call get_output_for'):
            function(tf.constant(self.latents, tf.float32))
        z = keras.Input([8])
        for call in self.G.run, self.G.get_output_for:
            with self.assertRaisesRegex(UserError, 'attribute layer'):
                call(z, None)
        self.assertEqual(keras.Model(z, self.G.layer(z)).output_shape, (None, 8, 8, 3))
        traced = tf.function(lambda z: self.G.get_output_for(z, None, randomize_noise=False))
        self.assertAllClose(traced(tf.constant(self.latents, tf.float32)),
                            self.G.run(self.latents, None, randomize_noise=False), rtol=1e-4, atol=1e-5)

    def test_moving_average_of_what_both_have(self):
        wider = generator('Wider', resolution=16)
        before = wider.get_var('G_synthesis/16x16/Conv1/weight')
        tflib.run(wider.setup_as_moving_average_of(self.G, beta=0.0))
        self.assertAllEqual(wider.get_var('G_synthesis/8x8/Conv1/weight'),
                            self.G.get_var('G_synthesis/8x8/Conv1/weight'))
        self.assertAllEqual(wider.get_var('G_synthesis/16x16/Conv1/weight'), before)

    def test_a_name_without_its_component_is_guessed(self):
        with self.assertRaisesRegex(UserError, "no variable 'noise0'; did you mean 'G_synthesis/noise0'"):
            self.G.get_var('noise0')

    def test_without_truncation_nothing_is_rounded(self):
        kwargs = dict(randomize_noise=False)
        self.assertAllEqual(self.G.run(self.latents, None, truncation_psi=1, **kwargs),
                            self.G.run(self.latents, None, truncation_psi=None, **kwargs))

    def test_no_labels_are_zeros(self):
        G = generator(label_size=3)
        kwargs = dict(randomize_noise=False)
        expected = G.run(self.latents, np.zeros([5, 3]), **kwargs)
        z = tf.constant(self.latents, tf.float32)
        for images in (G.run(self.latents, None, **kwargs), G.get_output_for(z, None, **kwargs),
                       G.get_output_for(z, **kwargs)):
            self.assertAllClose(images, expected, rtol=1e-4, atol=1e-5)
        self.assertNotAllClose(G.run(self.latents, np.ones([5, 3]), **kwargs), expected)

    def test_many_networks_are_no_retracing(self):
        with self.assertNoLogs('tensorflow', 'WARNING'):
            for _ in range(8):
                self.G.clone().components.mapping.run(self.latents, None)

    def test_functions_made_anew_are_not_kept(self):
        G = generator()
        for number in range(5):
            images = G.run(self.latents, None, randomize_noise=False,
                           output_transform=dict(func=lambda x, y: x * y, y=float(number)))
            self.assertAllClose(images, number * G.run(self.latents, None, randomize_noise=False), 1e-5, 1e-5)
        self.assertLen(G._functions, 1)
        for number in range(network_run.MAX_FUNCTIONS + 30):
            G._functions(G.layer, {'truncation_cutoff': number}, {}, None)
        self.assertLen(G._functions, network_run.MAX_FUNCTIONS)
        long = [np.zeros(2000), np.zeros(2000)]
        long[1][1000] = 1
        self.assertNotEqual(*map(network_run.freeze, long))
        self.assertLen({network_run.freeze(value) for value in (1, 1.0, True, '1', (1,), [1])}, 6)

    def test_noise(self):
        draw = dict(truncation_psi=0.5, randomize_noise=True)
        first, second = (self.G.run(self.latents, None, **draw) for _ in range(2))
        self.assertNotAllClose(first, second)
        self.assertNotAllClose(*self.G.run(np.stack([self.latents[0]] * 2), None, **draw))
        fixed = [self.G.run(self.latents, None, randomize_noise=False) for _ in range(2)]
        self.assertAllEqual(*fixed)
        G = self.G.clone()
        G.components.synthesis.set_var('noise1', np.zeros([1, 1, 8, 8]))
        self.assertNotAllClose(G.run(self.latents, None, randomize_noise=False), fixed[0])

    def test_transforms(self):
        images = self.G.run(self.latents, None, randomize_noise=False, output_transform=dict(
            func=tflib.convert_images_to_uint8, nchw_to_nhwc=True))
        self.assertEqual((images.dtype, images.shape), (np.uint8, (5, 8, 8, 3)))
        plain = self.G.run(self.latents, None, randomize_noise=False)
        expected = np.clip(plain * 127.5 + 128, 0, 255)
        self.assertAllClose(images, np.transpose(expected, [0, 2, 3, 1]), rtol=0, atol=1.01)
        same = self.G.run(self.latents, None, randomize_noise=False, output_transform=dict(
            func='dnnlib.tflib.tfutil.convert_images_to_uint8', nchw_to_nhwc=True))
        self.assertAllEqual(images, same)
        # Inputs, on their way in; outputs, by NumPy.
        scores = self.D.run(images, input_transform=dict(
            func=lambda x, labels: (tflib.convert_images_from_uint8(x, nhwc_to_nchw=True), labels)),
            minibatch_size=4, output_transform=dict(func=lambda x: np.squeeze(x.numpy(), 1)))
        expected = self.D.run(images.transpose(0, 3, 1, 2) / 127.5 - 1, minibatch_size=4)
        self.assertAllClose(scores, expected[:, 0], rtol=1e-4, atol=1e-5)
        # The arguments of ProGAN.
        old = self.G.run(self.latents, None, randomize_noise=False, out_mul=127.5, out_add=127.5,
                         out_dtype=np.uint8)
        self.assertAllEqual(old, np.clip(np.rint(plain * np.float32(127.5) + np.float32(127.5)), 0, 255))
        small = self.G.run(self.latents, None, randomize_noise=False, out_shrink=4)
        self.assertAllClose(small, plain.reshape(5, 3, 2, 4, 2, 4).mean(axis=(3, 5)), rtol=1e-4, atol=1e-5)
        for transform, message in [(dict(nchw_to_nhwc=True), 'output_transform.*func='),
                                   (7, 'output_transform'),
                                   (dict(func=lambda x: tf.reduce_mean(x)), 'axis of the samples')]:
            with self.assertRaisesRegex(UserError, message):
                self.G.run(self.latents, None, output_transform=transform)
        with self.assertRaisesRegex(UserError, 'input_transform should return 2'):
            self.D.run(self.images, input_transform=dict(func=lambda x, labels: x))
        with self.assertRaisesRegex(UserError, 'out_shrink'):
            self.G.run(self.latents, None, out_shrink=0)

    def test_inputs_of_every_kind(self):
        expected = self.G.run(self.latents, None, randomize_noise=False)
        for latents in (self.latents.tolist(), tf.constant(self.latents), tf.Variable(self.latents),
                        (row for row in self.latents), self.latents.astype(np.float16).astype(np.float64)):
            actual = self.G.run(latents, None, randomize_noise=False, minibatch_size=100)
            self.assertAllClose(actual, expected, rtol=1e-2, atol=1e-2)
        self.assertAllClose(self.G.run(self.latents, randomize_noise=False), expected)
        empty = self.G.run(self.latents[:0], None, output_transform=dict(
            func=tflib.convert_images_to_uint8, nchw_to_nhwc=True))
        self.assertEqual((empty.shape, empty.dtype), ((0, 8, 8, 3), np.uint8))
        self.assertEqual(self.D.run(self.images[:0]).shape, (0, 1))

    def test_wrong_inputs_are_named(self):
        for inputs, message in [((np.zeros([1, 7]),), r'latents_in.*\(1, 8\).*\(1, 7\)'),
                                ((), 'needs one.*none'), ((3.0,), 'latents_in.*numbers'),
                                ((np.array([['a'] * 8]),), 'numbers'), ((None,), 'needs one'),
                                (([[1, 2], [3]],), 'numbers'), ((object(),), 'numbers'),
                                ((self.latents, np.zeros([5, 2])), r'labels_in.*\(5, 0\)'),
                                ((self.latents, None, None), '2 inputs')]:
            with self.assertRaisesRegex(UserError, message) as caught:
                self.G.run(*inputs)
            self.assertNotIn('\n', str(caught.exception))
        with self.assertRaisesRegex(UserError, 'dlatents_in'):
            self.G.components.synthesis.run(np.zeros([1, 3, 6]))
        for size in (0, -1, 2.5, True, 'all'):
            with self.assertRaisesRegex(UserError, 'minibatch_size'):
                self.G.run(self.latents, None, minibatch_size=size)

    def test_arguments_that_have_no_effect(self):
        network_run._warned.clear()
        with self.assertWarnsRegex(UserWarning, "'truncation_spi'.*did you mean 'truncation_psi'"):
            self.G.run(self.latents, None, truncation_spi=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            self.G.run(self.latents, None, truncation_spi=0.5)      # Said once.
            self.G.run(self.latents, None, is_validation=True, fused_modconv=False, is_template_graph=False,
                       resolution=8, resample_kernel=[1, 3, 3, 1])  # What it is.
            self.D.run(self.images, None, is_training=True, structure='linear', truncation_psi=0.5)
        for kwargs in (dict(architecture='orig'), dict(normalize_latents=False), dict(resolution=16)):
            message = fr'{list(kwargs)[0]} belongs to the construction.*clone\('
            with self.assertRaisesRegex(UserError, message):
                self.G.run(self.latents, None, **kwargs)

    def test_get_output_for(self):
        images = tf.Variable(self.images[:4])
        with tf.GradientTape() as tape:
            scores = self.D.get_output_for(images, None)
        gradient = tape.gradient(scores, images)
        layer_input = tf.constant(testutil.nhwc(self.images[:4]))
        with tf.GradientTape() as tape:
            tape.watch(layer_input)
            expected = self.D.layer(layer_input)
        self.assertAllClose(scores, expected)
        self.assertAllClose(gradient, testutil.nchw(tape.gradient(expected, layer_input)), 1e-4, 1e-6)
        self.assertAllClose(self.D.get_output_for(self.images[:4].astype(np.float64)), expected, 1e-5, 1e-5)
        as_list = self.G.get_output_for(self.latents, None, return_as_list=True, return_dlatents=True)
        self.assertEqual([x.shape.as_list() for x in as_list], [[5, 3, 8, 8], [5, 4, 6]])
        function = tf.function(lambda z: self.G.get_output_for(z, None, randomize_noise=False),
                               autograph=False)
        self.assertAllClose(function(tf.constant(self.latents, tf.float32)),
                            self.G.run(self.latents, None, randomize_noise=False), 1e-4, 1e-5)
        with self.assertRaisesRegex(UserError, '2 inputs'):
            self.D.get_output_for(self.images, None, None)

    def test_several_outputs(self):
        images, dlatents = self.G.run(self.latents, None, return_dlatents=True, minibatch_size=2)
        self.assertEqual((images.shape, dlatents.shape), ((5, 3, 8, 8), (5, 4, 6)))
        self.assertIsInstance(self.G.run(self.latents, None, return_dlatents=True), tuple)
        self.assertIsInstance(self.G.run(self.latents, None, return_as_list=True), list)

    def test_components_and_labels(self):
        G = generator(label_size=3)
        labels = np.eye(3)[[0, 1, 2, 1, 0]]
        dlatents = G.components.mapping.run(self.latents, labels.astype(np.int64))
        images = G.components.synthesis.run(dlatents, randomize_noise=False)
        self.assertAllClose(images, G.run(self.latents, labels, truncation_psi=1, randomize_noise=False),
                            rtol=1e-4, atol=1e-5)
        self.assertAllClose(G.run(self.latents, None, randomize_noise=False),
                            G.run(self.latents, 0 * labels, randomize_noise=False), 1e-6, 1e-6)

    def test_threads(self):
        G = generator()
        results: list = []

        def work():
            results.append(G.run(self.latents, None, randomize_noise=False))
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertLen(results, 4)
        for result in results:
            self.assertAllEqual(result, results[0])


class VariablesTest(tf.test.TestCase):

    def test_names_and_values(self):
        G = generator()
        self.assertEqual(list(G.own_vars), ['lod', 'dlatent_avg'])
        self.assertEmpty(G.own_trainables)
        self.assertIn('G_synthesis/8x8/Conv0_up/mod_weight', G.trainables)
        G.set_var('dlatent_avg', np.arange(6))
        self.assertAllEqual(G.get_var('dlatent_avg'), np.arange(6))
        before = G.get_var('lod')
        message = r'1 unknown: nothing; 1 that do not fit: dlatent_avg expected shape \(6,\), received \(5,\)'
        with self.assertRaisesRegex(UserError, message):
            G.set_vars({'lod': 3.0, 'nothing': 1, 'dlatent_avg': np.zeros(5)})
        self.assertAllEqual(G.get_var('lod'), before)
        with self.assertRaisesRegex(UserError, "'dlatent_avgs'.*did you mean 'dlatent_avg'"):
            G.get_var('dlatent_avgs')
        for value in ('x', ['x'] * 6, [[1], [1, 2]], None, np.array([1j] * 6)):
            with self.assertRaisesRegex(UserError, 'dlatent_avg'):
                G.set_var('dlatent_avg', value)
        for value in (tf.range(6), list(range(6)), tf.Variable(np.arange(6.0)),
                      keras.Variable(np.arange(6.0))):
            G.set_var('dlatent_avg', np.zeros(6))
            G.set_var('dlatent_avg', value)
            self.assertAllEqual(G.get_var('dlatent_avg'), np.arange(6))
        value = G.get_var('dlatent_avg')
        value[:] = 7
        self.assertAllEqual(G.get_var('dlatent_avg'), np.arange(6))

    def test_variables_behave_as_in_tensorflow_1(self):
        G = generator('Gs')
        var = G.vars['G_synthesis/noise1']
        self.assertIs(G.components.synthesis.vars['noise1'], var)
        self.assertIs(G.find_var(var), var)
        self.assertEqual((var.name, var.shape.as_list(), var.get_shape().as_list(), var.dtype.as_numpy_dtype),
                         ('Gs/G_synthesis/noise1:0', [1, 1, 8, 8], [1, 1, 8, 8], np.float32))
        self.assertEqual({var: 1}[var], 1)
        others = [other for other in G.vars.values() if other != var]
        self.assertLen(others, len(G.vars) - 1)
        self.assertIn(var, G.vars.values())
        self.assertNotIn(var, others)
        inner = G.layer.named_variables()['G_synthesis/noise1']
        inner.assign(tf.ones(inner.shape))
        self.assertAllEqual(var.eval(), np.ones([1, 1, 8, 8]))
        tflib.set_vars({var: np.zeros([1, 1, 8, 8])})
        self.assertAllEqual(inner, np.zeros([1, 1, 8, 8]))
        self.assertAllEqual((var + 1)[0, 0, 0], np.ones(8))
        self.assertEqual(G.get_var_local_name(var), 'G_synthesis/noise1')
        self.assertEqual(G.components.synthesis.get_var_local_name('Gs/G_synthesis/noise1'), 'noise1')
        self.assertEqual(G.var_global_to_local['Gs/lod'], 'lod')
        with self.assertRaisesRegex(UserError, 'global name'):
            G.get_var_local_name('G/lod')
        weight = G.vars['G_synthesis/4x4/Conv/weight']
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(tf.square(weight))
        self.assertAllClose(tape.gradient(y, [weight])[0], 2 * weight.eval())

    def test_copies(self):
        G, other = generator(), generator('Other')
        for var in G.vars.values():
            var.assign(var + 1)
        other.copy_own_vars_from(G)
        self.assertAllEqual(other.get_var('dlatent_avg'), G.get_var('dlatent_avg'))
        noise, weight = 'G_synthesis/noise0', 'G_synthesis/4x4/Conv/weight'
        self.assertNotAllEqual(other.get_var(weight), G.get_var(weight))
        other.copy_trainables_from(G)
        self.assertAllEqual(other.get_var(weight), G.get_var(weight))
        self.assertNotAllEqual(other.get_var(noise), G.get_var(noise))
        other.copy_vars_from(G)
        self.assertAllEqual(other.get_var(noise), G.get_var(noise))
        other.reset_own_vars()
        self.assertAllEqual(other.get_var('dlatent_avg'), np.zeros(6))
        self.assertAllEqual(other.get_var(weight), G.get_var(weight))
        other.reset_trainables()
        self.assertNear(np.std(other.get_var(weight)), 1, 0.2)
        self.assertAllEqual(other.get_var(noise), G.get_var(noise))
        other.reset_vars()
        self.assertNotAllEqual(other.get_var(noise), G.get_var(noise))

    def test_clone_and_convert(self):
        G = generator()
        z = np.random.RandomState(0).randn(3, 8)
        images = G.run(z, None, randomize_noise=False)
        other = G.clone('Gs')
        self.assertAllClose(other.run(z, None, randomize_noise=False), images, rtol=1e-6, atol=1e-6)
        other.set_var('dlatent_avg', np.zeros(6))
        self.assertNotAllEqual(G.get_var('dlatent_avg'), np.zeros(6))
        plain = G.convert(G_MAIN, new_name='Plain', truncation_psi=None)
        self.assertEqual(plain.name, 'Plain')
        self.assertEqual(plain.static_kwargs, {**G.static_kwargs, 'truncation_psi': None})
        self.assertAllClose(plain.run(z, None, randomize_noise=False),
                            G.run(z, None, truncation_psi=1, randomize_noise=False), 1e-4, 1e-5)
        # A synthesis network of another form keeps what has the same name and shape.
        skipped = G.convert(architecture='resnet')
        self.assertNear(np.std(skipped.get_var('G_synthesis/8x8/Skip/weight')), 1, 0.3)     # A new one.
        name = 'G_synthesis/8x8/Conv1/weight'
        self.assertAllEqual(skipped.get_var(name), G.get_var(name))
        with self.assertRaisesRegex(UserError, 'that do not fit: .*expected shape'):
            G.convert(fmap_max=4)
        with self.assertRaisesRegex(UserError, 'TensorFlow 1 graph'):
            G.convert(np.zeros)
        D = tflib.Network('D', 'networks.D_paper', resolution=8, fmap_base=32, fmap_max=8)
        self.assertEqual((D.func_name, D.version), ('training.networks_progan.D_paper', 2))

    def test_values_that_are_replaced_are_not_computed(self):
        """Those of a clone, and of a network that is loaded; nothing else gets zeros."""
        G, drawn = generator(), []
        state = G.state()
        call = keras.initializers.RandomNormal.__call__

        def counted(initializer, shape, dtype=None):
            drawn.append(shape)
            return call(initializer, shape, dtype)
        with mock.patch.object(keras.initializers.RandomNormal, '__call__', counted):
            others = [G.clone('Gs'), tflib.Network.from_state(state)]
            self.assertEmpty(drawn)
            fresh = generator()
        self.assertNotEmpty(drawn)
        for other in others:
            self.assertAllEqual(other.get_var('G_synthesis/8x8/Conv1/weight'),
                                G.get_var('G_synthesis/8x8/Conv1/weight'))
        self.assertGreater(np.std(fresh.get_var('G_synthesis/8x8/Conv1/weight')), 0.5)

    def test_moving_average(self):
        G = generator('G')
        Gs = G.clone('Gs')
        for var in Gs.vars.values():
            var.assign(3 * var + 1)
        old = {name: Gs.get_var(name).astype(np.float64) for name in Gs.vars}
        beta = tf.Variable(0.9)
        update = Gs.setup_as_moving_average_of(G, beta=beta)
        # What is not trained is copied over, even this.
        Gs.components.synthesis.vars['noise0'].assign(np.full([1, 1, 4, 4], np.nan))
        update()
        beta.assign(0.5)
        self.assertIsNone(tflib.run(update))
        for name, var in Gs.vars.items():
            source = G.get_var(name).astype(np.float64)
            expected = source + (old[name] - source) * 0.45 if var.trainable else source
            self.assertAllClose(var, expected, 1e-5, 1e-5)
        slow = Gs.setup_as_moving_average_of(G.clone('Z'), beta=1.0, beta_nontrainable=0.25)
        G.set_var('lod', 0)
        Gs.set_var('lod', 4)
        tflib.run([slow])
        self.assertEqual(Gs.get_var('lod'), 1)


class ReportsTest(tf.test.TestCase):

    def test_print_layers(self):
        G = generator()
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            G.print_layers()
        lines = out.getvalue().splitlines()
        rows = {line.split()[0]: line for line in lines if line}
        self.assertRegex(rows['G_synthesis/8x8/Conv1'], r'\(\?, 8, 8, 8\) +\(3, 3, 8, 8\)')
        total = sum(int(np.prod(v.shape)) for v in G.trainables.values())
        self.assertEqual(rows['Total'].split(), ['Total', str(total)])
        params = [line.split()[1] for line in lines if line.startswith('G_')]
        self.assertEqual(sum(int(count) for count in params if count != '-'), total)

    def test_list_layers(self):
        G = generator(label_size=3)
        layers = G.list_layers()
        self.assertCountEqual([var.name for _, _, params in layers for var in params],
                              [var.name for var in G.trainables.values()])
        output = {name: output for name, output, _ in layers}['G_synthesis/8x8/Conv1']
        self.assertEqual((output.shape.as_list(), output.name, output.dtype, output[1]),
                         ([None, 8, 8, 8], 'G_synthesis/8x8/Conv1', tf.float32, 8))

    def test_list_ops(self):
        kinds = {op.type for op in discriminator().list_ops()}
        self.assertIn('Conv2D', kinds)

    def test_weight_histograms(self):
        D = discriminator()
        write = D.setup_weight_histograms('Weights')
        writer = tflib.autosummary.FileWriter(self.get_temp_dir())
        write(writer, 3)
        writer.close()
        from tensorboard.backend.event_processing import event_accumulator
        events = event_accumulator.EventAccumulator(self.get_temp_dir(), size_guidance={'tensors': 0})
        events.Reload()
        self.assertCountEqual(events.Tags()['tensors'], [f'Weights/{name}' for name in D.trainables])
        name = 'Weights/8x8/Conv0/weight'
        self.assertEqual(events.Tensors(name)[0].step, 3)
        buckets = tf.make_ndarray(events.Tensors(name)[0].tensor_proto)
        self.assertEqual(buckets[:, 2].sum(), D.vars['8x8/Conv0/weight'].numpy().size)
        with self.assertRaisesRegex(UserError, 'FileWriter'):
            write('somewhere', 3)

    def test_what_is_gone(self):
        G = generator()
        with self.assertRaisesRegex(UserError, r'input_templates.*get_output_for\(tensors\)'):
            _ = G.input_templates
        self.assertFalse(hasattr(G, 'output_templates'))
        with self.assertRaisesRegex(AttributeError, "'trainable'; did you mean 'trainables'"):
            _ = G.trainable
        self.assertRegex(repr(G), r"<Network 'G': training.*.G_main, latents_in \(\?, 8\).*→ images_out")


if __name__ == '__main__':
    tf.test.main()
