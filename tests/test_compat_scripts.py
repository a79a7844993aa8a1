"""Scripts in the manner of the official ones (tests/compat), run as they are, against second computations."""

import contextlib
import http.server
import io
import os
import pathlib
import runpy
import sys
import threading
import warnings
from unittest import mock

import numpy as np
import PIL.Image
import tensorflow as tf

from dnnlib import tflib
from dnnlib.tflib import legacy
from generation.sampling import GivenNoise
from tests import testutil
from training.context import Context

COMPAT = pathlib.Path(__file__).resolve().parent / 'compat'
STYLEGAN2 = testutil.golden('training', 'stylegan2_f_init.pkl')
STYLEGAN = testutil.golden('training', 'stylegan_init.pkl')
PROGAN = testutil.golden('training', 'progan_label4_init.pkl')


def layers(path):
    """(G, D, Gs) as layers, without the facade."""
    return [testutil.build_network(state) for state in legacy.load_pkl(path)]


def images_of(layer, *inputs, **kwargs):
    """NCHW images or scores of a layer for arrays."""
    inputs = [None if x is None else tf.constant(x, tf.float32) for x in inputs]
    outputs = tf.nest.flatten(layer(*inputs, **{'ctx': Context(), **kwargs}))[0]
    return testutil.nchw(outputs.numpy()) if outputs.shape.rank == 4 else outputs.numpy()


def given_noise(arrays):
    """The context of a pass with that noise, arrays [N, 1, H, W] in order."""
    return GivenNoise([tf.constant(testutil.nhwc(array), tf.float32) for array in arrays])


def pixels(images):
    """[-1, 1] NCHW → uint8 NHWC, as the official conversion."""
    return testutil.nhwc(np.clip(np.floor(images * 127.5 + 128), 0, 255)).astype(np.uint8)


