"""filter_noise_bias_act: compiled against composed, numeric gradients, XLA, bad arguments."""

import functools
import itertools

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from custom_ops import activation_funcs, build, filter_noise_bias_act, fused_bias_act, upfirdn_2d
from custom_ops.upfirdn_2d import setup_kernel
from dnnlib.util import UserError
from tests import testutil

TOLERANCES = {'float64': 1e-10, 'float32': 1e-5, 'float16': 1e-2, 'bfloat16': 6e-2}
TAPS = setup_kernel([1, 3, 3, 1]).astype(np.float64)
OPS = {'StyleganFilterNoiseBiasAct', 'StyleganFilterNoiseBiasActGrad'}
# Everything that may be missing, and noise that all images share.
COMBINATIONS = list(itertools.product((False, True), (False, True), ('', 'own', 'shared'), (False, True)))


def make_inputs(shape, filtered=True, factor=True, noise='own', bias=True, seed=0):
    """(tensors by argument name, options) for x [N, H, W, C]; without strength where there is no noise."""
    rng = np.random.RandomState(seed)
    batch, height, width, channels = shape
    options = dict(k=TAPS, pads=(1, 1, 1, 1)) if filtered else {}
    height, width = height - filtered, width - filtered
    tensors = {'x': rng.randn(*shape)}
    if factor:
        tensors['factor'] = rng.randn(batch, channels)
    if noise:
        tensors['noise'] = rng.randn(1 if noise == 'shared' else batch, height, width, 1)
        tensors['strength'] = np.float64(0.7)
    if bias:
        tensors['b'] = rng.randn(channels)
    return tensors, options


def derivatives(tensors, order, dtype='float64', **options):
    """[y, its gradients, ...] to an order, in fixed random weightings, by all tensors; float64 arrays."""
    rng = np.random.RandomState(7)
    names, inputs = list(tensors), [tf.constant(value, dtype) for value in tensors.values()]
    tapes = [tf.GradientTape() for _ in range(order)]
    for tape in tapes:
        tape.__enter__()
        tape.watch(inputs)
    results = [[filter_noise_bias_act(**dict(zip(names, inputs, strict=True)), **options)]]
    for tape in reversed(tapes):
        total = tf.add_n([tf.reduce_sum(y * tf.constant(rng.randn(*y.shape), dtype)) for y in results[-1]])
        tape.__exit__(None, None, None)
        results.append(tape.gradient(total, inputs, unconnected_gradients='zero'))
    return [[np.asarray(tf.cast(value, tf.float64)) for value in values] for values in results]


def value_and_gradients(func, names, *values):
    """[func(name=value, ...), its gradients by the values]."""
    with tf.GradientTape() as tape:
        tape.watch(values)
        y = func(**dict(zip(names, values, strict=True)))
    return [y, *tape.gradient(y, values)]


