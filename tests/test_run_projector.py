"""run_projector.py: what each command writes, that it can be used again, verdicts, mistakes."""

import contextlib
import io
import json
import os
import tempfile

import imageio.v3 as imageio
import numpy as np
import PIL.Image
import tensorflow as tf
from tensorboard.backend.event_processing import event_file_loader

import run_projector
from dnnlib import flags, tflib
from dnnlib.tflib import legacy
from generation import projection, sampling
from tests import feature_testutil, testutil
from tests.test_projector import small_network


class ProjectorCommandsTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.dir = folder.name
        cls.network = small_network(resolution=16)
        cls.pickle = os.path.join(cls.dir, 'network.pkl')
        legacy.save_pkl(cls.network.state(), cls.pickle)

    def run_command(self, command, *args):
        """Does what the command line does; returns (run directory, what was printed)."""
        results = tempfile.mkdtemp(dir=self.dir)
        parser = run_projector.make_parser()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            flags.run_command(parser.parse_args(
                [command, f'--network={self.pickle}', '--num-steps=20', '--distance=l2',
                 f'--result-dir={results}', *args]))
        runs = os.listdir(results)
        self.assertEqual(runs, [f'00000-{command}'])
        return os.path.join(results, runs[0]), out.getvalue()

    def files(self, run_dir, prefix):
        return sorted(name for name in os.listdir(run_dir) if name.startswith(prefix))

    def picture(self, *path):
        return np.asarray(PIL.Image.open(os.path.join(*path)))

    def test_generated_images(self):
        run_dir, out = self.run_command('project-generated-images', '--seeds=3,5,8', '--batch=2',
                                        '--num-snapshots=4', '--save-latents', '--save-video')
        steps = ['step0005.png', 'step0010.png', 'step0015.png', 'step0020.png']
        expected = sorted(['latents.npz', *steps, 'target.png', 'video.mp4'])
        for seed in (3, 5, 8):
            self.assertEqual(self.files(run_dir, 'seed'), sorted(
                f'seed{number:04d}-{name}' for number in (3, 5, 8) for name in expected))
            target = next(image for _, image in sampling.generate(self.network, [seed], 1.0))
            picture = self.picture(run_dir, f'seed{seed:04d}-target.png')
            self.assertAllClose(picture, target.transpose(1, 2, 0), atol=1)
            # What is saved draws the last picture.
            latents = np.load(os.path.join(run_dir, f'seed{seed:04d}-latents.npz'))
            clone = self.network.clone()
            for i, var in enumerate(sampling.noise_vars(clone)):
                var.assign(latents[f'noise{i}'][np.newaxis])
            image = clone.components.synthesis.run(
                latents['dlatents'][np.newaxis], randomize_noise=False,
                output_transform=dict(func=tflib.convert_images_to_uint8, nchw_to_nhwc=True))
            self.assertAllClose(self.picture(run_dir, f'seed{seed:04d}-step0020.png'), image[0], atol=1)
            self.assertEqual(latents['history/distance'].shape, (20,))
        frames = imageio.imread(os.path.join(run_dir, 'seed0003-video.mp4'))
        self.assertEqual(frames.shape, (20, 128, 256, 3))
        # The target stands on the left of every frame, enlarged, what is drawn for it on the right.
        target, drawn = (self.picture(run_dir, f'seed0003-{name}.png') for name in ('target', 'step0020'))
        left, right = (frames[-1][4::8, begin:begin + 128:8].astype(np.float32) for begin in (4, 132))
        for side, own, other in ((left, target, drawn), (right, drawn, target)):
            self.assertLess(np.abs(side - own).mean(), 12)
            self.assertLess(np.abs(side - own).mean(), 0.7 * np.abs(side - other).mean())
        distances = json.load(open(os.path.join(run_dir, 'distances.json')))
        self.assertEqual(list(distances['images']), ['seed0003', 'seed0005', 'seed0008'])
        self.assertIn('seed0008: distance', out)
        self.assertTrue(os.path.exists(os.path.join(run_dir, 'losses.png')))
        (events,) = self.files(run_dir, 'events.out')
        logged = [tf.make_ndarray(value.tensor)
                  for event in event_file_loader.EventFileLoader(os.path.join(run_dir, events)).Load()
                  for value in event.summary.value if value.tag == 'Projection/seed0008']
        self.assertAllClose(logged, latents['history/distance'])

    def test_real_images(self):
        run_dir, _ = self.run_command('project-real-images', '--num-images=2', '--num-snapshots=1')
        self.assertEqual(self.files(run_dir, 'image'), [f'image000{i}-{name}' for i in (0, 1)
                                                        for name in ('step0020.png', 'target.png')])
        from training.dataset import load_dataset
        images, _ = load_dataset(resolution=16).read(np.arange(2))
        self.assertAllEqual(self.picture(run_dir, 'image0001-target.png'), images[1])

    def test_image_files_and_going_on(self):
        testutil.run_eagerly(self)
        folder = os.path.join(self.dir, 'pictures')
        os.makedirs(os.path.join(folder, 'more'))
        rnd = np.random.RandomState(0)
        wide = rnd.randint(0, 256, [16, 40, 3], dtype=np.uint8)
        PIL.Image.fromarray(wide).save(os.path.join(folder, 'wide.png'))
        PIL.Image.fromarray(wide[:, :16, 0]).save(os.path.join(folder, 'more', 'wide.png'))
        target = f'--target={folder},{folder}/more/wide.png'
        first, out = self.run_command('project-images', target, '--save-latents', '--space=w+')
        cut = f'{folder}/wide.png: the middle 16x16 of 40x16 pixels, resized to 16x16'
        self.assertEqual(out.count(cut), 1)
        self.assertNotIn('more/wide.png:', out)
        self.assertAllEqual(self.picture(first, 'wide-0-target.png'), wide[:, 12:28])
        self.assertAllEqual(self.picture(first, 'wide-1-target.png'), np.repeat(wide[:, :16, :1], 3, axis=2))
        latents = [os.path.join(first, f'wide-{i}-latents.npz') for i in (0, 1)]
        second, _ = self.run_command('project-images', target, f'--initial={",".join(latents)}', '--space=w+',
                                     '--save-latents', '--num-steps=1')
        # The second run begins where the first ended; the learning rate of its first step is 0.
        for i in (0, 1):
            before, after = (np.load(os.path.join(run, f'wide-{i}-latents.npz')) for run in (first, second))
            for key in ('dlatents', 'noise0', 'noise4'):
                self.assertAllClose(after[key], before[key], atol=1e-4)
        # In space w, with latents of one's own and without noise.
        own = os.path.join(self.dir, 'own.npz')
        w = np.random.RandomState(1).randn(2, 1, 8)
        np.savez(own, w=w)
        third, _ = self.run_command('project-images', target, f'--initial={own}', '--save-latents',
                                    '--num-steps=1')
        for i in (0, 1):
            after = np.load(os.path.join(third, f'wide-{i}-latents.npz'))
            self.assertAllClose(after['dlatents'], np.tile(w[i], [6, 1]), atol=1e-5)
            self.assertAllClose(np.std(after['noise4']), 1.0, atol=1e-3)

    def test_detect(self):
        folder = tempfile.mkdtemp(dir=self.dir)
        own = [image for _, image in sampling.generate(self.network, [100, 101], 1.0)]
        other = np.random.RandomState(0).randint(0, 256, [3, 16, 16], dtype=np.uint8)
        # The name of one is that of a reference, too.
        for name, image in zip(('own0', 'real0003', 'other'), [*own, other], strict=True):
            PIL.Image.fromarray(image.transpose(1, 2, 0)).save(os.path.join(folder, f'{name}.png'))
        run_dir, out = self.run_command('detect', f'--images={folder}', '--num-references=6', '--batch=15',
                                        '--num-steps=200')
        result = json.load(open(os.path.join(run_dir, 'detection.json')))
        self.assertLen(result['generated'], 6)
        self.assertLen(result['real'], 6)
        self.assertFalse(result['images']['other']['generated'])
        self.assertIn('other: distance', out)
        for name, verdict in result['images'].items():
            self.assertEqual(verdict['generated'], verdict['distance'] < result['threshold'], name)
        self.assertLess(max(result['images'][name]['distance'] for name in ('own0', 'real0003-2')),
                        result['images']['other']['distance'])
        self.assertTrue(os.path.exists(os.path.join(run_dir, 'histograms.png')))
        self.assertEqual(self.files(run_dir, 'generated'), [])

    def test_threshold(self):
        generated, real = [0.001, 0.002, 0.004], [0.016, 0.02, 0.5]
        self.assertAllClose(projection.best_threshold(generated, real), 0.008)
        self.assertEqual(projection.cross_validated_error(generated, real), 0)
        # One of each kind on the wrong side: a third of each.
        self.assertAllClose(projection.error_rate([0.1, 0.2, 3.0], [0.15, 5.0, 6.0], 1.0), 1 / 3)
        rnd = np.random.RandomState(1)
        same = projection.cross_validated_error(rnd.rand(40), rnd.rand(40))
        self.assertBetween(same, 0.25, 0.75)

    def test_weights_dir(self):
        folder = tempfile.mkdtemp(dir=self.dir)
        path = os.path.join(folder, 'vgg16.pt')
        feature_testutil.write_torch(path, feature_testutil.vgg16_weights(), script=True)
        run_dir, out = self.run_command('project-real-images', '--num-images=1', '--distance=lpips',
                                        '--num-steps=3', f'--weights-dir={os.path.relpath(folder)}')
        with open(os.path.join(run_dir, 'submit_config.json')) as file:
            self.assertIn(folder, file.read())
        with open(os.path.join(run_dir, 'distances.json')) as file:
            self.assertEqual(json.load(file)['distance'], 'lpips')
        with open(path, 'r+b') as file:
            file.truncate(1000)
        for args, message in [(f'--weights-dir={folder}', f'{path}: damaged'),
                              (f'--weights-dir={path}', '--weights-dir: expected a local folder')]:
            with self.assertRaisesRegex(flags.UserError, message):
                self.run_command('project-real-images', '--distance=lpips', args)

    def test_mistakes(self):
        folder = tempfile.mkdtemp(dir=self.dir)
        noise = os.path.join(folder, 'x-latents.npz')
        np.savez(noise, dlatents=np.zeros([3, 8]))
        own = os.path.join(folder, 'own.npz')
        np.savez(own, dlatents=np.arange(48).reshape(6, 8))
        picture = os.path.join(folder, 'x.png')
        PIL.Image.fromarray(np.zeros([16, 16, 3], np.uint8)).save(picture)
        for args, message in [
                (['project-images', '--target=/nowhere'], '--target: there is no file or folder /nowhere'),
                (['project-images', f'--target={self.dir}/network.pkl'], 'network.pkl'),
                (['project-images', f'--target={picture}', f'--initial={noise}'],
                 r'dlatents has shape \[3, 8\]; network Gs expects \[6, 8\]'),
                (['project-images', f'--target={picture}', f'--initial={own},{own}', '--space=w+'],
                 'expected latents for each of 1 images, received 2'),
                (['project-images', f'--target={picture}', f'--initial={own}'],
                 'own has latents of its own for each layer; go on with --space=w'),
                (['project-generated-images', '--weights-dir=~/no such folder'],
                 f'expected a local folder with files of weights, received {os.path.expanduser("~")}/no'),
                (['project-real-images', f'--dataset={folder}/none'], 'there is no data set'),
                (['project-generated-images', '--class=1'], 'unconditional')]:
            parser = run_projector.make_parser()
            results = os.path.join(folder, 'results')
            with self.assertRaisesRegex(flags.UserError, message):
                flags.run_command(parser.parse_args([
                    *args, f'--network={self.pickle}', f'--result-dir={results}',
                    f'--distance={"efflite0" if "--weights-dir" in args[-1] else "l2"}']))
            self.assertFalse(os.path.exists(results))

    def test_networks_that_do_not_fit(self):
        folder = tempfile.mkdtemp(dir=self.dir)
        feature_testutil.write_torch(os.path.join(folder, 'vgg16.pt'), feature_testutil.vgg16_weights(),
                                     script=True)
        progan = tflib.Network('Gs', 'training.networks_progan.G_paper', resolution=8, fmap_base=32,
                               fmap_max=8, latent_size=8)
        for network, message in [(progan, 'small.pkl: network Gs has no intermediate latents w'),
                                 (small_network(resolution=8), 'network Gs draws 8×8; choose efflite0')]:
            path = os.path.join(folder, 'small.pkl')
            legacy.save_pkl(network.state(), path)
            with self.assertRaisesRegex(flags.UserError, message):
                flags.run_command(run_projector.make_parser().parse_args([
                    'project-generated-images', f'--network={path}', f'--weights-dir={folder}',
                    '--distance=lpips', f'--result-dir={folder}/results']))
        self.assertFalse(os.path.exists(f'{folder}/results'))

    def test_official_command_lines(self):
        run_dir, _ = self.run_command('project-generated-images', '--seeds=0,1,5', '--num-snapshots', '1',
                                      '--save-video', 'false', '--save-latents=true',
                                      '--truncation-psi', '0.3')
        for psi, check in ((0.3, self.assertAllClose), (1.0, self.assertNotAllClose)):
            (_, target), = sampling.generate(self.network, [5], psi)
            check(self.picture(run_dir, 'seed0005-target.png'), target.transpose(1, 2, 0), atol=1)
        self.assertEqual(self.files(run_dir, 'seed'), [
            f'seed000{seed}-{name}' for seed in (0, 1, 5)
            for name in ('latents.npz', 'step0020.png', 'target.png')])
        options = run_projector.make_parser().parse_args(
            ['project-generated-images', f'--network={self.pickle}'])
        self.assertEqual((options.seeds, options.num_snapshots, options.truncation_psi, options.num_steps),
                         ([0, 1, 2], 5, 1.0, 1000))
        options = run_projector.make_parser().parse_args(
            ['project-real-images', f'--network={self.pickle}', '--dataset=car', '--data-dir=~/datasets'])
        self.assertEqual((options.num_images, options.num_snapshots, options.dataset), (3, 5, 'car'))


if __name__ == '__main__':
    tf.test.main()
