"""The networks of BigGAN against the golden data, and what they promise beyond it."""

import functools
import math
import tempfile

import numpy as np
import pytest
import tensorflow as tf

from dnnlib import tflib
from dnnlib.util import UserError
from tests import biggan_testutil, testutil
from tests.biggan_testutil import CollectingContext, below, convert, one_hot
from training import networks_biggan
from training.context import Context, StepContext
from training.layers import planned_variables
from training.layers_biggan import Pass
from training.networks_biggan import Architecture, D_biggan, G_biggan

FILES = ('r32_flat', 'r32_hier', 'r32_unshared', 'r64_hier_attn', 'r128_hier_attn')

load = functools.cache(biggan_testutil.load)


@functools.cache
def networks_of(name, dtype='float32'):
    """(G, D) in the start state of a golden file. No test here changes it."""
    return biggan_testutil.networks(load(name), dtype)


def gradients_of(loss, network):
    """(value of loss(), {name: gradient}) for the trainables of a network."""
    trainables = network.named_trainables()
    with tf.GradientTape() as tape:
        value = loss()
    found = tape.gradient(value, [variable.value for variable in trainables.values()],
                          unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return value, dict(zip(trainables, found, strict=True))


def hinge(real, fake):
    return tf.reduce_mean(tf.nn.relu(1 - real)), tf.reduce_mean(tf.nn.relu(1 + fake))


@biggan_testutil.needs_golden
class GoldenTest(tf.test.TestCase):
    """Outputs, buffers, losses and gradients of the public implementation."""

    def close(self, actual, expected, atol, rtol=0.0, msg=''):
        actual, expected = np.asarray(actual), np.asarray(expected)
        self.assertEqual(actual.shape, expected.shape, msg)
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=msg)

    def scores(self, actual, expected, msg=''):
        self.close(actual, expected, 1e-4, 1e-4, msg)

    def buffers(self, role, ctx, network, arrays, prefix):
        expected = convert(role, below(arrays, prefix), arrays['config'])
        actual = ctx.after(network)
        self.assertEqual(set(actual), set(expected))
        for name, value in expected.items():
            self.close(actual[name], value, 1e-5, 1e-5 if name.endswith('variance') else 0, name)

    def check_gradients(self, role, found, arrays, prefix):
        """The recorded gradients, and the norm of every one."""
        expected = convert(role, below(arrays, f'{prefix}/grad'), arrays['config'])
        for name, value in expected.items():
            self.close(found[name], value, 1e-3 * np.max(np.abs(value)), msg=f'{prefix} {name}')
        names, norms = arrays[f'names/{role}_params'], arrays.get(f'{prefix}/grad_l2', [])
        for name, norm in zip(names, norms, strict=False):
            value = arrays[f'{role}/{name}']
            ours = next(iter(convert(role, {str(name): value}, arrays['config'])))
            self.assertNear(np.linalg.norm(found[ours]), norm, 1e-3 * norm + 1e-6 * max(norms), ours)
        self.assertEqual(len(found), len(names))

    def test_inference(self):
        """Images, scores and activations in float32; nothing moves."""
        for name in FILES:
            with self.subTest(name):
                arrays, (G, D), given = load(name), networks_of(name), biggan_testutil.inputs(load(name))
                contexts = {role: CollectingContext() for role in 'GD'}
                images = G(given['z'], given['y'], ctx=contexts['G'])
                self.close(testutil.nchw(images), arrays['eval/G_images'], 2e-5)
                self.scores(D(images, given['y'], ctx=contexts['D']), arrays['eval/D_fake'])
                self.scores(D(given['x'], given['y_real'], ctx=contexts['D']), arrays['eval/D_real'])
                self.assertEmpty(contexts['G'].values | contexts['D'].values)
                self.check_activations(arrays, {role: ctx.features for role, ctx in contexts.items()})

    def check_activations(self, arrays, features):
        """The first layer, and every block after its attention."""
        count, width = arrays['eval/act/G_linear'].shape
        linear = tf.reshape(features['G']['Linear'][:count], [count, 4, 4, -1])
        linear = tf.reshape(tf.transpose(linear, [0, 3, 1, 2]), [count, -1])[:, :width]
        self.close(linear, arrays['eval/act/G_linear'], 2e-5)
        for key, value in below(arrays, 'eval/act').items():
            role, _, block = key.partition('_')
            if block == 'linear':
                continue
            attention = f'Attention_{value.shape[2]}x{value.shape[3]}'
            wanted = biggan_testutil.attention(arrays['config'], role)
            found = features[role][attention if value.shape[2] in wanted else block.capitalize()]
            self.close(testutil.nchw(found[:1, ..., :4]), value, 2e-5, 1e-5, key)

    def test_training_pass(self):
        for name in ('r32_flat', 'r32_unshared', 'r64_hier_attn'):
            with self.subTest(name):
                arrays, (G, _), given = load(name), networks_of(name), biggan_testutil.inputs(load(name))
                ctx = CollectingContext()
                images = G(given['z'], given['y'], ctx=ctx, is_training=True)
                self.close(testutil.nchw(images), arrays['train/G_images'], 5e-5)
                self.buffers('G', ctx, G, arrays, 'train/G_after')

    def test_sigmas(self):
        """What the weights are divided by in the first pass."""
        for name in FILES:
            arrays = load(name)
            for role, network, prefix in zip('GD', networks_of(name), ('train/G_after', 'dstep/D_after'),
                                             strict=True):
                layers = network.normalized_layers()
                for key, sigma in below(arrays, prefix).items():
                    if key.endswith('.sv0'):
                        weight = f'{key.removesuffix("sv0")}weight'
                        values = {weight: arrays[f'{role}/{weight}']}
                        scope, _, _ = next(iter(convert(role, values, arrays['config']))).rpartition('/')
                        found = layers.pop(scope).sigma(Pass(CollectingContext(), is_training=True))
                        self.close(found, sigma.reshape([]), 0, 1e-5, f'{name} {key}')
                self.assertEmpty(layers)

    @pytest.mark.slow
    def test_discriminator_step_at_128(self):
        self.check_discriminator_step('r128_hier_attn')
        self.check_r1('r128_hier_attn')

    def test_discriminator_step(self):
        for name in ('r32_flat', 'r32_hier', 'r32_unshared', 'r64_hier_attn'):
            with self.subTest(name):
                self.check_discriminator_step(name)

    def check_discriminator_step(self, name):
        arrays, given = load(name), biggan_testutil.inputs(load(name), 'float64')
        D, ctx = networks_of(name, 'float64')[1], CollectingContext()
        fakes = tf.constant(testutil.nhwc(arrays['train/G_images']), tf.float64)
        outputs = []

        def loss():
            scores = D(tf.concat([fakes, given['x']], 0), tf.concat([given['y'], given['y_real']], 0),
                       ctx=ctx, is_training=True)
            fake, real = tf.split(scores, 2)
            parts = hinge(real, fake)
            outputs[:] = fake, real, *parts
            return tf.add_n(parts)

        _, found = gradients_of(loss, D)
        self.scores(outputs[0], arrays['dstep/D_fake'])
        self.scores(outputs[1], arrays['dstep/D_real'])
        self.assertAllClose(outputs[2:], [arrays['dstep/loss_real'], arrays['dstep/loss_fake']], rtol=1e-4)
        self.check_gradients('D', found, arrays, 'dstep')
        self.buffers('D', ctx, D, arrays, 'dstep/D_after')
        ctx = CollectingContext()
        self.scores(D(fakes, given['y'], ctx=ctx, is_training=True), arrays['dsplit/D_fake'])
        self.scores(D(given['x'], given['y_real'], ctx=ctx, is_training=True), arrays['dsplit/D_real'])

    def test_generator_step(self):
        for name in FILES:
            with self.subTest(name):
                arrays, given = load(name), biggan_testutil.inputs(load(name), 'float64')
                (G, D), ctx, outputs = networks_of(name, 'float64'), CollectingContext(), []

                def loss(G=G, D=D, ctx=ctx, given=given, outputs=outputs):
                    images = G(given['z'], given['y'], ctx=ctx, is_training=True)
                    outputs[:] = [D(images, given['y'], ctx=ctx, is_training=True), images]
                    return -tf.reduce_mean(outputs[0])

                value, found = gradients_of(loss, G)
                self.scores(outputs[0], arrays['gstep/D_fake'])
                self.close(testutil.nchw(outputs[1]), arrays['train/G_images'], 1e-6)
                self.assertAllClose(value, arrays['gstep/loss'], rtol=1e-4)
                self.check_gradients('G', found, arrays, 'gstep')
                self.buffers('G', ctx, G, arrays, 'train/G_after')
                self.buffers('D', ctx, D, arrays, 'gstep/D_after')

    def test_r1(self):
        """The penalty is made of first derivatives, its gradient of second ones."""
        for name in ('r32_flat', 'r32_hier', 'r32_unshared', 'r64_hier_attn'):
            with self.subTest(name):
                self.check_r1(name)

    def check_r1(self, name):
        arrays, given = load(name), biggan_testutil.inputs(load(name), 'float64')
        D, norms = networks_of(name, 'float64')[1], []

        def loss():
            with tf.GradientTape() as tape:
                tape.watch(given['x'])
                scores = D(given['x'], given['y_real'], ctx=CollectingContext(), is_training=True)
            gradient = tape.gradient(scores, given['x'])
            norms[:] = [tf.reduce_sum(tf.square(gradient), axis=[1, 2, 3])]
            return 5 * tf.reduce_mean(norms[0])

        value, found = gradients_of(loss, D)
        self.assertAllClose(norms[0], arrays['r1/sq_norm'], rtol=1e-4)
        self.assertAllClose(value, arrays['r1/penalty'], rtol=1e-4)
        self.check_gradients('D', found, arrays, 'r1')

    def test_standing_statistics(self):
        arrays = load('standing_r32_hier')
        G, _ = biggan_testutil.networks(arrays)
        sums = {}

        class Moments(CollectingContext):
            def moments(self, norm, mean, variance):
                for key, value in (('moving_mean', mean), ('moving_variance', variance)):
                    name = f'{norm.scope}/{key}'
                    sums[name] = sums.get(name, 0) + value.numpy()

        ctx = Moments()
        for z, y in zip(arrays['in/z_passes'], arrays['in/y_passes'], strict=True):
            G(tf.constant(z), one_hot(y), ctx=ctx, is_training=True)
        expected = below(arrays, 'after')
        expected.pop('G_images')
        expected = convert('G', expected, arrays['config'])
        moved = ctx.after(G)
        for name, value in expected.items():
            self.close(sums[name] if name in sums else moved[name], value, 1e-5, 1e-5, name)
        variables = G.named_variables()
        for name in expected:
            variables[name].assign(sums[name] / len(arrays['in/z_passes']) if name in sums else moved[name])
        images = G(tf.constant(arrays['in/z']), one_hot(arrays['in/y']))
        self.close(testutil.nchw(images), arrays['after/G_images'], 2e-5)
        self.assertEqual(set(sums), {name for name in variables if '/moving_' in name})

    def test_statistics_of_the_batch(self):
        """As in training, but nothing moves; running ones do not depend on the batch."""
        arrays, (G, _) = load('r32_hier'), networks_of('r32_hier')
        given, ctx = biggan_testutil.inputs(arrays), CollectingContext()
        images = G(given['z'], given['y'], ctx=ctx, statistics='batch')
        self.close(testutil.nchw(images), arrays['train/G_images'], 5e-5)
        self.assertEmpty(ctx.values)
        single = [G(given['z'][i:i + 1], given['y'][i:i + 1]) for i in range(4)]
        self.close(testutil.nchw(tf.concat(single, 0)), arrays['eval/G_images'], 2e-5)

    def test_traced_float16(self):
        """Half precision stays close, and finite where a moment of the batch is beyond it."""
        arrays, given = load('r32_hier'), biggan_testutil.inputs(load('r32_hier'))
        G, D = biggan_testutil.networks(arrays, 'mixed_float16')
        self.assertEqual(G.linear.weight.dtype, 'float32')
        for training, key in ((False, 'eval'), (True, 'train')):
            ctx = CollectingContext()
            images = G(given['z'], given['y'], ctx=ctx, is_training=training)
            self.assertEqual(images.dtype, tf.float16)
            self.close(testutil.nchw(tf.cast(images, tf.float32)), arrays[f'{key}/G_images'], 2e-2)
        self.buffers_close_in_half(ctx, G, arrays)
        scores = D(testutil.nhwc(arrays['eval/G_images']), given['y'])
        self.close(tf.cast(scores, tf.float32), arrays['eval/D_fake'], 2e-2, 1e-2)

    def buffers_close_in_half(self, ctx, G, arrays):
        expected = convert('G', below(arrays, 'train/G_after'), arrays['config'])
        for name, value in ctx.after(G).items():
            # The iteration runs in float32 on float32 weights: as exact as without half precision.
            self.close(value, expected[name], *((1e-5, 0) if name.endswith('/u') else (1e-2, 1e-2)), name)


