"""Adam: official trajectories, the formula in float64, skipped updates, replicas under MirroredStrategy."""

import functools
import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from tests import testutil
from training import replica
from training.optimizer import Optimizer
from training.schedule import lazy_regularization


def numpy_adam(value, gradients, lrates, beta1, beta2, epsilon=1e-8):
    """The formula of the paper with epsilon outside the bias correction, float64."""
    value, m, v = np.array(value, np.float64), 0.0, 0.0
    for t, (gradient, lrate) in enumerate(zip(gradients, lrates, strict=True), start=1):
        gradient = np.asarray(gradient, np.float64)
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient ** 2
        value = value - lrate * np.sqrt(1 - beta2 ** t) / (1 - beta1 ** t) * m / (np.sqrt(v) + epsilon)
    return value


def snapshot(optimizer: Optimizer) -> dict[str, np.ndarray]:
    return {key: slot.numpy() for key, slot in optimizer.state().items()}


class GoldenTrajectoryTest(tf.test.TestCase):
    def check(self, case: str, make_variable):
        arrays = testutil.load('training', 'stylegan2_optimizer.npz')
        data = {key.removeprefix(f'{case}/'): arrays[key] for key in arrays if key.startswith(f'{case}/')}
        interval = int(data['interval'])
        variable = make_variable(data['v0'])
        ratio, beta1, beta2 = lazy_regularization(1.0, float(data['beta1']), float(data['beta2']), interval)
        optimizer = Optimizer('Train', [variable], beta1=beta1, beta2=beta2)
        apply = tf.function(lambda gradient, lrate: optimizer.apply([gradient], lrate))
        for step, lrate in enumerate(data['lrate_base']):
            self.assertTrue(apply(data['grads_main'][step].mean(axis=0), lrate * ratio))
            if step % interval == 0:
                self.assertTrue(apply(data['grads_reg'][step].mean(axis=0), lrate * ratio))
            np.testing.assert_allclose(replica.unwrap(variable).numpy(), data['v_after_step'][step],
                                       rtol=1e-6, atol=1e-7, err_msg=f'{case} step {step}')
        steps = len(data['lrate_base'])
        self.assertEqual(optimizer.num_applied.numpy(), steps + len(range(0, steps, interval)))

    def test_official_trajectories(self):
        for case in ['mult1', 'mult2', 'beta1']:
            self.check(case, tf.Variable)
            self.check(case, lambda value: keras.Variable(value, name='weight'))


class OptimizerTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.rng = np.random.RandomState(5)

    def test_formula(self):
        for dtype, rtol in [('float32', 2e-7), ('float64', 1e-14)]:
            for beta1, beta2 in [(0.0, 0.99), (0.5, 0.9), (0.9, 0.999)]:
                start = 0.01 * self.rng.randn(3, 4)        # Small, so that storing it costs no accuracy.
                gradients = self.rng.randn(40, 3, 4) * 10.0 ** self.rng.uniform(-9, 3, [40, 3, 4])
                lrates = self.rng.uniform(0.001, 0.01, [40])
                variable = tf.Variable(start, dtype=dtype)
                optimizer = Optimizer('Train', [variable], beta1=beta1, beta2=beta2)
                apply = tf.function(lambda g, lr, optimizer=optimizer: optimizer.apply([g], lr))
                for gradient, lrate in zip(gradients, lrates, strict=True):
                    apply(tf.constant(gradient, dtype), tf.constant(lrate, tf.float64))
                # In float32 beta2 is known to 6e-8, so 1 - beta2 only to 6e-8 / (1 - beta2).
                expected = numpy_adam(start, gradients, lrates, beta1, beta2)
                np.testing.assert_allclose(variable.numpy() - start, expected - start, rtol=0,
                                           atol=rtol / (1 - beta2) * np.abs(expected - start).max())

    def test_epsilon_is_outside_the_bias_correction(self):
        variable = tf.Variable([0.0], dtype=tf.float64)
        Optimizer('Train', [variable], beta1=0.0, beta2=0.99, epsilon=0.1).apply([tf.constant([1.0])], 1.0)
        # v = 0.01, so √v + ε = 0.2; inside the correction the step would be 1 / 1.1.
        self.assertAllClose(variable.numpy(), [-np.sqrt(0.01) / 0.2], rtol=1e-12)

    def test_pytorch_form_adds_epsilon_to_the_corrected_root(self):
        for dtype, rtol in (('float32', 1e-4), ('float64', 1e-10)):
            variable = tf.Variable(np.zeros([5]), dtype=dtype)
            optimizer = Optimizer('Train', [variable], beta1=0.5, beta2=0.999, epsilon=0.1,
                                  epsilon_form='pytorch')
            m, v, expected = 0.0, 0.0, np.zeros([5])
            for t in range(1, 6):
                gradient = self.rng.randn(5)
                m, v = 0.5 * m + 0.5 * gradient, 0.999 * v + 0.001 * gradient ** 2
                expected -= 0.3 * (m / (1 - 0.5 ** t)) / (np.sqrt(v / (1 - 0.999 ** t)) + 0.1)
                # The gradients that `average` has made are taken as they are.
                mean = optimizer.average([tf.constant(gradient, dtype)])
                optimizer.apply(mean, tf.constant(0.3, tf.float64), averaged=True)
            self.assertAllClose(variable, expected, rtol=rtol, atol=rtol)
        with self.assertRaisesRegex(UserError, "epsilon_form must be one of tf, pytorch; received 'keras'"):
            Optimizer('Train', [variable], epsilon_form='keras')

    def test_non_finite_gradient_changes_only_the_counters(self):
        for bad in [np.nan, np.inf, -np.inf]:
            variables = [tf.Variable(self.rng.randn(2, 3), dtype=tf.float32, name=name) for name in 'ab']
            optimizer = Optimizer('Train', variables, beta1=0.5)
            apply = tf.function(lambda a, b, optimizer=optimizer: optimizer.apply([a, b], 0.1))
            good = self.rng.randn(2, 3).astype(np.float32)
            self.assertTrue(apply(good, good))
            before, values = snapshot(optimizer), [v.numpy() for v in variables]
            broken = good.copy()
            broken[1, 2] = bad
            for repeat in range(1, 3):
                self.assertFalse(apply(good, broken))
                after = snapshot(optimizer)
                counters = [after.pop(key) for key in ['num_applied', 'num_skipped', 'skipped_in_a_row']]
                self.assertEqual(counters, [1, repeat, repeat])
                for key, value in after.items():
                    self.assertEqual(value.tobytes(), before[key].tobytes(), key)
                for variable, value in zip(variables, values, strict=True):
                    self.assertEqual(variable.numpy().tobytes(), value.tobytes())
            self.assertTrue(apply(good, good))
            self.assertEqual([optimizer.num_applied.numpy(), optimizer.num_skipped.numpy(),
                              optimizer.skipped_in_a_row.numpy()], [2, 2, 0])

    def test_skipped_update_leaves_no_trace_in_the_trajectory(self):
        start, gradients = self.rng.randn(5), self.rng.randn(6, 5)
        variable = tf.Variable(start)
        optimizer = Optimizer('Train', [variable], beta1=0.5)
        for gradient in gradients:
            optimizer.apply([tf.constant(gradient)], 0.01)
            optimizer.apply([tf.fill([5], tf.constant(np.nan, tf.float64))], 0.01)
        expected = numpy_adam(start, gradients, [0.01] * 6, 0.5, 0.99)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-12)

    def test_none_counts_as_zeros(self):
        variables = [keras.Variable(np.ones(3, np.float32), name=name) for name in 'ab']
        optimizer = Optimizer('Train', variables, beta1=0.5, beta2=0.9)
        for gradient in [[1.0, 2.0, 3.0], None, [4.0, 5.0, 6.0]]:
            dense = np.zeros(3, np.float32) if gradient is None else np.array(gradient, np.float32)
            optimizer.apply([None if gradient is None else tf.constant(gradient), tf.constant(dense)], 0.1)
        self.assertAllEqual(variables[0].numpy(), variables[1].numpy())
        expected = numpy_adam(np.ones(3), [[1, 2, 3], [0, 0, 0], [4, 5, 6]], [0.1] * 3, 0.5, 0.9)
        self.assertAllClose(variables[0].numpy(), expected, rtol=1e-5)

    def test_sparse_and_half_gradients(self):
        table = tf.Variable(np.ones([4, 2], np.float32))
        optimizer = Optimizer('Train', [table])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, [1, 1, 3]))
        gradient = tape.gradient(loss, table)
        self.assertIsInstance(gradient, tf.IndexedSlices)
        optimizer.apply([gradient], 0.1)
        self.assertAllClose(table.numpy(), 1 - 0.1 * np.array([[0, 0], [1, 1], [0, 0], [1, 1]]), rtol=1e-6)
        optimizer.apply([tf.ones([4, 2], tf.float16)], 0.1)
        self.assertEqual(optimizer.num_applied.numpy(), 2)

    def test_reset(self):
        start, gradients = self.rng.randn(5), self.rng.randn(4, 5)
        variable = tf.Variable(start)
        optimizer = Optimizer('Train', [variable], beta1=0.5)
        fresh = snapshot(optimizer)
        for gradient in gradients:
            optimizer.apply([tf.constant(gradient)], 0.01)
        optimizer.reset()
        for key, value in snapshot(optimizer).items():
            self.assertAllEqual(value, 4 if key == 'num_applied' else fresh[key])
        middle = variable.numpy()
        for gradient in gradients:
            optimizer.apply([tf.constant(gradient)], 0.01)
        expected = numpy_adam(middle, gradients, [0.01] * 4, 0.5, 0.99)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-12)

    def test_state_survives_a_checkpoint(self):
        start, gradients = self.rng.randn(5), self.rng.randn(6, 5)
        prefix = os.path.join(self.get_temp_dir(), 'state')

        def make():
            variable = tf.Variable(start, name='x')
            optimizer = Optimizer('Train', [variable], beta1=0.5)
            return variable, optimizer, tf.train.Checkpoint(variable=variable, slots=optimizer.state())

        variable, optimizer, checkpoint = make()
        for index, gradient in enumerate(gradients):
            if index == 3:
                path = checkpoint.write(prefix)
            optimizer.apply([tf.constant(gradient)], 0.01)
        resumed, optimizer, checkpoint = make()
        checkpoint.read(path).assert_consumed()
        for gradient in gradients[3:]:
            optimizer.apply([tf.constant(gradient)], 0.01)
        self.assertEqual(resumed.numpy().tobytes(), variable.numpy().tobytes())
        self.assertEqual(optimizer.num_applied.numpy(), 6)

    def test_state_keys(self):
        variables = [tf.Variable([1.0], name='x'), keras.Variable([1.0], name='y')]
        rest = {'beta1_power', 'beta2_power', 'num_applied', 'num_skipped', 'skipped_in_a_row'}
        self.assertEqual(set(Optimizer('Train', variables).state()), {'x/m', 'x/v', 'y/m', 'y/v'} | rest)
        named = Optimizer('Train', variables, variable_names=['4x4/Const/const', 'b'])
        self.assertEqual(set(named.state()), {'4x4/Const/const/m', '4x4/Const/const/v', 'b/m', 'b/v'} | rest)
        self.assertFalse(any(slot.trainable for slot in named.state().values()))

    def test_bad_arguments(self):
        variable = tf.Variable([1.0], name='x')
        for variables, kwargs, message in [
            ([], {}, 'no variables'),
            ([variable, variable], {}, 'same name: x'),
            ([variable], {'variable_names': ['a', 'b']}, '2 names for 1'),
            ([tf.Variable([1])], {}, 'int32'),
            ([variable], {'beta2': 1.0}, r'\[0, 1\)'),
        ]:
            with self.assertRaisesRegex(UserError, message):
                Optimizer('Train', variables, **kwargs)
        optimizer = Optimizer('Train', [variable])
        with self.assertRaisesRegex(ValueError, 'received 2 gradients'):
            optimizer.apply([None, None], 0.1)
        with self.assertRaisesRegex(ValueError, r'shape \(2,\)'):
            optimizer.apply([tf.ones([2])], 0.1)

    def test_local_assign(self):
        def double(variable):
            replica.local_assign(variable, 2 * replica.local_read(variable))
            return replica.local_read(variable)

        for variable in [tf.Variable([1.0, 2.0]), keras.Variable([1.0, 2.0], name='x')]:
            self.assertAllEqual(tf.function(functools.partial(double, variable))(), [2.0, 4.0])
            self.assertAllEqual(replica.unwrap(variable).numpy(), [2.0, 4.0])
            with self.assertRaisesRegex(ValueError, 'cannot assign'):
                replica.local_assign(variable, [1.0, 2.0, 3.0])


