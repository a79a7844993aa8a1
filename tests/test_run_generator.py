"""run_generator.py: the pictures of seeds, style mixing, flags and mistakes; also the loading of networks."""

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import unittest.mock

import numpy as np
import PIL.Image
import tensorflow as tf

import pretrained_networks
import run_generator
from dnnlib import UserError, flags, tflib
from dnnlib.tflib import legacy
from generation import sampling
from tests import http_testutil, testutil

TINY = dict(resolution=16, fmap_base=64, fmap_max=8, latent_size=8, dlatent_size=8, mapping_fmaps=8,
            mapping_layers=2)
UNCONDITIONAL = ('stylegan2', 'f_uncond_Gskip_Dresnet_32.pkl')
CONDITIONAL = ('stylegan2', 'f_cond5_Gskip_Dresnet_32.pkl')


def tiny_network(name='Gs', seed=1, **kwargs):
    """A small generator whose every variable matters: noise strengths and average w are not zero."""
    network = tflib.Network(name, 'training.networks_stylegan2.G_main', **{**TINY, **kwargs})
    rnd = np.random.RandomState(seed)
    for key, var in network.vars.items():
        if key != 'lod':
            scale = 0.3 if key.endswith(('noise_strength', 'bias', 'dlatent_avg')) else np.std(var) or 1
            network.set_var(key, scale * rnd.randn(*var.shape))
    return network


def tiny_discriminator():
    return tflib.Network('D', 'training.networks_stylegan2.D_stylegan2', resolution=16, fmap_base=64,
                         fmap_max=8)


def official_images(network, seeds, psi, label=None):
    """The pictures of seeds, uint8 NHWC, as defined: z, then each noise variable, from one RandomState."""
    network = network.clone()
    images = []
    for seed in seeds:
        rnd = np.random.RandomState(seed)
        latents = rnd.randn(1, *network.input_shape[1:])
        for name, var in network.vars.items():
            if name.startswith('G_synthesis/noise'):
                network.set_var(name, rnd.randn(*var.shape))
        image = network.run(latents, label, truncation_psi=psi, randomize_noise=False)
        images.append(np.clip(np.floor(image[0] * 127.5 + 128), 0, 255).astype(np.uint8).transpose(1, 2, 0))
    return np.stack(images)