class SizesTest(tf.test.TestCase):
    """Numbers of parameters (section 1 of the specification), tables, arguments."""

    def plan(self, network_class, **kwargs):
        """{name: shape} of the trainables, without their memory, and the network."""
        with planned_variables():
            network = network_class(**{'label_size': 1000, **kwargs})
        return {name: tuple(var.shape) for name, var in network.named_trainables().items()}, network

    def test_architectures(self):
        """Numbers of parameters, multiples of ch, attention [resolution, channels] and downsamplings."""
        counts = {(128, 96): (70_433_988, 87_982_370), (128, 64): (31_978_628, 39_448_258),
                  (256, 96): (82_097_604, 99_225_890), (512, 96): (82_468_068, 99_401_282)}
        for resolution, ch, of_G, of_D, attention, num_down in (
                (32, 4, (4, 4, 4), (4, 4, 4, 4), ([], []), 2),
                (64, 4, (16, 8, 4, 2), (1, 2, 4, 8, 16), ([], []), 4),
                (128, 64, (16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), ([64, 128], [64, 64]), 5),
                (128, 96, (16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), ([64, 192], [64, 96]), 5),
                (256, 96, (16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16), ([128, 192], [64, 192]), 6),
                (512, 96, (16, 8, 8, 4, 2, 1, 1), (1, 1, 2, 4, 8, 8, 16, 16), ([64, 384], [64, 192]), 7)):
            for index, (network_class, multiples) in enumerate([(G_biggan, of_G), (D_biggan, of_D)]):
                shapes, network = self.plan(network_class, resolution=resolution, ch=ch)
                if (resolution, ch) in counts:
                    self.assertEqual(sum(map(math.prod, shapes.values())), counts[resolution, ch][index])
                self.assertEqual([shapes[f'Block{i}/Conv1/weight'][3] // ch for i in range(len(multiples))],
                                 list(multiples))
                sizes = [[res, shapes[f'Attention_{res}x{res}/theta/weight'][2]] for res in network.attention]
                self.assertEqual(sizes, [attention[index]] if attention[index] else [])
            self.assertEqual([block.down for block in network.blocks],
                             [True] * num_down + [False] * (len(of_D) - num_down))

    def test_other_parameter_counts(self):
        """The latents of the published weights; no shared embedding."""
        for count, kwargs in ((82_296_804, dict(resolution=512, latent_size=128)),
                              (42_017_412, dict(ch=64, latent_size=128, shared_dim=0))):
            shapes, _ = self.plan(G_biggan, **kwargs)
            self.assertEqual(sum(map(math.prod, shapes.values())), count)

    def test_latents(self):
        """Divided latents are rounded down to whole parts; the plain ones are not."""
        for kwargs, expected in ((dict(latent_size=42), [40, 10, 138]),
                                 (dict(latent_size=42, hierarchical=False), [42, 42, 128]),
                                 (dict(latent_size=42, shared_dim=0), [42, 42, 3])):
            shapes, G = self.plan(G_biggan, resolution=32, ch=2, label_size=3, **kwargs)
            self.assertEqual([G.input_shapes[0][1], shapes['Linear/weight'][0],
                              shapes['Block1/BN1/gain/weight'][0]], expected)
        self.assertEqual({res: row.latent_size for res, row in networks_biggan.ARCHITECTURES.items()},
                         {32: 128, 64: 120, 128: 120, 256: 140, 512: 160})

    def test_unconditional_and_other_channels(self):
        keras_seed()
        G = G_biggan(resolution=32, ch=2, num_channels=1, shared_dim=4)
        D = D_biggan(resolution=32, ch=2, num_channels=1)
        z = tf.random.normal([3, 128])
        images = G(z)
        self.assertEqual(images.shape, [3, 32, 32, 1])
        self.assertAllEqual(images, G(z, tf.zeros([3, 0])))
        self.assertEqual(D(images).shape, [3, 1])
        self.assertEqual(tuple(D.embedding.weight.shape), (1, 8))

    def test_own_architectures(self):
        """A row in the table, or arguments alone."""
        row = Architecture((2, 1, 1), (1, 2, 2), 2, 12, (8,), (8,))
        networks_biggan.ARCHITECTURES[16] = row
        try:
            G, D = G_biggan(resolution=16, ch=8), D_biggan(resolution=16, ch=8)
        finally:
            del networks_biggan.ARCHITECTURES[16]
        images = G(tf.random.normal([2, 12]))
        self.assertEqual(images.shape, [2, 16, 16, 3])
        self.assertEqual(D(images).shape, [2, 1])
        own = G_biggan(resolution=16, ch=8, multipliers=(2, 1, 1), latent_size=12, attention=[8])
        self.assertEqual([*own.named_variables()], [*G.named_variables()])
        own = D_biggan(resolution=16, ch=8, multipliers=(1, 2, 2), num_down=2, attention=[8])
        self.assertEqual([*own.named_variables()], [*D.named_variables()])

    def test_mistakes(self):
        for text, network_class, kwargs in (
                ('there is no architecture for resolution 16', G_biggan, dict(resolution=16)),
                ('power of two', D_biggan, dict(resolution=48)),
                ('hierarchical latents', G_biggan, dict(hierarchical=True, shared_dim=0)),
                ('hierarchical latents', G_biggan, dict(latent_size=4)),
                ('at least 8 channels', D_biggan, dict(ch=4)),
                (r'blocks put out. Received: \[48\]', G_biggan, dict(attention=[48])),
                (r'Received: \[128\]', D_biggan, dict(attention=[128])),
                ('init must be one of', G_biggan, dict(init='N02')),
                ('multipliers. Received: 3', G_biggan, dict(multipliers=(1, 1, 1))),
                ('num_down', D_biggan, dict(num_down=7)),
                ('list of resolutions', G_biggan, dict(attention=64)),
                ('label_size must be', D_biggan, dict(label_size=-1)),
                ('ch must be', G_biggan, dict(ch=0)),
                ('dropout', D_biggan, dict(dropout=1.0))):
            with self.subTest(text), self.assertRaisesRegex(UserError, text), planned_variables():
                network_class(**{'ch': 8, 'label_size': 2, **kwargs})
        G = G_biggan(resolution=32, ch=1, label_size=2)
        with self.assertRaisesRegex(UserError, 'statistics must be one of'):
            G(tf.zeros([1, 128]), tf.zeros([1, 2]), statistics='standing')
        with self.assertRaisesRegex(UserError, 'it needs labels'):
            G(tf.zeros([1, 128]))


def keras_seed():
    """Repeatable initial values."""
    tf.keras.utils.set_random_seed(1)


class NetworkTest(tf.test.TestCase):
    """Through the facade, and what training relies on."""

    def test_pickle(self):
        """A network comes back from its pickle with arguments, values and images."""
        keras_seed()
        G = tflib.Network('G', 'training.networks_biggan.G_biggan', num_channels=3, resolution=32,
                          label_size=4, ch=2, attention=[16])
        D = tflib.Network('D', 'training.networks_biggan.D_biggan', num_channels=3, resolution=32,
                          label_size=4, ch=2, dropout=0.2)
        rnd = np.random.RandomState(1)
        G.set_vars({name: rnd.rand(*var.shape) for name, var in G.vars.items() if var.shape.rank < 2})
        z, labels = rnd.randn(3, 128), one_hot([0, 3, 1], 4)
        for network in (G, D):
            with tempfile.TemporaryDirectory() as folder:
                network.save(f'{folder}/network.pkl')
                again = tflib.Network.load(f'{folder}/network.pkl')
            self.assertEqual(again.static_kwargs, network.static_kwargs)
            self.assertEqual(again.func_name, network.func_name)
            self.assertEqual([*again.vars], [*network.vars])
            for name, value in network.vars.items():
                self.assertAllEqual(again.get_var(name), value, name)
        images = G.run(z, labels, is_validation=True, minibatch_size=2)
        self.assertAllEqual(D.run(images, labels).shape, (3, 1))
        self.assertAllClose(images, testutil.nchw(G.layer(tf.constant(z, tf.float32), labels)), atol=1e-5)

    def test_soft_labels(self):
        """Mixed labels are mixed embeddings."""
        keras_seed()
        G = G_biggan(resolution=32, ch=2, label_size=3, shared_dim=5)
        ctx = CollectingContext()
        labels = tf.constant([[1, 0, 0], [0, 0, 1], [0.25, 0, 0.75]], tf.float32)
        G(tf.zeros([3, 128]), labels, ctx=ctx)
        seen = ctx.features['Embedding']
        self.assertAllClose(seen[2], 0.25 * seen[0] + 0.75 * seen[1])
        self.assertAllClose(seen[0], G.embedding.weight[0])

    def test_normalized_layers(self):
        """All weights but the embedding of G and gains; with their matrices."""
        keras_seed()
        G = G_biggan(resolution=32, ch=2, label_size=3, attention=[32])
        D = D_biggan(resolution=32, ch=2, label_size=3)
        for network, others in ((G, {'Embedding/weight'}), (D, set())):
            layers = network.normalized_layers()
            weights = {name for name in network.named_variables() if name.endswith('/weight')}
            self.assertEqual({f'{name}/weight' for name in layers}, weights - others)
            for name, layer in layers.items():
                matrix = layer.matrix(layer.weight)
                self.assertEqual(tuple(matrix.shape)[0], layer.u.shape[0], name)
                self.assertAllEqual(layer.from_matrix(matrix), layer.weight)
        self.assertAllEqual(D.embedding.matrix(D.embedding.weight), D.embedding.weight)
        self.assertLen(G.batch_norms(), 7)

    def test_u_moves_with_every_training_pass(self):
        """In training steps too, where nothing is assigned before the pass is over."""
        keras_seed()
        D = D_biggan(resolution=32, ch=1)
        x = tf.random.normal([2, 32, 32, 3])
        before = D.blocks[1].conv0.u.numpy()
        ctx, direct = StepContext(tf.zeros([2], tf.int32)), D_biggan(resolution=32, ch=1)
        for name, variable in direct.named_variables().items():
            variable.assign(D.named_variables()[name])
        for _ in range(3):
            steps, now = D(x, ctx=ctx, is_training=True), direct(x, is_training=True)
            self.assertAllClose(steps, now, rtol=1e-5)
        self.assertAllEqual(D.blocks[1].conv0.u, before)
        self.assertAllClose(ctx.value(D.blocks[1].conv0.u), direct.blocks[1].conv0.u)
        self.assertNotAllClose(direct.blocks[1].conv0.u, before)
        self.assertEqual({id(variable) for variable, _ in ctx.updates},
                         {id(layer.u) for layer in D.normalized_layers().values()})

    def test_dropout(self):
        """Drops features in training alone, and keeps their mean."""
        keras_seed()
        D = D_biggan(resolution=32, ch=16, dropout=0.2, init='normal')
        x = tf.random.normal([32, 32, 32, 3])

        def features(**kwargs):
            ctx = Context(keep_features=True)
            D(x, ctx=ctx, **kwargs)
            return ctx.features['Features'].numpy()
        plain = features()
        kept = (features(is_training=True) / np.where(plain, plain, np.nan))[plain > 0]
        self.assertAllInSet(np.round(kept, 4), [0.0, 1.25])
        self.assertBetween(np.mean(kept), 0.95, 1.05)
        self.assertAllEqual(features(), features())
        self.assertNotAllEqual(features(is_training=True), features(is_training=True))

    def test_initial_values(self):
        """Orthogonal matrices; zero biases, gains of 1, attention off; other kinds on request."""
        keras_seed()
        G = G_biggan(resolution=32, ch=2, label_size=3, attention=[32], shared_dim=2)
        for name, variable in G.named_trainables().items():
            value = variable.numpy()
            if name.endswith('/weight'):
                matrix = value.reshape(-1, value.shape[-1]).astype(np.float64)
                gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
                self.assertAllClose(gram, np.eye(len(gram)), atol=1e-5, msg=name)
            else:
                self.assertAllEqual(value, np.full_like(value, name == 'Output/BN/gain'))
        other = G_biggan(resolution=32, ch=2, label_size=3, attention=[32], shared_dim=2)
        self.assertNotAllClose(other.linear.weight, G.linear.weight)
        keras_seed()
        again = G_biggan(resolution=32, ch=2, label_size=3, attention=[32], shared_dim=2)
        self.assertAllEqual(again.linear.weight, G.linear.weight)
        normal = G_biggan(resolution=32, ch=32, init='normal').blocks[1].conv0.weight.numpy()
        self.assertAllClose(normal.std(), 0.02, rtol=0.02)
        xavier = G_biggan(resolution=32, ch=32, init='xavier').blocks[1].conv0.weight.numpy()
        self.assertAllClose(np.abs(xavier).max(), np.sqrt(6 / (9 * 256)), rtol=0.01)


if __name__ == '__main__':
    tf.test.main()
