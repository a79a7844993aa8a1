"""fused_bias_act and upfirdn_2d, composed and compiled: against NumPy, numeric gradients and each other."""

import hypothesis
import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from hypothesis import strategies

from custom_ops import (
    activation_funcs,
    conv_downsample_2d,
    downsample_2d,
    filter_2d,
    fused_bias_act,
    upfirdn_2d,
    upsample_2d,
    upsample_conv_2d,
)
from custom_ops.upfirdn_2d import _compute_shifted, _differentiable
from tests import testutil

IMPLEMENTATIONS = ('ref', 'custom')
TOLERANCES = {'float64': 1e-12, 'float32': 3e-6, 'float16': 3e-3, 'bfloat16': 2e-2}
KERNEL = [1, 3, 3, 1]

settings = hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)


def plain_upfirdn(x, k, up, down, pads):
    """The definition, in NumPy; (y, x) pairs."""
    rows, columns = x.shape[1] * up[0], x.shape[2] * up[1]
    (top, bottom), (left, right) = pads
    margin = 10
    big = np.zeros([len(x), rows + 2 * margin, columns + 2 * margin, x.shape[3]])
    big[:, margin:margin + rows:up[0], margin:margin + columns:up[1]] = x
    big = big[:, margin - top:margin + rows + bottom, margin - left:margin + columns + right]
    out = np.zeros([len(x), big.shape[1] - k.shape[0] + 1, big.shape[2] - k.shape[1] + 1, x.shape[3]])
    for (i, j), tap in np.ndenumerate(k[::-1, ::-1]):
        out += tap * big[:, i:i + out.shape[1], j:j + out.shape[2]]
    return out[:, ::down[0], ::down[1]]


@strategies.composite
def upfirdn_cases(draw):
    """(x, k, up, down, pads) of which the output is not empty."""
    rng = np.random.RandomState(draw(strategies.integers(0, 10 ** 6)))
    channels = draw(strategies.sampled_from([1, 2, 3, 4, 7, 8, 16, 19, 300]))
    height, width = draw(strategies.integers(1, 12)), draw(strategies.sampled_from([1, 2, 5, 9, 40]))
    up, down = [draw(strategies.tuples(*[strategies.integers(1, 4)] * 2)) for _ in range(2)]
    taps = draw(strategies.tuples(*[strategies.integers(1, 7)] * 2))
    k = rng.randn(*taps)
    if draw(strategies.booleans()):
        k = np.outer(k[:, 0], k[0])
    if draw(strategies.integers(0, 9)) == 0:
        k[:] = 0
    pads = [draw(strategies.tuples(*[strategies.integers(-5, 6)] * 2)) for _ in range(2)]
    sizes = [size * u + sum(pad) for size, u, pad in zip((height, width), up, pads, strict=True)]
    hypothesis.assume(all(size >= tap for size, tap in zip(sizes, taps, strict=True)))
    x = rng.randn(draw(strategies.integers(1, 2)), height, width, channels)
    return x, k.astype(np.float32).astype(np.float64), up, down, tuple(pads)


def call_upfirdn(x, k, up, down, pads, impl):
    return upfirdn_2d(x, k, up[1], up[0], down[1], down[0], *pads[1], *pads[0], impl=impl)