def official_mixes(network, pairs, layers, psi, label=None):
    """{(row, col): picture} of style mixing: w of the row with some layers of the column, stored noise."""
    images = {}
    for pair in pairs:
        dlatents = []
        for seed in pair:
            latents = np.random.RandomState(seed).randn(*network.input_shape[1:])[np.newaxis]
            average = network.get_var('dlatent_avg')
            w = network.components.mapping.run(latents, label)
            dlatents.append(average + (w - average) * psi)
        w = dlatents[0].copy()
        w[:, layers] = dlatents[1][:, layers]
        image = network.components.synthesis.run(w, randomize_noise=False)[0]
        images[pair] = np.clip(np.floor(image * 127.5 + 128), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return images


def one_hot(index, size):
    return np.eye(size, dtype=np.float32)[index:index + 1]


class GeneratorTestCase(tf.test.TestCase):
    """Commands are traced as ever; what their pictures are compared with is computed without tracing."""

    def setUp(self):
        super().setUp()
        testutil.run_eagerly(self)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = folder.name
        self.results = os.path.join(self.dir, 'results')

    def save(self, name, *networks):
        path = os.path.join(self.dir, name)
        states = tuple(network.state() for network in networks)
        legacy.save_pkl(states if len(states) > 1 else states[0], path)
        return path

    def run_in_process(self, *args):
        """Does what the command line does; returns the run directory and what was printed on stderr."""
        parser = run_generator.make_parser()
        with testutil.traced(), contextlib.redirect_stdout(io.StringIO()), \
                contextlib.redirect_stderr(io.StringIO()) as stderr:
            flags.run_command(parser.parse_args([*args, f'--result-dir={self.results}']))
        return os.path.join(self.results, max(os.listdir(self.results))), stderr.getvalue()

    def run_script(self, *args):
        environment = {key: value for key, value in os.environ.items() if key != 'TF_CPP_MIN_LOG_LEVEL'}
        script = str(testutil.ROOT / 'run_generator.py')
        return subprocess.run([sys.executable, script, *args], cwd=self.dir, env=environment,
                              capture_output=True, text=True)

    def assert_picture(self, path, expected, mode='RGB'):
        """The file is this picture but for rounding: at most one level, in few places."""
        with PIL.Image.open(path) as image:
            self.assertEqual((image.format, image.mode), ('PNG', mode))
            pixels = np.asarray(image).astype(int)
        expected = expected[..., 0] if mode == 'L' else expected
        self.assertEqual(pixels.shape, expected.shape)
        difference = np.abs(pixels - expected)
        self.assertLessEqual(difference.max(), 1)
        self.assertLess((difference > 0).mean(), 0.01)

    def pictures(self, run_dir):
        return sorted(name for name in os.listdir(run_dir) if name.endswith('.png'))


@testutil.needs_golden
class GoldenTest(GeneratorTestCase):
    def test_generate_images(self):
        path = testutil.golden(*UNCONDITIONAL)
        result = self.run_script('generate-images', f'--network={path}', '--seeds=3,1000-1001', '--batch',
                                 '2', '--truncation-psi=0.7')
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        run_dir = os.path.join(self.results, '00000-generate-images')
        self.assertEqual(self.pictures(run_dir), ['seed0003.png', 'seed1000.png', 'seed1001.png'])
        self.assertTrue(os.path.exists(os.path.join(run_dir, '_finished.txt')))
        network = pretrained_networks.load_network(path)
        expected = official_images(network, [3, 1000, 1001], psi=0.7)
        self.assertGreater(np.abs(expected[0].astype(int) - expected[1]).mean(), 10)
        for name, image in zip(self.pictures(run_dir), expected, strict=True):
            self.assert_picture(os.path.join(run_dir, name), image)

    def test_style_mixing_example(self):
        path = testutil.golden(*CONDITIONAL)
        run_dir, stderr = self.run_in_process('style-mixing-example', '--network', path, '--row_seeds=1,2',
                                              '--col_seeds=2,4', '--col-styles=0-3', '--class=3')
        self.assertEqual((os.path.basename(run_dir), stderr), ('00000-style-mixing-example', ''))
        self.assertEqual(self.pictures(run_dir), ['1-1.png', '1-2.png', '1-4.png', '2-2.png', '2-4.png',
                                                  '4-4.png', 'grid.png'])
        network = pretrained_networks.load_network(path)
        pairs = [(1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4)]
        images = official_mixes(network, pairs, [0, 1, 2, 3], 0.5, one_hot(3, 5))
        for (row, col), image in images.items():
            self.assert_picture(os.path.join(run_dir, f'{row}-{col}.png'), image)
        rows = [[np.zeros_like(images[2, 2]), images[2, 2], images[4, 4]],
                [images[1, 1], images[1, 2], images[1, 4]],
                [images[2, 2], images[2, 2], images[2, 4]]]
        self.assert_picture(os.path.join(run_dir, 'grid.png'),
                            np.concatenate([np.concatenate(row, axis=1) for row in rows]))

    def test_conditional_generator_with_class(self):
        path = testutil.golden(*CONDITIONAL)
        run_dir, _ = self.run_in_process('generate-images', f'--network={path}', '--seeds=7', '--class=4')
        expected = official_images(pretrained_networks.load_network(path), [7], 0.5, one_hot(4, 5))
        self.assert_picture(os.path.join(run_dir, 'seed0007.png'), expected[0])


class GenerateTest(GeneratorTestCase):
    def test_the_batch_does_not_show(self):
        network = tiny_network()
        path = self.save('gs.pkl', network)
        seeds = [0, 1, 2, 5, 4294967295]
        expected = official_images(network, seeds, psi=0.6)
        for batch in [1, 4, 8]:
            run_dir, _ = self.run_in_process('generate-images', f'--network={path}', '--truncation-psi=0.6',
                                             '--seeds=0-2,5,4294967295', f'--batch={batch}')
            self.assertLen(self.pictures(run_dir), 5)
            for seed, image in zip(seeds, expected, strict=True):
                self.assert_picture(os.path.join(run_dir, f'seed{seed:04d}.png'), image)

    def test_noise_of_a_seed_matters(self):
        network = tiny_network()
        (_, image), = sampling.generate(network, [3])
        for name in network.vars:
            if name.endswith('noise_strength'):
                network.set_var(name, 0)
        (_, flat), = sampling.generate(network, [3])
        self.assertGreater(np.abs(image.astype(int) - flat).mean(), 1)

    def test_stored_noise_stays(self):
        network = tiny_network()
        before = {name: network.get_var(name) for name in network.vars}
        list(sampling.generate(network, [1, 2]))
        for name, value in before.items():
            self.assertAllEqual(network.get_var(name), value)

    def test_one_trace_for_all_batches(self):
        traces = []

        class Counting(sampling.GivenNoise):
            def __init__(self, noises):
                traces.append(1)
                super().__init__(noises)

        with testutil.traced(), unittest.mock.patch.object(sampling, 'GivenNoise', Counting):
            seeds = [seed for seed, _ in sampling.generate(tiny_network(), range(7), batch_size=3)]
        self.assertEqual((seeds, len(traces)), (list(range(7)), 1))

    def test_noise_of_another_order_or_number_is_refused(self):
        noise = tf.zeros([2, 4, 4, 1])
        with self.assertRaisesRegex(RuntimeError, 'expected'):
            sampling.GivenNoise([noise]).normal([2, 8, 8, 1])
        with self.assertRaisesRegex(RuntimeError, 'more random numbers'):
            sampling.GivenNoise([]).normal([2, 4, 4, 1])

    def test_gray_and_alpha(self):
        for channels, mode in [(1, 'L'), (4, 'RGBA')]:
            network = tiny_network(num_channels=channels)
            path = self.save(f'{mode}.pkl', network)
            run_dir, _ = self.run_in_process('generate-images', f'--network={path}', '--seeds=0')
            expected = official_images(network, [0], 0.5)
            self.assert_picture(os.path.join(run_dir, 'seed0000.png'), expected[0], mode)

    def test_output_grid(self):
        network = tiny_network()
        path = self.save('gs.pkl', network)
        a, b, c = official_images(network, [0, 1, 2], 0.5)
        expected = np.concatenate([np.concatenate([a, b], axis=1), np.concatenate([c, 0 * c], axis=1)])
        args = ['generate-images', f'--network={path}', '--seeds=0-2']
        run_dir, _ = self.run_in_process(*args, '--output-grid')
        self.assert_picture(os.path.join(run_dir, 'grid.png'), expected)
        sheet = os.path.join(self.dir, 'sheet.png')
        run_dir, _ = self.run_in_process(*args, f'--output-grid={sheet}')
        self.assertNotIn('grid.png', self.pictures(run_dir))
        self.assert_picture(sheet, expected)

    def test_generator_chooses_the_network(self):
        networks = [tiny_network('G', seed=1), tiny_discriminator(), tiny_network('Gs', seed=2)]
        path = self.save('snapshot.pkl', *networks)
        for name, network in [('G', networks[0]), ('Gs', networks[2])]:
            run_dir, _ = self.run_in_process('generate-images', f'--network={path}', '--seeds=0',
                                             f'--generator={name}')
            self.assert_picture(os.path.join(run_dir, 'seed0000.png'), official_images(network, [0], 0.5)[0])


class StyleMixingTest(GeneratorTestCase):
    def test_styles_out_of_range(self):
        network = tiny_network()  # 6 layers.
        path = self.save('gs.pkl', network)
        args = ['style-mixing-example', f'--network={path}', '--row-seeds=0', '--col-seeds=1']
        run_dir, stderr = self.run_in_process(*args, '--col-styles=4-8')
        self.assertRegex(stderr, r'\AWarning: network Gs has layers 0-5; .*only 4,5 are mixed\n\Z')
        images = official_mixes(network, [(0, 1)], [4, 5], 0.5)
        self.assert_picture(os.path.join(run_dir, '0-1.png'), images[0, 1])
        run_dir, stderr = self.run_in_process(*args, '--col-styles=0-5', '--batch=2')
        self.assertEqual(stderr, '')
        with self.assertRaisesRegex(UserError, '--col-styles=6,7: network Gs has layers 0-5'):
            self.run_in_process(*args, '--col-styles=6-7')


class LoadTest(GeneratorTestCase):
    def test_snapshot_and_cache(self):
        path = self.save('snapshot.pkl', tiny_network('G', 1), tiny_discriminator(), tiny_network('Gs', 2))
        networks = pretrained_networks.load_networks(path)
        self.assertEqual([network.name for network in networks], ['G', 'D', 'Gs'])
        self.assertIs(pretrained_networks.load_networks(os.path.relpath(path))[2], networks[2])
        self.assertIs(pretrained_networks.load_network(path, 'G'), networks[0])
        time.sleep(0.01)  # The time of the file is to differ.
        self.save('snapshot.pkl', tiny_network('G', 3), tiny_discriminator(), tiny_network('Gs', 4))
        changed = pretrained_networks.load_networks(path)[2]
        self.assertNotAllEqual(changed.get_var('dlatent_avg'), networks[2].get_var('dlatent_avg'))

    def test_mistakes(self):
        with self.assertRaises(FileNotFoundError):
            pretrained_networks.load_network(os.path.join(self.dir, 'no.pkl'))
        with self.assertRaisesRegex(UserError, r'gs.pkl: expected a snapshot \(G, D, Gs\)'):
            pretrained_networks.load_networks(self.save('gs.pkl', tiny_network()))


class DownloadTest(GeneratorTestCase):
    """Networks by address, from a server on this machine."""

    def serve(self, files):
        server = http_testutil.start(self, files)
        environment = unittest.mock.patch.dict(
            os.environ, STYLEGAN_NETWORKS_URL=server.url, STYLEGAN_CACHE_DIR=os.path.join(self.dir, 'cache'),
            STYLEGAN_CUSTOM_OPS='ref')
        environment.start()
        self.addCleanup(environment.stop)
        return server

    def records(self, run_dir):
        with open(os.path.join(run_dir, 'submit_config.json')) as file:
            return json.load(file)['run_func_kwargs']

    def test_alias(self):
        """Through a connection that breaks the command draws what it draws with the local file."""
        path = testutil.golden('training', 'stylegan2_f_init.pkl')
        with open(path, 'rb') as file:
            body = file.read()
        name = 'stylegan2-ffhq-config-f.pkl'
        server = self.serve({name: [http_testutil.Answer(body, cut=100_000), body]})
        alias = f'gdrive:networks/{name}'
        args = ['generate-images', '--seeds=5', '--truncation-psi=0.7']
        run_dir, stderr = self.run_in_process(*args, f'--network={alias}')
        self.assertRegex(stderr, r"\ANote: NVIDIA's published networks are .*\nDownloading .*\n.*the "
                                 r'connection ended after 100.0 kB.*\nResuming .*\nDownloaded .*\n\Z')
        self.assertEqual(server.ranges(name), [None, 'bytes=100000-'])
        records = self.records(run_dir)
        self.assertEqual(records['network_pkl'], alias)
        self.assertRegex(records['network_file'], rf'{self.dir}/cache/downloads/[0-9a-f]{{32}}_{name}')
        local_dir, _ = self.run_in_process(*args, f'--network={path}')
        with PIL.Image.open(os.path.join(local_dir, 'seed0005.png')) as image:
            expected = np.asarray(image)
        self.assertGreater(expected.std(), 10)
        self.assert_picture(os.path.join(run_dir, 'seed0005.png'), expected)
        self.assertNotIn('network_file', self.records(local_dir))
        _, stderr = self.run_in_process(*args, f'--network={alias}')
        self.assertEqual((stderr, server.count(name)), ('', 2))

    def test_style_mixing_by_address(self):
        network = tiny_network()
        with open(self.save('gs.pkl', network), 'rb') as file:
            server = self.serve({'gs.pkl?key=secret': file.read()})
        url = server.url + 'gs.pkl?key=secret'
        args = ['style-mixing-example', f'--network={url}', '--row-seeds=0', '--col-seeds=1']
        run_dir, stderr = self.run_in_process(*args, '--col-styles=4,5')
        self.assertRegex(stderr, r'\ADownloading .*gs.pkl\?….*\nDownloaded ')
        self.assert_picture(os.path.join(run_dir, '0-1.png'),
                            official_mixes(network, [(0, 1)], [4, 5], 0.5)[0, 1])
        with self.assertRaisesRegex(UserError, r'gs.pkl\?…: network Gs is unconditional'):
            self.run_in_process(*args, '--class=1')

    def test_what_is_no_network(self):
        server = self.serve({'a.pkl': b'not a pickle', 'b.pkl': http_testutil.Answer(b'', 404)})
        args = ['generate-images', '--seeds=0']
        with self.assertRaisesRegex(UserError, r'a.pkl: expected a network pickle.*\. Remove this file to'):
            self.run_in_process(*args, f'--network={server.url}a.pkl')
        with self.assertRaisesRegex(UserError, 'b.pkl: there is no such file on the server'):
            self.run_in_process(*args, f'--network={server.url}b.pkl')
        self.assertFalse(os.path.exists(self.results))


class MistakesTest(GeneratorTestCase):
    def assert_mistake(self, message, *args):
        with self.assertRaisesRegex(UserError, message):
            self.run_in_process(*args)
        self.assertFalse(os.path.exists(self.results), 'a mistake should leave no run directory')

    def test_mistakes_of_networks(self):
        plain = self.save('gs.pkl', tiny_network())
        conditional = self.save('conditional.pkl', tiny_network(label_size=3))
        seeds = ['generate-images', '--seeds=0']
        mixing = ['style-mixing-example', '--row-seeds=0', '--col-seeds=1']
        for command in (seeds, mixing):
            self.assert_mistake(r'conditional \(label_size 3\).*--class=0 … --class=2',
                                *command, f'--network={conditional}')
            self.assert_mistake('classes 0 to 2, received class 3',
                                *command, f'--network={conditional}', '--class=3')
            self.assert_mistake('unconditional; leave --class=0 out',
                                *command, f'--network={plain}', '--class=0')
            self.assert_mistake('d.pkl: network D .* is no generator',
                                *command, f'--network={self.save("d.pkl", tiny_discriminator())}')
        junk = os.path.join(self.dir, 'junk.pkl')
        with open(junk, 'wb') as file:
            file.write(b'not a pickle')
        self.assert_mistake('junk.pkl: expected a network pickle', *seeds, f'--network={junk}')
        with open(junk, 'wb') as file:
            pickle.dump([1, 2], file)
        self.assert_mistake("junk.pkl: expected a pickle .*network 'Gs'", *seeds, f'--network={junk}')
        self.assert_mistake('--seeds is required, but was not given \\(or --latents\\)', 'generate-images',
                            f'--network={plain}')
        self.assert_mistake('--col-seeds is required', 'style-mixing-example', f'--network={plain}',
                            '--row-seeds=0')
        self.assert_mistake('ends in .png', *seeds, f'--network={plain}', '--output-grid=sheet.gif')
        self.assert_mistake('there is no directory',
                            *seeds, f'--network={plain}', '--output-grid=no/such/dir.png')
        self.assert_mistake('--output-grid would have 1536 million pixels', 'generate-images',
                            '--seeds=0-5999999', f'--network={plain}', '--output-grid')

    def test_mistakes_of_flags(self):
        plain = self.save('gs.pkl', tiny_network())
        seeds = ['generate-images', f'--network={plain}']
        for message, args in [
            ('--network: .*no.pkl: No such file', ['generate-images', '--network=no.pkl', '--seeds=0']),
            ('--network: gdrive:networks/stylegan2-cat-config-e.pkl: there is no such published network; did '
             "you mean '.*-cat-config-f.pkl'", ['generate-images',
                                                '--network=gdrive:networks/stylegan2-cat-config-e.pkl']),
            ('--network: htps://a/b.pkl.*did you mean', ['generate-images', '--network=htps://a/b.pkl?key=1']),
            ('--network: .*Is a directory', ['generate-images', '--network=.', '--seeds=0']),
            ('--network is required', ['generate-images', '--seeds=0']),
            ('--network: expected a path, received an empty', ['generate-images', '--network=', '--seeds=0']),
            ('--result-dir: expected a path, received an empty', [*seeds, '--seeds=0', '--result-dir=']),
            ('--seeds: expected numbers and ranges', [*seeds, '--seeds=a']),
            ('--seeds: expected numbers and ranges', [*seeds, '--seeds=-1']),
            ('--seeds: expected numbers and ranges', [*seeds, '--seeds=']),
            ('--seeds: expected a range from the smaller', [*seeds, '--seeds=3-1']),
            ('--seeds: expected seeds from 0 to 4294967295', [*seeds, '--seeds=4294967296']),
            ('--truncation-psi: expected a number', [*seeds, '--seeds=0', '--truncation-psi=half']),
            ('--class: expected an integer from 0', [*seeds, '--seeds=0', '--class=-1']),
            ('--batch: expected an integer from 1', [*seeds, '--seeds=0', '--batch=0']),
            ("--generator: expected one of Gs, G; received 'D'", [*seeds, '--seeds=0', '--generator=D']),
            ('--latents: .*no.npz: No such file', [*seeds, '--latents=no.npz']),
        ]:
            with contextlib.redirect_stderr(io.StringIO()) as stderr, self.assertRaises(SystemExit) as caught:
                run_generator.make_parser().parse_args(args)
            self.assertEqual(caught.exception.code, 2)
            self.assertRegex(stderr.getvalue(), rf'\A.*error: {message}.*\n\Z')

    def test_exit_status_and_one_line(self):
        junk = os.path.join(self.dir, 'junk.pkl')
        with open(junk, 'wb') as file:
            file.write(b'not a pickle')
        result = self.run_script('generate-images', f'--network={junk}', '--seeds=0')
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr, r'\A.*error: .*junk.pkl: expected a network pickle.*\n\Z')
        self.assertFalse(os.path.exists(self.results))

    def test_help_does_not_wait_for_tensorflow(self):
        code = ('import sys, run_generator\n'
                'sys.argv = ["run_generator.py", "generate-images", "--help"]\n'
                'try: run_generator.main()\n'
                'finally: print("tensorflow" in sys.modules)')
        result = subprocess.run([sys.executable, '-c', code], cwd=testutil.ROOT, capture_output=True,
                                text=True)
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stdout, r'(?s)--seeds LIST.*examples:\n  run_generator.py generate-images ')
        self.assertTrue(result.stdout.endswith('\nFalse\n'))
