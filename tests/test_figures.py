"""Figures and measurements of a generator, each against an independent computation with Network.run."""

import json
import os

import numpy as np
import tensorflow as tf

from dnnlib import UserError, tflib
from generation import figures, jacobian, latent_sources, resolution_usage, sampling
from tests import test_run_generator as common
from training.datasets.image_files import open_image

TINY = common.TINY
PROGAN = dict(resolution=16, fmap_base=64, fmap_max=8, latent_size=8)
V1 = 'training.networks_stylegan.G_style'


def random_network(func_name, seed=5, **kwargs):
    """A small generator with random values everywhere, noise strengths and averages too."""
    network = tflib.Network('Gs', func_name, **{**TINY, **kwargs})
    rnd = np.random.RandomState(seed)
    for key, var in network.vars.items():
        if not key.endswith('lod'):
            scale = 0.3 if key.endswith(('noise_strength', 'bias', 'dlatent_avg')) else 1
            network.set_var(key, scale * rnd.randn(*var.shape))
    return network


def as_uint8(images):
    return np.clip(np.floor(images * 127.5 + 128), 0, 255).astype(np.uint8)


def seed_w(network, seed, psi=1.0, label=None):
    """Truncated w of a seed, by Network.run and the formula of appendix B."""
    w = network.components.mapping.run(np.random.RandomState(seed).randn(1, *network.input_shape[1:]), label)
    average = network.get_var('dlatent_avg')
    return average + psi * (w - average)


class FiguresTestCase(common.GeneratorTestCase):
    """Pictures may differ by one level, in few places: rounding depends on the size of the batch."""

    def assert_image(self, actual, expected):
        actual, expected = np.asarray(actual).astype(int), np.asarray(expected).astype(int)
        self.assertEqual(actual.shape, expected.shape)
        difference = np.abs(actual - expected)
        self.assertLessEqual(difference.max(), 1)
        self.assertLess((difference > 0).mean(), 0.01)

    def picture(self, *parts):
        """A PNG file as int [H, W, C]."""
        with open_image(os.path.join(*parts)) as image:
            return np.asarray(image).astype(int)

    def sources(self, network, seeds, psi=0.5):
        return latent_sources.from_seeds(network, seeds, psi)


class SheetTest(FiguresTestCase):
    def test_sheet(self):
        a, b = np.full([3, 2, 4], 10, np.uint8), np.full([3, 2, 4], 20, np.uint8)
        canvas = figures.sheet([[None, a], [b, a]], row_gaps=[1], column_gaps=[1], gap=3)
        self.assertEqual(canvas.shape, (3, 7, 11))
        self.assertAllEqual(canvas[:, :2, 7:], a)
        self.assertAllEqual(canvas[:, 5:, :4], b)
        self.assertAllEqual(canvas[:, 5:, 7:], a)
        self.assertAllEqual(canvas[:, :2, :4], np.full([3, 2, 4], 255))
        self.assertAllEqual(canvas[:, 2:5], np.full([3, 3, 11], 255))
        self.assertAllEqual(canvas[:, :, 4:7], np.full([3, 7, 3], 255))

    def test_enlarge(self):
        image = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
        large = figures.enlarge(image, 3)
        for dy in range(3):
            for dx in range(3):
                self.assertAllEqual(large[:, dy::3, dx::3], image)

    def test_uncurated(self):
        rnd = np.random.RandomState(0)
        images = rnd.randint(256, size=[1 + 2 + 4, 3, 8, 8]).astype(np.uint8)
        self.assertEqual(figures.uncurated_counts(1, [0, 1, 2]), [1, 2, 4])
        canvas = figures.uncurated(iter(images), 1, [0, 1, 2], scale=2)
        self.assertEqual(canvas.shape, (3, 16, 16 + 8 + 4))
        self.assertAllEqual(canvas[:, :, :16], figures.enlarge(images[0], 2))
        self.assertAllEqual(canvas[:, 8:, 16:24], images[2])
        half = images[6].reshape(3, 4, 2, 4, 2).astype(float).mean(axis=(2, 4))
        # Rounded twice, once for each axis.
        self.assertLessEqual(np.abs(canvas[:, 12:, 24:] - half).max(), 1)

    def test_rows_of_groups(self):
        self.assertEqual(figures.deal_rows(6, 3), [[0, 1, 2], [3, 4], [5]])
        self.assertEqual(figures.deal_rows(2, 3), [[0, 1]] * 3)
        self.assertEqual(figures.deal_rows(5, 2), [[0, 1, 2], [3, 4]])
        for num_rows in range(3, 40):
            dealt = figures.deal_rows(num_rows, 3)
            self.assertLen(dealt, 3)
            self.assertEqual(sum(dealt, []), list(range(num_rows)))

    def test_default_zoom_is_in_every_picture(self):
        for resolution, base_shape in [(4, (4, 4)), (8, (4, 4)), (64, (4, 3)), (32, (2, 7))]:
            network = tflib.Network('G', 'training.networks_stylegan2.G_main',
                                    **{**TINY, 'resolution': resolution, 'base_shape': base_shape})
            left, top, right, bottom = figures.zoom_box(network, figures.default_zoom(network))
            self.assertGreater(right, left)
            self.assertGreater(bottom, top)
        with self.assertRaisesRegex(UserError, 'zoom box 20,0,8 is not in the picture'):
            figures.zoom_box(common.tiny_network(), (20, 0, 8))