class UpfirdnTest(parameterized.TestCase, tf.test.TestCase):

    def _assert_close(self, actual, expected, dtype, msg=''):
        self.assertEqual(actual.dtype.name, dtype)
        tolerance = TOLERANCES[dtype]
        testutil.assert_close(self, tf.cast(actual, tf.float64), expected, tolerance, 2 * tolerance, msg)

    @settings
    @hypothesis.given(case=upfirdn_cases())
    def test_against_the_definition(self, case):
        x, k, up, down, pads = case
        expected = plain_upfirdn(x, k, up, down, pads)
        for dtype in TOLERANCES:
            actual = call_upfirdn(tf.cast(x, dtype), k, up, down, pads, 'custom')
            self._assert_close(actual, expected, dtype, f'custom {dtype}')
        self._assert_close(call_upfirdn(x, k, up, down, pads, 'ref'), expected, 'float64', 'ref')
        shifted = _differentiable(tf.constant(x), k, up, down, pads, _compute_shifted)
        # Filters given in float32 are separated with its precision.
        testutil.assert_close(self, shifted, expected, 1e-6, 1e-6, 'shifted')

    @settings
    @hypothesis.given(case=upfirdn_cases())
    def test_gradients_are_the_transpose(self, case):
        x, k, up, down, pads = case
        x = tf.constant(x)
        for impl in IMPLEMENTATIONS:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = call_upfirdn(x, k, up, down, pads, impl)
            dy = np.random.RandomState(1).randn(*y.shape)
            dx = tape.gradient(y, x, tf.constant(dy))
            # <A·x, dy> = <x, Aᵀ·dy>
            scale = np.linalg.norm(y) * np.linalg.norm(dy) + 1e-9
            self.assertNear(np.sum(y * dy), np.sum(x * dx), 1e-12 * scale, impl)
            other = call_upfirdn(np.roll(x, 1, 2), k, up, down, pads, impl)
            self.assertNear(np.sum(other * dy), np.sum(np.roll(x, 1, 2) * dx), 1e-12 * scale, impl)

    def test_wide_images_and_large_filters(self):
        rng = np.random.RandomState(2)
        for shape, taps, up, down in [
                ([1, 9, 700, 20], (4, 4), (1, 1), (1, 1)), ([1, 4, 5000, 3], (3, 4), (2, 2), (1, 1)),
                ([2, 5, 9000, 1], (4, 4), (1, 1), (2, 2)), ([1, 40, 40, 2], (32, 31), (1, 1), (1, 1)),
                ([1, 6, 300, 64], (5, 5), (1, 2), (2, 1))]:
            x, k = rng.randn(*shape), rng.randn(*taps)
            pads = ((2, 3), (-4, 5))
            expected = plain_upfirdn(x, k, up, down, pads)
            testutil.assert_close(self, call_upfirdn(x, k, up, down, pads, 'custom'), expected, 1e-11, 1e-11)
            actual = call_upfirdn(x.astype(np.float32), np.outer(k[:, 0], k[0]), up, down, pads, 'custom')
            expected = plain_upfirdn(x, np.outer(k[:, 0], k[0]), up, down, pads)
            testutil.assert_close(self, actual, expected, 1e-5, 1e-5)

    def test_both_layouts(self):
        x = np.random.RandomState(3).randn(2, 5, 8, 6)
        for func in (filter_2d, upsample_2d, downsample_2d):
            results = [testutil.nhwc(func(testutil.nchw(x), KERNEL, impl=impl)) for impl in IMPLEMENTATIONS]
            results += [func(x, KERNEL, data_format='NHWC', impl=impl) for impl in IMPLEMENTATIONS]
            for result in results[1:]:
                self.assertAllClose(results[0], result, 1e-6, 1e-6)

    @parameterized.parameters(*IMPLEMENTATIONS)
    def test_numeric_gradients(self, impl):
        rng = np.random.RandomState(3)
        x, w = rng.randn(2, 4, 4, 5), rng.randn(3, 3, 5, 4)
        for func in (upsample_conv_2d, conv_downsample_2d):
            analytic, numeric = tf.test.compute_gradient(
                lambda v, func=func: func(v, w, KERNEL, data_format='NHWC', impl=impl), [x])
            self.assertAllClose(analytic[0], numeric[0], rtol=1e-7, atol=1e-7)

    @parameterized.parameters(*IMPLEMENTATIONS)
    def test_second_order_against_first_differences(self, impl):
        rng = np.random.RandomState(4)
        x, w = rng.randn(1, 4, 4, 5), rng.randn(3, 3, 5, 2)
        for func in (upsample_conv_2d, conv_downsample_2d):
            def gradient_norm(v, func=func):
                with tf.GradientTape() as tape:
                    tape.watch(v)
                    y = tf.reduce_sum(tf.tanh(func(v, w, [1, 2, 1], data_format='NHWC', impl=impl)))
                return tf.square(tape.gradient(y, v))
            analytic, numeric = tf.test.compute_gradient(gradient_norm, [0.3 * x], delta=1e-5)
            self.assertAllClose(analytic[0], numeric[0], rtol=1e-5, atol=1e-6)

    @parameterized.parameters(*IMPLEMENTATIONS)
    def test_dynamic_batch_size_and_no_images(self, impl):
        signature = [tf.TensorSpec([None, 4, 4, 5]), tf.TensorSpec([3, 3, 5, 2])]
        func = tf.function(lambda x, w: upsample_conv_2d(x, w, data_format='NHWC', impl=impl),
                           autograph=False, input_signature=signature)
        rng = np.random.RandomState(5)
        x, w = rng.randn(3, 4, 4, 5).astype(np.float32), rng.randn(3, 3, 5, 2).astype(np.float32)
        self.assertAllClose(func(x, w), upsample_conv_2d(x, w, data_format='NHWC', impl='ref'), 1e-5, 1e-5)
        if impl == 'custom':  # In graphs TensorFlow's convolution of no images has the size of its input.
            self.assertEqual(func(x[:0], w).shape, [0, 8, 8, 2])
        nchw = tf.function(lambda x: upsample_2d(x, impl=impl), autograph=False,
                           input_signature=[tf.TensorSpec([None, 3, 4, 5])])
        self.assertAllClose(nchw(x.reshape(4, 3, 4, 5)), upsample_2d(x.reshape(4, 3, 4, 5), impl='ref'))
        x = tf.zeros([0, 4, 4, 3])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = upfirdn_2d(x, np.ones([2, 2]), upx=2, impl=impl)
        self.assertEqual((y.shape, tape.gradient(y, x).shape), ([0, 3, 7, 3], [0, 4, 4, 3]))