class ReplicaTest(tf.test.TestCase):
    """Two logical CPUs, in a process of its own: devices can be divided only before TensorFlow starts."""

    SCRIPT = textwrap.dedent('''
        import keras
        import numpy as np
        import tensorflow as tf
        from dnnlib.util import UserError
        from training import replica
        from training.optimizer import Optimizer

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 2)
        rng = np.random.RandomState(7)
        starts = [rng.randn(3, 2).astype(np.float32), rng.randn(5).astype(np.float32)]
        gradients = [[rng.randn(2, *start.shape).astype(np.float32) for start in starts] for _ in range(8)]
        gradients[3][0][1, 2, 0] = np.nan       # On one replica only, in one variable only.
        gradients[6][1][0, 4] = np.inf

        def make():
            variables = [keras.Variable(starts[0], name='a'), tf.Variable(starts[1], name='b')]
            return variables, Optimizer('Train', variables, beta1=0.5, beta2=0.9)

        def per_replica(strategy, arrays):
            return [strategy.experimental_distribute_values_from_function(
                lambda context, array=array: tf.constant(array[context.replica_id_in_sync_group]))
                for array in arrays]

        def copies(strategy, variable):
            return [copy.numpy() for copy in strategy.experimental_local_results(replica.unwrap(variable))]

        single_variables, single = make()
        strategy = tf.distribute.MirroredStrategy(
            ['/cpu:0', '/cpu:1'], cross_device_ops=tf.distribute.ReductionToOneDevice())
        with strategy.scope():
            variables, optimizer = make()
            try:
                Optimizer('Train', single_variables)
            except UserError as error:
                assert 'under another strategy' in str(error), error
            else:
                raise AssertionError('variables of another strategy were accepted')

        @tf.function
        def step(a, b, lrate):
            return strategy.run(lambda a, b: optimizer.apply([a, b], lrate), args=(a, b))

        single_step = tf.function(lambda a, b, lrate: single.apply([a, b], lrate))
        for index, pair in enumerate(gradients):
            lrate = tf.constant(0.01 * (index + 1))
            result = step(*per_replica(strategy, pair), lrate)
            finite = [bool(f) for f in strategy.experimental_local_results(result)]
            expected = bool(single_step(*[(array[0] + array[1]) / 2 for array in pair], lrate))
            assert finite == [expected] * 2 and expected == (index not in (3, 6)), (index, finite, expected)
            pairs = list(zip(variables, single_variables, strict=True))
            pairs += [(optimizer.state()[key], slot) for key, slot in single.state().items()]
            for mirrored, reference in pairs:
                first, second = copies(strategy, mirrored)
                assert first.tobytes() == second.tobytes(), (index, mirrored)
                np.testing.assert_allclose(first, reference.numpy(), rtol=1e-6, atol=1e-7, err_msg=str(index))
        assert (optimizer.num_applied.numpy(), optimizer.num_skipped.numpy()) == (6, 2)

        optimizer.reset()
        for key, slot in optimizer.state().items():
            first, second = copies(strategy, slot)
            assert first.tobytes() == second.tobytes()
            if key.endswith(('/m', '/v')):
                assert not first.any(), key
        assert copies(strategy, optimizer.state()['beta1_power']) == [0.5, 0.5]

        # The helpers reach each replica's own copy, also from inside tf.cond.
        @tf.function
        def assign_own():
            def run():
                handle = replica.local_handle(variables[0])
                context = tf.distribute.get_replica_context()
                value = tf.fill([3, 2], tf.cast(context.replica_id_in_sync_group, tf.float32))
                replica.local_assign(variables[1], tf.fill([5], value[0, 0] + 10))
                def assign():
                    tf.raw_ops.AssignVariableOp(resource=handle, value=value)
                    return True
                tf.cond(tf.reduce_all(value < 5), assign, lambda: False)
                return replica.local_read(variables[1])
            return strategy.run(run)

        read = [tensor.numpy()[0] for tensor in strategy.experimental_local_results(assign_own())]
        assert read == [10, 11], read
        assert [copy[0, 0] for copy in copies(strategy, variables[0])] == [0, 1]

        # Slots live where their variable lives.
        with tf.device('/cpu:1'):
            elsewhere = tf.Variable([1.0])
        placed = Optimizer('Train', [elsewhere])
        assert placed.state()['Variable/m'].device == elsewhere.device, placed.state()['Variable/m'].device
        assert placed.apply([tf.constant([1.0])], 0.1)
        print('replicas agree')
    ''')

    def test_two_replicas_equal_one_device_with_the_mean_gradient(self):
        root = pathlib.Path(__file__).resolve().parent.parent
        env = os.environ | {'CUDA_VISIBLE_DEVICES': '-1', 'TF_CPP_MIN_LOG_LEVEL': '2'}
        result = subprocess.run(
            [sys.executable, '-c', self.SCRIPT], cwd=root, env=env, capture_output=True, text=True,
            check=False)
        self.assertEqual(result.returncode, 0, result.stderr[-4000:])
        self.assertIn('replicas agree', result.stdout)


if __name__ == '__main__':
    tf.test.main()