class StyleGroupsTest(FiguresTestCase):
    def test_groups_of_every_resolution(self):
        for resolution, expected in [
            (8, {'coarse': ([4], [0, 1]), 'fine': ([8], [2, 3])}),
            (16, {'coarse': ([4], [0, 1]), 'middle': ([8], [2, 3]), 'fine': ([16], [4, 5])}),
            (32, {'coarse': ([4, 8], [0, 1, 2, 3]), 'middle': ([16], [4, 5]), 'fine': ([32], [6, 7])}),
            (128, {'coarse': ([4, 8], [0, 1, 2, 3]), 'middle': ([16, 32], [4, 5, 6, 7]),
                   'fine': ([64, 128], [8, 9, 10, 11])}),
        ]:
            network = tflib.Network('G', 'training.networks_stylegan2.G_main',
                                    **{**TINY, 'resolution': resolution})
            groups = figures.style_groups(network)
            self.assertEqual({name: (levels, layers) for name, levels, layers in groups}, expected)
        network = tflib.Network('G', 'training.networks_stylegan2.G_main', **{**TINY, 'resolution': 4})
        with self.assertRaisesRegex(UserError, 'a single resolution'):
            figures.style_groups(network)

    def test_fine_noise(self):
        for resolution, fine in [(4, 4), (8, 8), (16, 16), (32, 16), (64, 64), (128, 64)]:
            for func_name in ('training.networks_stylegan2.G_main', V1):
                network = tflib.Network('G', func_name, **{**TINY, 'resolution': resolution})
                self.assertEqual(figures.default_fine(network), fine)
                levels = [4 << i for i in range(resolution.bit_length() - 2)]
                self.assertEqual(sorted(set(figures.noise_resolutions(network))), levels)