class CompatTest(tf.test.TestCase):

    def _run(self, script, *arguments):
        """The names that a script leaves behind, and what it printed."""
        out = io.StringIO()
        with mock.patch.object(sys, 'argv', [script, *map(str, arguments)]), warnings.catch_warnings(), \
                contextlib.redirect_stdout(out):
            warnings.simplefilter('error', UserWarning)
            names = runpy.run_path(str(COMPAT / f'{script}.py'), run_name='__main__')
        return names, out.getvalue()

    def assert_pixels(self, actual, expected):
        """Equal but for a rounding that falls to the other side."""
        actual, expected = np.asarray(actual), np.asarray(expected)
        self.assertEqual((actual.dtype, actual.shape), (np.uint8, expected.shape))
        difference = np.abs(actual.astype(int) - expected)
        self.assertLessEqual(difference.max(), 1)
        self.assertLess(difference.mean(), 0.01)

    def test_every_script_is_run(self):
        tests = pathlib.Path(__file__).read_text()
        for script in COMPAT.glob('*.py'):
            self.assertIn(f"self._run('{script.stem}'", tests)

    def test_pretrained_example(self):
        folder = self.get_temp_dir()

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def __init__(self, *args, **kwargs):
                super().__init__(*args, directory=os.path.dirname(STYLEGAN2), **kwargs)

        with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f'http://127.0.0.1:{server.server_address[1]}/{os.path.basename(STYLEGAN2)}'
            names, printed = self._run('pretrained_example', url, folder)
            server.shutdown()
        again, _ = self._run('pretrained_example', url, folder)     # From the cache: the server is gone.
        self.assertRegex(printed, r'Gs +Params +OutputShape +WeightShape')
        self.assertRegex(printed, r'G_synthesis/16x16/Conv1 +2\d\d\d +\(\?, \d+, 16, 16\)')
        picture = np.asarray(PIL.Image.open(names['png_filename']))
        self.assert_pixels(picture, again['images'][0])
        kwargs = dict(truncation_psi=0.7, randomize_noise=True, output_transform=names['fmt'])
        other_noise = names['Gs'].run(names['latents'], None, **kwargs)
        self.assertNotAllEqual(names['images'], other_noise)
        self.assertEqual(names['images'].shape, (1, 16, 16, 3))
        still = images_of(layers(STYLEGAN2)[2], names['latents'], truncation_psi=0.7, randomize_noise=False)
        self.assertGreater(np.corrcoef(pixels(still).ravel(), names['images'].ravel())[0, 1], 0.3)

    def test_figures(self):
        for path in (STYLEGAN2, STYLEGAN):
            with self.subTest(path):
                folder = os.path.join(self.get_temp_dir(), os.path.basename(path))
                names, _ = self._run('figures', path, folder)
                Gs = layers(path)[2]
                row_dlatents, row_images = names['mixed']
                self.assert_pixels(row_images, pixels(images_of(Gs.synthesis, row_dlatents,
                                                                randomize_noise=False)))
                own = images_of(Gs.mapping, np.random.RandomState(829).randn(1, 16), None)
                testutil.assert_close(self, row_dlatents[0, :2], own[0, :2])
                latents = np.random.RandomState(1967).randn(2, 16)
                for images, used in zip(names['noise'], (range(0, 18), (), range(2, 18)), strict=True):
                    values = [var.numpy() * (index in used)
                              for index, var in enumerate(Gs.synthesis.noise_inputs)]
                    ctx = given_noise([np.repeat(value, 2, axis=0) for value in values])
                    expected = pixels(images_of(Gs, latents, None, ctx=ctx, truncation_psi=1,
                                                randomize_noise=True))
                    images[0].flat[0] -= 1
                    self.assert_pixels(images, expected)
                self.assertGreater(names['deviation'].mean(), 0.1)
                truncated = names['truncated']
                self.assertEqual(truncated.shape, (2, 6, 16, 16, 3))
                self.assert_pixels(truncated[0, 3], truncated[1, 3])   # psi 0 is the average for every seed.
                self.assertAllEqual(truncated[:, 0], pixels(images_of(
                    Gs, np.stack([np.random.RandomState(seed).randn(16) for seed in (91, 388)]), None,
                    truncation_psi=1, randomize_noise=False)))
                for png in ('uncurated', 'mixing', 'noise'):
                    picture = PIL.Image.open(os.path.join(folder, f'{png}.png'))
                    self.assertGreater(np.std(np.asarray(picture)), 1)

    def test_generate(self):
        folder = os.path.join(self.get_temp_dir(), 'out')
        names, _ = self._run('generate', STYLEGAN2, folder)
        Gs = layers(STYLEGAN2)[2]
        for seed, image in names['seed_images'].items():
            rnd = np.random.RandomState(seed)
            z = rnd.randn(1, 16)
            ctx = given_noise([rnd.randn(*var.shape) for var in Gs.synthesis.noise_inputs])
            expected = images_of(Gs, z, None, ctx=ctx, truncation_psi=0.5, randomize_noise=True)
            self.assert_pixels(image, pixels(expected)[0])
            picture = PIL.Image.open(os.path.join(folder, f'seed{seed:04d}.png'))
            self.assertAllEqual(np.asarray(picture), image)
        w = {seed: images_of(Gs.mapping, np.random.RandomState(seed).randn(1, 16), None)[0]
             for seed in (75, 85)}
        average = Gs.dlatent_avg.numpy()
        mixed = np.concatenate([w[75][:3], w[85][3:]])
        mixed = average + (mixed - average) * 0.5
        image = images_of(Gs.synthesis, mixed[np.newaxis], randomize_noise=False)
        self.assert_pixels(names['image_dict'][85, 75], pixels(image)[0])

    def test_interpolation(self):
        for path in (STYLEGAN2, STYLEGAN):
            names, _ = self._run('interpolation', path, 3)
            Gs = layers(path)[2]
            z = names['z0'][np.newaxis]
            psis = np.linspace(-1, 1, 9)
            expected = np.concatenate([
                images_of(Gs, z, None, truncation_psi=float(psi), randomize_noise=False) for psi in psis])
            testutil.assert_close(self, names['sweep'], expected)
            testutil.assert_close(self, names['sweep'][8:], names['images'])
            testutil.assert_close(self, names['untruncated'], names['images'])
            self.assert_pixels(names['frames'][0], pixels(names['images'])[0])
            testutil.assert_close(self, names['dlatents'], images_of(Gs.mapping, z, None))
            self.assertEqual(names['walk'].shape, (6, 3, 16, 16))
            # The sweep and the frames, with a function made anew for each, did not grow what is kept.
            self.assertLess(len(names['Gs']._functions), 5)
            self.assertLen(names['Gs'].components.synthesis._functions, 1)

    def test_projection(self):
        names, _ = self._run('projection', STYLEGAN2)
        self.assertLess(names['losses'][-1], 0.8 * names['losses'][0])
        gradient, loss_of = names['noise_grad'].numpy(), names['loss_of']
        noise, delta = names['noise_vars'][0], 1e-2
        direction = np.random.RandomState(0).randn(*noise.shape).astype(np.float32)
        ends = []
        for sign in (1, -1):
            noise.assign_add(sign * delta * direction)
            ends.append(float(loss_of(names['dlatents_var'])))
            noise.assign_sub(sign * delta * direction)
        self.assertNear((ends[0] - ends[1]) / (2 * delta), np.sum(gradient * direction),
                        0.05 * np.linalg.norm(gradient) * np.linalg.norm(direction))
        testutil.assert_close(self, names['score'],
                              images_of(layers(STYLEGAN2)[1], testutil.nhwc(names['target']), None))

    def test_metric(self):
        for path in (STYLEGAN2, STYLEGAN):
            names, _ = self._run('metric', path)
            G, D, Gs = layers(path)
            self.assertEqual(names['activations'].shape, (20, 1))
            self.assertGreater(np.std(names['activations']), 0)
            fakes = images_of(Gs, names['latents'], None, is_validation=True, randomize_noise=False)
            testutil.assert_close(self, names['score']['score'], images_of(D, testutil.nhwc(fakes), None))
            testutil.assert_close(self, names['score']['parts'][0], fakes.mean(), 1e-4, 1e-2)
            for name, var in Gs.named_trainables().items():
                expected = 0.25 * G.named_variables()[name].numpy() + 0.75 * var.numpy()
                testutil.assert_close(self, names['after'][name], expected, 1e-5, 1e-6)
            trainables = [name for _, _, rows in names['table'] for name in rows]
            self.assertCountEqual(trainables, [f'D/{name}:0' for name in D.named_trainables()])
            self.assertEqual(names['table'][-1][1], [None, 1])

    def test_progan(self):
        names, _ = self._run('progan', PROGAN)
        G, D, Gs = layers(PROGAN)
        self.assertIsInstance(names['Gs'], tflib.Network)
        expected = images_of(Gs, names['latents'], names['labels'])
        testutil.assert_close(self, names['images'], expected)
        self.assertEqual(names['pixels'].shape, (10, 16, 16, 3))
        small = expected.reshape(10, 3, 8, 2, 8, 2).mean(axis=(3, 5)) * 127.5 + 127.5
        self.assertEqual(names['grid'].dtype, np.uint8)
        self.assertAllClose(names['grid'], np.clip(np.rint(small), 0, 255), rtol=0, atol=1)
        for begin in (0, 4):
            scores = D(tf.constant(testutil.nhwc(names['images'][begin:begin + 4])))
            testutil.assert_close(self, names['scores'][begin:begin + 4], scores[0])
            testutil.assert_close(self, names['labels_out'][begin:begin + 4], scores[1])
        self.assertEqual((names['lod'], names['D'].get_var('lod')), (Gs.lod.numpy(), 1))

    def test_workshop(self):
        path = os.path.join(self.get_temp_dir(), 'copy.pkl')
        names, printed = self._run('workshop', STYLEGAN2, path)
        G, D, Gs = layers(STYLEGAN2)
        expected = images_of(Gs, names['z'], None, truncation_psi=0.7, randomize_noise=False)
        testutil.assert_close(self, names['reference'], expected)
        for images in names['same']:
            testutil.assert_close(self, images, names['reference'], 1e-5, 1e-6)
        testutil.assert_close(self, *names['syntheses'], 1e-5, 1e-6)
        self.assertEqual(pathlib.Path(path).read_bytes(), pathlib.Path(STYLEGAN2).read_bytes())
        self.assertEqual(names['total'], sum(np.prod(var.shape) for var in Gs.named_trainables().values()))
        self.assertEqual(names['numbers'][1:], ('Gs/G_synthesis/noise0:0', [1, 1, 4, 4], np.float32))
        self.assertIn(names['noise0'], names['by_network'])
        name = 'G_synthesis/8x8/Conv1/weight'
        testutil.assert_close(self, names['blend'].get_var(name), 0.5 * (
            G.named_variables()[name].numpy() + Gs.named_variables()[name].numpy()), 1e-5, 1e-6)
        self.assertAllEqual(names['swapped'].get_var('G_mapping/Dense0/weight'),
                            G.named_variables()['G_mapping/Dense0/weight'])
        testutil.assert_close(self, names['plain'].run(names['z'], None, randomize_noise=False),
                              images_of(Gs, names['z'], None, truncation_psi=None, randomize_noise=False))
        self.assertRegex(printed, r'Discriminator +Params')
        self.assertNotIn('MinibatchStddev', printed)


if __name__ == '__main__':
    tf.test.main()
