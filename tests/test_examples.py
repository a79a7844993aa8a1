"""The programs of examples/: what they learn, what they leave alone, what they write."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import PIL.Image
import tensorflow as tf
from absl.testing import parameterized

from dnnlib import tflib
from dnnlib.tflib import legacy
from dnnlib.util import UserError
from examples import fine_tune, linear_latent_editor, nondifferentiable_scorer
from tests import testutil
from tests import training_testutil as util
from training.context import Context, StepContext

NAMES = ('linear_latent_editor', 'fine_tune', 'nondifferentiable_scorer')
EDITED = ['brightness', 'warmth', 'contrast']
TINY = {key: util.SMALL[key] for key in ('dataset_args', 'grid_args', 'G_args', 'D_args')}
TINY['sched_args'] = dict(util.SMALL['sched_args'], minibatch_gpu_base=8)


class HelpTest(parameterized.TestCase):

    @parameterized.parameters(*NAMES)
    def test_help(self, name):
        """From any directory, without an installation, without TensorFlow."""
        code = ('import runpy, sys; sys.argv = [sys.argv[1], "--help"]\n'
                'try:\n    runpy.run_path(sys.argv[0], run_name="__main__")\n'
                'finally:\n    sys.exit(3 if "tensorflow" in sys.modules else 0)')
        path = str(testutil.ROOT / 'examples' / f'{name}.py')
        done = subprocess.run([sys.executable, '-c', code, path], cwd=os.path.expanduser('~'), text=True,
                              capture_output=True, timeout=120)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        self.assertIn(f'python examples/{name}.py --', done.stdout)

    def test_readme_tells_of_all(self):
        text = (testutil.ROOT / 'examples' / 'README.md').read_text()
        for name in NAMES:
            self.assertIn(f'python examples/{name}.py', text)
            self.assertIsNotNone(importlib.import_module(f'examples.{name}').make_parser)


class EditorTest(util.RunTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        tf.keras.utils.set_random_seed(3)
        sizes = dict(num_channels=3, resolution=8, fmap_base=64, fmap_max=16, latent_size=16, dlatent_size=16,
                     mapping_fmaps=16, mapping_layers=2)
        cls.Gs = tflib.Network('Gs', 'training.networks_stylegan2.G_main', **sizes)
        cls.before = {name: cls.Gs.get_var(name) for name in cls.Gs.vars}
        with contextlib.redirect_stdout(io.StringIO()):
            cls.names, cls.directions, cls.losses = linear_latent_editor.train_editor(cls.Gs, steps=150)

    def test_generator_stays_as_it_is(self):
        for name, value in self.before.items():
            self.assertEqual(np.asarray(value).tobytes(), np.asarray(self.Gs.get_var(name)).tobytes(), name)

    def test_edits_do_what_they_are_asked_for(self):
        """Attributes of new images, measured in NumPy: each follows its own strength, not the others'."""
        self.assertEqual(self.names, EDITED)
        self.assertLess(np.mean(self.losses[-20:]), 0.3 * np.mean(self.losses[:20]))
        dlatents = linear_latent_editor.draw_dlatents(self.Gs, 64, np.random.RandomState(9))

        def measured(w):
            images = self.Gs.components.synthesis.run(w, randomize_noise=False).astype(np.float64)
            gray = images.mean(axis=1).reshape(len(w), -1)
            warmth = (images[:, 0] - images[:, 2]).mean(axis=(1, 2))
            return np.stack([gray.mean(axis=1), warmth, gray.std(axis=1)], axis=1)

        before = measured(dlatents)
        for index in range(3):
            strengths = np.eye(3)[[index] * 64]
            moved = dlatents + np.einsum('nk,kld->nld', strengths, self.directions)
            testutil.assert_close(self, linear_latent_editor.edit(
                dlatents, strengths.astype(np.float32), self.directions), moved, 1e-5, 1e-5)
            change = np.mean(measured(moved) - before, axis=0) / before.std(axis=0)
            self.assertGreater(change[index], 0.5, change)
            self.assertGreater(change[index], 1.5 * np.max(np.abs(np.delete(change, index))), change)

    def test_round_trip_and_sheet(self):
        path = os.path.join(self.root, 'editor.npz')
        linear_latent_editor.save_editor(path, self.names, self.directions)
        names, directions = linear_latent_editor.load_editor(path)
        self.assertEqual(names, self.names)
        self.assertAllEqual(directions, self.directions)
        sheet = os.path.join(self.root, 'editor.png')
        linear_latent_editor.save_sheet(sheet, self.Gs, directions, rows=2)
        pixels = np.asarray(PIL.Image.open(sheet))
        self.assertEqual(pixels.shape, (16, 8 * 15, 3))
        tiles = pixels.reshape(2, 8, 3, 5, 8, 3)     # Row, y, attribute, strength, x, channel.
        for attribute in (1, 2):                     # What is not edited is the same image everywhere.
            self.assertAllEqual(tiles[:, :, attribute, 2], tiles[:, :, 0, 2])
        self.assertNotAllEqual(tiles[:, :, 0, 4], tiles[:, :, 0, 2])

    def test_command(self):
        network = os.path.join(self.root, 'Gs.pkl')
        legacy.save_pkl(self.Gs.state(), network)
        folder = os.path.join(self.root, 'new', 'folder')
        with contextlib.redirect_stdout(io.StringIO()) as output:
            args = linear_latent_editor.make_parser().parse_args(
                [f'--network={network}', f'--result-dir={folder}', '--steps=2'])
            linear_latent_editor.run(args)
        self.assertEqual(sorted(os.listdir(folder)), ['editor.npz', 'editor.png'])
        self.assertRegex(output.getvalue(), 'warmth, contrast. Wrote .*editor.npz and .*editor.png')

    def test_generator_without_w(self):
        G = tflib.Network('G', 'training.networks_progan.G_paper', resolution=8, fmap_base=32, fmap_max=4)
        with self.assertRaisesRegex(UserError, 'G_paper.* has no w to edit'):
            linear_latent_editor.train_editor(G)


