"""The layers of BigGAN: against golden data, second formulas, numeric derivatives, and on two devices."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from custom_ops import upsample_2d
from tests import biggan_testutil, testutil
from tests.biggan_testutil import CollectingContext
from training import layers_biggan
from training.context import Context
from training.layers_biggan import (
    Attention,
    BatchNorm,
    ConditionalBatchNorm,
    Conv2D,
    Dense,
    Embedding,
    Options,
    Orthogonal,
    Pass,
    attend,
    batch_moments,
)

DOUBLE = Options(dtype='float64', init='xavier')
TRAIN = dict(is_training=True)


def layers_for(matrix_name, matrix):
    """A layer of each kind that can hold a golden matrix [out, rest]."""
    if matrix.ndim == 4:
        layer = Conv2D('it', matrix.shape[1], matrix.shape[0], 3, DOUBLE)
        layer.weight.assign(matrix.transpose(2, 3, 1, 0))
        return [layer]
    dense, embedding = Dense('it', *matrix.shape[::-1], DOUBLE), Embedding('it', *matrix.shape, DOUBLE)
    dense.weight.assign(matrix.T)
    embedding.weight.assign(matrix)
    return [dense, embedding]


class SpectralNormTest(tf.test.TestCase):

    @biggan_testutil.needs_golden
    def test_golden_iteration(self):
        """One, two and a hundred passes; then it is the largest singular value."""
        arrays = biggan_testutil.load('power_iteration')
        for name in ('tall', 'wide', 'conv'):
            matrix = arrays[f'{name}/W']
            for layer in layers_for(name, matrix):
                layer.u.assign(arrays[f'{name}/u_in'][0])
                for count in range(1, 101):
                    sigma = layer.sigma(Pass(Context(), **TRAIN))
                    if count in (1, 2, 100):
                        self.assertAllClose(layer.u, arrays[f'{name}/u_after{count}'][0], atol=1e-5)
                        self.assertAllClose(sigma, arrays[f'{name}/sv_after{count}'][0], rtol=1e-5)
                exact = np.linalg.svd(layer.matrix(layer.weight), compute_uv=False)[0]
                self.assertNear(float(sigma), exact, 1e-5 * exact)

    def test_gradient(self):
        """(G - <G, W/σ> u vᵀ) / σ, with the vectors of the pass as constants."""
        rnd = np.random.RandomState(1)
        for layer in (Conv2D('it', 3, 5, 3, DOUBLE), Dense('it', 7, 4, DOUBLE),
                      Embedding('it', 6, 4, DOUBLE)):
            upstream = rnd.randn(*layer.weight.shape)
            with tf.GradientTape() as tape:
                weight = layer.normalized_weight(Pass(Context()))
            found = tape.gradient(weight, layer.weight.value, upstream)
            matrix, u = layer.matrix(layer.weight).numpy(), layer.u.numpy()
            v = u @ matrix
            v /= np.linalg.norm(v)
            u = matrix @ v
            sigma = np.linalg.norm(u)
            u /= sigma
            wanted = layer.matrix(upstream).numpy()
            wanted = (wanted - np.sum(wanted * matrix / sigma) * np.outer(u, v)) / sigma
            self.assertAllClose(layer.matrix(found), wanted, rtol=1e-10, atol=1e-10)

    def test_epsilon(self):
        """Divides vectors that are shorter than it."""
        layer = Dense('it', 2, 2, Options(dtype='float64', sn_epsilon=0.5))
        layer.weight.assign(np.diag([0.1, 0.05]))
        layer.u.assign([1.0, 0.0])
        # v = 0.1 / 0.5, the image 0.02, u = 0.02 / 0.5, σ = image · u.
        self.assertAllClose(layer.sigma(Pass(Context())), 0.02 * 0.04, rtol=1e-12)

    def test_inference_leaves_u(self):
        """The same step of the iteration, not stored."""
        layer = Dense('it', 4, 3, DOUBLE)
        before = layer.u.numpy()
        sigma = layer.sigma(Pass(Context()))
        self.assertAllEqual(layer.u, before)
        self.assertAllEqual(layer.sigma(Pass(Context(), **TRAIN)), sigma)
        self.assertNotAllClose(layer.u, before)

    def test_stored_vectors(self):
        """σ = uᵀWv without a step; training makes steps and stores both."""
        layer = Dense('it', 4, 3, Options(dtype='float64', store_v=True))
        u, v, weight = layer.u.numpy(), layer.v.numpy(), layer.weight.numpy()
        self.assertAllClose(layer.sigma(Pass(Context())), u @ weight.T @ v)
        trained = layer.sigma(Pass(Context(), **TRAIN))
        self.assertAllClose(layer.sigma(Pass(Context())), trained)
        self.assertAllClose(np.linalg.norm(layer.v), 1)

    def test_half_precision(self):
        """The iteration stays in float32, whatever the weights are in."""
        for dtype, state in (('mixed_float16', 'float32'), ('float16', 'float16')):
            layer = Dense('it', 300, 300, Options(dtype=dtype, init='normal'))
            self.assertEqual(layer.u.dtype, state)
            layer.weight.assign(np.random.RandomState(1).randn(300, 300) * 60)    # Squares beyond float16.
            ctx = CollectingContext()
            for _ in range(20):
                weight = layer.normalized_weight(Pass(ctx, **TRAIN))
            self.assertEqual(weight.dtype, tf.float16)
            self.assertNear(np.linalg.norm(np.float64(weight), 2), 1, 0.05)
            self.assertEqual(ctx.value(layer.u).dtype, tf.float32)


class ConvolutionTest(tf.test.TestCase):

    def test_resampling(self):
        """Folded into the convolution it is what it is beside it."""
        x = tf.random.normal([2, 6, 8, 3], dtype=tf.float64)
        for kernel in (1, 3):
            plain = Conv2D('it', 3, 5, kernel, DOUBLE)
            for option in ('up', 'down'):
                layer = Conv2D('it', 3, 5, kernel, DOUBLE, **{option: True})
                for name, variable in layer.named_variables().items():
                    variable.assign(plain.named_variables()[name])
                layer.bias.assign(np.arange(5))
                plain.bias.assign(np.arange(5))
                if option == 'up':
                    wanted = plain(tf.repeat(tf.repeat(x, 2, 1), 2, 2), run=Pass(Context()))
                else:
                    wanted = tf.nn.avg_pool2d(plain(x, run=Pass(Context())), 2, 2, 'VALID')
                self.assertAllClose(layer(x, run=Pass(Context())), wanted, rtol=1e-10, atol=1e-10)
        self.assertAllEqual(upsample_2d(x, data_format='NHWC'), tf.repeat(tf.repeat(x, 2, 1), 2, 2))


class BatchNormTest(tf.test.TestCase):

    def test_moments(self):
        """Biased; exact for a small variance around a large mean."""
        x = np.random.RandomState(1).randn(3, 4, 5, 2) * [1, 0.01] + [0, 1000]
        x = tf.constant(x, tf.float32)
        mean, variance, count = batch_moments(x)
        self.assertAllClose(mean, np.mean(np.float64(x), (0, 1, 2)), rtol=1e-6, atol=1e-6)
        self.assertAllClose(variance, np.var(np.float64(x), (0, 1, 2)), rtol=1e-3)
        self.assertEqual(count, 60)

    def test_running(self):
        """0.9 of the old and 0.1 of the new; unbiased or biased; of a single value, too."""
        x = np.random.RandomState(1).randn(3, 2, 2, 2) + 5
        for unbiased in (True, False):
            layer = BatchNorm('it', 2, Options(dtype='float64', bn_unbiased=unbiased))
            layer.moving_mean.assign([1, 2])
            layer.moving_variance.assign([3, 4])
            layer(tf.constant(x), run=Pass(Context(), **TRAIN))
            self.assertAllClose(layer.moving_mean, 0.9 * np.array([1, 2]) + 0.1 * x.mean((0, 1, 2)))
            self.assertAllClose(layer.moving_variance, 0.9 * np.array([3, 4])
                                + 0.1 * x.var((0, 1, 2), ddof=int(unbiased)))
        layer(tf.ones([1, 1, 1, 2], tf.float64), run=Pass(Context(), **TRAIN))
        self.assertAllInRange(layer.moving_variance, 0, 4)

    def test_conditional(self):
        """1 + gain per sample; ReLU; the epsilon under the root."""
        x = np.random.RandomState(1).randn(3, 2, 2, 4)
        layer = ConditionalBatchNorm('it', 4, 5, Options(dtype='float64', bn_epsilon=0.3), plain=True)
        condition = np.random.RandomState(2).randn(3, 5)
        layer.moving_mean.assign([1, 2, 3, 4])
        layer.moving_variance.assign([4, 3, 2, 1])
        wanted = (x - [1, 2, 3, 4]) / np.sqrt(np.array([4, 3, 2, 1]) + 0.3)
        gain, bias = (condition @ part.weight.numpy() for part in (layer.gain, layer.bias))
        wanted = np.maximum(wanted * (1 + gain[:, None, None]) + bias[:, None, None], 0)
        self.assertAllClose(layer(tf.constant(x), tf.constant(condition), run=Pass(Context())), wanted)

    def test_gradient(self):
        """Through the moments of the batch, of first and second order."""
        layer = ConditionalBatchNorm('it', 2, 3, DOUBLE)
        rnd = np.random.RandomState(1)
        weights = rnd.randn(2, 3, 3, 2)

        def func(x, condition):
            return tf.reduce_sum(layer(x, condition, run=Pass(Context(), statistics='batch')) ** 2 * weights)
        inputs = [rnd.randn(2, 3, 3, 2), rnd.randn(2, 3)]
        testutil.assert_derivative(self, func, inputs)
        testutil.assert_derivative(self, testutil.gradient_sum(func), inputs)

    def test_table(self):
        """Linear between rows; training does not touch it."""
        layer = BatchNorm('it', 1, Options(dtype='float64', bn_table=3, bn_epsilon=0.0))
        layer.moving_mean.assign([[0], [10], [30]])
        layer.moving_variance.assign([[1], [1], [4]])
        x = tf.fill([1, 1, 1, 1], tf.constant(100, tf.float64))
        for truncation, mean, variance in ((0, 0, 1), (0.25, 5, 1), (0.5, 10, 1), (0.9, 26, 3.4), (1, 30, 4),
                                           (tf.constant(0.75), 20, 2.5)):
            found = layer(x, run=Pass(Context(), truncation=truncation))
            self.assertAllClose(found[0, 0, 0, 0], (100 - mean) / np.sqrt(variance), rtol=1e-6)
        before = layer.moving_mean.numpy()
        layer(x, run=Pass(Context(), **TRAIN))
        self.assertAllEqual(layer.moving_mean, before)


class AttentionTest(tf.test.TestCase):

    def test_identity_at_the_start(self):
        layer = Attention('it', 16, Options())
        x = tf.random.normal([2, 8, 8, 16])
        self.assertAllEqual(layer(x, run=Pass(Context())), x)
        layer.gamma.assign(0.5)
        self.assertNotAllClose(layer(x, run=Pass(Context())), x)

    def test_formula(self):
        """Softmax over the keys, without a scale; other shapes than square."""
        rnd = np.random.RandomState(1)
        q, k, v = rnd.randn(2, 6, 3), rnd.randn(2, 4, 3), rnd.randn(2, 4, 5)
        weights = np.exp(np.einsum('nqd,nkd->nqk', q, k))
        weights /= weights.sum(2, keepdims=True)
        self.assertAllClose(attend(*map(tf.constant, (q, k, v))), np.einsum('nqk,nkc->nqc', weights, v))

    def test_chunks(self):
        """The same values, first and second derivatives, for chunks that do not divide the queries too."""
        rnd = np.random.RandomState(1)
        inputs = [tf.constant(rnd.randn(2, size, width)) for size, width in ((7, 3), (4, 3), (4, 5))]
        weights = rnd.randn(2, 7, 5)

        def derivatives(chunk):
            with tf.GradientTape() as outer:
                outer.watch(inputs)
                with tf.GradientTape() as tape:
                    tape.watch(inputs)
                    y = attend(*inputs, chunk)
                    loss = tf.reduce_sum(y ** 2 * weights)
                first = tape.gradient(loss, inputs)
                total = tf.add_n([tf.reduce_sum(tf.sin(g)) for g in first])
            return [y, *first, *outer.gradient(total, inputs)]

        plain = derivatives(0)
        for chunk in (1, 3, 7, 100):
            for traced in (False, True):
                found = tf.function(derivatives, autograph=False)(chunk) if traced else derivatives(chunk)
                for a, b in zip(found, plain, strict=True):
                    self.assertAllClose(a, b, rtol=1e-10, atol=1e-10)

        def func(*args):
            return tf.reduce_sum(attend(*args, 3) ** 2 * weights)
        testutil.assert_derivative(self, func, inputs)
        testutil.assert_derivative(self, testutil.gradient_sum(func), inputs)

    def test_large_images_are_chunked(self):
        """The layer's own choice, and one of the user's, change nothing."""
        x = tf.random.normal([1, 8, 8, 8])
        layers = [Attention('it', 8, Options(), chunk) for chunk in (None, 0, 5)]
        layers[0].gamma.assign(1.0)
        for layer in layers[1:]:
            for name, variable in layer.named_variables().items():
                variable.assign(layers[0].named_variables()[name])
        results = [layer(x, run=Pass(Context())) for layer in layers]
        self.assertAllClose(results[0], results[1])
        self.assertAllClose(results[0], results[2])


class InitialValuesTest(tf.test.TestCase):

    def test_orthogonal(self):
        """Orthonormal rows or columns, of the distribution that all rotations leave as it is."""
        for dtype, tolerance in ((tf.float64, 1e-12), (tf.float32, 1e-5)):
            for shape in ((3, 3, 8, 12), (6, 6), (10, 4), (4, 10)):
                matrix = tf.reshape(Orthogonal()(shape, dtype), [-1, shape[-1]]).numpy()
                if matrix.shape[0] < matrix.shape[1]:
                    matrix = matrix.T
                self.assertAllClose(matrix.T @ matrix, np.eye(matrix.shape[1]), rtol=0, atol=tolerance)
        for shape in ((2, 2), (4, 2)):
            found = np.stack([Orthogonal()(shape).numpy() for _ in range(400)])
            self.assertAllClose(found.mean(0), np.zeros(shape), rtol=0, atol=0.15)
            self.assertAllClose(np.square(found).mean(0), np.full(shape, 1 / shape[0]), rtol=0, atol=0.1)

    def test_signs(self):
        """Both ways give the factor whose R has a positive diagonal."""
        matrix = tf.random.stateless_normal([40, 8], [1, 2], dtype=tf.float64)
        for rows in (8, 12, 40):
            q, part = layers_biggan._orthonormal(matrix[:rows], tf.float64).numpy(), matrix[:rows].numpy()
            r = q.T @ part
            self.assertAllClose(q @ r, part)
            self.assertAllClose(r, np.triu(r))
            self.assertGreater(np.diag(r).min(), 0)


# Half of the batch on each of two devices, and the whole of it on one.
SCRIPT = textwrap.dedent('''
    import numpy as np, tensorflow as tf
    from training.strategies import make_strategy
    strategy = make_strategy(2)
    from training.context import StepContext
    from training.networks_biggan import D_biggan, G_biggan
    from training.replica import unwrap

    def make():
        common = dict(resolution=8, label_size=3, dtype='float64', attention=[8], ch=8)
        networks = [G_biggan(multipliers=(2, 1), latent_size=8, shared_dim=4, **common),
                    D_biggan(multipliers=(1, 2), num_down=1, **common | {'attention': []})]
        rnd = np.random.RandomState(1)
        for network in networks:
            for variable in network.named_variables().values():
                value = rnd.rand(*variable.shape) if len(variable.shape) < 2 else rnd.randn(*variable.shape)
                variable.assign(value)
        return networks

    def step(G, D, z, y):
        ctx, names = StepContext(tf.zeros([2], tf.int32)), G.named_trainables()
        sources = [unwrap(variable) for variable in names.values()]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            images = G(z, y, ctx=ctx, is_training=True)
            loss = tf.reduce_mean(tf.nn.softplus(D(images, y, ctx=ctx, is_training=True)))
        return images, tape.gradient(loss, sources), [value for _, value in ctx.updates]

    rnd = np.random.RandomState(2)
    z, y = rnd.randn(4, 8), np.eye(3)[[0, 1, 2, 0]]
    whole = step(*make(), tf.constant(z), tf.constant(y))
    with strategy.scope():
        G, D = make()

    @tf.function(autograph=False)
    def run():
        def body():
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            part = [tf.gather(tf.constant(value), tf.range(2) + 2 * index) for value in (z, y)]
            return step(G, D, *part)
        return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x), strategy.run(body))

    images, gradients, updates = run()
    np.testing.assert_allclose(np.concatenate(images), whole[0], rtol=1e-9, atol=1e-9)
    for parts, value in zip(updates, whole[2], strict=True):
        for part in parts:
            np.testing.assert_allclose(part, value, rtol=1e-9, atol=1e-9)
    assert len(updates) == len(whole[2]) > 20
    for parts, value in zip(gradients, whole[1], strict=True):
        np.testing.assert_allclose((parts[0] + parts[1]) / 2, value, rtol=1e-7,
                                   atol=1e-9 + 1e-8 * np.max(np.abs(value)))
    print('equal', len(gradients))
''')


class ReplicasTest(tf.test.TestCase):

    @pytest.mark.slow       # tests/test_training_biggan.py, too, fails where replicas differ from one device.
    def test_two_devices(self):
        """Moments, images, updates and gradients are those of one device with the whole batch."""
        result = subprocess.run([sys.executable, '-c', SCRIPT], cwd=testutil.ROOT, capture_output=True,
                                text=True, timeout=600)
        self.assertIn('equal', result.stdout, result.stderr[-3000:])


if __name__ == '__main__':
    tf.test.main()
