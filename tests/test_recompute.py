"""Results that are computed again for gradients change memory alone."""

import functools
import os
from unittest import mock

import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.tflib import legacy
from tests import biggan_testutil, testutil
from tests.biggan_testutil import below, convert
from training import loss, memory, training_loop
from training.context import Context, StepContext
from training.layers_biggan import Pass
from training.networks_biggan import D_biggan, G_biggan
from training.networks_biggan_deep import D_biggan_deep, G_biggan_deep
from training.recompute import call_layer, recomputed

SIZES = dict(resolution=16, label_size=3, ch=8, init='normal', attention=[8], attention_chunk=40)


def small_networks(deep=False, recompute=False, dtype='float64', **kwargs):
    """(G, D) with dropout and attention that counts; the same values each time."""
    tf.keras.utils.set_random_seed(5)
    G, D = (G_biggan_deep, D_biggan_deep) if deep else (G_biggan, D_biggan)
    sizes = SIZES | dict(dtype=dtype, recompute=recompute, **kwargs)
    of_D = dict(multipliers=(4, 2, 1)) if deep else dict(multipliers=(1, 2, 4), num_down=2)
    networks = (G(multipliers=(4, 2, 1), latent_size=12, shared_dim=6, **sizes),
                D(dropout=0.25, **of_D, **sizes))
    for network in networks:
        for name, variable in network.named_variables().items():
            if name.endswith('gamma'):
                variable.assign(0.7)
    return networks


def step(G, D, function, sources, traced, reals=None, size=4, **kwargs):
    """{name: value} of one pass of training: loss, gradients, state, reports."""
    names, updated = [], []
    variables = {id(variable): f'{role}/{name}' for role, network in (('G', G), ('D', D))
                 for name, variable in network.named_variables().items()}
    trained = sources.named_trainables()

    def compute():
        ctx = StepContext(tf.constant([3, 4]), tf.cast(tf.eye(3), G.compute_dtype))
        given = () if reals is None else (reals, ctx.random_labels(size))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            values = [variable.value for variable in trained.values()]
            tape.watch(values)
            main, reg = function(G, D, ctx, size, *given, **kwargs)
            total = tf.reduce_mean(main())
            if reg is not None:
                total += tf.reduce_mean(reg())
        found = tape.gradient(total, values, unconnected_gradients='zero')
        names[:] = ['loss', *trained, *[variables[id(variable)] for variable, _ in ctx.updates], *ctx.reports]
        updated[:] = ctx.updates
        return [total, *found, *[value for _, value in ctx.updates], *ctx.reports.values()]

    values = (tf.function(compute, autograph=False) if traced else compute)()
    return dict(zip(names, [np.asarray(value) for value in values], strict=True))


