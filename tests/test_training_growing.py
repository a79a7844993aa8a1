"""Training of growing networks: schedule, stages, resuming in the middle of a fade, several replicas."""

import contextlib
import io
import os
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from absl.testing import parameterized

import train
from dnnlib import tflib
from dnnlib.util import UserError
from tests import testutil
from tests import training_testutil as util
from training import misc, snapshots
from training.configs import growing_configs
from training.dataset import load_dataset
from training.growing import Stage
from training.optimizer import Optimizer
from training.strategies import make_strategy
from training.trainer import Trainer
from training.training_loop import check_arguments

# Configs without labels: their G has no mapping network, or their loss does not look at labels.
UNCONDITIONAL = ('stylegan-b', 'stylegan-traditional-0', 'stylegan-stylebased-0', 'progan')


class StageTest(util.RunTest):
    """One run of StyleGAN from 8×8 to 16×16, every step of which is looked at."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.steps, cls.resets, cls.saved = [], [], {}
        real_step, real_reset, real_save = Trainer.step, Optimizer.reset, snapshots.NetworkSnapshots.save

        def step(trainer, number, images, *args):
            cls.steps.append((trainer.stage, round(float(trainer.D.lod.numpy()), 4), images.shape))
            return real_step(trainer, number, images, *args)

        def reset(optimizer):
            cls.resets.append(len(cls.steps))
            real_reset(optimizer)

        def save(subject, nimg):
            path = real_save(subject, nimg)
            cls.saved[nimg] = snapshots.load_networks(path)  # Before the next one takes its place.
            return path

        with mock.patch.object(Trainer, 'step', step), mock.patch.object(Optimizer, 'reset', reset), \
                mock.patch.object(snapshots.NetworkSnapshots, 'save', save):
            cls.progress = util.train_growing(cls.root, 'stylegan-f')

    def test_levels_fade_in_as_scheduled(self):
        small, full = (16, 8, 8, 3), (8, 16, 16, 3)
        expected = [(Stage(1, False), 1, small)] * 4
        expected += [(Stage(1, False), 1, small)]       # At 64 images the fade is about to begin.
        fades = [(80 + 8 * index) for index in range(6)]
        expected += [(Stage(0, True), 1 - (nimg - 64) / 64, full) for nimg in fades]
        expected += [(Stage(0, False), 0, full)] * 4
        self.assertEqual(self.steps, expected)
        self.assertEqual(self.progress.nimg, 160)

    def test_optimizers_are_reset_where_a_fade_begins_and_ends(self):
        self.assertEqual(self.resets, [5, 5, 11, 11])

    def test_snapshots_hold_the_level_of_detail(self):
        """Also in the middle of growing, and in the synthesis networks of G and Gs, which have their own."""
        expected = {16: 1, 48: 1, 80: 1, 112: 0.375, 144: 0, 160: 0}     # As of the last step before each.
        self.assertEqual(list(self.saved), list(expected))
        for nimg, networks in self.saved.items():
            lods = {f'{network.name}/{name}': float(network.get_var(name)) for network in networks
                    for name in network.vars if name.rpartition('/')[2] == 'lod'}
            names = ['G/lod', 'G/G_synthesis/lod', 'D/lod', 'Gs/lod', 'Gs/G_synthesis/lod']
            self.assertEqual(lods, dict.fromkeys(names, expected[nimg]), nimg)

    def test_snapshots_work_at_their_level_of_detail(self):
        names = sorted(name for name in os.listdir(self.progress.run_dir) if name.startswith('network-'))
        self.assertEqual(names, ['network-final.pkl', 'network-snapshot-000000.pkl'])
        latents = np.random.RandomState(0).randn(2, 8)
        for nimg, is_coarse in ((80, True), (112, False), (160, False)):
            images = self.saved[nimg][2].run(latents, None, randomize_noise=False)
            self.assertEqual(images.shape, (2, 3, 16, 16))
            blocks = images.reshape(2, 3, 8, 2, 8, 2)
            self.assertEqual(np.all(blocks == blocks[:, :, :, :1, :, :1]), is_coarse, nimg)
        Gs = snapshots.load_networks(os.path.join(self.progress.run_dir, names[0]))[2]
        self.assertAllEqual(Gs.run(latents, None, randomize_noise=False), images)


class SheetTest(util.RunTest):

    def test_generated_images_are_not_truncated(self):
        """The sheet of a run shows what the network learns; G_style truncates by default."""
        Gs = tflib.Network('Gs', 'training.networks_stylegan.G_style', num_channels=3, resolution=8,
                           **util.GROWING['G_args'])
        Gs.set_var('dlatent_avg', np.full([8], 3.0))
        training_set = load_dataset(resolution=8)
        self.addCleanup(training_set.close)
        sheets = snapshots.ImageSnapshots(training_set, dict(size='3x2', layout='random'), 8, seed=1)
        with mock.patch.object(snapshots, 'make_run_dir_path', lambda name: os.path.join(self.root, name)), \
                mock.patch.object(Gs, 'run', wraps=Gs.run) as run:
            sheet = sheets.save_fakes(Gs, 'fakes.png', 4)
        images, truncated = (Gs.run(*run.call_args.args, truncation_psi=psi, randomize_noise=False)
                             for psi in (1, 0.7))
        self.assertNotAllClose(images, truncated, atol=0.05)
        expected = misc.convert_to_pil_image(misc.create_image_grid(images, (3, 2)), [-1, 1])
        self.assertAllEqual(sheet, np.asarray(expected))
        self.assertAllEqual(PIL.Image.open(os.path.join(self.root, 'fakes.png')), np.asarray(expected))


class ResumeTest(util.RunTest, parameterized.TestCase):

    @parameterized.parameters('stylegan-f', 'progan', 'config-d')
    def test_in_the_middle_of_a_fade(self, config):
        if config != 'progan':      # Traced once: what differs here between configs is no matter of tracing.
            testutil.run_eagerly(self)
        whole = util.train_growing(self.folder(), config)
        result_dir = self.folder()
        run_dir = os.path.join(result_dir, '00000-small')
        with util.at_step(7, lambda: open(os.path.join(run_dir, 'abort.txt'), 'w').close()):
            progress = util.train_growing(result_dir, config)
        self.assertEqual((progress.step, progress.nimg), (8, 104))  # lod 0.5.
        self.assertEqual(util.scalars(run_dir)['Progress/lod'][80], 1)
        self.assertEqual(util.resume(run_dir).step, 15)
        actual, expected = util.checkpoint_values(run_dir), util.checkpoint_values(whole.run_dir)
        self.assertEqual(set(actual), set(expected))
        for name, value in expected.items():
            self.assertEqual(actual[name].tobytes(), value.tobytes(), name)
        curves, expected = util.scalars(run_dir), util.scalars(whole.run_dir)
        for tag in expected:
            if tag.startswith(('Loss/', 'Progress/')):
                self.assertEqual(curves[tag], expected[tag], tag)
        lods = curves['Progress/lod']
        self.assertEqual(lods[160], 0)
        self.assertNotEmpty([lod for lod in lods.values() if 0 < lod < 1])


class PresetTest(util.RunTest, parameterized.TestCase):
    """What presets say reaches the trainer."""

    def test_progan_with_labels(self):
        """D is updated before G, the average in between with the decay of ProGAN, and there are labels."""
        actions = []
        real_phase, real_average = Trainer.run_phase, Trainer.update_average

        def run_phase(trainer, phase, step, images, labels, *args):
            actions.append(phase.name)
            self.assertEqual((labels.shape[1], set(labels.sum(axis=1))), (8, {1}))
            return real_phase(trainer, phase, step, images, labels, *args)

        def update_average(trainer, beta):
            actions.append(beta)
            real_average(trainer, beta)

        with mock.patch.object(Trainer, 'run_phase', run_phase), \
                mock.patch.object(Trainer, 'update_average', update_average):
            progress = util.train_growing(
                self.root, 'progan-acgan', total_kimg=0.032, dataset_args=dict(resolution=8),
                sched_args=dict(lod_initial_resolution=4, lod_training_kimg=0.008, lod_transition_kimg=0.016,
                                minibatch_size_dict={}, minibatch_gpu_dict={}, tick_kimg_base=0.008),
                image_snapshot_ticks=None, network_snapshot_ticks=None)
        self.assertEqual(actions, ['D', 0.999, 'G'] * 4)
        curves = util.scalars(progress.run_dir)
        self.assertEqual(curves['Progress/lod'], {8: 1, 16: 1, 24: 0.5, 32: 0})
        for tag in ('Loss/label_penalty_reals', 'Loss/label_penalty_fakes', 'Loss/mixed_norms'):
            self.assertTrue(np.all(np.isfinite(list(curves[tag].values()))), tag)
        G, D, _ = snapshots.load_networks(os.path.join(progress.run_dir, 'network-final.pkl'))
        self.assertEqual((G.input_shapes[1], D.output_shapes[1]), ([None, 8], [None, 8]))

    @parameterized.parameters(*growing_configs())
    @pytest.mark.slow
    def test_command_line(self, config):
        """Each preset trains from 4×4 through the fade to 8×8, with 8 feature maps, and labels if it can."""
        flags = ('--resolution=8 --fmap-base=32 --fmap-max=8 --latent-size=8 --grid=4x2 '
                 '--lod-initial-resolution=4 --lod-training-kimg=0.032 --lod-transition-kimg=0.064 '
                 '--minibatch-size=8 --minibatch-gpu=8 --tick-kimg=0.03 --snap=4 --total-kimg=0.128')
        if config not in UNCONDITIONAL:
            flags += ' --cond'
        results = self.folder()
        with contextlib.redirect_stdout(io.StringIO()):
            status = train.run(train.make_parser().parse_args(
                [f'--config={config}', *flags.split(), f'--result-dir={results}']))
        self.assertEqual(status, 0)
        run_dir = os.path.join(results, *os.listdir(results))
        self.assertTrue(run_dir.endswith(f'-pixelart32-1gpu-{config}'))
        curves = util.scalars(run_dir)
        self.assertEqual(curves['Progress/lod'], {32: 1, 64: 1, 96: 0.5, 128: 0})
        for tag, curve in curves.items():
            self.assertTrue(np.all(np.isfinite(list(curve.values()))), tag)
        for role in 'GD':
            self.assertEqual(set(curves[f'Train{role}/overflow_frequency'].values()), {0.0})
        G, _, Gs = snapshots.load_networks(os.path.join(run_dir, 'network-final.pkl'))
        labels = np.eye(8)[:4] if '--cond' in flags else None
        images = Gs.run(np.random.RandomState(0).randn(4, 8), labels, randomize_noise=False)
        self.assertEqual(images.shape, (4, 3, 8, 8))
        self.assertAllInRange(images, -100, 100)
        self.assertGreater(np.std(images), 0)
        for name in G.trainables:
            self.assertNotAllEqual(G.get_var(name), Gs.get_var(name), name)


class ArgumentsTest(tf.test.TestCase):

    def test_minibatches_of_all_levels_are_looked_at_before_the_run(self):
        """8 samples per GPU fit the group size 4, 6 do not, neither at the first level nor at the last."""
        def check(first, last):
            check_arguments(dataset_args=dict(resolution=16), sched_args=dict(
                lod_initial_resolution=8, minibatch_size_base=last, minibatch_gpu_base=last,
                minibatch_size_dict={8: first}, minibatch_gpu_dict={8: first}))
        check(8, 8)
        for sizes in ((6, 8), (8, 6)):
            with self.assertRaisesRegex(UserError, 'group size 4 .* Received: 6$'):
                check(*sizes)


class TrainerTest(util.RunTest):

    def test_two_replicas_compute_what_one_computes_in_two_rounds(self):
        sched_args = dict(minibatch_gpu_base=4, minibatch_gpu_dict={8: 8})
        one = util.train_growing(self.folder(), 'progan', total_kimg=0.104, sched_args=sched_args).run_dir
        # The CPU can be divided only before TensorFlow starts.
        result_dir = self.folder()
        done = util.run_script(code='from tests import training_testutil as util\n'
                                    f'util.train_growing({result_dir!r}, "progan", total_kimg=0.104, '
                                    f'num_gpus=2, sched_args={sched_args})')
        self.assertEqual(done.returncode, 0, done.stderr)
        two = util.checkpoint_values(os.path.join(result_dir, '00000-small'))
        for name, value in util.checkpoint_values(one).items():
            self.assertAllClose(two[name], value, rtol=2e-3, atol=2e-3, msg=name)

    def test_networks_that_do_not_grow(self):
        with self.assertRaisesRegex(UserError, 'G_main and D_stylegan2 do not grow; .* lod 1'):
            util.train(self.folder(), sched_args=dict(lod_initial_resolution=4))

    def test_both_networks_must_grow(self):
        from training.networks_stylegan2 import D_stylegan, G_main
        shape = dict(resolution=8, fmap_base=32, fmap_max=8)
        networks = [G_main('G', latent_size=8, mapping_layers=1, **shape), D_stylegan('D', **shape)]
        with self.assertRaisesRegex(UserError, 'both .* Received: G_main and D_stylegan$'):
            Trainer(make_strategy(), *networks, networks[0], None, {}, None, {})


if __name__ == '__main__':
    tf.test.main()
