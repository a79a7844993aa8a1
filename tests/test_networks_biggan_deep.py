"""The networks of BigGAN-deep against the golden data, and what they promise beyond it."""

import tempfile

import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.util import UserError
from tests import biggan_testutil, testutil
from tests.biggan_testutil import CollectingContext, one_hot
from training.layers import planned_variables
from training.networks_biggan_deep import ARCHITECTURES, D_biggan_deep, G_biggan_deep


def plan(network_class, **kwargs):
    """{name: shape} of the trainables, without their memory, and the network."""
    with planned_variables():
        network = network_class(**kwargs)
    return {name: tuple(var.shape) for name, var in network.named_trainables().items()}, network


class GoldenTest(tf.test.TestCase):

    @biggan_testutil.needs_golden
    def test_images(self):
        """Statistics of a truncation, between rows too: the public code swaps the weights of rows."""
        arrays = biggan_testutil.load('hf_deep_r64')
        G, given = biggan_testutil.deep_generator(arrays), biggan_testutil.inputs(arrays)
        for truncation, stored in ((1.0, '1.000'), (0.5, '0.500'), (0.436, '0.424'), (0.424, '0.436')):
            ctx = CollectingContext()
            images = G(given['z'], given['y'], ctx=ctx, truncation=truncation)
            np.testing.assert_allclose(testutil.nchw(images), arrays[f'out/images_trunc_{stored}'], atol=2e-5)
            self.assertEmpty(ctx.values)
        # No truncation is the last row.
        images = G(given['z'], given['y'])
        np.testing.assert_allclose(testutil.nchw(images), arrays['out/images_trunc_1.000'], atol=2e-5)
        # Beyond the table there is nothing to go by but its end.
        self.assertAllEqual(G(given['z'], given['y'], truncation=2.0), images)

    @biggan_testutil.needs_golden
    def test_training_from_it(self):
        """Batch statistics: the table stays, both vectors of the iteration move; all have gradients."""
        arrays = biggan_testutil.load('hf_deep_r64')
        G = biggan_testutil.deep_generator(arrays, 'float64')
        given = biggan_testutil.inputs(arrays, 'float64')
        ctx, trainables = CollectingContext(), G.named_trainables()
        with tf.GradientTape() as tape:
            images = G(given['z'], given['y'], ctx=ctx, is_training=True)
            loss = tf.reduce_sum(images ** 2)
        gradients = tape.gradient(loss, [variable.value for variable in trainables.values()])
        self.assertEqual({name.rpartition('/')[2] for name in ctx.after(G)}, {'u', 'v'})
        for name, gradient in zip(trainables, gradients, strict=True):
            self.assertAllInRange(tf.abs(tf.convert_to_tensor(gradient)), 0, 1e9)
            self.assertIsNotNone(gradient, name)