class FilterNoiseBiasActTest(parameterized.TestCase, tf.test.TestCase):

    def _compare(self, tensors, order, dtype='float64', **options):
        # Rounded first: where it crosses a kink, rounding makes another function.
        tensors = {name: np.asarray(tf.cast(tf.cast(value, dtype), tf.float64))
                   for name, value in tensors.items()}
        expected = derivatives(tensors, order, impl='ref', **options)
        actual = derivatives(tensors, order, dtype, impl='custom', **options)
        tolerance = TOLERANCES[dtype]
        for number, (left, right) in enumerate(zip(actual, expected, strict=True)):
            for name, a, b in zip(tensors, left, right, strict=False):
                testutil.assert_close(self, a, b, tolerance, tolerance, f'order {number}, {name}')

    @parameterized.parameters(*COMBINATIONS)
    def test_every_combination_to_third_order(self, filtered, factor, noise, bias):
        for act in ('linear', 'relu', 'lrelu'):
            for channels in (3, 16, 21):
                tensors, options = make_inputs([2, 5, 6, channels], filtered, factor, noise, bias)
                self._compare(tensors, 3, act=act, gain=1.3, **options)

    @parameterized.product(dtype=tuple(TOLERANCES), filtered=(False, True), shared=('own', 'shared'))
    def test_dtypes(self, dtype, filtered, shared):
        for shape in ([2, 9, 9, 40], [1, 3, 70, 8], [3, 17, 5, 1], [1, 2, 2, 300]):
            tensors, options = make_inputs(shape, filtered, noise=shared)
            tensors.pop('strength')  # Its product with the noise would be rounded, too.
            self._compare(tensors, 1, dtype, act='lrelu', gain=1, **options)

    @parameterized.parameters(*activation_funcs)
    def test_activations(self, act):
        tensors, options = make_inputs([2, 5, 5, 6])
        self._compare(tensors, 2, act=act, **options)

    def test_filters_and_pads(self):
        rng = np.random.RandomState(2)
        for taps, pads in [((1, 1), (0, 0, 0, 0)), ((2, 3), (4, 5, 6, 7)), ((3, 2), (-1, 0, -2, 1)),
                           ((5, 4), (0, 0, 3, 0)), ((7, 7), (3, 3, 3, 3)), ((1, 6), (-3, 3, 0, 0))]:
            tensors, _ = make_inputs([2, 8, 7, 5], filtered=False)
            k = rng.randn(*taps)
            shape = [2, 8 + pads[0] + pads[1] - taps[0] + 1, 7 + pads[2] + pads[3] - taps[1] + 1, 1]
            tensors['noise'] = rng.randn(*shape)
            self._compare(tensors, 2, k=k, pads=pads, act='lrelu')

    def test_against_the_formula(self):
        tensors, options = make_inputs([2, 5, 6, 4])
        x, factor, noise, strength, b = tensors.values()
        padded = np.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        u = sum(tap * padded[:, i:i + 4, j:j + 5] for (i, j), tap in np.ndenumerate(TAPS[::-1, ::-1]))
        u = u * factor[:, None, None] + noise * strength + b
        for impl in ('ref', 'custom'):
            y = filter_noise_bias_act(**tensors, **options, act='lrelu', impl=impl)
            self.assertAllClose(y, np.where(u < 0, np.float32(0.2) * u, u) * 2 ** 0.5, 1e-13, 1e-13)

    @parameterized.product(filtered=(False, True), shared=('own', 'shared'))
    def test_numeric_gradients(self, filtered, shared):
        tensors, options = make_inputs([2, 4, 4, 3], filtered, noise=shared)
        names = list(tensors)

        def func(*values):
            named = dict(zip(names, values, strict=True))
            return tf.sin(filter_noise_bias_act(**named, **options, act='lrelu', impl='custom'))

        testutil.assert_derivative(self, lambda *values: tf.reduce_sum(func(*values)), list(tensors.values()))
        testutil.assert_derivative(self, testutil.gradient_sum(func), list(tensors.values()), rtol=1e-5)

    def test_factors_near_zero(self):
        tensors, options = make_inputs([2, 5, 5, 4])
        tensors['factor'] *= np.float64([[0, 1e-12, 1e-30, 1], [1e-20, 0, 1, -1e-8]])
        self._compare(tensors, 2, act='lrelu', **options)
        self._compare(tensors, 1, 'float32', act='lrelu', **options)

    def test_odd_slopes_and_gains_are_composed(self):
        tensors, options = make_inputs([2, 5, 5, 4])
        for case in (dict(act='lrelu', alpha=-0.5), dict(act='lrelu', alpha=0), dict(act='relu', gain=0)):
            self._compare(tensors, 2, **case, **options)
        self._compare(tensors, 2, act='lrelu', alpha=0.3, gain=-2, **options)

    @parameterized.parameters('ref', 'custom')
    def test_no_images_and_unknown_batch_size(self, impl):
        for shared in ('own', 'shared'):
            tensors, options = make_inputs([3, 5, 5, 4], noise=shared)
            func = functools.partial(filter_noise_bias_act, **options, act='lrelu', impl=impl)
            gradients = functools.partial(value_and_gradients, func, list(tensors))
            signature = [tf.TensorSpec([None, *np.shape(value)[1:]] if np.ndim(value) in (2, 4) else
                                       np.shape(value), tf.float64) for value in tensors.values()]
            graph = tf.function(lambda *values, gradients=gradients: gradients(*values), autograph=False,
                                input_signature=signature)
            values = [tf.constant(value) for value in tensors.values()]
            for a, b in zip(graph(*values), gradients(*values), strict=True):
                self.assertAllClose(a, b, 1e-12, 1e-12)
            empty = [value[:0] if value.shape.rank in (2, 4) and value.shape[0] == 3 else value
                     for value in values]
            for call in (gradients, graph) if impl == 'custom' else (gradients,):
                y, *results = call(*empty)
                self.assertEqual(y.shape, [0, 4, 4, 4])
                for value, result in zip(empty, results, strict=True):
                    self.assertAllEqual(result, np.zeros(value.shape))

    def test_no_channels(self):
        for filtered in (False, True):
            tensors, options = make_inputs([2, 5, 5, 0], filtered)
            for values in derivatives(tensors, 1, 'float32', act='lrelu', impl='custom', **options):
                for value in values:
                    self.assertAllEqual(value, np.zeros(value.shape))

    def test_sums_are_the_same_in_every_run(self):
        tensors, options = make_inputs([4, 65, 65, 24])
        first, second = [derivatives(tensors, 1, 'float32', act='lrelu', impl='custom', **options)[1]
                         for _ in range(2)]
        for a, b in zip(first[:2], second[:2], strict=True):
            self.assertAllEqual(a, b)


