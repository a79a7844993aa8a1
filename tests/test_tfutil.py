"""TensorFlow helpers: golden image conversions and interpolation, seeds, evaluation, helpful errors."""

import os
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.tflib import tfutil
from dnnlib.util import UserError
from tests import testutil


class GoldenTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.golden = testutil.load('primitives', 'stylegan2_images.npz')

    def test_to_uint8(self):
        images = self.golden['float_images']
        for name, kwargs in [
            ('convert_images_to_uint8', {}),
            ('convert_images_to_uint8_nhwc_shrink2', {'nchw_to_nhwc': True, 'shrink': 2}),
            ('convert_images_to_uint8_drange01', {'drange': [0, 1]}),
        ]:
            actual = tfutil.convert_images_to_uint8(images, **kwargs)
            self.assertEqual(actual.dtype, tf.uint8)
            np.testing.assert_array_equal(actual, self.golden[name], name)

    def test_from_uint8(self):
        images = self.golden['reals_uint8']
        actual = tfutil.convert_images_from_uint8(images)
        testutil.assert_close(self, actual, self.golden['convert_images_from_uint8'], 1e-6, 1e-6)
        name = 'convert_images_from_uint8_drange01_nhwc'
        actual = tfutil.convert_images_from_uint8(testutil.nhwc(images), [0, 1], nhwc_to_nchw=True)
        testutil.assert_close(self, actual, self.golden[name], 1e-6, 1e-6)

    def test_lerp(self):
        a, b, t = (self.golden[f'lerp_{name}'] for name in 'abt')
        self.assertTrue((t < 0).any() or (t > 1).any())
        for function, name in [(tfutil.lerp, 'lerp'), (tfutil.lerp_clip, 'lerp_clip')]:
            testutil.assert_close(self, function(tf.constant(a), b, t), self.golden[name], 1e-6, 1e-6)


class ImagesTest(tf.test.TestCase):
    def test_saturation_and_truncation(self):
        values = [-9.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.0, 1.0, 9.0]
        actual = tfutil.convert_images_to_uint8(np.reshape(values, [1, 1, 1, 7]))
        self.assertAllEqual(actual[0, 0, 0], [0, 0, 0, 1, 128, 255, 255])

    @hypothesis.given(st.sampled_from([(-1, 1), (0, 1), (0, 255), (-3.5, 2)]))
    @hypothesis.settings(deadline=None)
    def test_round_trip(self, drange):
        images = np.arange(256, dtype=np.uint8).reshape([2, 2, 8, 8])
        floats = tfutil.convert_images_from_uint8(images, drange)
        self.assertAllClose([np.min(floats), np.max(floats)], drange, atol=1e-5)
        np.testing.assert_array_equal(tfutil.convert_images_to_uint8(floats, drange), images)

    def test_shrink_averages_boxes(self):
        images = np.random.RandomState(0).uniform(-1, 1, [2, 3, 7, 6]).astype(np.float32)
        boxes = images[:, :, :6].reshape([2, 3, 2, 3, 2, 3]).mean(axis=(3, 5))
        actual = tfutil.convert_images_to_uint8(images, shrink=3)
        self.assertEqual(actual.shape, [2, 3, 2, 2])
        self.assertAllClose(actual, np.floor(boxes * 127.5 + 128), atol=0)

    def test_half_precision_and_graph(self):
        images = np.linspace(-1, 1, 32).reshape([1, 2, 4, 4])
        function = tf.function(lambda x: tfutil.convert_images_to_uint8(x, nchw_to_nhwc=True))
        self.assertAllEqual(function(images.astype(np.float16)),
                            testutil.nhwc(tfutil.convert_images_to_uint8(images.astype(np.float16))))

    def test_bad_arguments(self):
        with self.assertRaisesRegex(UserError, r'\(3, 4, 4\)'):
            tfutil.convert_images_to_uint8(np.zeros([3, 4, 4]))
        with self.assertRaisesRegex(UserError, 'shrink is 0'):
            tfutil.convert_images_to_uint8(np.zeros([1, 3, 4, 4]), shrink=0)


