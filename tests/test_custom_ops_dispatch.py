"""Which form of the operations is taken, bad arguments, XLA, and the kernels under the address sanitizer."""

import contextlib
import io
import os
import pathlib
import shutil
import subprocess
import tempfile
import types
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from custom_ops import (
    activation_funcs,
    build,
    dispatch,
    filter_2d,
    fused_bias_act,
    self_check,
    upfirdn_2d,
    upsample_2d,
    upsample_conv_2d,
)
from custom_ops import downsample_2d as downsample
from dnnlib.util import UserError
from tests import testutil


def traced_ops(func, *inputs, **options) -> set[str]:
    """The types of the operations of a traced function, of the functions that it calls too."""
    graph = tf.function(func, autograph=False, **options).get_concrete_function(*inputs).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return {node.op for node in nodes}


class DispatchTest(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(build.set_mode, None)
        self.x, self.b = tf.random.normal([2, 8, 8, 4]), tf.zeros([4])

    def _ops(self, impl='auto'):
        return traced_ops(lambda x: fused_bias_act(
            upfirdn_2d(x, np.ones([2, 2]), upx=2, impl=impl), self.b, 3, 'lrelu', impl=impl), self.x)

    def test_modes(self):
        compiled = {'StyleganFusedBiasAct', 'StyleganUpFirDn2D'}
        build.set_mode('custom')
        self.assertContainsSubset(compiled, self._ops())
        self.assertEmpty(compiled & self._ops('ref'))
        build.set_mode('ref')
        self.assertEmpty(compiled & self._ops())
        self.assertContainsSubset(compiled, self._ops('custom'))

    def test_kernels_of_a_gpu_are_tried_before_they_are_taken(self):
        self.addCleanup(self_check.passed.cache_clear)
        self.assertTrue(self_check.passed('/CPU:0'))
        library = build.require_library()
        for name in ('stylegan_fused_bias_act', 'stylegan_up_fir_dn2d'):
            self_check.passed.cache_clear()
            real = getattr(library, name)
            broken = types.SimpleNamespace(**vars(library))
            setattr(broken, name, lambda *args, real=real, **kwargs: real(*args, **kwargs) * 1.01)
            with mock.patch.object(build, 'require_library', return_value=broken), \
                    contextlib.redirect_stderr(io.StringIO()) as stderr:
                # In the middle of a traced function, and of a tape.
                tf.function(lambda: self.assertFalse(self_check.passed('/CPU:0')), autograph=False)()
                self.assertFalse(self_check.passed('/CPU:0'))
            self.assertRegex(stderr.getvalue(), r'^Warning: [^\n]* do not work on /CPU:0 [^\n]*\n$')
        with mock.patch.object(dispatch, 'has_gpu', return_value=True), \
                mock.patch.object(build, 'load_library', return_value=library), \
                mock.patch.object(build, 'has_gpu_kernels', return_value=True):
            for passed in (True, False):
                with mock.patch.object(self_check, 'passed', return_value=passed):
                    taken = dispatch.compiled_ops('auto', tf.float32, faster=False)
                    self.assertIs(taken, library if passed else None)

    def test_auto_leaves_to_tensorflow_what_it_does_faster(self):
        build.set_mode('auto')
        w = tf.random.normal([3, 3, 4, 4])

        def after_conv(x, impl='auto'):
            return fused_bias_act(tf.nn.conv2d(x, w, 1, 'SAME'), self.b, 3, 'lrelu', impl=impl)

        def gradients(x, impl='auto'):
            with tf.GradientTape() as tape:
                tape.watch([x, self.b])
                y = after_conv(x, impl)
            return y, *tape.gradient(y, [x, self.b], y)

        self.assertContainsSubset({'BiasAdd', 'LeakyRelu'}, traced_ops(after_conv, self.x))
        self.assertNotIn('StyleganFusedBiasAct', traced_ops(after_conv, self.x))
        self.assertIn('StyleganFusedBiasActSums', traced_ops(gradients, self.x))
        actual = tf.function(gradients, autograph=False)(self.x)
        for a, b in zip(actual, gradients(self.x, 'ref'), strict=True):
            self.assertAllClose(a, b, 1e-5, 1e-5)
        alone = traced_ops(lambda x: fused_bias_act(x * 2, self.b, 3, 'lrelu'), self.x)
        self.assertIn('StyleganFusedBiasAct', alone)
        for size, compiled in ((64, True), (256, False)):
            types = traced_ops(lambda x: filter_2d(x, [1, 3, 3, 1], data_format='NHWC'),
                               tf.TensorSpec([None, size, size, 64]))
            self.assertEqual('StyleganUpFirDn2D' in types, compiled)

    def test_without_a_library(self):
        expected = upsample_2d(self.x, impl='ref')
        with mock.patch.object(build, '_loaded', build._Loaded(problems=['there is no compiler'])):
            build.set_mode('auto')
            self.assertAllEqual(upsample_2d(self.x), expected)
            self.assertAllEqual(fused_bias_act(self.x, act='relu'),
                                fused_bias_act(self.x, act='relu', impl='ref'))
            with self.assertRaisesRegex(UserError, 'there is no compiler'):
                upsample_2d(self.x, impl='custom')
            build.set_mode('custom')
            with self.assertRaisesRegex(UserError, 'there is no compiler'):
                fused_bias_act(self.x)

    def test_other_dtypes(self):
        x = tf.ones([1, 4, 4, 2], tf.int32)
        self.assertEqual(fused_bias_act(x).dtype, tf.int32)
        with self.assertRaisesRegex(UserError, 'int32'):
            fused_bias_act(x, impl='custom')


class XlaTest(parameterized.TestCase, tf.test.TestCase):

    def _check(self, func, *inputs):
        """Value, first and second order, compiled by XLA, against the composed form."""
        def orders(impl, *inputs):
            with tf.GradientTape() as outer:
                outer.watch(inputs)
                with tf.GradientTape() as inner:
                    inner.watch(inputs)
                    y = func(*inputs, impl)
                    total = tf.reduce_sum(tf.sin(y))
                first = inner.gradient(total, inputs)
                total = tf.add_n([tf.reduce_sum(tf.square(g)) for g in first])
            return y, *first, *outer.gradient(total, inputs)

        def compiled(*inputs):
            return orders('auto', *inputs)

        self.assertNoCommonElements({'StyleganFusedBiasAct', 'StyleganFusedBiasActSums', 'StyleganUpFirDn2D'},
                                    traced_ops(compiled, *inputs, jit_compile=True))
        actual = tf.function(compiled, autograph=False, jit_compile=True)(*inputs)
        for a, b in zip(actual, orders('ref', *inputs), strict=True):
            testutil.assert_close(self, a, b, 1e-4, 1e-4)

    @parameterized.parameters(*activation_funcs)
    def test_fused_bias_act(self, act):
        rng = np.random.RandomState(0)
        x, b = tf.constant(rng.randn(2, 3, 4, 5), tf.float32), tf.constant(rng.randn(5), tf.float32)
        self._check(lambda x, b, impl: fused_bias_act(x, b, 3, act, impl=impl), x, b)

    def test_resampling(self):
        rng = np.random.RandomState(1)
        x, w = tf.constant(rng.randn(2, 6, 6, 5), tf.float32), tf.constant(rng.randn(3, 3, 5, 4), tf.float32)
        for func in (lambda x, impl: downsample(x, [1, 3, 3, 1], data_format='NHWC', impl=impl),
                     lambda x, impl: upsample_2d(x, [1, 3, 3, 1], impl=impl),
                     lambda x, impl: upfirdn_2d(x, [[1., 2.], [3., -1.]], 2, 1, 1, 3, 2, -1, 0, 1, impl)):
            self._check(func, x)
        self._check(lambda x, w, impl: upsample_conv_2d(
            x, w, [1, 3, 3, 1], data_format='NHWC', impl=impl), x, w)

    def test_gradient_of_a_compiled_function_from_outside(self):
        x = tf.constant(np.random.RandomState(3).randn(2, 6, 6, 5), tf.float32)
        func = tf.function(lambda x: upsample_2d(x, [1, 3, 3, 1]), autograph=False, jit_compile=True)
        results = []
        for call in (func, tf.function(func, autograph=False),
                     lambda x: upsample_2d(x, [1, 3, 3, 1], impl='ref')):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(tf.sin(call(x)))
            results.append(tape.gradient(y, x))
        self.assertAllClose(results[0], results[2], 1e-5, 1e-5)
        self.assertAllClose(results[1], results[2], 1e-5, 1e-5)


class BadArgumentsTest(parameterized.TestCase, tf.test.TestCase):

    @parameterized.parameters('auto', 'ref', 'custom')
    def test_python_says_what_was_received(self, impl):
        x = tf.zeros([2, 4, 4, 3])
        for call, message in [
            (lambda: fused_bias_act(x, act='gelu', impl=impl), "'gelu'"),
            (lambda: fused_bias_act(x, tf.zeros([4]), axis=3, impl=impl), r'\(4,\)'),
            (lambda: fused_bias_act(x, tf.zeros([3]), axis=4, impl=impl), 'dimension 4'),
            (lambda: fused_bias_act(x, impl='metal'), "'metal'"),
            (lambda: upfirdn_2d(x, np.ones([1, 1]), impl='metal'), "'metal'"),
            (lambda: upfirdn_2d(x, np.ones([5, 5]), impl=impl), r'\(5, 5\)'),
            (lambda: upfirdn_2d(x, np.ones([0, 2]), impl=impl), r'\(0, 2\)'),
            (lambda: upfirdn_2d(x, np.ones([2, 2]), upx=0, impl=impl), 'up 0x1'),
            (lambda: upfirdn_2d(x[0], np.ones([2, 2]), impl=impl), r'\(4, 4, 3\)'),
            (lambda: tf.function(lambda x: upsample_2d(x, impl=impl), autograph=False, input_signature=[
                tf.TensorSpec([2, 3, None, 4])]).get_concrete_function(), 'known height'),
            (lambda: upsample_2d(x, data_format='CHWN', impl=impl), "'CHWN'"),
            (lambda: downsample(x, k=[1, -1], impl=impl), 'non-zero sum'),
            (lambda: upsample_conv_2d(x, tf.zeros([3, 1, 3, 2]), data_format='NHWC', impl=impl),
             r'\(3, 1, 3, 2\)'),
        ]:
            with self.assertRaisesRegex(UserError, message):
                call()

    def test_a_filter_too_large_for_the_compiled_operation(self):
        x, k = tf.ones([1, 40, 40, 1]), np.ones([33, 2])
        with self.assertRaisesRegex(UserError, r'\(33, 2\)'):
            upfirdn_2d(x, k, impl='custom')
        self.assertAllClose(upfirdn_2d(x, k), np.full([1, 8, 39, 1], 66))

    def _check_raises(self, func, *inputs):
        """The operation itself raises, eagerly, and in a graph that does not know shapes beforehand."""
        with self.assertRaises(tf.errors.InvalidArgumentError):
            func(*inputs)
        def call(*args):  # The signature of `func` may have options, those of a graph have none.
            return func(*args)

        signature = [tf.TensorSpec(None, tf.convert_to_tensor(value).dtype) for value in inputs]
        with self.assertRaises((tf.errors.InvalidArgumentError, ValueError)):
            tf.function(call, autograph=False, input_signature=signature)(*inputs)
        with self.assertRaises((tf.errors.InvalidArgumentError, ValueError)):
            tf.function(call, autograph=False)(*inputs)

    def test_upfirdn_operation(self):
        op = build.require_library().stylegan_up_fir_dn2d
        x, k = tf.zeros([2, 4, 4, 3]), tf.ones([2, 2], tf.float64)
        for bad_x, bad_k in [(x[0], k), (x, k[0]), (x, tf.ones([2, 5], tf.float64)),
                             (x, tf.ones([0, 2], tf.float64)), (x, tf.ones([2, 0], tf.float64)),
                             (tf.zeros([1, 99, 99, 1]), tf.ones([33, 2], tf.float64)), (tf.constant(1.), k)]:
            self._check_raises(op, bad_x, bad_k)
        for options in (dict(upx=0), dict(upy=-1), dict(downx=0), dict(downy=-2), dict(downx=1 << 40),
                        dict(upx=1 << 62), dict(padx0=1 << 40), dict(pady1=-(1 << 62)), dict(padx0=-9),
                        dict(pady0=1 << 30, padx0=1 << 30)):
            with self.subTest(options=options):
                self._check_raises(lambda x, k, options=options: op(x, k, **options), x, k)
        with self.assertRaises((TypeError, tf.errors.InvalidArgumentError)):
            op(tf.zeros([2, 4, 4, 3], tf.int32), k)
        with self.assertRaises((TypeError, tf.errors.InvalidArgumentError)):
            op(x, tf.ones([2, 2], tf.float32))

    def test_bias_act_operations(self):
        library = build.require_library()
        op, sums = library.stylegan_fused_bias_act, library.stylegan_fused_bias_act_sums
        x, b, none, constants = tf.zeros([2, 3]), tf.zeros([3]), tf.zeros([0]), tf.ones([2], tf.float64)
        for inputs, options in [
                ((x, tf.zeros([4]), none, constants), dict(axis=1)),
                ((x, b, none, constants), dict(axis=0)),
                ((x, b, none, constants), dict(axis=2)),
                ((x, b, none, constants), dict(axis=-1)),
                ((x, tf.zeros([1, 3]), none, constants), dict(axis=1)),
                ((x, tf.constant(1.), none, constants), dict(axis=1)),
                ((tf.constant(1.), tf.zeros([1]), none, constants), dict(axis=0)),
                ((x, none, none, constants), dict(grad=1, act=3)),
                ((x, none, tf.zeros([3, 2]), constants), dict(grad=1, act=3)),
                ((x, none, tf.zeros([6]), constants), dict(grad=2, act=9)),
                ((x, none, none, constants[:1]), {}),
                ((x, none, none, constants[0]), {}),
                ((x, none, none, constants), dict(act=0)),
                ((x, none, none, constants), dict(act=10)),
                ((x, none, none, constants), dict(grad=3)),
                ((x, none, none, constants), dict(grad=-1))]:
            with self.subTest(options=options):
                self._check_raises(lambda *inputs, options=options: op(*inputs, **options), *inputs)
        for inputs, options in [((x, tf.zeros([3]), constants), dict(axis=1, act=2)),
                                ((x, none, constants), dict(axis=1, act=2)),
                                ((x, x, constants), dict(axis=2, act=2)),
                                ((x, x, constants), dict(axis=-1, act=2)),
                                ((tf.constant(1.), none, constants), dict(axis=0, act=1)),
                                ((x, x, constants[:1]), dict(axis=1, act=2))]:
            with self.subTest(options=options):
                self._check_raises(lambda *inputs, options=options: sums(*inputs, **options), *inputs)
        with self.assertRaises((TypeError, tf.errors.InvalidArgumentError)):
            op(tf.zeros([2, 3], tf.int32), tf.zeros([0], tf.int32), tf.zeros([0], tf.int32), constants)

    def test_shapes_are_inferred(self):
        library = build.require_library()
        x = tf.TensorSpec([None, 4, None, 3])

        def func(x):
            y = library.stylegan_up_fir_dn2d(x, tf.ones([3, 2], tf.float64), upy=2, downy=3, pady0=1)
            dx, db = library.stylegan_fused_bias_act_sums(x, tf.zeros([0]), [0., 1.], axis=3)
            return y, dx, db

        y, dx, db = tf.function(func, autograph=False).get_concrete_function(x).output_shapes
        self.assertEqual((y.as_list(), dx.as_list(), db.as_list()),
                         ([None, 3, None, 3], [None, 4, None, 3], [3]))


class SanitizerTest(tf.test.TestCase):

    def test_kernels_stay_within_their_arrays(self):
        compiler = shutil.which('g++') or shutil.which('clang++')
        if compiler is None:
            print('Not checked: there is no C++ compiler')
            return
        source = pathlib.Path(__file__).with_name('check_cpu_kernels.cc')
        with tempfile.TemporaryDirectory() as directory:
            program = os.path.join(directory, 'check')
            flags = ['-std=c++17', '-O1', '-g', '-march=native', '-fsanitize=address,undefined',
                     '-fno-sanitize-recover=all']
            built = subprocess.run([compiler, *flags, str(source), '-o', program],
                                   capture_output=True, text=True)
            if built.returncode != 0 and 'cannot find' in built.stderr:
                print('Not checked: the compiler has no sanitizers')
                return
            self.assertEqual(built.returncode, 0, built.stderr)
            result = subprocess.run([program, '40'], capture_output=True, text=True, timeout=300)
        self.assertEqual((result.returncode, result.stdout), (0, 'checked\n'), result.stderr)


if __name__ == '__main__':
    tf.test.main()
