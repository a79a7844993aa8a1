"""The layers against the official ones, numeric gradients and second formulas."""

import unittest.mock

import numpy as np
import tensorflow as tf

from custom_ops import downsample_2d, upsample_2d
from dnnlib.util import UserError
from tests import testutil
from training.layers import (
    ConstLayer,
    Conv2DLayer,
    DenseLayer,
    Layer,
    ModulatedConv2DLayer,
    feature_maps,
    log2_resolution,
    minibatch_stddev_layer,
    normalize_2nd_moment,
)


def randomize(layer, seed: int, scale: float = 1.0) -> None:
    """Gives every variable of a layer normal values, those that start at zero too."""
    rng = np.random.RandomState(seed)
    for variable in layer.named_variables().values():
        variable.assign(scale * rng.randn(*variable.shape))


@testutil.needs_golden
class GoldenTest(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        self.arrays = testutil.load('primitives', 'stylegan2_layers.npz')

    def _cases(self, prefix, count):
        groups = testutil.cases(self.arrays, prefix)
        self.assertLen(groups, count)
        for case, a in groups.items():
            yield f'{prefix}/{case}', a, dict(self.arrays['meta'][f'{prefix}/{case}'])

    def test_modulated_conv2d_layer(self):
        for case, a, meta in self._cases('modulated_conv2d_layer', 22):
            layer = ModulatedConv2DLayer('Conv', in_fmaps=6, dlatent_size=7, use_bias=False, **meta)
            names = ['weight', 'mod_weight', 'mod_bias']
            testutil.set_variables(layer, {name: a[name] for name in names})
            x, style = tf.constant(testutil.nhwc(a['x'])), tf.constant(a['style'])
            sources = [x, style] + [layer.named_variables()[name].value for name in names]
            with tf.GradientTape() as tape:
                tape.watch([x, style])
                out = layer(x, style)
                total = tf.reduce_sum(out * testutil.nhwc(a['gy']))
            dx, *gradients = tape.gradient(total, sources)
            testutil.assert_close(self, testutil.nchw(out.numpy()), a['out'], msg=case)
            testutil.assert_close(self, testutil.nchw(out.numpy()), a['out_fused_modconv'], msg=case)
            testutil.assert_close(self, testutil.nchw(dx.numpy()), a['dx'], 0, 1e-3, msg=case)
            for name, gradient in zip(['dstyle', *(f'd_{name}' for name in names)], gradients, strict=True):
                testutil.assert_close(self, gradient, a[name], 0, 1e-3, msg=f'{case} {name}')

    def _check_plain(self, layer_class, case, a, meta, x):
        """The linear layer without and the lrelu layer with a bias."""
        for out, extra in [('out', {'use_bias': False}), ('out_bias_lrelu', {'act': 'lrelu'})]:
            layer = layer_class('Layer', **meta, **extra)
            testutil.set_variables(layer, {name: a[name] for name in layer.named_variables()})
            y = layer(tf.constant(testutil.nhwc(x))).numpy()
            testutil.assert_close(self, testutil.nchw(y) if y.ndim == 4 else y, a[out], msg=f'{case} {out}')

    def test_conv2d_layer(self):
        for case, a, meta in self._cases('conv2d_layer', 7):
            self._check_plain(Conv2DLayer, case, a, {'in_fmaps': 6, **meta}, a['x'])

    def test_dense_layer(self):
        for case, a, meta in self._cases('dense_layer', 3):
            self._check_plain(DenseLayer, case, a, {'in_features': 16, **meta}, a['x'])

    def test_minibatch_stddev_layer(self):
        for case, a, meta in self._cases('minibatch_stddev_layer', 9):
            x = tf.constant(testutil.nhwc(a['x']))
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = minibatch_stddev_layer(x, **meta)
                total = tf.reduce_sum(y * testutil.nhwc(a['gy']))
            testutil.assert_close(self, testutil.nchw(y.numpy()), a['y'], msg=case)
            dx = testutil.nchw(tape.gradient(total, x).numpy())
            testutil.assert_close(self, dx, a['dx'], 0, 1e-3, msg=case)

    def test_naive_resampling_is_resampling_without_a_kernel(self):
        for prefix, func in [('naive_upsample_2d', upsample_2d), ('naive_downsample_2d', downsample_2d)]:
            for case, a, meta in self._cases(prefix, 2):
                x = tf.constant(a['x'])
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = func(x, k=None, factor=meta['factor'])
                    total = tf.reduce_sum(y * a['gy'])
                testutil.assert_close(self, y, a['y'], 1e-6, 1e-6, msg=case)
                testutil.assert_close(self, tape.gradient(total, x), a['dx'], 1e-6, 1e-6, msg=case)


class ModulatedConvTest(tf.test.TestCase):

    def _layer(self, **kwargs):
        layer = ModulatedConv2DLayer('Conv', in_fmaps=3, fmaps=2, kernel=3, dlatent_size=4, dtype='float64',
                                     **kwargs)
        randomize(layer, seed=1, scale=0.7)
        return layer

    def _inputs(self):
        rng = np.random.RandomState(2)
        return rng.randn(2, 4, 4, 3), rng.randn(2, 4)

    def test_equals_scaled_weights_per_sample(self):
        """Equations 1 to 3 of StyleGAN2 as they stand, with weights of their own for every sample."""
        layer = self._layer(use_noise=True, act='lrelu')
        value = {name: variable.numpy() for name, variable in layer.named_variables().items()}
        x, dlatents = self._inputs()
        noise = np.random.RandomState(3).randn(2, 4, 4, 1)
        style = dlatents @ value['mod_weight'] / np.sqrt(4) + value['mod_bias'] + 1
        expected = []
        for n in range(2):
            w = value['weight'] / np.sqrt(3 * 3 * 3) * style[n, :, np.newaxis]
            w /= np.sqrt(np.sum(w ** 2, axis=(0, 1, 2)) + 1e-8)
            padded = np.pad(x[n], [(1, 1), (1, 1), (0, 0)])
            y = sum(padded[i:i + 4, j:j + 4] @ w[i, j] for i in range(3) for j in range(3))
            y = y + noise[n] * value['noise_strength'] + value['bias']
            expected.append(np.where(y > 0, y, 0.2 * y) * np.sqrt(2))
        actual = layer(tf.constant(x), tf.constant(dlatents), tf.constant(noise))
        self.assertAllClose(actual, expected, rtol=1e-7, atol=1e-7)  # lrelu has a float32 slope.

    def test_one_noise_for_all_samples_and_none(self):
        layer = self._layer(use_noise=True)
        x, dlatents = map(tf.constant, self._inputs())
        noise = tf.constant(np.random.RandomState(3).randn(1, 4, 4, 1))
        self.assertAllClose(layer(x, dlatents, noise) - layer(x, dlatents),
                            tf.tile(noise * layer.noise_strength, [2, 1, 1, 2]))

    def test_numeric_derivatives_of_first_and_second_order(self):
        """With respect to x, w and the weights, whose values the layer takes from the arguments here."""
        for kwargs in [{}, {'up': True, 'resample_kernel': [1, 3, 3, 1]}, {'down': True},
                       {'demodulate': False}]:
            layer = self._layer(act='swish', **kwargs)
            values = [getattr(layer, name).numpy() for name in ('weight', 'mod_weight', 'mod_bias', 'bias')]
            seed = np.random.RandomState(4).randn(*layer(*self._inputs()).shape)

            def func(x, dlatents, weight, mod_weight, mod_bias, bias, layer=layer, seed=seed):
                with unittest.mock.patch.multiple(layer, weight=weight, mod_weight=mod_weight,
                                                  mod_bias=mod_bias, bias=bias):
                    return tf.reduce_sum(layer(x, dlatents) * seed)

            testutil.assert_derivative(self, func, [*self._inputs(), *values])
            testutil.assert_derivative(self, testutil.gradient_sum(func), [*self._inputs(), *values])


class PlainLayersTest(tf.test.TestCase):

    def test_lrmul_scales_initial_values_weight_and_bias(self):
        layer = DenseLayer('Dense', 400, 300, lrmul=0.01)
        self.assertNear(np.std(layer.weight.numpy()), 100, 1)
        self.assertNear(np.std(DenseLayer('Dense', 400, 300, use_wscale=False).weight.numpy()), 1 / 20, 1e-3)
        randomize(layer, seed=0)
        x = np.random.RandomState(1).randn(2, 400).astype(np.float32)
        expected = 0.01 * (x @ layer.weight.numpy() / 20 + layer.bias.numpy())
        self.assertAllClose(layer(tf.constant(x)), expected, rtol=1e-5, atol=1e-6)

    def test_stddev_of_a_batch_of_unknown_size(self):
        x = np.random.RandomState(0).randn(6, 4, 4, 4).astype(np.float32)
        func = tf.function(lambda x: minibatch_stddev_layer(x, 3), [tf.TensorSpec([None, 4, 4, 4])])
        for batch in (2, 3, 6):
            self.assertAllClose(func(x[:batch]), minibatch_stddev_layer(tf.constant(x[:batch]), 3))
        with self.assertRaises(tf.errors.InvalidArgumentError):
            func(x[:5])

    def test_stddev_against_numpy(self):
        x = np.random.RandomState(0).randn(4, 3, 2, 4)
        y = minibatch_stddev_layer(tf.constant(x), group_size=2, num_new_features=2).numpy()
        self.assertAllEqual(y[..., :4], x)
        for n in range(4):
            members = x[[n % 2, n % 2 + 2]]
            deviation = np.sqrt(np.var(members, axis=0) + 1e-8)
            for feature in range(2):
                self.assertAllClose(y[n, :, :, 4 + feature],
                                    np.full([3, 2], deviation[:, :, 2 * feature:2 * feature + 2].mean()))

    def test_stddev_in_half_precision(self):
        """The small number in the root would be zero there, and the gradient of equal samples NaN."""
        x = np.random.RandomState(0).randn(4, 3, 2, 4)
        x[:, :, :, 0] = 1
        for dtype, tolerance in (('float16', 2e-3), ('bfloat16', 2e-2)):
            half = tf.constant(x, dtype)
            with tf.GradientTape() as tape:
                tape.watch(half)
                y = minibatch_stddev_layer(half)
            gradient = tape.gradient(y, half)
            self.assertEqual((y.dtype, gradient.dtype), (dtype, dtype))
            expected = minibatch_stddev_layer(tf.cast(half, tf.float64))
            testutil.assert_close(self, tf.cast(y, tf.float64), expected, 0, tolerance)
            self.assertTrue(np.isfinite(tf.cast(gradient, tf.float64)).all())

    def test_normalize_2nd_moment(self):
        x = np.random.RandomState(0).randn(5, 8)
        y = normalize_2nd_moment(tf.constant(x)).numpy()
        self.assertAllClose(np.mean(y ** 2, axis=1), np.ones(5))
        self.assertAllClose(y / x, np.tile((y / x)[:, :1], [1, 8]))
        self.assertAllEqual(normalize_2nd_moment(tf.zeros([2, 3])), np.zeros([2, 3]))

    def test_const_layer_is_the_official_constant_for_every_sample(self):
        layer = ConstLayer('Const', 3, (4, 2), 1)
        randomize(layer, seed=0)
        y = layer(batch_size=5).numpy()
        for sample in testutil.nchw(y):
            self.assertAllEqual(sample, layer.const.numpy()[0])

    def test_names_of_nested_layers(self):
        layer = Layer('Outer')
        own = layer.add_variable('lod', [], 0.5, trainable=False)
        inner = layer.add_layer(DenseLayer('Dense0', 2, 3))
        self.assertEqual(list(layer.named_variables()), ['lod', 'Dense0/weight', 'Dense0/bias'])
        self.assertEqual(list(layer.named_variables(recursive=False)), ['lod'])
        self.assertEqual(list(layer.named_trainables()), ['Dense0/weight', 'Dense0/bias'])
        self.assertIs(layer.named_variables()['Dense0/weight'], inner.weight)
        self.assertEqual(float(own), 0.5)
        self.assertLen(layer.trainable_variables, 2)
        self.assertLen(layer.variables, 3)
        with self.assertRaisesRegex(ValueError, 'Dense0'):
            layer.add_layer(DenseLayer('Dense0', 2, 3))

    def test_feature_maps(self):
        self.assertEqual([feature_maps(stage, 16 << 10, 1.0, 1, 512) for stage in range(1, 10)],
                         [512, 512, 512, 512, 512, 256, 128, 64, 32])
        self.assertEqual(feature_maps(9, 64, 1.0, 4, 512), 4)

    def test_bad_arguments_say_what_was_received(self):
        x = tf.zeros([6, 4, 4, 3])
        for call, message in [
            (lambda: minibatch_stddev_layer(x, 4), 'divisible by the group size 4 .* Received: 6$'),
            (lambda: minibatch_stddev_layer(x, 3, 2), 'channels 3. Received: 2$'),
            (lambda: DenseLayer('Dense', 2, 3, act='gelu'), "Received: 'gelu'$"),
            (lambda: Conv2DLayer('Conv', 2, 3, kernel=2), 'kernel=2'),
            (lambda: Conv2DLayer('Conv', 2, 3, kernel=3, up=True, down=True), 'up=True, down=True'),
            (lambda: ModulatedConv2DLayer('Conv', 2, 3, kernel=4, dlatent_size=5), 'kernel=4'),
            (lambda: log2_resolution(48), 'power of two from 4 up. Received: 48$'),
            (lambda: log2_resolution(2), 'Received: 2$'),
            (lambda: log2_resolution(0), 'Received: 0$'),
        ]:
            with self.assertRaisesRegex(UserError, message):
                call()


if __name__ == '__main__':
    tf.test.main()