class FineTuneTest(util.RunTest):

    def test_what_is_frozen(self):
        testutil.run_eagerly(self)
        with mock.patch.dict(os.environ), contextlib.redirect_stdout(io.StringIO()):
            first = util.train(self.root, total_kimg=0)
            snapshot = os.path.join(first.run_dir, 'network-final.pkl')
            progress = fine_tune.fine_tune(snapshot, kimg=0.008, freeze_d=1, result_dir=self.root, **TINY)
            result = fine_tune.changed_weights(snapshot, os.path.join(progress.run_dir, 'network-final.pkl'))
        self.assertRegex(progress.run_dir, '00001-fine-tune$')
        (G_changed, G_same), (D_changed, D_same) = result['G'], result['D']
        self.assertEqual({name.split('/')[0] for name in G_same}, {'G_mapping'})
        self.assertEqual({name.split('/')[0] for name in G_changed}, {'G_synthesis'})
        self.assertEqual({name.split('/')[0] for name in D_same}, {'8x8'})
        self.assertEqual({name.split('/')[0] for name in D_changed}, {'4x4', 'Output'})


class ScorerTest(parameterized.TestCase, tf.test.TestCase):

    def estimate(self, score, images, sigma=0.05, samples=2000):
        """The estimated gradient of the scores' sum, with noise of all pixels."""
        ctx = StepContext(tf.constant([1, 2]))
        noise = tf.stack([ctx.normal(images.shape, tf.float64) for _ in range(samples)])
        images = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(images)
            scores = nondifferentiable_scorer.estimated_score(images, noise, score, sigma)
        return scores, tape.gradient(scores, images).numpy()

    def assert_same_direction(self, actual, expected, cosine):
        for a, b in zip(actual, expected, strict=True):
            self.assertGreater(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)), cosine)
            self.assertBetween(np.linalg.norm(a) / np.linalg.norm(b), 0.85, 1.2)

    def test_gradient_against_central_differences(self):
        """A smooth scorer in NumPy; expected cosine with S samples in d dimensions: √(S / (S + d)) = 0.99."""
        rnd = np.random.RandomState(0)
        images, weight = rnd.randn(2, 4, 4, 3), rnd.randn(4, 4, 3)

        def score(x):
            return np.tanh(np.sum(np.sin(x) * weight, axis=(1, 2, 3)) / 10)

        scores, gradient = self.estimate(score, images)
        self.assertAllClose(scores, score(images))
        numeric = np.zeros_like(images)
        for index in np.ndindex(*images.shape[1:]):
            delta = np.zeros_like(images)
            delta[(slice(None), *index)] = 1e-5
            numeric[(slice(None), *index)] = (score(images + delta) - score(images - delta)) / 2e-5
        self.assert_same_direction(gradient, numeric, 0.98)

    def test_gradient_of_a_staircase(self):
        """A count of values above 0, whose gradient blurred by σ is the density N(0, σ²) at each value."""
        images = np.random.RandomState(1).randn(2, 4, 4, 3) * 0.2
        sigma = 0.2
        scores, gradient = self.estimate(lambda x: np.sum(x > 0, axis=(1, 2, 3)), images, sigma, samples=8000)
        self.assertAllEqual(scores, np.sum(images > 0, axis=(1, 2, 3)))
        blurred = np.exp(-0.5 * (images / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        self.assert_same_direction(gradient, blurred, 0.95)

    def test_coarse_noise(self):
        noise = nondifferentiable_scorer.coarse_noise(Context(), [500, 8, 8, 3], 2, tf.float64).numpy()
        self.assertEqual(noise.shape, (500, 8, 8, 3))
        cells = noise.reshape(500, 2, 4, 2, 4, 3)
        self.assertAllEqual(cells, np.broadcast_to(cells[:, :, :1, :, :1], cells.shape))
        self.assertAllInRange([noise.mean(), noise.std() - 1], -0.06, 0.06)
        correlation = np.corrcoef(cells[:, 0, 0, 0, 0, 0], cells[:, 1, 0, 0, 0, 0])[0, 1]
        self.assertBetween(correlation, -0.2, 0.2)

    def test_scorers(self):
        black, white = (np.full([1, 8, 8, 3], value, np.uint8) for value in (0, 255))
        noisy = np.random.RandomState(0).randint(0, 256, [1, 8, 8, 3]).astype(np.uint8)
        half = np.concatenate([black[:, :2], white[:, 2:]], axis=1)
        shares = nondifferentiable_scorer.dark_share(np.concatenate([black, white, half]))
        self.assertAllEqual(shares, [1, 0, 0.25])
        simple, complicated = nondifferentiable_scorer.simplicity(np.concatenate([black, noisy]))
        self.assertGreater(simple, complicated + 0.5)


class ScoredRunTest(util.RunTest):

    def test_run_stops_and_goes_on_bit_for_bit(self):
        """The loss by its name in the configuration, also of a run that is resumed; the score goes up."""
        # Without phases for the regularizers there are half as many functions to trace.
        changes = dict(TINY, G_loss_args=dict(score_weight=20.0), minibatch_repeats=1, total_kimg=0.064,
                       lazy_regularization=False)

        def train(name):
            with contextlib.redirect_stdout(io.StringIO()):
                return nondifferentiable_scorer.train(
                    None, 'config-f', result_dir=os.path.join(self.root, name), **changes)

        whole = train('whole')
        curve = util.scalars(whole.run_dir)['Loss/scores/extra']
        self.assertGreater(list(curve.values())[-1], list(curve.values())[0] + 0.05)

        def abort():
            open(os.path.join(self.root, 'part', '00000-scored-dark_share', 'abort.txt'), 'w').close()

        with util.at_step(3, abort):
            part = train('part')
        self.assertEqual((part.step, part.stop_reason), (4, 'abort.txt'))
        util.resume(part.run_dir)
        actual, expected = (util.checkpoint_values(run.run_dir) for run in (part, whole))
        for name, value in expected.items():
            self.assertEqual(actual[name].tobytes(), value.tobytes(), name)


if __name__ == '__main__':
    tf.test.main()