def derivatives(func, inputs, order):
    """[func, its gradients by the inputs, ...] in fixed random weightings, to an order, as NumPy arrays."""
    rng = np.random.RandomState(8)
    inputs = [tf.constant(value) for value in inputs]
    tapes = [tf.GradientTape(persistent=True) for _ in range(order)]
    for tape in tapes:
        tape.__enter__()
        tape.watch(inputs)
    results = [[func(*inputs)]]
    for tape in reversed(tapes):
        total = tf.add_n([tf.reduce_sum(y * rng.randn(*y.shape)) for y in results[-1]])
        tape.__exit__(None, None, None)
        results.append(tape.gradient(total, inputs, unconnected_gradients='zero'))
    return [np.concatenate([np.ravel(value) for value in values]) for values in results]


class GraphOptimizerTest(tf.test.TestCase):

    def test_filter_before_bias_and_activation(self):
        # Fused with what follows, TensorFlow's depthwise convolution loses its padding: the process aborts.
        x, b = np.random.RandomState(13).randn(2, 8, 8, 16).astype(np.float32), np.ones(16, np.float32)

        def func(x, b, impl='ref'):
            y = upfirdn_2d(x, np.ones([2, 2]), padx0=1, pady0=1, impl=impl)
            return fused_bias_act(y, b, 3, 'lrelu', impl=impl)

        actual = tf.function(lambda x, b: func(x, b), autograph=False)(x, b)
        self.assertAllClose(actual, func(x, b, 'custom'), 1e-5, 1e-5)