class ExpressionTest(tf.test.TestCase):
    def test_is_tf_expression(self):
        for x in [tf.constant(1), tf.Variable(1.0), keras.Variable(1.0), keras.Input([3])]:
            self.assertTrue(tfutil.is_tf_expression(x), x)
        for x in [1, np.zeros(3), [tf.constant(1)], 'x', None]:
            self.assertFalse(tfutil.is_tf_expression(x), x)
        inside = []
        tf.function(lambda x: inside.append(tfutil.is_tf_expression(x)))(tf.constant(1))
        self.assertEqual(inside, [True])

    def test_shape_to_list(self):
        self.assertEqual(tfutil.shape_to_list(tf.TensorShape([None, 3, 4])), [None, 3, 4])
        self.assertEqual(tfutil.shape_to_list((np.int64(2), 5)), [2, 5])

    def test_flatten_log2_exp2(self):
        self.assertAllEqual(tfutil.flatten([[1, 2], [3, 4]]), [1, 2, 3, 4])
        for dtype in ['float32', 'float64']:
            x = tf.constant([0.25, 1.0, 3.0], dtype)
            self.assertEqual(tfutil.log2(x).dtype, dtype)
            self.assertAllClose(tfutil.log2(x), np.log2(x), rtol=1e-6)
            self.assertAllClose(tfutil.exp2(x), np.exp2(x), rtol=1e-6)

    def test_lerp_of_numbers(self):
        self.assertEqual(tfutil.lerp(2, 4, 1.5), 5)
        self.assertAllClose(tfutil.lerp_clip(2.0, 4.0, [-1.0, 0.5, 1.5]), [2, 3, 4])


class EvaluationTest(tf.test.TestCase):
    def test_run_keeps_structure(self):
        fetches = {'a': [tf.constant([1, 2]), keras.Variable(3.0)], 'b': (tf.Variable(4.0), 5, None)}
        value = tfutil.run(fetches)
        self.assertEqual(list(value), ['a', 'b'])
        self.assertIsInstance(value['a'][0], np.ndarray)
        self.assertAllEqual(value['a'][0], [1, 2])
        self.assertEqual(value['a'][1], 3)
        self.assertEqual(value['b'], (4, 5, None))

    def test_run_refuses_what_needs_a_session(self):
        with self.assertRaisesRegex(UserError, r'feed_dict.*Gs\.run'):
            tfutil.run(tf.constant(1), {'x': 1})
        with self.assertRaisesRegex(UserError, 'symbolic.*return it'):
            tf.function(tfutil.run, autograph=False)(tf.constant(1))
        with self.assertRaisesRegex(UserError, 'init_tf'):
            tfutil.create_session()

    def test_what_needs_a_graph_names_its_replacement(self):
        with self.assertRaisesRegex(UserError, r'training\.optimizer\.Optimizer.*GradientTape'):
            tfutil.Optimizer(name='TrainG', learning_rate=0.002)
        with self.assertRaisesRegex(UserError, 'custom_ops'):
            tfutil.get_plugin('fused_bias_act.cu')
        with self.assertRaisesRegex(UserError, 'expected variables'):
            tfutil.set_vars({'lod': 1})

    def test_updates_happen_when_they_are_run(self):
        var = keras.Variable(0.0)
        update = tfutil.Update(lambda: var.assign_add(1), 'count')
        self.assertEqual(tfutil.run([update, 'x']), [None, 'x'])
        update()
        self.assertEqual(var.numpy(), 2)

    def test_values_are_not_windows(self):
        var = tf.Variable([1.0, 2.0])
        value = tfutil.run(var)
        value[:] = 7
        self.assertAllEqual(var, [1, 2])
        self.assertEqual(tfutil.run(tf.constant('text')), b'text')

    def test_variables_swap_their_values(self):
        a, b = tf.Variable([1.0]), tf.Variable([2.0])
        tfutil.set_vars([(a, b), (b, a)])
        self.assertEqual(tfutil.run((a, b)), (2, 1))

    def test_scopes(self):
        names = []

        def trace():
            with tf.name_scope('outer'), tfutil.absolute_name_scope('Loss'):
                names.append(tf.identity(1, name='x').name)
                with tfutil.absolute_variable_scope('G', reuse=True):
                    names.append(tf.identity(1, name='x').name)
        tf.function(trace, autograph=False).get_concrete_function()
        self.assertEqual(names, ['Loss/x:0', 'G/x:0'])
        self.assertAllEqual(tfutil.create_var_with_large_initial_value(np.arange(3), name='v'), [0, 1, 2])

    def test_the_names_of_progan(self):
        import tfutil as old
        self.assertIs(old.Network, tflib.Network)
        self.assertIs(old.autosummary, tflib.autosummary.autosummary)
        self.assertIsNone(old.init_uninited_vars())
        self.assertEqual(old.call_func_by_name(3, func='dnnlib.util.format_time'), '3s')
        self.assertIs(old.import_obj('dnnlib.util.UserError'), UserError)
        self.assertLess(set(tfutil.__all__), set(vars(old)))
        G = old.Network('G', func='networks.G_paper', resolution=8, fmap_base=32, fmap_max=4, label_size=0)
        self.assertEqual((G.func_name, G.static_kwargs), ('training.networks_progan.G_paper', dict(
            resolution=8, fmap_base=32, fmap_max=4, label_size=0)))

    def test_star_import_brings_the_helpers_only(self):
        names = {}
        exec('from dnnlib.tflib.tfutil import *', names)
        self.assertEqual(set(names) - {'__builtins__'}, set(tfutil.__all__))
        defined = {name for name, value in vars(tfutil).items()
                   if getattr(value, '__module__', None) == tfutil.__name__ and not name.startswith('_')}
        self.assertEqual(defined | {'TfExpression', 'TfExpressionEx'}, set(tfutil.__all__))

    def test_set_vars(self):
        a, b, c = tf.Variable([1.0, 2.0]), keras.Variable(np.zeros([2, 2])), tf.Variable(0.0)
        tfutil.set_vars({a.ref(): np.array([3.0, 4.0])})
        tfutil.set_vars([(b, tf.ones([2, 2], tf.float64)), (c, 7)])
        self.assertAllEqual(a, [3, 4])
        self.assertAllEqual(b.numpy(), np.ones([2, 2]))
        self.assertEqual(c.numpy(), 7)

    def test_set_vars_is_all_or_nothing(self):
        a, b = tf.Variable([1.0, 2.0]), tf.Variable([0.0])
        with self.assertRaisesRegex(UserError, r'shape \[3\], expected \[1\]'):
            tfutil.set_vars([(a, [5, 6]), (b, [1, 2, 3])])
        self.assertAllEqual(a, [1, 2])