class PicturesTest(FiguresTestCase):
    """Cells of the figures, of StyleGAN2 and StyleGAN."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.network = common.tiny_network()
        cls.v1 = random_network(V1)

    def test_truncation_sweep(self):
        for network in (self.network, self.v1):
            cells = figures.truncation_sweep(network, self.sources(network, [3, 8], 1.0), [1, 0, -0.5], 4)
            for row, seed in zip(cells, [3, 8], strict=True):
                for image, psi in zip(row, [1, 0, -0.5], strict=True):
                    expected = network.components.synthesis.run(seed_w(network, seed, psi),
                                                                randomize_noise=False)
                    self.assert_image(image, as_uint8(expected[0]))
            self.assertAllEqual(cells[0][1], cells[1][1])
            self.assertNotAllEqual(cells[0][0], cells[0][1])

    def test_noise_detail(self):
        for network in (self.network, self.v1):
            _, (picture, zooms, deviation) = figures.noise_detail(
                network, self.sources(network, [5, 3]), (4, 2, 8), num_realisations=7, noise_seed=11, scale=2,
                batch_size=3)
            clone, images, w = network.clone(), [], seed_w(network, 3, 0.5)
            for k in range(7):
                rnd = np.random.RandomState([11, k])
                for name, var in clone.components.synthesis.vars.items():
                    if name.startswith('noise'):
                        var.assign(rnd.randn(*var.shape))
                images.append(clone.components.synthesis.run(w, randomize_noise=False)[0])
            gray = 127.5 * np.mean(np.asarray(images, np.float64), axis=1)
            self.assertGreater(deviation.max(), 1)
            np.testing.assert_allclose(deviation, np.std(gray, axis=0), rtol=1e-3, atol=1e-3)
            self.assert_image(picture, figures.enlarge(as_uint8(images[0]), 2))
            # Each zoom-in shows 8×8 pixels of a 16×16 picture on 16×16.
            for i, (y, x) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)], 1):
                self.assert_image(zooms[:, y:y + 16, x:x + 16],
                                  figures.enlarge(as_uint8(images[i])[:, 2:10, 4:12], 2))

    def test_deviation_map(self):
        deviation = np.array([[0, 1.0], [20, 100]])
        self.assertEqual(figures.deviation_gain([deviation, 0 * deviation]), 4)
        self.assertEqual(figures.deviation_gain([0.01 * deviation]), 128)
        self.assertEqual(figures.deviation_gain([0 * deviation]), 4)
        shown = figures.deviation_map(deviation, 4, channels=3, scale=1)
        self.assertAllEqual(shown, [[[0, 4], [80, 255]]] * 3)
        shown = figures.deviation_map(deviation, 4, channels=4, scale=2)
        self.assertAllEqual(shown[3], np.full([4, 4], 255))
        self.assertAllEqual(shown[0, ::2, ::2], [[0, 4], [80, 255]])

    def test_noise_layers(self):
        for network in (self.network, self.v1):
            _, images = figures.noise_layers(network, self.sources(network, [5, 3]), fine=8)
            w, clone = seed_w(network, 3, 0.5), network.clone()
            for image, keep in zip(images, [lambda size: True, lambda size: False, lambda size: size >= 8,
                                            lambda size: size < 8], strict=True):
                for name, var in clone.components.synthesis.vars.items():
                    if name.startswith('noise'):
                        var.assign(network.components.synthesis.get_var(name) * keep(var.shape[2]))
                self.assert_image(image, as_uint8(clone.components.synthesis.run(
                    w, randomize_noise=False)[0]))
            for i in range(4):
                for k in range(i):
                    self.assertNotAllEqual(images[i], images[k])

    def test_style_mixing(self):
        network = self.network  # 16×16: coarse styles are layers 0 and 1, and so on.
        cells, starts = figures.style_mixing(network, self.sources(network, [1, 2, 3]),
                                             self.sources(network, [4, 5]), 8)
        self.assertEqual(starts, [1, 2, 3])
        self.assertIsNone(cells[0][0])
        unmixed = common.official_mixes(network, [(seed, seed) for seed in range(1, 6)], [], 0.5)
        for k, column in enumerate([4, 5], 1):
            self.assert_image(cells[0][k].transpose(1, 2, 0), unmixed[column, column])
        for i, (row, layers) in enumerate([(1, [0, 1]), (2, [2, 3]), (3, [4, 5])], 1):
            self.assert_image(cells[i][0].transpose(1, 2, 0), unmixed[row, row])
            mixed = common.official_mixes(network, [(row, 4), (row, 5)], layers, 0.5)
            for k, column in enumerate([4, 5], 1):
                self.assert_image(cells[i][k].transpose(1, 2, 0), mixed[row, column])

    def test_noise_of_files_is_drawn(self):
        network, rnd = self.network, np.random.RandomState(0)
        noises = [rnd.randn(*var.shape)[0] for var in sampling.noise_vars(network)]
        source = latent_sources.Source('x', seed_w(network, 3)[0], noises)
        clone = network.clone()
        for var, noise in zip(sampling.noise_vars(clone), noises, strict=True):
            var.assign(noise[np.newaxis])
        expected = as_uint8(clone.components.synthesis.run(seed_w(network, 3), randomize_noise=False)[0])
        plain, = self.sources(network, [3], 1.0)
        cells = figures.truncation_sweep(network, [source, plain], [1.0], 8)
        self.assert_image(cells[0][0], expected)
        self.assertNotAllEqual(cells[0][0], cells[1][0])
        self.assert_image(figures.noise_layers(network, [source], 8)[0][0], expected)

    def test_level_of_detail_is_that_of_the_generator(self):
        network = self.v1.clone()
        for lod in (1.0, 0.6):
            network.set_var('lod', lod)
            latents = np.random.RandomState(3).randn(1, 8)
            expected = network.run(latents, None, truncation_psi=None, randomize_noise=False)
            image, = sampling.synthesize(network, seed_w(network, 3), as_uint8=False)
            self.assertAllClose(image, expected[0], 1e-4, 1e-4)
        network.set_var('lod', 0)
        self.assertNotAllClose(network.run(latents, None, truncation_psi=None, randomize_noise=False),
                               expected, 1e-2, 1e-2)

    def test_networks_that_have_none_of_this(self):
        progan = tflib.Network('Gs', 'training.networks_progan.G_paper', **PROGAN)
        with self.assertRaisesRegex(UserError, r'Gs \(G_paper\) has no intermediate latents'):
            figures.check_noise(progan)
        with self.assertRaisesRegex(UserError, 'has no intermediate latents'):
            figures.style_groups(progan)
        silent = tflib.Network('Gs', V1, **TINY, use_noise=False)
        with self.assertRaisesRegex(UserError, 'no noise inputs'):
            figures.check_noise(silent)
        traditional = tflib.Network('Gs', V1, **TINY, use_styles=False)
        with self.assertRaisesRegex(UserError, 'no styles'):
            figures.style_groups(traditional)


class ResolutionUsageTest(FiguresTestCase):
    def setUp(self):
        super().setUp()
        self.network = common.tiny_network()
        self.dlatents = resolution_usage.random_dlatents(self.network, 5, seed=3)

    def test_contributions_are_those_of_each_layer_alone(self):
        network, w = self.network, self.dlatents
        parts = [part.numpy() for part in resolution_usage.contributions(network, tf.constant(w, tf.float32))]
        images = network.components.synthesis.run(w, randomize_noise=False)
        self.assertAllClose(sum(parts).transpose(0, 3, 1, 2), images, 1e-4, 1e-4)
        deviations = resolution_usage.resolution_usage(network, w, batch_size=2)
        self.assertEqual(resolution_usage.resolutions(network), ['4x4', '8x8', '16x16'])
        # A second way: the images of a network whose other ToRGB layers give nothing.
        alone = network.clone()
        for index, name in enumerate(['4x4', '8x8', '16x16']):
            for key in alone.vars:
                if key.endswith(('/ToRGB/weight', '/ToRGB/bias')):
                    alone.set_var(key, network.get_var(key) * (f'/{name}/' in key))
            images = alone.components.synthesis.run(w, randomize_noise=False)
            self.assertAllClose(parts[index].transpose(0, 3, 1, 2), images, 1e-4, 1e-4)
            self.assertAllClose(deviations[index], np.std(images.astype(np.float64)), 1e-4)

    def test_random_samples(self):
        latents = np.random.RandomState(3).randn(5, 8)
        self.assertAllClose(self.dlatents, self.network.components.mapping.run(latents), 1e-5, 1e-5)
        half = resolution_usage.random_dlatents(self.network, 5, 3, truncation_psi=0.5)
        average = self.network.get_var('dlatent_avg')
        self.assertAllClose(half - average, (self.dlatents - average) / 2, 1e-4, 1e-5)
        conditional = common.tiny_network(label_size=3)
        free = resolution_usage.random_dlatents(conditional, 20, 3)
        latents = np.random.RandomState(3).randn(20, 8)
        by_class = [conditional.components.mapping.run(latents, np.eye(3)[[k] * 20]) for k in range(3)]
        classes = [int(np.argmin([np.abs(free[i] - w[i]).max() for w in by_class])) for i in range(20)]
        self.assertEqual(set(classes), {0, 1, 2})
        for i, k in enumerate(classes):
            self.assertAllClose(free[i], by_class[k][i], 1e-4, 1e-4)

    def test_other_generators_are_refused(self):
        for network, message in [
            (common.tiny_network(architecture='resnet'), 'architecture resnet.*is no skip generator'),
            (tflib.Network('Gs', V1, **TINY), r'\(G_synthesis\) is no skip generator'),
            (tflib.Network('Gs', 'training.networks_progan.G_paper', **PROGAN), 'is no skip generator'),
            (common.tiny_network(synthesis_func='G_synthesis_stylegan_revised'), 'is no skip generator'),
            (common.tiny_discriminator(), 'is no generator'),
        ]:
            with self.assertRaisesRegex(UserError, message):
                resolution_usage.check_skip_generator(network)

    def test_run_directory(self):
        run_dir = os.path.join(self.dir, 'run')
        os.mkdir(run_dir)
        networks = {100: common.tiny_network(seed=1), 20: common.tiny_network(seed=2)}
        for kimg, network in networks.items():
            self.save(f'run/network-snapshot-{kimg:06d}.pkl', common.tiny_network('G', 3),
                      common.tiny_discriminator(), network)
        self.save('run/network-final.pkl', networks[100])
        result, _ = self.run_in_process('resolution-usage', f'--run-dir={run_dir}', '--num-samples=9',
                                        '--seed=4', '--batch=4')
        with open(os.path.join(result, 'resolution-usage.json')) as file:
            content = json.load(file)
        self.assertEqual([row['kimg'] for row in content['networks']], [20, 100])
        for row, network in zip(content['networks'], [networks[20], networks[100]], strict=True):
            latents = np.random.RandomState(4).randn(9, 8)
            expected = resolution_usage.resolution_usage(network, network.components.mapping.run(latents))
            self.assertAllClose(list(row['std'].values()), expected, 1e-4)
            self.assertAllClose(list(row['share'].values()), expected / expected.sum(), 1e-4)
            self.assertAllClose(sum(row['share'].values()), 1, 1e-6)
        self.assertGreater(self.picture(result, 'resolution-usage.png').std(), 10)


class JacobianTest(FiguresTestCase):
    def check(self, network, w):
        """Columns against central differences of Network.run, in float64."""
        matrix = jacobian.jacobian(network, w, batch_size=3)
        num_layers = network.components.synthesis.input_shape[1]
        delta = 1e-6
        steps = np.concatenate([w + delta * np.eye(len(w)), w - delta * np.eye(len(w))])
        images = network.components.synthesis.run(
            np.tile(steps[:, np.newaxis], [1, num_layers, 1]), randomize_noise=False)
        images = images.transpose(0, 2, 3, 1).reshape(2, len(w), -1)
        numeric = ((images[0] - images[1]) / (2 * delta)).T
        self.assertEqual(matrix.shape, numeric.shape)
        self.assertGreater(np.abs(numeric).max(), 1e-3)
        self.assertLess(np.abs(matrix - numeric).max(), 1e-6 * np.abs(numeric).max())
        values = jacobian.singular_values(matrix)
        exact = np.linalg.svd(numeric, compute_uv=False)
        self.assertLess(np.abs(values - exact).max(), 1e-6 * exact[0])

    def test_against_a_numeric_one(self):
        rnd = np.random.RandomState(0)
        for network in (
            random_network('training.networks_stylegan2.G_main', resolution=8, dtype='float64'),
            random_network(V1, resolution=8, dtype='float64'),
        ):
            self.check(network, rnd.randn(8))

    def test_level_of_detail(self):
        network = random_network(V1, resolution=8, dtype='float64')
        for name in [name for name in network.vars if name.endswith('lod')]:
            network.set_var(name, 1)
        self.check(network, np.random.RandomState(1).randn(8))

    def test_singular_values(self):
        matrix = np.random.RandomState(0).randn(200_000, 6) @ np.diag([5, 1, 1, 0.1, 1e-3, 1e-4])
        self.assertAllClose(jacobian.singular_values(matrix), np.linalg.svd(matrix, compute_uv=False), 1e-5)
        self.assertEqual(jacobian.singular_values(np.ones([5, 2]))[1], 0)

    def test_summary(self):
        facts = jacobian.summary(np.array([[4.0, 2, 1], [3, 3, 0.75]]))
        self.assertAllClose(facts['mean'], [1, 0.75, 0.25])
        self.assertAllClose(facts['std'], [0, 0.25, 0])
        self.assertAllClose(facts['condition_number'], 4.0)
        self.assertAllClose(facts['mean_log'], np.log([0.5, 0.25, 0.25]).sum() / 6)

    def test_command(self):
        network = common.tiny_network()
        path = self.save('gs.pkl', network)
        result, _ = self.run_in_process('jacobian', f'--network={path}', '--num-samples=2', '--seed=6')
        with open(os.path.join(result, 'jacobian.json')) as file:
            content = json.load(file)
        w = network.components.mapping.run(np.random.RandomState(6).randn(2, 8))
        expected = [np.linalg.svd(jacobian.jacobian(network, sample[0]), compute_uv=False) for sample in w]
        self.assertAllClose(content['singular_values'], expected, 1e-3, 1e-3 * np.max(expected))
        self.assertLen(content['mean'], 8)
        self.assertGreater(self.picture(result, 'jacobian.png').std(), 10)


class CommandsTest(FiguresTestCase):
    """The figures as files: layout, flags and mistakes."""

    def setUp(self):
        super().setUp()
        self.network = common.tiny_network()
        self.path = self.save('gs.pkl', self.network)

    def figure(self, command, name, *args):
        run_dir, stderr = self.run_in_process(command, f'--network={self.path}', *args)
        return self.picture(run_dir, name), stderr

    def test_truncation_sweep(self):
        picture, stderr = self.figure('truncation-sweep', 'truncation-sweep.png', '--seeds=0,5')
        self.assertEqual((picture.shape, stderr), ((2 * 128, 6 * 128, 3), ''))
        w = seed_w(self.network, 5, -0.5)
        image = as_uint8(self.network.components.synthesis.run(w, randomize_noise=False)[0])
        self.assert_image(picture[128:, 4 * 128:5 * 128][::8, ::8], image.transpose(1, 2, 0))
        again, _ = self.figure('truncation-sweep', 'truncation-sweep.png', '--seeds=5', '--scale=1',
                               '--truncation-psi=-0.5,1')
        self.assert_image(again[:, :16], image.transpose(1, 2, 0))

    def test_the_same_bytes_twice(self):
        for command, name, *args in [
            ('noise-detail', 'noise-detail.png', '--seeds=1', '--num-realisations=6', '--zoom=2,2,4'),
            ('uncurated', 'uncurated.png', '--rows=1', '--lods=0,1'),
        ]:
            contents = []
            for _ in range(2):
                run_dir, _ = self.run_in_process(command, f'--network={self.path}', *args)
                with open(os.path.join(run_dir, name), 'rb') as file:
                    contents.append(file.read())
            self.assertEqual(contents[0], contents[1])

    def test_noise_layers(self):
        picture, stderr = self.figure('noise-layers', 'noise-layers.png', '--seeds=0,1', '--scale=1')
        self.assertEqual(picture.shape, (32, 64, 3))
        self.assertRegex(stderr, r'\ANote: network Gs has resolutions 4–16; fine noise .* from 16×16 up\n')
        expected, = figures.noise_layers(self.network, self.sources(self.network, [1]), 16)
        self.assert_image(picture[16:, 32:48], expected[2].transpose(1, 2, 0))
        _, stderr = self.figure('noise-layers', 'noise-layers.png', '--seeds=0', '--fine-from=8')
        self.assertEqual(stderr, '')

    def test_uncurated(self):
        run_dir, _ = self.run_in_process('uncurated', f'--network={self.path}', '--seed=30', '--rows=2',
                                         '--lods=0,1', '--scale=2', '--truncation-psi=0.6')
        with open(os.path.join(run_dir, 'log.txt')) as file:
            self.assertIn('\n6/6 img', file.read())
        picture = self.picture(run_dir, 'uncurated.png')
        self.assertEqual(picture.shape, (64, 48, 3))
        images = common.official_images(self.network, range(30, 36), 0.6)
        self.assert_image(picture[32:, :32][::2, ::2], images[1])
        self.assert_image(picture[48:, 32:], images[5])

    def test_truncation_cutoff(self):
        picture, _ = self.figure('uncurated', 'uncurated.png', '--rows=1', '--lods=0', '--scale=1',
                                 '--truncation-psi=0', '--truncation-cutoff=2')
        rnd = np.random.RandomState(0)
        latents = rnd.randn(1, 8)
        clone = self.network.clone()
        for var in sampling.noise_vars(clone):
            var.assign(rnd.randn(*var.shape))
        w = clone.components.mapping.run(latents)
        w[:, :2] = clone.get_var('dlatent_avg')
        expected = as_uint8(clone.components.synthesis.run(w, randomize_noise=False)[0])
        self.assert_image(picture, expected.transpose(1, 2, 0))

    def test_style_mixing_figure(self):
        picture, stderr = self.figure('style-mixing-figure', 'style-mixing.png', '--row-seeds=1-3',
                                      '--col-seeds=4,5', '--scale=2')
        self.assertRegex(stderr, r'\ANote: .*coarse styles are those of 4, middle .* of 8, fine ')
        self.assertEqual(picture.shape, (4 * 32 + 3, 3 * 32 + 1, 3))
        self.assertAllEqual(picture[:32, :32], np.full([32, 32, 3], 255))
        mixed = common.official_mixes(self.network, [(2, 5)], [2, 3], 0.5)
        self.assert_image(picture[66:98, 65:97][::2, ::2], mixed[2, 5])

    def test_conditional_networks(self):
        network = common.tiny_network(label_size=3)
        path = self.save('conditional.pkl', network)
        run_dir, _ = self.run_in_process('truncation-sweep', f'--network={path}', '--seeds=4', '--class=2',
                                         '--truncation-psi=0.7', '--scale=1')
        w = seed_w(network, 4, 0.7, common.one_hot(2, 3))
        image = as_uint8(network.components.synthesis.run(w, randomize_noise=False)[0])
        self.assert_image(self.picture(run_dir, 'truncation-sweep.png'), image.transpose(1, 2, 0))

    def test_gray_and_alpha(self):
        for channels, shape in [(1, (32, 98)), (4, (32, 98, 4))]:
            path = self.save(f'{channels}.pkl', common.tiny_network(num_channels=channels))
            run_dir, _ = self.run_in_process('noise-detail', f'--network={path}', '--seeds=1', '--scale=2',
                                             '--num-realisations=5')
            self.assertEqual(self.picture(run_dir, 'noise-detail.png').shape, shape)

    def test_mistakes(self):
        network = f'--network={self.path}'
        progan = self.save('progan.pkl', tflib.Network('Gs', 'training.networks_progan.G_paper', **PROGAN))
        resnet = self.save('resnet.pkl', common.tiny_network(architecture='resnet'))
        empty = os.path.join(self.dir, 'empty')
        os.mkdir(empty)
        for message, *args in [
            ('--seeds is required', 'truncation-sweep', network),
            ('--col-seeds is required', 'style-mixing-figure', network, '--row-seeds=1'),
            ('no intermediate latents', 'truncation-sweep', f'--network={progan}', '--seeds=0'),
            ('no intermediate latents', 'noise-detail', f'--network={progan}', '--seeds=0'),
            ('no intermediate latents', 'noise-layers', f'--network={progan}', '--seeds=0'),
            ('no intermediate latents', 'jacobian', f'--network={progan}'),
            ('no intermediate latents', 'style-mixing-figure', f'--network={progan}', '--row-seeds=0',
             '--col-seeds=1'),
            ('no intermediate latents', 'interpolate', f'--network={progan}', '--seeds=0-1', '--space=w'),
            ('zoom box 9,9,9 is not in', 'noise-detail', network, '--seeds=0', '--zoom=9,9,9'),
            ('--fine-from=12: .*4, 8, 16', 'noise-layers', network, '--seeds=0', '--fine-from=12'),
            ('--lods=0,10: nothing is left', 'uncurated', network, '--lods=0,10'),
            ('the last seed is 4294967295', 'uncurated', network, '--seed=4294967290'),
            ('million pixels', 'uncurated', network, '--rows=1000', '--scale=64', '--lods=0-3'),
            ('unconditional', 'uncurated', network, '--class=1'),
            ('expected either --run-dir', 'resolution-usage'),
            ('expected either --run-dir', 'resolution-usage', network, f'--run-dir={empty}'),
            ('empty: expected a run directory', 'resolution-usage', f'--run-dir={empty}'),
            ('resnet.pkl: .*architecture resnet.*no skip generator', 'resolution-usage',
             f'--network={resnet}'),
        ]:
            with self.subTest(args=args):
                with self.assertRaisesRegex(UserError, message):
                    self.run_in_process(*args)
                self.assertFalse(os.path.exists(self.results), 'a mistake should leave no run directory')
