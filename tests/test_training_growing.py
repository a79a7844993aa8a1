"""Training of growing networks: schedule, stages, resuming in the middle of a fade, several replicas."""

import os
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib.util import UserError
from tests import training_testutil as util
from training import snapshots
from training.growing import Stage
from training.optimizer import Optimizer
from training.trainer import Trainer, make_strategy


class StageTest(util.RunTest):
    """One run of StyleGAN from 8×8 to 16×16, every step of which is looked at."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.steps, cls.resets = [], []
        real_step, real_reset = Trainer.step, Optimizer.reset

        def step(trainer, number, images, *args):
            cls.steps.append((trainer.stage, round(float(trainer.D.lod.numpy()), 4), images.shape))
            return real_step(trainer, number, images, *args)

        def reset(optimizer):
            cls.resets.append(len(cls.steps))
            real_reset(optimizer)

        with mock.patch.object(Trainer, 'step', step), mock.patch.object(Optimizer, 'reset', reset):
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

    def test_snapshots_hold_the_level_of_detail_and_work_at_it(self):
        names = sorted(name for name in os.listdir(self.progress.run_dir) if name.startswith('network-'))
        self.assertEqual(names, ['network-final.pkl', 'network-snapshot-000000.pkl'])
        for network in snapshots.load_networks(os.path.join(self.progress.run_dir, names[0])):
            lods = [network.get_var(name) for name in network.vars if name.split('/')[-1] == 'lod']
            self.assertAllEqual(lods, [0] * (1 if network.name == 'D' else 2))
        Gs = snapshots.load_networks(os.path.join(self.progress.run_dir, names[0]))[2]
        latents = np.random.RandomState(0).randn(2, 8)
        images = Gs.run(latents, None, randomize_noise=False)
        self.assertEqual(images.shape, (2, 3, 16, 16))
        Gs.set_var('lod', 1)
        coarse = Gs.run(latents, None, randomize_noise=False)
        self.assertAllEqual(coarse[:, :, ::2, ::2], coarse[:, :, 1::2, 1::2])
        self.assertNotAllClose(images, coarse)


class ResumeTest(util.RunTest, parameterized.TestCase):

    @parameterized.parameters('stylegan-f', 'progan', 'config-d')
    def test_in_the_middle_of_a_fade(self, config):
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


class TrainerTest(util.RunTest):

    def test_two_replicas_compute_what_one_computes_in_two_rounds(self):
        sched_args = dict(minibatch_gpu_base=4, minibatch_gpu_dict={8: 8})
        one = util.train_growing(self.folder(), 'config-b', total_kimg=0.104, sched_args=sched_args).run_dir
        # The CPU can be divided only before TensorFlow starts.
        result_dir = self.folder()
        done = util.run_script(code='from tests import training_testutil as util\n'
                                    f'util.train_growing({result_dir!r}, "config-b", total_kimg=0.104, '
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