class SizesTest(tf.test.TestCase):

    def test_parameter_counts(self):
        """Published: 50.4 and 56.2 million, whose last layer has ch feature maps."""
        for resolution, count in ((128, 50.4e6), (512, 56.2e6)):
            shapes, _ = plan(G_biggan_deep, resolution=resolution, label_size=1000, output_fmaps=128)
            self.assertNear(sum(int(np.prod(shape)) for shape in shapes.values()), count, 0.05e6)

    def test_discriminators(self):
        """G backwards: halves to 4×4 with every other block."""
        for resolution in (32, 128):
            row = ARCHITECTURES[resolution]
            shapes, D = plan(D_biggan_deep, resolution=resolution, ch=8)
            self.assertEqual([block.down for block in D.blocks], [True, False] * (len(row.G) - 1))
            widths = [shapes[f'Block{index}/Conv3/weight'][3] // 8 for index in range(len(D.blocks))]
            self.assertEqual(widths, [factor for factor in row.G[-2::-1] for _ in range(2)])
            self.assertEqual(set(D.attention), set(row.attention))
            self.assertEqual(resolution >> len(row.G) - 1, 4)

    def test_mistakes(self):
        for text, kwargs in (('ever fewer', dict(multipliers=(1, 2, 1, 1))),
                             ('at least 4', dict(ch=1, multipliers=(2, 1, 1, 1))),
                             ('num_statistics', dict(num_statistics=1)),
                             ('output_fmaps', dict(output_fmaps=2)),
                             ('no architecture', dict(resolution=1024)),
                             ('multipliers', dict(multipliers=[4]))):
            with self.subTest(text), self.assertRaisesRegex(UserError, text):
                plan(G_biggan_deep, **{'resolution': 32, 'ch': 4, **kwargs})


class BlocksTest(tf.test.TestCase):

    def test_discriminator_block(self):
        """Against its description, computed in another way."""
        D = D_biggan_deep(resolution=32, ch=4, multipliers=(4, 2, 2, 1), label_size=2, dtype='float64')
        rnd = np.random.RandomState(1)
        for variable in D.named_trainables().values():
            variable.assign(rnd.randn(*variable.shape))
        ctx, x = CollectingContext(), tf.constant(rnd.randn(2, 32, 32, 3))
        scores = D(x, one_hot([0, 1], 2), ctx=ctx)

        def conv(layer, x):
            matrix = layer.matrix(layer.weight).numpy()
            v = layer.u.numpy() @ matrix
            u = matrix @ (v / np.linalg.norm(v))
            return tf.nn.conv2d(x, layer.weight / np.linalg.norm(u), 1, 'SAME') + layer.bias
        block, x, channels = D.blocks[0], ctx.features['Stem'], (4, 8)
        self.assertEqual((x.shape[3], block.last.weight.shape[3]), channels)
        y = tf.nn.relu(x)
        for layer in block.convs:
            y = tf.nn.relu(conv(layer, y))
        y = conv(block.last, tf.nn.avg_pool2d(y, 2, 2, 'VALID'))
        x = tf.nn.avg_pool2d(x, 2, 2, 'VALID')
        x = tf.concat([x, conv(block.shortcut, x)], 3)
        self.assertAllClose(ctx.features['Block0'], x + y)
        self.assertIsNone(D.blocks[1].shortcut)
        # The sum of rectified features, and the class' row of the table.
        phi = tf.reduce_sum(tf.nn.relu(ctx.features['Block5']), [1, 2])
        self.assertAllClose(ctx.features['Features'], phi)
        self.assertAllClose(scores, ctx.features['Linear'] + tf.reduce_sum(
            ctx.features['Embedding'] * phi, 1, keepdims=True))

    def test_second_order(self):
        """The penalty of R1 has a gradient, which central differences confirm."""
        D = D_biggan_deep(resolution=8, ch=8, multipliers=(1, 1), dtype='float64', attention=[4])
        D.attention[4].gamma.assign(0.7)

        def func(x):
            return tf.reduce_sum(tf.square(D(x)))
        x = np.random.RandomState(1).randn(2, 8, 8, 3)
        testutil.assert_derivative(self, testutil.gradient_sum(func), [x])


class NetworkTest(tf.test.TestCase):

    def test_pickle(self):
        """With its table and vectors."""
        args = dict(num_channels=3, resolution=8, label_size=4, ch=4, multipliers=[2, 1], latent_size=6,
                    num_statistics=5, store_v=True, shared_dim=3, output_fmaps=4)
        G = tflib.Network('G', 'training.networks_biggan_deep.G_biggan_deep', **args)
        rnd = np.random.RandomState(1)
        G.set_vars({name: rnd.rand(*var.shape) for name, var in G.vars.items() if 'moving' in name})
        with tempfile.TemporaryDirectory() as folder:
            G.save(f'{folder}/network.pkl')
            again = tflib.Network.load(f'{folder}/network.pkl')
        self.assertEqual(again.static_kwargs, args)
        z, labels = rnd.randn(3, 6), one_hot([0, 3, 1], 4)
        images = G.run(z, labels, truncation=0.3)
        self.assertEqual(images.shape, (3, 3, 8, 8))
        self.assertAllEqual(again.run(z, labels, truncation=0.3), images)
        self.assertNotAllClose(again.run(z, labels, truncation=0.6), images)

    def test_unconditional_training(self):
        """Both networks without labels; running statistics follow the batch."""
        G = G_biggan_deep(resolution=8, ch=4, multipliers=[2, 1], latent_size=6, num_channels=1)
        D = D_biggan_deep(resolution=8, ch=4, multipliers=[2, 1], num_channels=1)
        images = G(tf.random.normal([4, 6]), is_training=True)
        self.assertEqual(images.shape, [4, 8, 8, 1])
        self.assertEqual(D(images, is_training=True).shape, [4, 1])
        self.assertNotAllClose(G.blocks[1].pairs[2][0].moving_mean, np.zeros(2))


if __name__ == '__main__':
    tf.test.main()
