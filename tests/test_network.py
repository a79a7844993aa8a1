"""The Network facade: NumPy in and out, official names; and pickles that try to make it call other things."""

import contextlib
import io
import os
import tempfile

import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.tflib import legacy
from dnnlib.util import UserError

G_MAIN = 'training.networks_stylegan2.G_main'
TINY = dict(resolution=8, fmap_base=32, fmap_max=8, latent_size=8, dlatent_size=6, mapping_fmaps=8,
            mapping_layers=2)


def generator(**kwargs) -> tflib.Network:
    return tflib.Network('G', G_MAIN, **{**TINY, **kwargs})


class NetworkTest(tf.test.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.G = generator()
        cls.latents = np.random.RandomState(0).randn(5, 8)

    def test_run_speaks_nchw_and_does_not_depend_on_the_minibatch_size(self):
        whole = self.G.run(self.latents, None, randomize_noise=False)
        self.assertEqual(whole.shape, (5, 3, 8, 8))
        self.assertEqual([None, *whole.shape[1:]], self.G.output_shape)
        for size in (1, 2, 3, 9):
            parts = self.G.run(self.latents, None, randomize_noise=False, minibatch_size=size)
            self.assertAllClose(parts, whole, rtol=1e-4, atol=1e-5)
        layer = self.G.layer(tf.constant(self.latents, tf.float32), randomize_noise=False)
        self.assertAllClose(whole, np.transpose(layer, [0, 3, 1, 2]), rtol=1e-4, atol=1e-5)

    def test_output_transform(self):
        images = self.G.run(self.latents, None, randomize_noise=False, output_transform=dict(
            func=tflib.convert_images_to_uint8, nchw_to_nhwc=True))
        self.assertEqual((images.dtype, images.shape), (np.uint8, (5, 8, 8, 3)))
        expected = np.clip(self.G.run(self.latents, None, randomize_noise=False) * 127.5 + 128, 0, 255)
        self.assertAllClose(images, np.transpose(expected, [0, 2, 3, 1]), rtol=0, atol=1.01)

    def test_the_same_arguments_are_traced_once_and_others_never_mixed_up(self):
        G = generator()
        for _ in range(2):
            for psi in (0.5, np.float64(0.5000000001), 1, 1.0, np.array([0.5] * 2000)[0]):
                G.run(self.latents, None, truncation_psi=psi, randomize_noise=False)
        self.assertLen(G._functions, 5)
        long = [np.zeros(2000), np.zeros(2000)]
        long[1][1000] = 1
        self.assertNotEqual(tflib.network._freeze(long[0]), tflib.network._freeze(long[1]))
        for number in range(100):
            G._function(None, None, {'truncation_psi': number / 7}, None)
        self.assertLen(G._functions, tflib.network.MAX_FUNCTIONS)

    def test_components_and_labels(self):
        G = generator(label_size=3)
        labels = np.eye(3)[[0, 1, 2, 1, 0]]
        dlatents = G.components.mapping.run(self.latents, labels.astype(np.int64))
        images = G.components.synthesis.run(dlatents, randomize_noise=False)
        self.assertAllClose(images, G.run(self.latents, labels, truncation_psi=1, randomize_noise=False),
                            rtol=1e-4, atol=1e-5)

    def test_wrong_inputs_are_named(self):
        for inputs, message in [((np.zeros([1, 7]),), r'latents_in.*\(1, 8\).*\(1, 7\)'),
                                ((), 'first is needed'),
                                ((np.array([['a'] * 8]),), 'numbers'), ((None,), 'first is needed'),
                                ((self.latents, np.zeros([5, 2])), r'labels_in.*\(5, 0\)'),
                                ((self.latents, None, None), '2 inputs')]:
            with self.assertRaisesRegex(UserError, message):
                self.G.run(*inputs)
        with self.assertRaisesRegex(UserError, 'dlatents_in'):
            self.G.components.synthesis.run(np.zeros([1, 3, 6]))

    def test_variables(self):
        G = generator()
        self.assertEqual(list(G.own_vars), ['lod', 'dlatent_avg'])
        self.assertIn('G_synthesis/8x8/Conv0_up/mod_weight', G.trainables)
        G.set_var('dlatent_avg', np.arange(6))
        self.assertAllEqual(G.get_var('dlatent_avg'), np.arange(6))
        before = G.get_var('lod')
        message = r'2 variables do not fit.*nothing.*dlatent_avg: expected \(6,\)'
        with self.assertRaisesRegex(UserError, message):
            G.set_vars({'lod': 3.0, 'nothing': 1, 'dlatent_avg': np.zeros(5)})
        self.assertAllEqual(G.get_var('lod'), before)
        other = G.clone('Gs')
        self.assertAllClose(other.run(self.latents, None, randomize_noise=False),
                            G.run(self.latents, None, randomize_noise=False), rtol=1e-6, atol=1e-6)
        other.set_var('dlatent_avg', np.zeros(6))
        self.assertAllEqual(G.get_var('dlatent_avg'), np.arange(6))

    def test_print_layers(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.G.print_layers()
        lines = out.getvalue().splitlines()
        rows = {line.split()[0]: line for line in lines if line}
        self.assertRegex(rows['G_synthesis/8x8/Conv1'], r'\(\?, 8, 8, 8\) +\(3, 3, 8, 8\)')
        total = sum(int(np.prod(v.shape)) for v in self.G.trainables.values())
        self.assertEqual(rows['Total'].split(), ['Total', str(total)])
        params = [line.split()[1] for line in lines if line.startswith('G_')]
        self.assertEqual(sum(int(count) for count in params if count != '-'), total)

    def test_round_trip_through_a_pickle(self):
        state = legacy.load_pkl(io.BytesIO(legacy.dumps(self.G.state())))
        other = tflib.Network.from_state(state)
        self.assertEqual(other.static_kwargs, self.G.static_kwargs)
        self.assertAllEqual(other.run(self.latents, None, randomize_noise=False),
                            self.G.run(self.latents, None, randomize_noise=False))


class HostilePickleTest(tf.test.TestCase):

    def _refused(self, message, **changes):
        state = generator().state()
        for key, value in changes.items():
            setattr(state, key, value)
        state = legacy.load_pkl(io.BytesIO(legacy.dumps(state)))
        with self.assertRaisesRegex(UserError, message) as caught:
            tflib.Network.from_state(state)
        self.assertNotIn('\n', str(caught.exception))

    def test_nothing_is_called(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'written')
            arguments = dict(filename=path, contents='owned')
            self._refused('unknown', build_func_name='tf.io.write_file', static_kwargs=arguments)
            for module in ('tensorflow.io.write_file', 'training.networks_stylegan2.tf.io.write_file',
                           'os.system'):
                for key in ('synthesis_func', 'mapping_func'):
                    self._refused('expected the name of a network',
                                  static_kwargs={**TINY, key: module, **arguments})
            self._refused('unknown', build_func_name='get_obj_by_name', static_kwargs={'name': 'os.system'})
            self._refused('network class', static_kwargs={**TINY, 'synthesis_func': 'fmaps_by_stage'})
            self.assertFalse(os.path.exists(path))

    def test_arguments_that_do_not_fit(self):
        self._refused('do not fit|must be', static_kwargs={**TINY, 'resolution': 'big'})
        self._refused('do not fit|power of two', static_kwargs={**TINY, 'resolution': [4]})
        self._refused('lacks', static_kwargs={**TINY, 'resolution': 16})
        # What clashes with our own arguments is harmless.
        state = generator().state()
        state.static_kwargs.update(func_name='x', layer='y', name='z')
        tflib.Network.from_state(state)


if __name__ == '__main__':
    tf.test.main()
