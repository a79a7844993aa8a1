"""The layers of ProGAN and StyleGAN against the official ones, numeric gradients and second formulas."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib.util import UserError
from tests import testutil
from training.growing import downscale2d, upscale2d
from training.layers import minibatch_stddev_layer
from training.layers_stylegan import (
    ConstLayer,
    ConvLayer,
    DenseLayer,
    Epilogue,
    EpilogueLayer,
    blur2d,
    is_fused,
    normalize_and_style,
    pixel_norm,
)

FULL = Epilogue('lrelu', unit_slope=True, use_noise=True, pixelnorm_epsilon=1e-4, use_instance_norm=True,
                dlatent_size=6)


def activation_last(array: np.ndarray) -> np.ndarray:
    """NCHW → NHWC; other ranks stay."""
    return testutil.nhwc(array) if array.ndim == 4 else array


def randomize(layer, seed: int) -> None:
    """Gives every variable of a layer normal values, those that start at zero too."""
    rng = np.random.RandomState(seed)
    for variable in layer.named_variables().values():
        variable.assign(rng.randn(*variable.shape))


def bare(epilogue: Epilogue, fmaps: int, **options) -> EpilogueLayer:
    """Nothing but an epilogue."""
    layer = EpilogueLayer('Layer', fmaps, epilogue, **options)
    layer.add_epilogue()
    return layer


def conv(case: dict, meta: dict, **options):
    """A ConvLayer that is linear, as the official functions are, with the recorded weight."""
    meta = dict(meta)
    scale = {key: meta[key] for key in ('gain', 'lrmul') if key in meta}
    # Officially a function's own default is not to equalize the learning rate, and the gain is sqrt(2).
    scale = {'gain': np.sqrt(2), 'use_wscale': meta.get('use_wscale', False), **scale}
    layer = ConvLayer('Conv', case['x'].shape[1], meta['fmaps'], meta['kernel'], Epilogue(), **scale,
                      **options)
    layer.weight.assign(case['var/weight'])
    return layer


@testutil.needs_golden
class GoldenTest(tf.test.TestCase):

    def _check(self, case, a, func, variables=None, slope=None):
        """y, dx, d_arg1, dvar and the second order, each where it is recorded.

        Args: func of tensors x, arg1; variables {official name: Keras variable}; slope = known dx.
        """
        variables = variables or {}
        inputs = [tf.constant(activation_last(a[key])) for key in ('x', 'arg1') if key in a]
        gy = tf.constant(activation_last(a['gy']))
        with tf.GradientTape(persistent=True) as outer:
            outer.watch([gy, *inputs])
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(inputs)
                y = func(*inputs)
                total = tf.reduce_sum(y * gy)
            dx = tape.gradient(total, inputs[0])
            second = tf.reduce_sum(dx * activation_last(a['ddx'])) if 'ddx' in a else None

        def close(actual, key, tolerance):
            testutil.assert_close(self, actual, activation_last(a[key]), 0, tolerance, f'{case} {key}')

        close(y, 'y', 1e-5)
        if slope is None:
            close(dx, 'dx', 1e-5)
        if 'arg1' in a:
            close(tape.gradient(total, inputs[1]), 'd_arg1', 1e-5)
        self.assertEqual(sorted(f'var/{name}' for name in variables), sorted(k for k in a if k[:4] == 'var/'))
        for name, variable in variables.items():
            testutil.assert_close(self, tape.gradient(total, variable.value), a[f'dvar/{name}'], 0, 1e-5,
                                  f'{case} {name}')
        if second is not None:
            close(outer.gradient(second, gy), 'd2_gy', 1e-5)
        if 'd2_x' in a:
            close(outer.gradient(second, inputs[0]), 'd2_x', 1e-5)

    def _cases(self, file, prefix, count):
        arrays = testutil.load('primitives', f'{file}_layers.npz')
        groups = testutil.cases(arrays, prefix)
        self.assertLen(groups, count)
        for case, a in groups.items():
            yield case, a, arrays['meta'][f'{prefix}/{case}']

    def test_blur2d(self):
        for case, a, meta in self._cases('stylegan', 'blur2d', 5):
            taps = np.asarray(meta.get('f', [1, 2, 1]), np.float32)
            if len(taps) % 2:
                self._check(case, a, lambda x, meta=meta: blur2d(x, **meta))
                continue
            # Of an even number of taps the official gradient is not the derivative: it pads as the forward
            # pass does, not mirrored. Ours is the derivative.
            self._check(case, a, lambda x, meta=meta: blur2d(x, **meta), slope='derivative')
            official = blur2d(tf.constant(testutil.nhwc(a['gy'])), taps[::-1])
            testutil.assert_close(self, official, testutil.nhwc(a['dx']), 0, 1e-5)
            testutil.assert_derivative(
                self, lambda x, f=taps, a=a: tf.reduce_sum(blur2d(x, f) * testutil.nhwc(a['gy'])),
                [testutil.nhwc(a['x'])])

    def test_upscale2d_and_downscale2d(self):
        for file in ('progan', 'stylegan'):
            for name, function in (('upscale2d', upscale2d), ('downscale2d', downscale2d)):
                for case, a, meta in self._cases(file, name, 3):
                    self._check(f'{name}/{case}', a, lambda x, f=function, m=meta: f(x, **m))

    def test_upscale2d_conv2d(self):
        for case, a, meta in self._cases('stylegan', 'upscale2d_conv2d', 7):
            layer = conv(a, meta, up=True, flipped=is_fused(meta['fused_scale'], 2 * a['x'].shape[2]))
            self._check(case, a, layer, {'weight': layer.weight})
        for case, a, meta in self._cases('progan', 'upscale2d_conv2d', 3):
            layer = conv(a, meta, up=True, flipped=True, out_in=True)
            self._check(case, a, layer, {'weight': layer.weight})

    def test_conv2d_downscale2d(self):
        for file, count in (('progan', 2), ('stylegan', 6)):
            for case, a, meta in self._cases(file, 'conv2d_downscale2d', count):
                layer = conv(a, meta, down=True)
                self._check(case, a, layer, {'weight': layer.weight})

    def test_conv2d(self):
        for file, count in (('progan', 1), ('stylegan', 2)):
            for case, a, meta in self._cases(file, 'conv2d', count):
                layer = conv(a, meta)
                self._check(case, a, layer, {'weight': layer.weight})

    def test_dense(self):
        for file, count in (('progan', 1), ('stylegan', 2)):
            for case, a, meta in self._cases(file, 'dense', count):
                weight = a['var/weight']
                options = {'gain': np.sqrt(2), 'use_wscale': False, **meta}
                layer = DenseLayer('Dense', weight.shape[0], options.pop('fmaps'), Epilogue(), **options)
                layer.weight.assign(weight)
                self._check(case, a, layer, {'weight': layer.weight})

    def test_bias(self):
        for case, a, meta in self._cases('stylegan', 'apply_bias', 2):
            layer = bare(Epilogue(), 4, **meta)
            layer.bias.assign(a['var/bias'])
            self._check(case, a, layer.finish, {'bias': layer.bias})

    def test_leaky_relu_and_its_slope_at_zero(self):
        for file, unit_slope, cases in (('progan', False, 1), ('stylegan', True, 2)):
            for case, a, meta in self._cases(file, 'leaky_relu', cases):
                if not meta:  # The networks have the default slope only.
                    self.assertGreater(np.sum(a['x'] == 0), 0)
                    self._check(case, a, bare(Epilogue('lrelu', unit_slope=unit_slope), 4).finish)

    def test_pixel_norm(self):
        for file, count in (('progan', 1), ('stylegan', 2)):
            for case, a, meta in self._cases(file, 'pixel_norm', count):
                self._check(case, a, lambda x, meta=meta: pixel_norm(x, **meta))

    def test_instance_norm(self):
        for case, a, _ in self._cases('stylegan', 'instance_norm', 1):
            self._check(case, a, normalize_and_style)

    def test_style_mod(self):
        for case, a, _ in self._cases('stylegan', 'style_mod', 1):
            layer = bare(Epilogue(dlatent_size=6), 4)
            testutil.set_variables(layer, {'bias': np.zeros(4), 'StyleMod/weight': a['var/StyleMod/weight'],
                                           'StyleMod/bias': a['var/StyleMod/bias']})
            variables = layer.named_variables()
            del variables['bias']
            self._check(case, a, layer.finish, variables)

    def test_noise(self):
        for case, a, _ in self._cases('stylegan', 'apply_noise', 1):
            layer = bare(Epilogue(use_noise=True), 4)
            layer.noise_weight.assign(a['var/Noise/weight'])
            self._check(case, a, lambda x, noise, f=layer.finish: f(x, noise=noise),
                        {'Noise/weight': layer.noise_weight})

    def test_minibatch_stddev(self):
        for file, count in (('progan', 6), ('stylegan', 7)):
            for case, a, meta in self._cases(file, 'minibatch_stddev_layer', count):
                self._check(case, a, lambda x, meta=meta: minibatch_stddev_layer(x, **meta))


class ConvLayerTest(parameterized.TestCase, tf.test.TestCase):

    @parameterized.product(kernel=(1, 3, 5), mode=('up', 'up_flipped', 'up_out_in', 'down'),
                           blur_filter=(None, (1, 2, 1)))
    def test_against_resampling_and_convolution_one_after_the_other(self, kernel, mode, blur_filter):
        layer = ConvLayer('Conv', 3, 4, kernel, Epilogue('relu'), up='up' in mode, down=mode == 'down',
                          flipped='flipped' in mode, out_in='out_in' in mode, blur_filter=blur_filter,
                          dtype='float64')
        randomize(layer, 1)
        rng = np.random.RandomState(0)
        x = tf.constant(rng.randn(2, 8, 8, 3))
        w = layer.weight.numpy() * np.sqrt(2 / (3 * kernel ** 2))
        w = np.transpose(w, [0, 1, 3, 2]) if 'out_in' in mode else w
        w = w[::-1, ::-1] if 'flipped' in mode else w

        def blur(x):
            return x if blur_filter is None else blur2d(x, blur_filter)

        def plain(x):
            return tf.nn.conv2d(x, w, 1, 'SAME')

        y = downscale2d(plain(blur(x))) if mode == 'down' else blur(plain(upscale2d(x)))
        y = tf.nn.relu(y + layer.bias)
        testutil.assert_close(self, layer(x), y, 0, 1e-12)

    def test_standard_deviations_of_the_weights(self):
        tf.keras.utils.set_random_seed(0)
        cases = [
            (ConvLayer('Conv', 40, 60, 3, Epilogue('lrelu')), 1, np.sqrt(2 / 360)),
            (ConvLayer('Conv', 40, 60, 3, Epilogue('relu'), lrmul=0.1), 10, 0.1 * np.sqrt(2 / 360)),
            (ConvLayer('Conv', 40, 60, 3, Epilogue()), 1, np.sqrt(1 / 360)),
            (ConvLayer('Conv', 40, 60, 3, Epilogue('lrelu'), up=True, out_in=True), 1, np.sqrt(2 / 360)),
            (ConvLayer('Conv', 40, 60, 3, Epilogue('lrelu'), use_wscale=False), np.sqrt(2 / 360), 1),
            (ConvLayer('Conv', 40, 60, 3, Epilogue('lrelu'), up=True, out_in=True, use_wscale=False),
             np.sqrt(2 / 360), 1),
            (DenseLayer('Dense', 100, 16, Epilogue('lrelu'), grid=True, gain=np.sqrt(2) / 4), 1,
             np.sqrt(2) / 40),
        ]
        for layer, stddev, coef in cases:
            self.assertNear(np.std(layer.weight.numpy()), stddev, 0.02 * stddev)
            self.assertNear(layer.coef, coef, 1e-6)

    def test_order_of_the_epilogue(self):
        # A second formula of everything at once, each step of it as the paper has it.
        layer = bare(FULL, 5, lrmul=0.5, dtype='float64')
        randomize(layer, 2)
        rng = np.random.RandomState(0)
        x, w, noise = rng.randn(3, 8, 8, 5), rng.randn(3, 6), rng.randn(3, 8, 8, 1)
        value = {name: variable.numpy() for name, variable in layer.named_variables().items()}
        self.assertEqual(list(value), ['Noise/weight', 'bias', 'StyleMod/weight', 'StyleMod/bias'])
        y = x + noise * value['Noise/weight'] + 0.5 * value['bias']
        y = np.where(y >= 0, y, 0.2 * y)
        y = y / np.sqrt(np.mean(y ** 2, axis=3, keepdims=True) + 1e-4)
        y = y - np.mean(y, axis=(1, 2), keepdims=True)
        y = y / np.sqrt(np.mean(y ** 2, axis=(1, 2), keepdims=True) + 1e-8)
        style = (w @ value['StyleMod/weight'] / np.sqrt(6) + value['StyleMod/bias']).reshape(3, 2, 1, 1, 5)
        y = y * (style[:, 0] + 1) + style[:, 1]
        actual = layer.finish(tf.constant(x), tf.constant(w), tf.constant(noise))
        testutil.assert_close(self, actual, y, 0, 1e-7)     # 0.2 may have the digits of float32.

    def test_style_of_constant_maps(self):
        """As behind a new constant: instance norm divides by next to nothing, the style stays what it is."""
        rng = np.random.RandomState(0)
        style = rng.randn(3, 2, 5)
        flat = normalize_and_style(tf.ones([3, 4, 4, 5]), style=tf.constant(style, tf.float32))
        self.assertAllClose(flat, np.broadcast_to(style[:, 1, None, None], [3, 4, 4, 5]), rtol=0, atol=1e-6)

    def test_instance_norm_in_half_precision(self):
        rng = np.random.RandomState(0)
        x, style = rng.randn(3, 8, 8, 5), rng.randn(3, 2, 5)
        x[0] = 1
        expected = normalize_and_style(tf.constant(x), style=tf.constant(style))
        for dtype, tolerance in (('float16', 2e-3), ('bfloat16', 2e-2)):
            actual = normalize_and_style(tf.constant(x, dtype), style=tf.constant(style, dtype))
            self.assertEqual(actual.dtype, dtype)
            testutil.assert_close(self, tf.cast(actual, tf.float64), expected, 0, tolerance)

    def test_derivatives_of_both_orders(self):
        rng = np.random.RandomState(0)
        w, noise = rng.randn(2, 6), rng.randn(2, 8, 8, 1)
        seed = rng.randn(2, 8, 8, 4)
        for options, size in ((dict(up=True, flipped=True), 4), (dict(down=True), 16), ({}, 8)):
            layer = ConvLayer('Conv', 3, 4, 3, FULL, blur_filter=(1, 2, 1), dtype='float64', **options)
            randomize(layer, 3)

            def func(x, w, noise, layer=layer):
                return tf.reduce_sum(layer(x, w, noise) * seed)

            inputs = [rng.randn(2, size, size, 3), w, noise]
            testutil.assert_derivative(self, func, inputs)
            testutil.assert_derivative(self, testutil.gradient_sum(func), inputs)

    def test_constant(self):
        layer = ConstLayer('Const', 5, Epilogue())
        self.assertAllEqual(layer.const, np.ones([1, 5, 4, 4]))
        values = np.random.RandomState(0).randn(1, 5, 4, 4).astype(np.float32)
        layer.const.assign(values)
        y = layer(tf.zeros([3, 7])).numpy()
        self.assertAllEqual(testutil.nchw(y), np.repeat(values, 3, axis=0))
        traced = tf.function(layer, [tf.TensorSpec([None, 7])])
        self.assertAllEqual(traced(tf.zeros([2, 7])), y[:2])

    def test_bad_arguments(self):
        with self.assertRaisesRegex(UserError, 'odd kernel'):
            ConvLayer('Conv', 3, 4, 2, Epilogue())
        with self.assertRaisesRegex(UserError, 'at most one of up and down'):
            ConvLayer('Conv', 3, 4, 3, Epilogue(), up=True, down=True)


if __name__ == '__main__':
    tf.test.main()
