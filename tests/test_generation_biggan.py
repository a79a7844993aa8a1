"""run_generator.py with BigGAN: classes, truncation, statistics, walks between classes, neighbours."""

import functools
import json
import os
import tempfile
import unittest.mock

import numpy as np
import PIL.Image

import dnnlib
from dnnlib import UserError
from generation import classes, latent_walk, neighbours, samplers
from tests import test_run_generator as common
from tests import test_samplers
from training.dataset import load_dataset

FEW = ('--statistics-passes=3', '--statistics-batch=4')


@functools.cache
def named_network():
    return test_samplers.tiny_biggan(class_names=['cat', 'Dog', 'cow'])


@functools.cache
def shared_cache():
    """A folder for what all tests compute once."""
    return tempfile.TemporaryDirectory()


@functools.cache
def sampler_of(truncation, **kwargs):
    return samplers.make_sampler(named_network(), truncation, passes=3, batch=4, use_cache=False, **kwargs)


class BigGANTestCase(common.GeneratorTestCase):
    def setUp(self):
        super().setUp()
        self.addCleanup(dnnlib.util.set_cache_dir, None)
        dnnlib.util.set_cache_dir(shared_cache().name)
        self.network = named_network()
        self.path = self.save('gs.pkl', self.network)

    def expected(self, seeds, labels, truncation=None, **kwargs):
        """Pictures int [N, H, W, C], from the sampler itself."""
        sampler = sampler_of(truncation, **kwargs)
        images = sampler.network.run(sampler.seed_latents(seeds), np.float32(labels), **sampler.run_kwargs)
        return np.round(127.5 * (images + 1)).clip(0, 255).astype(int).transpose(0, 2, 3, 1)

    def read(self, *path):
        with PIL.Image.open(os.path.join(*path)) as image:
            return np.asarray(image).astype(int)

    def assert_cell(self, sheet, column, row, expected, size=8):
        """A cell of a sheet is this picture, enlarged."""
        cell = sheet[row * size:(row + 1) * size, column * size:(column + 1) * size]
        scale = size // 8
        for part in (cell[::scale, ::scale], cell[scale - 1::scale, scale - 1::scale]):
            self.assertLessEqual(np.abs(part - expected).max(), 1)

    def run_few(self, command, *args):
        return self.run_in_process(command, f'--network={self.path}', *args, *FEW)


