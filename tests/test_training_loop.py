"""What a training run leaves in its directory, and how it ends."""

import os
import pathlib
import pickletools
import signal
from unittest import mock

import numpy as np
import PIL.Image
import tensorflow as tf

from dnnlib import tflib
from dnnlib.tflib import legacy
from dnnlib.util import EasyDict, UserError
from generation import classes
from tests import testutil
from tests import training_testutil as util
from training import loss, snapshots, training_loop


def nan_loss(G, D, ctx, minibatch_size):
    """A loss that is NaN, whatever the networks do."""
    part, _ = loss.G_logistic_ns(G, D, ctx, minibatch_size)
    return lambda: part() * np.nan, None


class StartTest(tf.test.TestCase):

    def test_networks_go_on_where_they_belong(self):
        """From a snapshot of a growing run: at its kimg, or where the schedule has its level of detail."""
        G = tflib.Network('G', 'training.networks_stylegan.G_style', resolution=16, fmap_base=32, fmap_max=8,
                          latent_size=8, dlatent_size=8, mapping_fmaps=8, mapping_layers=1)
        sched_args = dict(resolution_log2=4, lod_initial_resolution=8, lod_training_kimg=10,
                          lod_transition_kimg=20, minibatch_size_base=4)

        def start(name, lod, kimg=None):
            G.set_var('lod', lod)
            return training_loop._start_kimg(name, kimg, G, sched_args)

        self.assertEqual(start('network-snapshot-000020.pkl', 0.48), 20)
        self.assertEqual(start('network-snapshot-000020.pkl', 0.0), 30)
        self.assertEqual(start('network-snapshot-001000.pkl', 0.0), 1000)
        self.assertEqual(start('network-final.pkl', 0.0), 30)
        self.assertEqual(start('network-final.pkl', 0.5), 20)
        self.assertEqual(start('network-final.pkl', 0.5, kimg=3), 3)
        self.assertEqual(start(None, 0.0), 0)
        D = tflib.Network('D', 'training.networks_stylegan2.D_stylegan2', resolution=8, fmap_base=32,
                          fmap_max=8)
        self.assertEqual(training_loop._start_kimg('network-snapshot-000020.pkl', None, D, {}), 20)


    def test_memory_is_estimated_for_the_rounds_of_a_gpu(self):
        G = tflib.Network('G', 'training.networks_progan.G_paper', resolution=8, fmap_base=32, fmap_max=8)
        sched = EasyDict(minibatch_size=64, minibatch_gpu=8)
        with mock.patch.object(training_loop, 'LARGE', 0), \
                mock.patch.object(training_loop.memory, 'estimate') as estimate:
            training_loop._print_notes(None, {}, (G,), sched, 4)
        estimate.assert_called_once_with((G,), 8, 2)


