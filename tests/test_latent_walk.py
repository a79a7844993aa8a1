"""Walks through the latent space, files of latents, and the pictures and videos of both."""

import os

import numpy as np

from dnnlib import UserError, tflib
from generation import latent_sources, latent_walk, sampling
from generation.generator_flags import distinct
from tests import test_run_generator as common
from tests.test_figures import PROGAN, FiguresTestCase, as_uint8, seed_w


class WalkTest(FiguresTestCase):
    def test_slerp(self):
        a, b = np.array([2.0, 0, 0]), np.array([0, 2.0, 0])
        for t in (0, 0.2, 0.5, 1):
            angle = t * np.pi / 2
            self.assertAllClose(latent_walk.slerp(a, b, t), [2 * np.cos(angle), 2 * np.sin(angle), 0])
        rnd = np.random.RandomState(0)
        a, b = rnd.randn(2, 64)
        c = b * np.linalg.norm(a) / np.linalg.norm(b)
        points = [latent_walk.slerp(a, c, t) for t in np.linspace(0, 1, 11)]
        self.assertAllClose(np.linalg.norm(points, axis=1), [np.linalg.norm(a)] * 11)
        steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
        self.assertAllClose(steps, [steps[0]] * 10)
        # Of other lengths: the usual formula for the directions, lengths in proportion.
        omega = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        unit = (np.sin(0.7 * omega) * a / np.linalg.norm(a) + np.sin(0.3 * omega) * b / np.linalg.norm(b))
        length = 0.7 * np.linalg.norm(a) + 0.3 * np.linalg.norm(b)
        self.assertAllClose(latent_walk.slerp(a, b, 0.3), unit / np.sin(omega) * length)

    def test_slerp_of_no_angle(self):
        a = np.array([1.0, 2])
        self.assertAllClose(latent_walk.slerp(a, 3 * a, 0.5), 2 * a)
        self.assertAllClose(latent_walk.slerp(a, 0 * a, 0.5), a / 2)
        self.assertAllClose(latent_walk.slerp(a, a, 0.5), a)
        self.assertTrue(np.all(np.isfinite(latent_walk.slerp(a, -a, 0.5))))

    def test_every_walk_passes_its_keys_and_loops(self):
        keys = np.random.RandomState(0).randn(4, 3, 5)
        for spherical in (False, True):
            for kind in ('linear', 'cubic'):
                way = latent_walk.walk(keys, spherical, kind)
                for k in range(4):
                    self.assertAllClose(way(k), keys[k])
                way = latent_walk.walk(keys, spherical, kind, loop=True)
                for k in range(4):
                    self.assertAllClose(way(k), keys[k])
                self.assertAllClose(way(4), keys[0])
                self.assertAllClose(way(4.25), way(0.25))
                # No jump anywhere, the way back to the first key included.
                points = np.stack([way(t) for t in np.arange(0, 4.01, 0.01)])
                self.assertLess(np.abs(np.diff(points, axis=0)).max(), 0.2)

    def test_straight_lines(self):
        keys = np.random.RandomState(0).randn(3, 4)
        way = latent_walk.walk(keys, False)
        self.assertAllClose(way(1.25), 0.75 * keys[1] + 0.25 * keys[2])

    def test_a_spline_has_no_edges(self):
        keys = np.random.RandomState(0).randn(4, 5)

        def edge(way, t, h=1e-4):
            return np.abs((way(t + h) - way(t)) - (way(t) - way(t - h))).max() / h
        for spherical in (False, True):
            straight = latent_walk.walk(keys, spherical, 'linear', loop=True)
            spline = latent_walk.walk(keys, False, 'cubic', loop=True)
            for t in (1, 2, 3, 4):
                self.assertGreater(edge(straight, t), 0.1)
                self.assertLess(edge(spline, t), 0.01)

    def test_times(self):
        self.assertAllClose(latent_walk.times(3, 2, loop=False), [0, 0.5, 1, 1.5, 2])
        self.assertAllClose(latent_walk.times(3, 2, loop=True), [0, 0.5, 1, 1.5, 2, 2.5])

    def test_keys_of_cells(self):
        self.assertEqual(latent_walk.deal_keys(list(range(6)), 3), [[0, 1], [2, 3], [4, 5]])
        for keys, cells in [(1, 1), (5, 2), (3, 3)]:
            with self.assertRaisesRegex(UserError, f'{keys} keys for {cells} .*expected at least 2'):
                latent_walk.deal_keys(list(range(keys)), cells)