class RecomputeTest(tf.test.TestCase):

    def equal(self, actual, expected, tolerance=1e-12):
        self.assertEqual(set(actual), set(expected))
        self.assertGreater(np.max(np.abs(expected['loss'])), 1e-6)
        for name, value in expected.items():
            scale = np.max(np.abs(value), initial=0)
            np.testing.assert_allclose(actual[name], value, rtol=0, atol=tolerance * (1 + scale),
                                       err_msg=name)

    def test_a_step_is_the_same(self):
        """Losses, gradients, singular vectors and running statistics, R1 with its second derivatives."""
        reals = tf.random.stateless_normal([4, 16, 16, 3], [1, 2], dtype=tf.float64)
        for deep, traced in ((False, False), (False, True), (True, True)):
            pairs = [small_networks(deep, recompute, attention=[] if deep else [8])
                     for recompute in (False, True)]
            with self.subTest(deep=deep, traced=traced):
                # What to compare with takes less time without tracing.
                plain, again = (step(*pair, loss.G_hinge, pair[0], mode)
                                for pair, mode in zip(pairs, (False, traced), strict=True))
                self.equal(again, plain)
                plain, again = (step(*pair, loss.D_logistic_joint, pair[1], mode, reals,
                                     gamma=0 if deep else 3.0)
                                for pair, mode in zip(pairs, (False, traced), strict=True))
                self.equal(again, plain)
                self.assertGreater(np.max(np.abs(plain['Embedding/weight'])), 0)

    def test_low_precision(self):
        for dtype, traced, tolerance in (('float32', False, 2e-6), ('mixed_float16', True, 1e-3)):
            pairs = [small_networks(recompute=recompute, dtype=dtype, attention=[])
                     for recompute in (False, True)]
            plain, again = (step(*pair, loss.G_hinge, pair[0], traced) for pair in pairs)
            self.equal(again, plain, tolerance)

    def test_is_done(self):
        """Every convolution of the blocks is once more in the graph of the gradient, none in inference."""
        counts = {}
        for recompute in (False, True):
            _, D = small_networks(recompute=recompute)
            for training in (False, True):
                def gradient(images, D=D, training=training):
                    ctx = StepContext(tf.constant([3, 4]))
                    with tf.GradientTape() as tape:
                        tape.watch(images)
                        scores = D(images, tf.eye(3, dtype=tf.float64)[:2], ctx=ctx, is_training=training)
                    return tape.gradient(scores, images)
                graph = tf.function(gradient, autograph=False).get_concrete_function(
                    tf.zeros([2, 16, 16, 3], tf.float64)).graph
                counts[recompute, training] = sum(op.type == 'Conv2D' for op in graph.get_operations())
        self.assertEqual(counts[True, False], counts[False, False])
        # Two in each of three blocks, three shortcuts, four in attention.
        self.assertEqual(counts[True, True] - counts[False, True], 13)

    def test_memory_estimate(self):
        """Of each block the sum alone is held, and all of the largest."""
        sizes = dict(num_channels=3, resolution=16, multipliers=[1, 2], num_down=2, ch=8, init='normal')
        plain, again = (memory.activation_bytes(tflib.Network(
            'D', 'training.networks_biggan.D_biggan', recompute=recompute, **sizes))
            for recompute in (False, True))
        self.assertLess(again, plain)
        self.assertGreater(again, 4 * (8 * 8 * 8 + 4 * 4 * 16))
        self.assertEqual(again, memory.activation_bytes(tflib.Network(
            'D', 'training.networks_biggan.D_biggan', **sizes, recompute=True).clone('copy')))

    def test_belongs_to_the_run(self):
        """A run that starts from a snapshot recomputes as its own arguments say, not as the snapshot's."""
        shape = dict(num_channels=3, resolution=32, label_size=3)
        training_set = mock.Mock(shape=[3, 32, 32], label_size=3)
        for stored, args in ((False, {'recompute': True}), (True, {})):
            G = tflib.Network('G', G_biggan, ch=2, **shape, recompute=stored)
            D = tflib.Network('D', D_biggan, ch=2, **shape, recompute=stored)
            path = os.path.join(self.get_temp_dir(), f'{stored}.pkl')
            legacy.save_pkl((G.state(), D.state(), G.state()), path)
            loaded = training_loop._make_networks(training_set, args, args, path)
            self.assertEqual([network.layer.recompute for network in loaded[:2]], [not stored] * 2)

    def test_repeated_contexts(self):
        """Random numbers and state are those of the first evaluation, updates and reports are its own."""
        told, draws = [], []

        class Layer:
            def values_read(self, run):
                return {}

            def __call__(self, x, run):
                draws.append(run.ctx.normal([2]))
                run.ctx.update(None, x)
                run.ctx.report('x', x)
                return x * run.ctx.normal([2]) * draws[-1]

        class Telling(StepContext):
            def update(self, variable, value):
                told.append('update')

            def report(self, name, values):
                told.append(name)
                return values

        ctx = Telling(tf.constant([1, 2]))
        x = tf.constant([3.0, 4.0])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call_layer(Layer(), [x], Pass(ctx, is_training=True))
        self.assertAllClose(tape.gradient(y, x), y / x, rtol=1e-6)
        self.assertEqual(told, ['update', 'x'])
        self.assertLen(draws, 2)
        self.assertAllEqual(*draws)

    def test_derivatives_of_any_order(self):
        def cube(x, y):
            return [x ** 3 * y, y * y]
        x, y = tf.constant(2.0), tf.constant(5.0)
        values = []
        for order in (cube, functools.partial(recomputed, cube)):
            with tf.GradientTape() as third:
                third.watch(x)
                with tf.GradientTape() as second:
                    second.watch(x)
                    with tf.GradientTape() as first:
                        first.watch(x)
                        found = order(x, y)[0]
                    found = first.gradient(found, x)
                found = second.gradient(found, x)
            values.append(float(third.gradient(found, x)))
        self.assertAllClose(values, [30, 30])

    def test_features(self):
        """Where the outputs of layers are asked for, all are there."""
        G, _ = small_networks(recompute=True)
        ctx = Context(keep_features=True)
        G(tf.zeros([2, 12], tf.float64), tf.eye(3, dtype=tf.float64)[:2], ctx=ctx, is_training=True)
        self.assertIn('Block1/BN0', ctx.features)

    def gradients(self, compute, trained):
        """Gradients and new state of what compute() -> (loss, context) does."""
        with tf.GradientTape() as tape:
            value, ctx = compute()
        self.updates = ctx.updates
        return tape.gradient(value, [variable.value for variable in trained]), [
            value for _, value in ctx.updates]

    @biggan_testutil.needs_golden
    def test_golden_steps(self):
        """The recorded gradients of both networks."""
        arrays = biggan_testutil.load('r64_hier_attn')
        given = biggan_testutil.inputs(arrays, 'float64')
        G, D = biggan_testutil.networks(arrays, 'float64', recompute=True)
        fakes = tf.constant(testutil.nhwc(arrays['train/G_images']), tf.float64)

        def of_G():
            ctx = StepContext(tf.constant([1, 2]))
            images = G(given['z'], given['y'], ctx=ctx, is_training=True)
            return -tf.reduce_mean(D(images, given['y'], ctx=ctx, is_training=True)), ctx

        def of_D():
            ctx = StepContext(tf.constant([1, 2]))
            scores = D(tf.concat([fakes, given['x']], 0), tf.concat([given['y'], given['y_real']], 0),
                       ctx=ctx, is_training=True)
            fake, real = tf.split(scores, 2)
            return tf.reduce_mean(tf.nn.relu(1 - real)) + tf.reduce_mean(tf.nn.relu(1 + fake)), ctx

        for role, network, compute in (('G', G, of_G), ('D', D, of_D)):
            prefix, trainables = f'{role.lower()}step', network.named_trainables()

            gradients = functools.partial(self.gradients, compute, list(trainables.values()))
            found, updates = tf.function(gradients, autograph=False)()
            found = dict(zip(trainables, found, strict=True))
            expected = convert(role, below(arrays, f'{prefix}/grad'), arrays['config'])
            self.assertNotEmpty(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-3 * np.max(np.abs(value)))
            expected = convert(role, below(arrays, {'G': 'train/G_after', 'D': 'dstep/D_after'}[role]),
                               arrays['config'])
            names = {id(variable): name for name, variable in network.named_variables().items()}
            updates = {names[id(variable)]: value for (variable, _), value in zip(
                self.updates, updates, strict=True) if id(variable) in names}
            self.assertEqual(set(updates), set(expected))
            for name, value in expected.items():
                np.testing.assert_allclose(updates[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


if __name__ == '__main__':
    tf.test.main()