class RunDirectoryTest(util.RunTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.result_dir = cls.root + '/results'
        # 25 minibatches of 8: ticks after 4, 12, 20 and at the end.
        cls.progress = util.train(cls.result_dir, keep_snapshots=2)
        cls.run_dir = pathlib.Path(cls.progress.run_dir)
        cls.log = (cls.run_dir / 'log.txt').read_text()

    def test_files(self):
        names = {
            'submit_config.pkl',
            'submit_config.txt',
            'submit_config.json',
            'run.txt',
            'log.txt',
            '_finished.txt',
            'reals.png',
            'reals_by_class.png',
            'class_names.json',
            'fakes_init.png',
            'fakes000000.png',
            'network-snapshot-000000.pkl',
            'network-final.pkl',
            'events',
            'checkpoints/checkpoint',
        }
        names |= {f'checkpoints/state-{step}{suffix}' for step in (20, 25)
                  for suffix in ('.index', '.data-00000-of-00001')}
        self.assertEqual(util.files(self.run_dir), names)
        self.assertEqual(self.run_dir.name, '00000-small')

    def test_names_of_classes(self):
        """In a file: the pickles are as those of the official programs."""
        _, _, Gs = snapshots.load_networks(str(self.run_dir / 'network-final.pkl'))
        self.assertNotIn('class_names', Gs.static_kwargs)
        names = classes.class_names(Gs, self.run_dir / 'network-final.pkl')
        self.assertLen(names, 8)
        for name in names:
            self.assertIn(f'class {name}: ', self.log)

    def test_tick_lines(self):
        lines = [line for line in self.log.splitlines() if line.startswith('tick ')]
        ticks = [util.TICK_LINE.fullmatch(line) for line in lines]
        self.assertNotIn(None, ticks, lines)
        self.assertEqual(
            [tick.groups()[:4] for tick in ticks],
            [
                ('0', '0.0', '0.00', '8'),
                ('1', '0.1', '0.00', '8'),
                ('2', '0.2', '0.00', '8'),
                ('3', '0.2', '0.00', '8'),
            ],
        )
        self.assertEqual(lines[0].index('kimg'), 11)  # Columns as wide as the official ones.
        self.assertEqual(lines[0].index('gpumem'), lines[1].index('gpumem'))

    def test_log_tells_what_is_trained(self):
        for text in ('Data set pixelart32', 'Label size: 8', 'G_synthesis/8x8/Conv1', '8x8/FromRGB',
                     'Training for 0.2 kimg...', 'network-final.pkl'):
            self.assertIn(text, self.log)

    def test_tensorboard(self):
        scalars = util.scalars(self.run_dir)
        names = {
            'Loss/scores/real',
            'Loss/scores/fake',
            'Loss/gradient_penalty',
            'Loss/pl_lengths',
            'Loss/pl_penalty',
            'Progress/tick',
            'Progress/kimg',
            'Progress/lod',
            'Progress/minibatch',
            'Timing/total_sec',
            'Timing/sec_per_tick',
            'Timing/sec_per_kimg',
            'Timing/maintenance_sec',
            'Timing/total_hours',
            'Timing/total_days',
            'Resources/peak_gpu_mem_gb',
            'Resources/peak_cpu_mem_gb',
            'TrainG/learning_rate',
            'TrainG/overflow_frequency',
            'TrainD/learning_rate',
            'TrainD/overflow_frequency',
        }
        self.assertEqual({name for name in scalars if not name.startswith('xCustomScalars/')}, names)
        for name in names - {'Loss/gradient_penalty'}:  # Every 16 minibatches.
            self.assertEqual(list(scalars[name]), [32, 96, 160, 200], name)
        self.assertEqual(list(scalars['Loss/gradient_penalty']), [32, 160])
        self.assertAllClose(list(scalars['Progress/kimg'].values()), [0.032, 0.096, 0.16, 0.2])
        self.assertAllClose(scalars['TrainG/learning_rate'][32], 0.003 * 4 / 5)
        self.assertAllClose(scalars['TrainD/learning_rate'][32], 0.003 * 16 / 17)
        self.assertEqual(set(scalars['TrainD/overflow_frequency'].values()), {0.0})
        self.assertTrue(
            np.all(np.isfinite([value for curve in scalars.values() for value in curve.values()]))
        )

    def test_tensorboard_images_and_text(self):
        found = {}
        for event in util.events(self.run_dir):
            for value in event.summary.value:
                kind = value.metadata.plugin_data.plugin_name
                if kind != 'scalars':
                    found.setdefault((kind, value.tag), []).append(
                        (event.step, tf.make_ndarray(value.tensor))
                    )
        self.assertEqual([step for step, _ in found['images', 'Images/reals']], [0])
        self.assertEqual([step for step, _ in found['images', 'Images/fakes']], [0, 32, 96, 160, 200])
        width, height, png = found['images', 'Images/fakes'][-1][1][:3]
        self.assertEqual((width, height), (b'32', b'16'))
        sheet = np.asarray(PIL.Image.open(self.run_dir / 'fakes000000.png'))
        self.assertAllEqual(tf.io.decode_png(png), sheet)
        text = found['text', 'Hyperparameters'][0][1].item().decode()
        for cell in ('| G_args.fmap_base | 32 |', '| D_loss_args.gamma | 0.1 |', '| seed | 1000 |'):
            self.assertIn(cell, text)

    def test_pictures(self):
        for name in ('reals.png', 'fakes_init.png', 'fakes000000.png'):
            with PIL.Image.open(self.run_dir / name) as image:
                self.assertEqual((image.size, image.mode), ((32, 16), 'RGB'), name)
        first, last = (np.asarray(PIL.Image.open(self.run_dir / name), np.float32)
                       for name in ('fakes_init.png', 'fakes000000.png'))
        self.assertGreater(np.mean(np.abs(first - last)), 0.1)

    def test_snapshots(self):
        """Version 4, without source text, and the same networks as in the checkpoint of that moment."""
        values = util.checkpoint_values(self.run_dir)
        for name in ('network-snapshot-000000.pkl', 'network-final.pkl'):
            data = (self.run_dir / name).read_bytes()
            strings = {arg for opcode, arg, _ in pickletools.genops(data) if isinstance(arg, str)}
            self.assertIn('dnnlib.tflib.network', strings)
            self.assertFalse([text for text in strings if 'import ' in text or 'def ' in text])
            states = legacy.load_pkl(str(self.run_dir / name))
            self.assertEqual([state.name for state in states], ['G', 'D', 'Gs'])
            for state in states:
                self.assertEqual(state.to_state()['version'], 4)
                for var, value in state.all_variables().items():
                    key = f'variables/{state.name}/{var}'.replace('/', '.S')
                    key = key.replace('variables.S', 'variables/', 1) + '/.ATTRIBUTES/VARIABLE_VALUE'
                    self.assertAllEqual(value, values[key], var)

    def test_same_seed_same_run(self):
        again = util.train(self.result_dir, total_kimg=0.032)
        self.assertEqual(pathlib.Path(again.run_dir).name, '00001-small')
        for tag, curve in util.scalars(again.run_dir).items():
            if tag.startswith('Loss/'):
                self.assertEqual(curve[32], util.scalars(self.run_dir)[tag][32], tag)

    def test_start_from_snapshot(self):
        """Without a step, the new run ends with the very networks; its progress is that of the name."""
        source = self.run_dir / 'network-final.pkl'
        renamed = os.path.join(self.folder(), 'network-snapshot-000007.pkl')
        os.link(source, renamed)
        has_tf32 = tf.config.experimental.tensor_float_32_execution_enabled
        progress = util.train(self.result_dir, resume_pkl=renamed, total_kimg=7, allow_tf32=True)
        self.assertTrue(has_tf32())
        self.assertEqual((progress.nimg, progress.step), (7000, 0))
        self.assertEqual(
            (pathlib.Path(progress.run_dir) / 'network-final.pkl').read_bytes(), source.read_bytes()
        )
        with mock.patch.object(training_loop, 'Trainer', wraps=training_loop.Trainer) as made:
            progress = util.train(self.result_dir, resume_pkl=renamed, resume_kimg=0.5, total_kimg=0.5,
                                  ema_start=1000)
        self.assertFalse(has_tf32())
        self.assertEqual(progress.nimg, 500)
        self.assertEqual(made.call_args.kwargs['ema_start'], 0)     # The average of the snapshot goes on.

    def test_snapshot_of_other_shape(self):
        for changes, text in (
            (dict(resolution=16), r'\[3, 8, 8\] with label size 8; the data set has \[3, 16, 16\] and 8'),
            (dict(max_label_size=0), r'with label size 8; the data set has \[3, 8, 8\] and 0'),
        ):
            with self.assertRaisesRegex(UserError, text):
                util.train(
                    self.result_dir, resume_pkl=str(self.run_dir / 'network-final.pkl'), dataset_args=changes
                )

    def test_final_network_generates(self):
        _, _, Gs = snapshots.load_networks(str(self.run_dir / 'network-final.pkl'))
        images = Gs.run(np.zeros([2, 8]), np.eye(8)[:2], randomize_noise=False,
                        output_transform=dict(func=tflib.convert_images_to_uint8))
        self.assertEqual((images.shape, images.dtype), ((2, 3, 8, 8), np.uint8))


class DataTest(util.RunTest):

    def test_rgba_with_uniform_labels_and_bad_images(self):
        """Pictures of four channels; a run that stops goes on as if it had not, with images left out."""
        testutil.run_eagerly(self)
        folder = pathlib.Path(self.folder()) / 'set'
        rnd = np.random.RandomState(0)
        for i in range(24):
            (folder / 'abc'[i % 3 % 2 * 2]).mkdir(parents=True, exist_ok=True)
            pixels = rnd.randint(0, 256, [8, 8, 4]).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(folder / 'abc'[i % 3 % 2 * 2] / f'{i}.png')
        for name in ('a/3.png', 'c/10.png'):    # Headers are right, pixels do not unpack.
            with open(folder / name, 'r+b') as file:
                file.seek(60)
                file.write(bytes(40))
        changes = dict(dataset_args=dict(dataset=str(folder), resolution=None, channels=4, skip_bad=True,
                                         label_sampling='uniform'), total_kimg=0.128,
                       sched_args=dict(minibatch_gpu_base=8))
        whole = util.train(self.folder(), **changes)
        log = (pathlib.Path(whole.run_dir) / 'log.txt').read_text()
        for text in ('class a: 16 images', 'class c: 8 images', 'uniform, one of 2', '3.png is damaged'):
            self.assertIn(text, log)
        for name in ('reals.png', 'fakes000000.png'):
            with PIL.Image.open(os.path.join(whole.run_dir, name)) as image:
                self.assertEqual((image.size, image.mode), ((32, 16), 'RGBA'))
        with util.at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            stopped = util.train(self.folder(), **changes)
        self.assertLess(stopped.nimg, whole.nimg)
        resumed = util.resume(stopped.run_dir)
        values = util.checkpoint_values(whole.run_dir)
        self.assertEqual(resumed.nimg, whole.nimg)
        for name, value in util.checkpoint_values(resumed.run_dir).items():
            self.assertAllEqual(value, values[name], name)


class EndTest(util.RunTest):

    def test_divergence(self):
        """Updates that never are finite end the run with one line; what it saved before is whole."""
        testutil.run_eagerly(self)
        result_dir = self.folder()
        with (
            mock.patch.object(training_loop, 'MAX_SKIPPED', 6),
            mock.patch.object(training_loop, 'CHECK_INTERVAL', 2),
        ):
            with self.assertRaisesRegex(
                UserError, '^training has diverged: the last 6 updates of G [^\n]*--gamma[^\n]*$'
            ):
                util.train(result_dir, G_loss_args=dict(func_name='tests.test_training_loop.nan_loss'))
        run_dir = pathlib.Path(result_dir) / '00000-small'
        self.assertIn('training has diverged', (run_dir / 'log.txt').read_text())
        self.assertFalse((run_dir / '_finished.txt').exists())
        self.assertEqual(util.scalars(run_dir)['TrainG/overflow_frequency'], {32: 1.0})
        for name, value in util.checkpoint_values(run_dir).items():
            self.assertTrue(np.all(np.isfinite(value)), name)


if __name__ == '__main__':
    tf.test.main()