class InitTest(tf.test.TestCase):
    def run_python(self, code):
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES='', TF_CPP_MIN_LOG_LEVEL='2')
        code = f'import numpy as np, tensorflow as tf\nfrom dnnlib.tflib import tfutil\n{code}'
        return subprocess.run([sys.executable, '-c', code], cwd=testutil.ROOT, env=environment, check=True,
                              capture_output=True, text=True).stdout.split()

    def test_seed_makes_runs_equal(self):
        # Each in a process of its own, in which TensorFlow is loaded, but not yet started.
        code = ("import os\n"
                "for seed in 7, 7, 8:\n"
                "    if not os.fork():\n"
                "        tfutil.init_tf({'rnd.np_random_seed': seed,\n"
                "                        'graph_options.place_pruned_graph': True})\n"
                "        print(np.random.rand(), float(tf.random.uniform([])),\n"
                "              int(tf.config.experimental.tensor_float_32_execution_enabled()), flush=True)\n"
                "        os._exit(0)\n"
                "    os.wait()")
        numbers = self.run_python(code)
        self.assertLen(numbers, 9)
        self.assertEqual(numbers[:2], numbers[3:5])
        self.assertNotEqual(numbers[0], numbers[6])
        self.assertNotEqual(numbers[1], numbers[7])
        self.assertEqual([float(number) for number in numbers[2::3]], [0, 0, 0])

    def test_only_the_first_call_acts(self):
        tfutil.init_tf()
        state = np.random.get_state()[1].copy()
        tfutil.init_tf({'rnd.np_random_seed': 3})
        tfutil.assert_tf_initialized()
        self.assertAllEqual(np.random.get_state()[1], state)