class ImagesTest(BigGANTestCase):
    def test_one_class(self):
        run_dir, stderr = self.run_few('generate-images', '--seeds=1,2', '--class=dog', '--truncation=0.5')
        self.assertEqual((self.pictures(run_dir), stderr), (['seed0001.png', 'seed0002.png'], ''))
        found = np.stack([self.read(run_dir, name) for name in self.pictures(run_dir)])
        self.assertLessEqual(np.abs(found - self.expected([1, 2], [[0, 1, 0]] * 2, 0.5)).max(), 1)
        self.assertGreater(np.abs(found[0] - found[1]).max(), 50)
        with unittest.mock.patch('generation.standing_statistics.compute', side_effect=AssertionError):
            run_dir, _ = self.run_few('generate-images', '--seeds=2', '--class=1', '--truncation=0.5')
        self.assertAllEqual(self.read(run_dir, 'seed0002.png'), found[1])

    def test_drawing_from_python(self):
        sampler = sampler_of(0.5)
        for chosen, labels in [('dog', [1, 1]), (np.int64(2), [2, 2]), ([2, 'Cat'], [2, 0])]:
            found = sampler.draw(range(3, 5), chosen).transpose(0, 2, 3, 1).astype(int)
            self.assertLessEqual(np.abs(found - self.expected([3, 4], np.eye(3)[labels], 0.5)).max(), 1)
        found = sampler.draw([5, 6])
        self.assertAllEqual(found, np.stack(list(samplers.random_pictures(sampler, [5, 6], None, 8))))
        for chosen, message in [([1], '1 of 2 seeds'), (3, 'received class 3'), ('cw', "did you mean 'cow'")]:
            with self.assertRaisesRegex(UserError, message):
                sampler.draw([3, 4], chosen)

    def test_sheet_of_classes(self):
        run_dir, _ = self.run_in_process('generate-images', f'--network={self.path}', '--seeds=1,2',
                                         '--class=2,cat', '--output-grid', '--statistics=running')
        self.assertEqual(self.pictures(run_dir), [
            'class0000-seed0001.png', 'class0000-seed0002.png', 'class0002-seed0001.png',
            'class0002-seed0002.png', 'grid.png'])
        sheet = self.read(run_dir, 'grid.png')
        for row, label in enumerate([[0, 0, 1], [1, 0, 0]]):
            pictures = self.expected([1, 2], [label] * 2, statistics='running')
            self.assertGreater(np.abs(pictures - self.expected([1, 2], [[0, 1, 0]] * 2,
                                                               statistics='running')).max(), 20)
            for column, picture in enumerate(pictures):
                self.assert_cell(sheet, column, row, picture)

    def test_other_networks_draw_several_classes(self):
        network = common.tiny_network(label_size=3)
        path = self.save('style.pkl', network)
        run_dir, _ = self.run_in_process('generate-images', f'--network={path}', '--class=0,2', '--seeds=4')
        self.assertEqual(self.pictures(run_dir), ['class0000-seed0004.png', 'class0002-seed0004.png'])
        self.assert_picture(os.path.join(run_dir, 'class0002-seed0004.png'), common.official_images(
            network, [4], 0.5, common.one_hot(2, 3))[0])

    def test_truncation_sheet(self):
        run_dir, _ = self.run_few('truncation-sweep', '--seeds=1,2', '--class=1', '--truncation=none,0.5',
                                  '--scale=2')
        sheet = self.read(run_dir, 'truncation-sweep.png')
        self.assertEqual(sheet.shape, (32, 32, 3))
        for column, truncation in enumerate((None, 0.5)):
            for row, picture in enumerate(self.expected([1, 2], [[0, 1, 0]] * 2, truncation)):
                self.assert_cell(sheet, column, row, picture, 16)

    def test_uncurated(self):
        run_dir, _ = self.run_few('uncurated', '--rows=2', '--lods=0', '--scale=1', '--seed=5',
                                  '--truncation=0.5')
        sampler = sampler_of(0.5)
        for row, picture in enumerate(samplers.random_pictures(sampler, [5, 6], None, 2)):
            self.assert_cell(self.read(run_dir, 'uncurated.png'), 0, row, picture.transpose(1, 2, 0))

    def test_mistakes(self):
        style = f'--network={self.save("style.pkl", common.tiny_network())}'
        network = f'--network={self.path}'
        for message, *args in [
            ('conditional .label_size 3.: choose a class', 'generate-images', network, '--seeds=0'),
            ("no class of that name; did you mean 'cow'", 'generate-images', network, '--seeds=0',
             '--class=cw'),
            ('classes 0 to 2, received class 3', 'generate-images', network, '--seeds=0', '--class=0-3'),
            ('--truncation-psi is for networks with inter.*--truncation bounds', 'generate-images', network,
             '--seeds=0', '--class=0', '--truncation-psi=1'),
            ('--truncation is for BigGAN, network Gs .G_main. is.*--truncation-psi', 'generate-images', style,
             '--seeds=0', '--truncation=1'),
            ('--statistics is for BigGAN', 'uncurated', style, '--statistics=batch'),
            ('--truncation-mode says how --truncation is meant', 'generate-images', network, '--seeds=0',
             '--class=0', '--truncation-mode=std', '--truncation=none'),
            ('for standing statistics, received --statistics=batch', 'generate-images', network, '--seeds=0',
             '--class=0', '--statistics=batch', '--statistics-passes=3'),
            ('--truncation is for BigGAN', 'truncation-sweep', style, '--seeds=0', '--truncation=1'),
            ('--truncation-psi is for', 'truncation-sweep', network, '--seeds=0', '--class=0',
             '--truncation-psi=1'),
            ('no intermediate latents w', 'jacobian', network),
            ('no intermediate latents w', 'noise-layers', network, '--seeds=0', '--class=0'),
            ('has no styles to mix', 'style-mixing-example', network, '--row-seeds=0', '--col-seeds=1',
             '--class=0'),
            ('no intermediate latents w', 'interpolate', network, '--seeds=0,1', '--class=0', '--space=w'),
            ('2 seeds and 3 classes', 'interpolate', network, '--seeds=0,1', '--class=all',
             '--output-frames'),
            ('expected at least 2', 'interpolate', network, '--seeds=0', '--class=1', '--output-frames'),
            ('--output-frames or --output-sheet', 'interpolate', network, '--seeds=0,1', '--output-frames',
             '--output-sheet'),
            ('a walk between classes needs a BigGAN', 'interpolate', '--seeds=0,1', '--class=0,1',
             f'--network={self.save("c.pkl", common.tiny_network(label_size=2))}', '--output-sheet'),
            ('has 3 classes, data set', 'nearest-neighbours', network, '--seeds=0', '--class=0',
             '--features=pixels'),
            ('--features=resnet50: .*needs? .*weights', 'nearest-neighbours', network, '--seeds=0',
             '--class=0', '--features=resnet50'),
        ]:
            with self.subTest(args=args):
                with self.assertRaisesRegex(UserError, message):
                    self.run_in_process(*args)
                self.assertFalse(os.path.exists(self.results), 'a mistake should leave no run directory')