class DispatchTest(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(build.set_mode, None)

    def _ops(self, impl='auto', **parts):
        tensors, options = make_inputs([2, 5, 5, 4], **parts)
        graph = tf.function(lambda: filter_noise_bias_act(**tensors, **options, act='lrelu', impl=impl),
                            autograph=False).get_concrete_function().graph
        return {op.type for op in graph.get_operations()} & {*OPS, 'StyleganFusedBiasAct'}

    def test_modes(self):
        fused = {'StyleganFilterNoiseBiasAct'}
        for mode in ('auto', 'custom'):
            build.set_mode(mode)
            self.assertEqual(self._ops(), fused)
            self.assertEqual(self._ops('ref'), set())
            # Nothing but bias and activation: fused_bias_act.
            self.assertEqual(self._ops(filtered=False, factor=False, noise=''), {'StyleganFusedBiasAct'})
        build.set_mode('ref')
        self.assertEqual((self._ops(), self._ops('custom')), (set(), fused))

    def test_parameters_are_in_host_memory(self):
        """On a GPU the filter and the constants would be copied back from there in every call."""
        tensors, options = make_inputs([2, 5, 5, 4])
        functions = (
            functools.partial(filter_noise_bias_act, **options, act='lrelu', impl='custom'),
            lambda x, b, **_: fused_bias_act(upfirdn_2d(x, TAPS, impl='custom'), b, axis=3, act='lrelu',
                                             impl='custom'))
        for func in functions:
            with tf.Graph().as_default() as graph, tf.device('GPU:0'):
                values = [tf.constant(value) for value in tensors.values()]
                with tf.GradientTape() as tape:
                    tape.watch(values)
                    y = func(**dict(zip(tensors, values, strict=True)))
                tape.gradient(y, values)
            ops = [op for op in graph.get_operations() if op.type.startswith('Stylegan')]
            self.assertGreaterEqual(len(ops), 2)
            for op in ops:
                for name, value in zip(op.op_def.input_arg, op.inputs, strict=True):
                    host = name.name in ('k', 'constants')
                    self.assertIn('CPU' if host else 'GPU', value.device, (op.type, name.name))

    def test_xla(self):
        tensors, options = make_inputs([2, 5, 5, 4])
        names, values = list(tensors), [tf.constant(value) for value in tensors.values()]

        def orders(*values, impl='auto'):
            with tf.GradientTape() as outer:
                outer.watch(values)
                with tf.GradientTape() as inner:
                    inner.watch(values)
                    y = filter_noise_bias_act(**dict(zip(names, values, strict=True)), **options, act='lrelu',
                                              impl=impl)
                    total = tf.reduce_sum(tf.sin(y))
                first = inner.gradient(total, values)
                total = tf.add_n([tf.reduce_sum(tf.square(g)) for g in first])
            return [y, *first, *outer.gradient(total, values)]

        build.set_mode('custom')
        results = tf.function(lambda *values: orders(*values), autograph=False, jit_compile=True)(*values)
        for a, b in zip(results, orders(*values, impl='custom'), strict=True):
            testutil.assert_close(self, a, b, 1e-9, 1e-9)


class BadArgumentsTest(parameterized.TestCase, tf.test.TestCase):

    @parameterized.parameters('auto', 'ref', 'custom')
    def test_python_says_what_was_received(self, impl):
        x = tf.zeros([2, 5, 5, 3])
        good = dict(k=TAPS, pads=(1, 1, 1, 1))
        for options, message in [
                (dict(act='gelu'), "'gelu'"), (dict(pads=(1, 1, 1, 1)), r'\(1, 1, 1, 1\)'),
                (dict(k=TAPS, pads=1 * (1, 1)), r'\(1, 1\)'), (dict(k=TAPS[0]), r'\(4,\)'),
                (dict(k=np.ones([6, 1])), r'\(6, 1\)'), (dict(k=np.ones([0, 1])), r'\(0, 1\)'),
                (dict(factor=tf.zeros([2, 4])), r'factor .*\(2, 4\)'),
                (dict(factor=tf.zeros([3])), r'factor .*\(3,\)'),
                (dict(noise=tf.zeros([2, 5, 5, 1]), **good), r'noise .*\(2, 4, 4, 1\).*\(2, 5, 5, 1\)'),
                (dict(noise=tf.zeros([3, 5, 5, 1])), r'noise .*\(3, 5, 5, 1\)'),
                (dict(noise=tf.zeros([5, 5])), r'noise .*\(5, 5\)'),
                (dict(noise=tf.zeros([2, 5, 5, 1]), strength=tf.zeros([3])), r'strength .*\(3,\)'),
                (dict(b=tf.zeros([1, 3])), r'b must .*\(1, 3\)'),
                (dict(b=tf.zeros([4])), r'b must .*\(4,\)')]:
            with self.subTest(options=options), self.assertRaisesRegex(UserError, message):
                filter_noise_bias_act(x, **options, impl=impl)
        with self.assertRaisesRegex(UserError, "'metal'"):
            filter_noise_bias_act(x, impl='metal')
        with self.assertRaisesRegex(UserError, r'\(5, 5, 3\)'):
            filter_noise_bias_act(x[0], impl=impl)
        if impl == 'custom':
            with self.assertRaisesRegex(UserError, r'33x1|\(33, 1\)'):
                filter_noise_bias_act(tf.zeros([1, 40, 5, 3]), np.ones([33, 1]), impl=impl)
            with self.assertRaisesRegex(UserError, 'int32'):
                filter_noise_bias_act(tf.zeros([1, 4, 4, 3], tf.int32), impl=impl)

    def _check_raises(self, op, inputs, options):
        """The operation itself raises, eagerly, and in a graph that does not know shapes beforehand."""
        with self.assertRaises(tf.errors.InvalidArgumentError):
            op(*inputs, **options)
        signature = [tf.TensorSpec(None, value.dtype) for value in inputs]
        with self.assertRaises((tf.errors.InvalidArgumentError, ValueError)):
            tf.function(lambda *inputs: op(*inputs, **options), autograph=False,
                        input_signature=signature)(*inputs)

    def test_operations(self):
        library = build.require_library()
        none, constants = tf.zeros([0]), tf.ones([2], tf.float64)
        x, k, no_filter = tf.zeros([2, 4, 4, 3]), tf.ones([2, 2], tf.float64), tf.ones([0, 0], tf.float64)
        good = dict(x=x, k=no_filter, factor=none, noise=none, bias=none, ref=none, constants=constants)
        for changes, options in [
                (dict(x=x[0]), {}), (dict(k=k[0]), {}), (dict(k=tf.ones([5, 2], tf.float64)), {}),
                (dict(k=tf.ones([33, 2], tf.float64)), dict(pady0=40)), (dict(factor=tf.zeros([3])), {}),
                (dict(factor=tf.zeros([1, 3])), {}), (dict(noise=tf.zeros([2, 4, 4])), {}),
                (dict(noise=tf.zeros([3, 4, 4, 1])), {}), (dict(noise=tf.zeros([2, 4, 4, 1]), k=k), {}),
                (dict(noise=tf.constant(1.)), {}), (dict(bias=tf.zeros([4])), {}),
                (dict(bias=tf.constant(1.)), {}), ({}, dict(grad=1, act=3)),
                (dict(ref=tf.zeros([2, 4, 4, 2])), dict(grad=1, act=3)),
                (dict(ref=x, k=k), dict(grad=1, act=2)),
                (dict(constants=constants[:1]), {}), (dict(constants=constants[0]), {}), ({}, dict(act=0)),
                ({}, dict(act=4)), ({}, dict(grad=2)), ({}, dict(grad=-1)), ({}, dict(padx0=1 << 40)),
                (dict(k=k), dict(padx0=-9)), (dict(k=k), dict(pady0=1 << 30, pady1=1 << 30))]:
            with self.subTest(changes=changes, options=options):
                self._check_raises(library.stylegan_filter_noise_bias_act, list({**good, **changes}.values()),
                                   options)
        good = dict(v=x, k=no_filter, x=none, factor=none, ref=none, constants=constants)
        factor = tf.zeros([2, 3])
        for changes, options in [
                (dict(v=x[0]), {}), (dict(k=k[0]), {}), (dict(factor=factor), {}),
                (dict(factor=factor, x=x[:1]), {}), (dict(factor=factor, x=x, k=k), {}),
                (dict(factor=tf.zeros([3]), x=x), {}), ({}, dict(act=3)), (dict(ref=x[:, 1:]), dict(act=3)),
                (dict(constants=constants[:1]), {}), ({}, dict(act=9)), ({}, dict(padx1=-(1 << 40))),
                (dict(k=k), dict(padx0=9)), (dict(k=tf.ones([33, 1], tf.float64)), {}),
                (dict(k=k), dict(pady0=-(1 << 30)))]:
            with self.subTest(changes=changes, options=options):
                self._check_raises(library.stylegan_filter_noise_bias_act_grad,
                                   list({**good, **changes}.values()), options)

    def test_shapes_are_inferred(self):
        library = build.require_library()

        def func(x, factor):
            k, none = tf.ones([3, 2], tf.float64), tf.zeros([0])
            y = library.stylegan_filter_noise_bias_act(x, k, factor, none, none, none, [0., 1.], pady0=1)
            return y, *library.stylegan_filter_noise_bias_act_grad(
                y, k, x, factor, none, [0., 1.], noise=True, pady0=1)

        shapes = tf.function(func, autograph=False).get_concrete_function(
            tf.TensorSpec([None, 4, None, 3]), tf.TensorSpec([None, 3])).output_shapes
        self.assertEqual([shape.as_list() for shape in shapes], [
            [None, 3, None, 3], [None, 4, None, 3], [None, 3], [None, 3, None, 1], [3]])


if __name__ == '__main__':
    tf.test.main()