class FusedBiasActTest(parameterized.TestCase, tf.test.TestCase):

    @parameterized.parameters(*activation_funcs)
    def test_derivatives_to_third_order(self, act):
        rng = np.random.RandomState(6)
        for shape, axis, alpha, gain in [([3, 4, 5, 6], 1, None, None), ([3, 4, 5, 6], 3, 0.3, 1.7),
                                         ([7, 5], -1, None, 0.5), ([2, 3, 70], 1, None, -1.2)]:
            inputs = 2 * rng.randn(*shape), rng.randn(shape[axis])
            # Bias and weighting by x: gradients of the gradients too.
            options = dict(axis=axis, act=act, alpha=alpha, gain=gain)
            expected, actual = [derivatives(lambda x, b, options=options, impl=impl: fused_bias_act(
                x * tf.sin(x), b, **options, impl=impl), inputs, 3) for impl in IMPLEMENTATIONS]
            for order in range(4):
                # TensorFlow keeps the slope of its leaky ReLU in float32.
                testutil.assert_close(self, actual[order], expected[order], 1e-7, 1e-7, f'order {order}')

    @parameterized.parameters(*activation_funcs)
    def test_without_bias(self, act):
        x = np.random.RandomState(7).randn(3, 5)
        expected, actual = [derivatives(lambda x, impl=impl: fused_bias_act(x, act=act, impl=impl), [x], 3)
                            for impl in IMPLEMENTATIONS]
        for order in range(4):
            testutil.assert_close(self, actual[order], expected[order], 1e-7, 1e-7, f'order {order}')

    @parameterized.parameters(*activation_funcs)
    def test_numeric_gradients(self, act):
        rng = np.random.RandomState(3)
        x, b = rng.randn(2, 3, 5), rng.randn(5)
        func = testutil.gradient_sum(lambda x, b: fused_bias_act(x, b, axis=2, act=act, impl='custom'))
        testutil.assert_derivative(
            self, lambda x, b: tf.reduce_sum(tf.sin(fused_bias_act(x, b, axis=2, act=act, impl='custom'))),
            [x, b])
        if not activation_funcs[act].zero_2nd_grad:
            testutil.assert_derivative(self, func, [x, b], rtol=1e-5)

    @parameterized.product(act=tuple(activation_funcs), dtype=tuple(TOLERANCES))
    def test_dtypes_and_layouts(self, act, dtype):
        rng = np.random.RandomState(9)
        for shape, axis in [([3, 5, 7, 3], 3), ([2, 6, 9, 8], 1), ([4, 700], 1), ([5, 3, 2], 0),
                            ([300, 17], 1), ([2, 1, 3000], 1)]:
            # Rounded first: where it crosses a kink, rounding makes another function.
            x, b = [np.asarray(tf.cast(tf.cast(value, dtype), tf.float64))
                    for value in (3 * rng.randn(*shape), rng.randn(shape[axis]))]
            expected = derivatives(lambda x, b, axis=axis: fused_bias_act(
                x, b, axis, act, impl='ref'), [x, b], 1)
            actual = derivatives(lambda x, b, axis=axis: tf.cast(fused_bias_act(
                tf.cast(x, dtype), tf.cast(b, dtype), axis, act, impl='custom'), tf.float64), [x, b], 1)
            tolerance = max(4 * TOLERANCES[dtype], 1e-7)
            for order in range(2):
                testutil.assert_close(self, actual[order], expected[order], tolerance, tolerance, f'{shape}')

    def test_values_that_are_not_finite(self):
        x = np.float32([np.nan, np.inf, -np.inf, 1e30, -1e30, 0, -0.0])
        for act in activation_funcs:
            if act == 'swish':
                x = x[[0, 1, 3, 4, 5, 6]]  # -inf·0
            expected, actual = [fused_bias_act(x, act=act, impl=impl) for impl in IMPLEMENTATIONS]
            self.assertAllClose(expected, actual, msg=act)

    def test_slopes_and_gains_that_hide_the_sign(self):
        x = np.random.RandomState(10).randn(3, 5)
        for options in (dict(act='lrelu', alpha=-0.5), dict(act='lrelu', alpha=0), dict(act='tanh', gain=0)):
            expected, actual = [derivatives(lambda x, impl=impl, options=options: fused_bias_act(
                x, **options, impl=impl), [x], 2) for impl in IMPLEMENTATIONS]
            for order in range(3):
                testutil.assert_close(self, actual[order], expected[order], 1e-7, 1e-7, f'{options} {order}')

    def test_slope_of_leaky_relu_is_the_same_number(self):
        x = np.random.RandomState(12).randn(3, 5)
        for alpha in (None, 0.1, 0.7):  # None is 0.2; no float32 number is any of these.
            expected, actual = [derivatives(lambda x, impl=impl, alpha=alpha: fused_bias_act(
                x, act='lrelu', alpha=alpha, impl=impl), [x], 1) for impl in IMPLEMENTATIONS]
            for order in range(2):
                testutil.assert_close(self, actual[order], expected[order], 1e-14, 0, f'{alpha} {order}')

    def test_no_images(self):
        for shape in ([0, 4, 4, 3], [2, 0, 4, 3]):
            x, b = tf.zeros(shape), tf.ones([3])
            with tf.GradientTape() as tape:
                tape.watch([x, b])
                y = fused_bias_act(x, b, 3, 'lrelu', impl='custom')
            dx, db = tape.gradient(y, [x, b])
            self.assertEqual((y.shape, dx.shape), (shape, shape))
            self.assertAllEqual(db, np.zeros(3))

    def test_bias_sums_are_the_same_in_every_run(self):
        x = tf.constant(np.random.RandomState(11).randn(4, 64, 64, 24), tf.float32)
        b = tf.zeros([24])
        sums = []
        for _ in range(3):
            with tf.GradientTape() as tape:
                tape.watch(b)
                y = fused_bias_act(x, b, 3, 'lrelu', impl='custom')
            sums.append(tape.gradient(y, b, x))
        self.assertAllEqual(sums[0], sums[1])
        self.assertAllEqual(sums[0], sums[2])
        slope = np.where(np.asarray(x) > 0, 1, 0.2) * 2 ** 0.5
        self.assertAllClose(sums[0], np.sum(np.asarray(x, np.float64) * slope, axis=(0, 1, 2)), 1e-5, 1e-3)


if __name__ == '__main__':
    tf.test.main()