class WalkTest(BigGANTestCase):
    def test_between_classes_and_latents(self):
        run_dir, _ = self.run_few('interpolate', '--seeds=3,3,3,4', '--class=0,2,1,2', '--grid=2x1',
                                  '--output-sheet', '--truncation=0.5', '--scale=1')
        sheet = self.read(run_dir, 'interpolation.png')
        self.assertEqual(sheet.shape, (16, 80, 3))
        sampler = sampler_of(0.5)
        clone = sampler.network.clone()
        embedding = clone.get_var('Embedding/weight')
        for row, (seeds, numbers) in enumerate([((3, 3), (0, 2)), ((3, 4), (1, 2))]):
            weights = np.linspace(0, 1, 10)[:, None]
            z = sampler.seed_latents(seeds).astype(np.float64)
            y = np.eye(3)[list(numbers)]
            # The embedded class itself, by a network whose classes are the points of the way.
            mixed = (1 - weights) * z[:1] + weights * z[1:], (1 - weights) * y[:1] + weights * y[1:]
            for column in range(10):
                clone.set_var('Embedding/weight', np.tile(mixed[1][column] @ embedding, [3, 1]))
                image = clone.run(mixed[0][column:column + 1], np.eye(3)[:1])
                picture = np.round(127.5 * (image[0] + 1)).clip(0, 255).transpose(1, 2, 0)
                self.assert_cell(sheet, column, row, picture)

    def test_frames(self):
        run_dir, _ = self.run_few('interpolate', '--seeds=3', '--class=0,2', '--frames=2', '--loop',
                                  '--output-frames')
        self.assertEqual(self.pictures(run_dir), [f'frame{i:04d}.png' for i in range(4)])
        half = self.expected([3], [[0.5, 0, 0.5]])[0]
        for number in (1, 3):
            self.assertLessEqual(np.abs(self.read(run_dir, f'frame{number:04d}.png') - half).max(), 1)

    def test_keys_and_rows(self):
        self.assertEqual(latent_walk.pair_keys([1, 2], ['a']), [(1, 'a'), (2, 'a')])
        self.assertEqual(latent_walk.pair_keys([1], ['a', 'b']), [(1, 'a'), (1, 'b')])
        with self.assertRaisesRegex(UserError, '2 seeds and 3 classes'):
            latent_walk.pair_keys([1, 2], ['a', 'b', 'c'])
        # Two cells of three keys, two pictures from key to key.
        times = latent_walk.times(3, 2, False)
        images = (f'{cell}{time:g}' for time in times for cell in 'ab')
        self.assertEqual(latent_walk.sheet_rows(images, 2, 2, False), [
            ['a0', 'a0.5', 'a1'], ['a1', 'a1.5', 'a2'], ['b0', 'b0.5', 'b1'], ['b1', 'b1.5', 'b2']])
        self.assertEqual(latent_walk.sheet_rows(iter('0123'), 1, 2, True), [list('012'), list('230')])