class FilesTest(FiguresTestCase):
    def setUp(self):
        super().setUp()
        self.network = common.tiny_network()  # 6 layers of w with 8 values.
        self.path = self.save('gs.pkl', self.network)

    def latents(self, name, seed=0, noise=True, **arrays):
        rnd = np.random.RandomState(seed)
        arrays = {'dlatents': rnd.randn(6, 8).astype(np.float32), **arrays}
        if noise:
            arrays.update({f'noise{i}': rnd.randn(*var.shape)[0].astype(np.float32)
                           for i, var in enumerate(sampling.noise_vars(self.network))})
        path = os.path.join(self.dir, name)
        np.savez(path, **arrays)
        return path

    def draw(self, path, w=None):
        """The picture of a file: its noise assigned to the variables."""
        clone = self.network.clone()
        with np.load(path) as file:
            for i, var in enumerate(sampling.noise_vars(clone)):
                if f'noise{i}' in file:
                    var.assign(file[f'noise{i}'][np.newaxis])
            w = file['dlatents'] if w is None else w
        return as_uint8(clone.components.synthesis.run(w[np.newaxis], randomize_noise=False)[0])

    def test_generate_images(self):
        first, second = self.latents('me-latents.npz', 1), self.latents('you.npz', 2, noise=False)
        run_dir, _ = self.run_in_process('generate-images', f'--network={self.path}', '--seeds=3',
                                         f'--latents={first},{second}', '--output-grid')
        self.assertEqual(self.pictures(run_dir), ['grid.png', 'me.png', 'seed0003.png', 'you.png'])
        for name, path in [('me.png', first), ('you.png', second)]:
            self.assert_image(self.picture(run_dir, name), self.draw(path).transpose(1, 2, 0))
        # Seeds are truncated as always, files where one asks for it.
        self.assert_picture(os.path.join(run_dir, 'seed0003.png'),
                            common.official_images(self.network, [3], 0.5)[0])
        run_dir, _ = self.run_in_process('generate-images', f'--network={self.path}', '--truncation-psi=0.4',
                                         f'--latents={first}')
        average = self.network.get_var('dlatent_avg')
        with np.load(first) as file:
            w = average + 0.4 * (file['dlatents'] - average)
        self.assert_image(self.picture(run_dir, 'me.png'), self.draw(first, w).transpose(1, 2, 0))
        # The projection of a seed does not take the name of its picture.
        run_dir, _ = self.run_in_process('generate-images', f'--network={self.path}', '--seeds=3',
                                         f'--latents={self.latents("seed0003-latents.npz", 1)}')
        self.assertEqual(self.pictures(run_dir), ['seed0003-0.png', 'seed0003.png'])
        self.assert_image(self.picture(run_dir, 'seed0003-0.png'), self.draw(first).transpose(1, 2, 0))

    def test_style_mixing_of_a_projected_image(self):
        path = self.latents('me-latents.npz', 1)
        run_dir, _ = self.run_in_process('style-mixing-example', f'--network={self.path}', '--col-seeds=4',
                                         f'--row-latents={path}', '--row-seeds=2', '--col-styles=2-5')
        self.assertEqual(self.pictures(run_dir), ['2-2.png', '2-4.png', '4-4.png', 'grid.png', 'me-4.png',
                                                  'me-me.png'])
        self.assert_image(self.picture(run_dir, 'me-me.png'), self.draw(path).transpose(1, 2, 0))
        with np.load(path) as file:
            w = file['dlatents'].copy()
        w[2:] = seed_w(self.network, 4, 0.5)[0, 2:]
        self.assert_image(self.picture(run_dir, 'me-4.png'), self.draw(path, w).transpose(1, 2, 0))
        expected = common.official_mixes(self.network, [(2, 4)], [2, 3, 4, 5], 0.5)
        self.assert_image(self.picture(run_dir, '2-4.png'), expected[2, 4])

    def test_forms_of_files(self):
        rnd = np.random.RandomState(0)
        several = rnd.randn(3, 6, 8)
        sources = latent_sources.from_files(self.network, [self.latents('all.npz', dlatents=several)])
        self.assertEqual([source.name for source in sources], ['all-0', 'all-1', 'all-2'])
        for source, w in zip(sources, several, strict=True):
            self.assertAllClose(source.dlatents, w)
        path = os.path.join(self.dir, 'w.npz')
        np.savez(path, w=several[:1, :1])
        source, = latent_sources.from_files(self.network, [path])
        self.assertAllClose(source.dlatents, np.tile(several[0, :1], [6, 1]))
        self.assertIsNone(source.noises)

    def test_names_are_unique(self):
        os.mkdir(os.path.join(self.dir, 'other'))
        paths = [self.latents('a-latents.npz', 1), self.latents('other/a.npz', 2), self.latents('b.npz', 3)]
        names = [source.name for source in latent_sources.from_files(self.network, paths)]
        self.assertEqual(names, ['a-0', 'a-1', 'b'])
        two = self.latents('c.npz', dlatents=np.zeros([2, 6, 8]), noise=False)
        names = [source.name for source in latent_sources.from_files(
            self.network, [two, self.latents('c-1.npz', 1), paths[2]])]
        self.assertLen(set(names), 4)
        self.assertEqual(distinct(['a', 'a', 'a-0', 'b', 'c'], ['c']), ['a-0', 'a-1', 'a-0-2', 'b', 'c-4'])
        clash = self.latents('4.npz', 1)
        with self.assertRaisesRegex(UserError, 'two different sources have the name 4'):
            self.run_in_process('style-mixing-example', f'--network={self.path}', '--col-seeds=4',
                                f'--row-latents={clash}')

    def test_mistakes_of_files(self):
        nan = np.full([6, 8], np.nan)
        noise = np.zeros([1, 5, 5])
        broken = os.path.join(self.dir, 'broken.npz')
        with open(broken, 'wb') as file:
            file.write(b'PK\x03\x04 not a zip file')
        alone = os.path.join(self.dir, 'alone.npy')
        np.save(alone, np.zeros([6, 8]))
        objects = os.path.join(self.dir, 'objects.npz')
        np.savez(objects, dlatents=np.array([{}], object))
        nothing = os.path.join(self.dir, 'nothing.npz')
        np.savez(nothing, z=np.zeros([8]))
        for message, path in [
            (r'dlatents has shape \[5, 8\]; network Gs expects \[6, 8\]',
             self.latents('a.npz', dlatents=np.zeros([5, 8]))),
            (r'dlatents has shape \[8\]', self.latents('b.npz', dlatents=np.zeros([8]))),
            (r'dlatents has shape \[0, 6, 8\]', self.latents('e.npz', dlatents=np.zeros([0, 6, 8]))),
            ('no finite numbers', self.latents('c.npz', dlatents=nan)),
            (r'noise0 has type float64 and shape \[1, 5, 5\]', self.latents('d.npz', noise=False,
                                                                         noise0=noise)),
            ('noise1 is missing; network Gs has noise0 to noise4',
             self.latents('f.npz', noise=False, noise0=np.zeros([1, 4, 4]))),
            ('broken.npz: expected an .npz file', broken),
            ('alone.npy: expected an .npz file', alone),
            ('objects.npz: expected an .npz file', objects),
            ('nothing.npz: expected an array dlatents, found z', nothing),
        ]:
            for command in ('generate-images', 'truncation-sweep'):
                with self.subTest(path=path, command=command):
                    with self.assertRaisesRegex(UserError, message):
                        self.run_in_process(command, f'--network={self.path}', f'--latents={path}')
                    self.assertFalse(os.path.exists(self.results))
        progan = self.save('progan.pkl', tflib.Network('Gs', 'training.networks_progan.G_paper', **PROGAN))
        with self.assertRaisesRegex(UserError, 'no intermediate latents'):
            self.run_in_process('generate-images', f'--network={progan}', f'--latents={alone}')