class NeighboursTest(BigGANTestCase):
    def dataset(self):
        """A folder of three classes whose images differ in brightness; 'b' has the fewest."""
        rnd = np.random.RandomState(0)
        for name, count in (('a', 6), ('b', 3), ('c', 7)):
            os.makedirs(os.path.join(self.dir, 'data', name))
            for i in range(count):
                pixels = rnd.randint(0, 256, [8, 8, 3]).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(os.path.join(self.dir, 'data', name, f'{i}.png'))
        return os.path.join(self.dir, 'data')

    def test_command(self):
        run_dir, _ = self.run_few('nearest-neighbours', '--seeds=1,2', '--class=0,2', '--num-neighbours=3',
                                  f'--dataset={self.dataset()}', '--features=pixels,random', '--scale=1')
        training_set = load_dataset(self.dir, 'data', max_label_size='full')
        images, labels = training_set.read(np.arange(16))
        with open(os.path.join(run_dir, 'nearest-neighbours.json'), encoding='utf-8') as file:
            found = json.load(file)['images']
        self.assertLen(found, 4)
        sheet = self.read(run_dir, 'nearest-pixels.png')
        for row, (number, seed) in enumerate([(0, 1), (0, 2), (2, 1), (2, 2)]):
            name = f'class{number:04d}-seed{seed:04d}'
            sample = self.expected([seed], np.eye(3)[[number]])[0]
            distances = np.sqrt(np.sum((images.astype(float) - sample) ** 2, axis=(1, 2, 3)))
            distances[labels[:, number] == 0] = np.inf
            order = np.argsort(distances)[:3]
            self.assertEqual(found[name]['pixels']['indices'], order.tolist())
            self.assertAllClose(found[name]['pixels']['distances'], distances[order], rtol=1e-3)
            self.assert_cell(sheet, 0, row, sample)
            block = self.read(run_dir, f'{name}-pixels.png')
            self.assertEqual(block.shape, (16, 16, 3))
            self.assert_cell(block, 0, 0, sample)
            self.assert_cell(block, 0, 1, images[order[1]])
            self.assertEqual(sorted(found[name]), ['pixels', 'random'])
            self.assertTrue(np.all(labels[found[name]['random']['indices'], number]))
        with self.assertRaisesRegex(UserError, 'has 3 images of class 1; expected at least 4'):
            self.run_few('nearest-neighbours', '--seeds=1', '--class=1', '--num-neighbours=4',
                         f'--dataset={self.dir}/data', '--features=pixels')

    def test_copies_are_found_part_by_part(self):
        training_set = load_dataset()
        indices = np.arange(5, 300)
        samples = training_set.read([290, 17])[0]
        for batch in (7, 1000):
            for space in (neighbours.PIXELS, 'random'):
                found = neighbours.nearest(samples, training_set, indices, 2,
                                           neighbours.space_function(space), batch)
                self.assertAllEqual(found.indices[:, 0], [290, 17])
                self.assertAllClose(found.distances[:, 0], [0, 0], atol=1e-4)
                self.assertTrue(np.all(found.distances[:, 1] > 1e-3))


class ClassesTest(BigGANTestCase):
    def test_lists(self):
        self.assertEqual(classes.class_list('3, 5-7,all,Ankle boot'), [3, 5, 6, 7, 'all', 'Ankle boot'])
        self.assertEqual(classes.one_class('7'), 7)
        for text in ('-1', '', '1,,2', '1.5', '5-3'):
            with self.assertRaises(UserError):
                classes.class_list(text)
        for text in ('1,2', 'all', '1-2'):
            with self.assertRaisesRegex(UserError, 'one class'):
                classes.one_class(text)

    def test_names(self):
        names = classes.class_names(self.network)
        self.assertEqual(classes.resolve(['CAT', 2, 'all'], self.network, names), [0, 2, 0, 1, 2])
        network = test_samplers.tiny_biggan()
        self.assertIsNone(classes.class_names(network, self.path))
        with self.assertRaisesRegex(UserError, 'not known; give numbers from 0 to 2, or put a file'):
            classes.resolve(['cat'], network, None)
        for file, content in [('class_names.json', '["a", "b", "c"]'), ('class_names.txt', 'a\n\nb\nc\n')]:
            path = os.path.join(self.dir, file)
            with open(path, 'w', encoding='utf-8') as out:
                out.write(content)
            self.assertEqual(classes.class_names(network, self.path), ['a', 'b', 'c'])
            os.unlink(path)
        with open(os.path.join(self.dir, 'classes.txt'), 'w', encoding='utf-8') as out:
            out.write('one\n')      # Of something else.
        self.assertIsNone(classes.class_names(network, self.path))