class InterpolateTest(FilesTest):
    """Frames of the command; the tests of files are not run again."""

    test_generate_images = test_style_mixing_of_a_projected_image = test_forms_of_files = None
    test_names_are_unique = test_mistakes_of_files = None

    def frames(self, *args, network=None):
        run_dir, _ = self.run_in_process('interpolate', f'--network={network or self.path}',
                                         '--output-frames', '--batch=3', *args)
        names = self.pictures(run_dir)
        self.assertEqual(names, [f'frame{i:04d}.png' for i in range(len(names))])
        return [self.picture(run_dir, name) for name in names]

    def seed_image(self, seed, psi=0.5):
        w = seed_w(self.network, seed, psi)
        return as_uint8(self.network.components.synthesis.run(w, randomize_noise=False)[0]).transpose(1, 2, 0)

    def test_seeds_in_both_spaces(self):
        z = [np.random.RandomState(seed).randn(8) for seed in (4, 7)]
        for space in ('z', 'w'):
            frames = self.frames('--seeds=4,7', '--frames=4', f'--space={space}')
            self.assertLen(frames, 5)
            self.assert_image(frames[0], self.seed_image(4))
            self.assert_image(frames[4], self.seed_image(7))
            if space == 'z':
                latents = latent_walk.slerp(*z, 0.25)[np.newaxis]
                average = self.network.get_var('dlatent_avg')
                w = average + 0.5 * (self.network.components.mapping.run(latents) - average)
            else:
                w = 0.75 * seed_w(self.network, 4, 0.5) + 0.25 * seed_w(self.network, 7, 0.5)
            image = as_uint8(self.network.components.synthesis.run(w, randomize_noise=False)[0])
            self.assert_image(frames[1], image.transpose(1, 2, 0))

    def test_loop_and_grid(self):
        frames = self.frames('--seeds=0-3', '--frames=2', '--loop', '--grid=2x1', '--interpolation=cubic',
                             '--truncation-psi=0.8')
        self.assertLen(frames, 4)
        for frame, seeds in [(0, (0, 2)), (2, (1, 3))]:
            expected = np.concatenate([self.seed_image(seed, 0.8) for seed in seeds], axis=1)
            self.assert_image(frames[frame], expected)

    def test_files_bring_their_noise(self):
        paths = [self.latents('a.npz', 1), self.latents('b.npz', 2)]
        frames = self.frames(f'--latents={",".join(paths)}', '--frames=2')
        for frame, path in [(0, paths[0]), (2, paths[1])]:
            self.assert_image(frames[frame], self.draw(path).transpose(1, 2, 0))

    def test_progan(self):
        network = tflib.Network('Gs', 'training.networks_progan.G_paper', **PROGAN, label_size=2,
                                num_channels=3)
        path = self.save('progan.pkl', network)
        frames = self.frames('--seeds=1,2', '--frames=3', '--class=1', network=path)
        latents = np.stack([np.random.RandomState(seed).randn(8) for seed in (1, 2)])
        images = as_uint8(network.run(latents, np.eye(2)[[1, 1]])).transpose(0, 2, 3, 1)
        self.assert_image(frames[0], images[0])
        self.assert_image(frames[3], images[1])

    def test_video(self):
        import imageio
        contents = []
        for _ in range(2):
            run_dir, _ = self.run_in_process('interpolate', f'--network={self.path}', '--seeds=4,7',
                                             '--frames=5', '--fps=12.5', '--truncation-psi=1')
            path = os.path.join(run_dir, 'interpolation.mp4')
            with open(path, 'rb') as file:
                contents.append(file.read())
        self.assertEqual(contents[0], contents[1])
        with imageio.get_reader(path) as reader:
            self.assertEqual(reader.get_meta_data()['fps'], 12.5)
            frames = [frame for frame in reader]  # Its length is unknown, which list asks for.
        self.assertLen(frames, 6)
        self.assertEqual(frames[0].shape, (256, 256, 3))
        expected = self.seed_image(4, 1.0).repeat(16, axis=0).repeat(16, axis=1)
        self.assertLess(np.abs(frames[0].astype(int) - expected).mean(), 8)
        self.assertGreater(np.abs(frames[5].astype(int) - expected).mean(), 16)

    def test_mistakes(self):
        network = f'--network={self.path}'
        latents = f'--latents={self.latents("a.npz")}'
        for message, *args in [
            ('--seeds is required', network),
            ('--space=z: files of --latents hold w', network, latents, '--space=z'),
            ('1 keys for 1 picture: expected at least 2', network, latents),
            ('4 keys for 3 cells', network, '--seeds=0-3', '--grid=3x1'),
            ('a frame would have', network, '--seeds=0-7', '--grid=9999x9999'),
        ]:
            with self.assertRaisesRegex(UserError, message):
                self.run_in_process('interpolate', *args)
            self.assertFalse(os.path.exists(self.results))
