"""Freezing weights: what is named stays bit for bit, what is not is trained as if nothing had happened."""

import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib import tflib
from dnnlib.submission import load_submit_config
from dnnlib.tflib import legacy
from dnnlib.util import UserError
from tests import test_trainer, testutil
from tests import training_testutil as util
from tests.test_train_cli import dry_run
from training import loss, strategies, trainer
from training.freeze import frozen_names
from training.training_loop import check_arguments

FROZEN = dict(G_freeze=['G_mapping', '*/ToRGB'], D_freeze=1)


def network(func_name: str, **kwargs):
    """A small network at 16×16."""
    shape = dict(num_channels=3, resolution=16, fmap_base=32, fmap_max=4)
    return tflib.Network('N', func_name, **shape, **kwargs).layer


def train_steps(subject: trainer.Trainer, steps=(0, 1)) -> dict[str, np.ndarray]:
    """All variables after some steps, in step 0 with both regularizers, in step 1 with none."""
    for step in steps:
        images, labels = test_trainer.make_images(4, step)
        subject.step(step, images, labels, 2, 0.05, 0.05, ema_beta=0.5)
    return test_trainer.state_of(subject)


def save_two_replicas(path: str) -> None:
    """The variables after step 1 on two replicas."""
    np.savez(path, **train_steps(test_trainer.make_trainer(strategies.make_strategy(2), **FROZEN), [1]))


class NamesTest(parameterized.TestCase, tf.test.TestCase):

    def test_highest_resolutions(self):
        """By the layers' names, which the papers' figures say: FromRGB and all blocks of N resolutions."""
        D = network('training.networks_stylegan2.D_stylegan2')
        names = list(D.named_trainables())
        self.assertEqual(frozen_names(D, 0), [])
        self.assertEqual(frozen_names(D, 1), [
            f'16x16/{name}' for name in ('FromRGB/weight', 'FromRGB/bias', 'Conv0/weight', 'Conv0/bias',
                                         'Conv1_down/weight', 'Conv1_down/bias', 'Skip/weight')])
        self.assertEqual(frozen_names(D, 2), [n for n in names if n.startswith(('16x16/', '8x8/'))])
        self.assertEqual(frozen_names(D, 3), [n for n in names if not n.startswith('Output/')])

    def test_highest_resolutions_with_a_from_rgb_each(self):
        skip = network('training.networks_stylegan2.D_stylegan2', architecture='skip')
        self.assertIn('8x8/FromRGB/weight', frozen_names(skip, 2))
        self.assertNotIn('4x4/FromRGB/weight', frozen_names(skip, 2))
        for name in ('training.networks_stylegan2.D_stylegan', 'training.networks_stylegan.D_basic',
                     'training.networks_progan.D_paper'):
            frozen = frozen_names(network(name), 2)
            self.assertEqual({n.split('/')[0] for n in frozen},
                             {'FromRGB_lod0', '16x16', 'FromRGB_lod1', '8x8'}, name)

    def test_blocks(self):
        """BigGAN's layers have numbers; what follows a block belongs to it."""
        D = network('training.networks_biggan.D_biggan', ch=8, multipliers=[1, 2, 2], num_down=2,
                    attention=[8])
        names = list(D.named_trainables())
        self.assertEqual(frozen_names(D, 0), [])
        first = 'Block0/', 'Attention_8x8/'
        for count, layers in ((1, first), (2, (*first, 'Block1/'))):
            self.assertEqual(frozen_names(D, count), [name for name in names if name.startswith(layers)])
        with self.assertRaisesRegex(UserError, 'number of blocks from 0 to 2, or names. Received: 3'):
            frozen_names(D, 3)

    def test_patterns(self):
        G = network('training.networks_stylegan2.G_main', mapping_layers=2)
        names = list(G.named_trainables())
        for patterns, expected in (
            (['G_mapping'], [n for n in names if n.startswith('G_mapping/')]),
            (['G_synthesis/8x8', 'G_mapping/Dense1'],
             [n for n in names if n.startswith(('G_synthesis/8x8/', 'G_mapping/Dense1/'))]),
            (['*/bias'], [n for n in names if n.endswith('/bias')]),
            (['*/ToRGB'], [n for n in names if '/ToRGB/' in n]),
            (['G_mapping/Dense?/weight'], ['G_mapping/Dense0/weight', 'G_mapping/Dense1/weight']),
            ([], []), (None, []),
        ):
            self.assertEqual(frozen_names(G, patterns), expected, patterns)
            self.assertNotIn(expected, [names])

    @parameterized.parameters(
        (['G_maping'], r"^F: 'G_maping' fits no trained variable of N, .*did you mean 'G_mapping'\?$"),
        (['G_mapping', 'Nothing'], r"'Nothing' .* layers are G_synthesis/4x4/Const, .*, G_mapping/Dense1$"),
        (['dlatent_avg'], "'dlatent_avg' fits no trained variable"),    # It is never trained.
        (['G_synthesis/8'], 'fits no trained variable'),                # Half a name.
        ([''], "'' fits no trained variable"),
        (['G_mapping', 'G_synthesis'], 'leaves nothing of N to train'),
        (['*'], 'leaves nothing of N to train'),
        ('G_mapping', "expected a list of names, or a number of resolutions. Received: 'G_mapping'"),
        ([3], 'expected a list of names'),
        (True, 'expected a list of names'),
        (1.0, 'expected a list of names'),
    )
    def test_mistakes(self, freeze, pattern):
        G = network('training.networks_stylegan2.G_main', mapping_layers=2)
        with self.assertRaisesRegex(UserError, pattern) as caught:
            frozen_names(G, freeze, 'F')
        self.assertNotIn('\n', str(caught.exception))

    def test_mistaken_numbers(self):
        D = network('training.networks_stylegan2.D_stylegan2')
        for number in (-1, 4):
            with self.assertRaisesRegex(UserError, rf'from 0 to 3 \(16x16, 8x8, 4x4\).* Received: {number}$'):
                frozen_names(D, number)
        with self.assertRaisesRegex(UserError, 'leaves nothing'):   # All its layers have a resolution.
            frozen_names(network('training.networks_progan.D_paper'), 3)


class StepTest(tf.test.TestCase):
    """Steps with two rounds and lazy regularization, against a run whose gradients are dropped.

    Eagerly, where no trace has to be waited for; the two replicas are traced.
    """

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        path = os.path.join(cls().get_temp_dir(), 'two.npz')
        code = f'from tests.test_freeze import save_two_replicas; save_two_replicas({path!r})'
        process = subprocess.Popen([sys.executable, '-c', code], cwd=testutil.ROOT, stderr=subprocess.PIPE,
                                   text=True)
        tf.config.run_functions_eagerly(True)
        cls.addClassCleanup(tf.config.run_functions_eagerly, False)
        subject = test_trainer.make_trainer(**FROZEN)
        cls.frozen = subject.frozen
        for role in 'G', 'Gs':      # The average starts where G is, as in a new run.
            for name, variable in getattr(subject, role).named_variables().items():
                variable.assign(subject.G.named_variables()[name])
        cls.before, cls.after = test_trainer.state_of(subject), train_steps(subject)
        cls.phases = {phase.name: phase for phase in subject.phases}
        _, stderr = process.communicate(timeout=300)
        if process.returncode:
            raise AssertionError(stderr)
        with np.load(path) as file:
            cls.two = dict(file)

    def test_frozen_stays_and_the_rest_moves(self):
        for role in 'G', 'D':
            self.assertNotEmpty(self.frozen[role])
            for name in self.frozen[role]:
                key = f'{role}/{name}'
                self.assertEqual(self.before[key].tobytes(), self.after[key].tobytes(), key)
        for key, value in self.before.items():
            role, _, name = key.partition('/')
            if role in ('G', 'D') and name.rpartition('/')[2] in ('weight', 'bias', 'const', 'mod_weight') \
                    and name not in self.frozen[role]:
                self.assertNotAllEqual(value, self.after[key], key)

    def test_average_of_what_is_frozen_equals_it(self):
        for name in self.frozen['G']:
            self.assertEqual(self.after[f'Gs/{name}'].tobytes(), self.after[f'G/{name}'].tobytes(), name)

    def test_no_gradients_and_no_slots(self):
        for role in 'G', 'D':
            slots = {key for key in self.after if key.startswith(f'Train{role}/') and key.endswith('/m')}
            names = list(self.phases[role].network.named_trainables())
            trained = [name for name in names if name not in self.frozen[role]]
            self.assertEqual(len(names), len(trained) + len(self.frozen[role]))
            self.assertEqual(slots, {f'Train{role}/{name}/m' for name in trained})
            for phase in role, f'{role}_reg':
                self.assertLen(self.phases[phase].optimizer.variables, len(trained))

    def test_as_if_gradients_were_dropped(self):
        """A run without freezing in which their gradients are made zero: all else comes out equal."""
        subject = test_trainer.make_trainer()
        for name, variable in subject.Gs.named_variables().items():
            variable.assign(subject.G.named_variables()[name])
        real = trainer.Trainer._gradients

        def dropped(self, phase, *args):
            gradients, updates, reports = real(self, phase, *args)
            names = list(phase.network.named_trainables())
            frozen = StepTest.frozen[phase.role]
            gradients = [tf.zeros_like(gradient) if name in frozen else gradient
                         for name, gradient in zip(names, gradients, strict=True)]
            return gradients, updates, reports

        with mock.patch.object(trainer.Trainer, '_gradients', dropped):
            expected = train_steps(subject)
        for name, value in self.after.items():
            testutil.assert_close(self, value, expected[name], 1e-6, 1e-6, msg=name)

    def test_two_replicas(self):
        """What is frozen stays on both; the rest is what one replica makes of the same minibatch."""
        one = train_steps(test_trainer.make_trainer(**FROZEN), [1])
        for role in 'G', 'D':
            for name in self.frozen[role]:
                key = f'{role}/{name}'
                self.assertEqual(self.two[key].tobytes(), self.before[key].tobytes(), key)
        self.assertEqual(set(self.two), set(one))
        for name, value in one.items():
            testutil.assert_close(self, self.two[name], value, 2e-5, 2e-5, msg=name)

    def test_average_from_elsewhere_goes_on_as_ever(self):
        """From a snapshot Gs is not G: the average of what is frozen comes nearer, by the usual formula."""
        subject = test_trainer.make_trainer(G_freeze=['G_mapping'])
        before = test_trainer.state_of(subject)
        for _ in range(3):
            subject.update_average(0.5)
        name = 'G_mapping/Dense0/weight'
        expected = before[f'G/{name}'] + (before[f'Gs/{name}'] - before[f'G/{name}']) * 0.5 ** 3
        testutil.assert_close(self, test_trainer.state_of(subject)[f'Gs/{name}'], expected, 1e-6, 1e-6)

    def test_path_length_regularization_through_a_frozen_network(self):
        """With the mapping or the synthesis network frozen, its gradient is that of the other one alone."""
        states = []
        for freeze in (None, ['G_mapping'], ['G_synthesis']):
            subject = test_trainer.make_trainer(G_freeze=freeze, lazy_regularization=True,
                                                G_loss=loss.G_logistic_ns_pathreg)
            phase = next(phase for phase in subject.phases if phase.name == 'G_reg')
            subject.run_phase(phase, 0, *test_trainer.make_images(4), 4, 1, 0.05)
            states.append({name: value for name, value in test_trainer.state_of(subject).items()
                           if name.startswith('TrainG/') and name.endswith('/v')})
        whole, without_mapping, without_synthesis = states
        self.assertEqual(len(without_mapping) + len(without_synthesis), len(whole))
        for name, value in {**without_mapping, **without_synthesis}.items():
            testutil.assert_close(self, value, whole[name], 1e-5, 1e-5, msg=name)
        self.assertGreater(np.max(np.abs(without_synthesis['TrainG/G_mapping/Dense0/weight/v'])), 0)


class RunTest(util.RunTest):
    """Whole runs: from a snapshot, stopped, resumed, with other settings, growing."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.first = util.train(os.path.join(cls.root, 'first'), total_kimg=0)    # The initial weights.
        cls.snapshot = os.path.join(cls.first.run_dir, 'network-final.pkl')

    def fine_tune(self, folder):
        return util.train(folder, resume_pkl=self.snapshot, resume_kimg=0.0, total_kimg=0.032,
                          sched_args=dict(minibatch_gpu_base=8), **FROZEN)

    def test_fine_tuning_and_resuming(self):
        testutil.run_eagerly(self)
        whole = self.fine_tune(self.folder())
        before, after = (legacy.load_pkl(path) for path in (
            self.snapshot, os.path.join(whole.run_dir, 'network-final.pkl')))
        frozen = [['G_mapping/Dense0/weight', 'G_synthesis/4x4/ToRGB/bias'],
                  ['8x8/FromRGB/weight', '8x8/Skip/weight']]
        moved = [['G_synthesis/4x4/Conv/weight'], ['4x4/Conv/weight', 'Output/weight']]
        for index in range(2):
            old, new = before[index].all_variables(), after[index].all_variables()
            for name in frozen[index]:
                self.assertEqual(np.asarray(old[name]).tobytes(), np.asarray(new[name]).tobytes(), name)
            for name in moved[index]:
                self.assertNotAllEqual(old[name], new[name], name)
        log = pathlib.Path(whole.run_dir, 'log.txt').read_text()
        self.assertRegex(log, r'Not trained: 13 of \d+ weights of G: G_synthesis/4x4/ToRGB, G_sy.*Dense1\n')
        self.assertIn('7 of 13 weights of D: 8x8/FromRGB, 8x8/Conv0, 8x8/Conv1_down, 8x8/Skip\n', log)
        recorded = load_submit_config(whole.run_dir).run_func_kwargs
        self.assertEqual({key: recorded[key] for key in FROZEN}, FROZEN)

        # Stopped in between and resumed: the same end, bit for bit.
        folder = self.folder()
        with util.at_step(1, lambda: pathlib.Path(folder, '00000-small', 'abort.txt').touch()):
            progress = self.fine_tune(folder)
        self.assertEqual((progress.step, progress.stop_reason), (2, 'abort.txt'))
        for changes in (dict(D_freeze=2), dict(G_freeze=None)):
            with self.assertRaisesRegex(UserError, 'belongs to networks with other variables'):
                util.resume(progress.run_dir, **changes)
        util.resume(progress.run_dir, **FROZEN)     # The attempts have left their settings.
        actual, expected = (util.checkpoint_values(path) for path in (progress.run_dir, whole.run_dir))
        self.assertEqual(set(actual), set(expected))
        for name, value in expected.items():
            self.assertEqual(actual[name].tobytes(), value.tobytes(), name)

    def test_growing(self):
        """In a fade: frozen layers stay, among them those that fade in."""
        testutil.run_eagerly(self)
        first = util.train_growing(self.folder(), 'stylegan-f', total_kimg=0)
        path = os.path.join(first.run_dir, 'network-final.pkl')
        run = util.train_growing(self.folder(), 'stylegan-f', resume_pkl=path, D_freeze=1,
                                 resume_kimg=0.08, total_kimg=0.104, G_freeze=['G_mapping', '*/16x16'])
        before, after = (legacy.load_pkl(file) for file in (
            path, os.path.join(run.run_dir, 'network-final.pkl')))
        for index, prefixes in enumerate([('G_mapping/', 'G_synthesis/16x16/'), ('16x16/', 'FromRGB_lod0/')]):
            old, new = before[index].all_variables(), after[index].all_variables()
            # Those at 4×4 have no part in a fade from 8×8.
            trained = [name for name in old if name.endswith(('weight', 'bias')) and 'RGB_lod2' not in name]
            same = [name for name in trained if np.array_equal(old[name], new[name])]
            self.assertEqual(same, [name for name in trained if name.startswith(prefixes)])

    def test_mistakes_before_there_is_a_run(self):
        kwargs = util.small_kwargs(resume_pkl=self.snapshot)
        for changes, text in ((dict(D_freeze=3), r'D_freeze: expected a number .* from 0 to 2'),
                              (dict(D_freeze=['Nope']), "D_freeze: 'Nope' fits no"),
                              (dict(G_freeze=['G_map']), "G_freeze: 'G_map' fits no")):
            with self.assertRaisesRegex(UserError, text):
                check_arguments(**{**kwargs, **changes})


class FlagsTest(util.RunTest, parameterized.TestCase):

    def test_flags(self):
        path = os.path.join(self.root, 'network-snapshot-000001.pkl')
        open(path, 'wb').close()
        for flags, expected in (
            (['--freeze-d=2', '--freeze-mapping'], {'G_freeze': ['G_mapping'], 'D_freeze': 2}),
            (['--freeze-d=32x32, Output'], {'D_freeze': ['32x32', 'Output']}),
            (['--freeze-d=*/bias', '--freeze_mapping=false'], {'D_freeze': ['*/bias']}),
            (['--freeze-d=0'], {}),
        ):
            kwargs = dry_run(f'--resume={path}', *flags)
            self.assertEqual({key: kwargs[key] for key in FROZEN if key in kwargs}, expected)

    @parameterized.parameters(
        (['--freeze-d=2'], '^--freeze-d keeps what .* --resume=network-snapshot'),
        (['--freeze-mapping'], '^--freeze-mapping keeps'))
    def test_without_a_snapshot(self, flags, pattern):
        with self.assertRaisesRegex(UserError, pattern):
            dry_run('--config=demo', *flags)

    def test_run_that_goes_on(self):
        """Its settings may be repeated, not changed."""
        import train
        stored = dict(json.loads(json.dumps(util.small_kwargs(G_freeze=['G_mapping'], D_freeze=2))))
        config = mock.Mock(run_func_kwargs=stored, get={'config': 'config-f'}.get)
        with mock.patch('train.load_submit_config', return_value=config), \
                mock.patch('training.checkpoint.has_checkpoint', return_value=True):
            def resumed(*flags):
                return train.resumed_run('run', train.make_parser().parse_args(list(flags)))[1]
            for flags in ([], ['--freeze-d=2'], ['--freeze-d=2', '--freeze-mapping']):
                self.assertEqual(resumed(*flags), stored)
            for flag, text in (('--freeze-d=1', 'D_freeze is 2 in the run, 1 on the command line'),
                               ('--freeze-d=0', 'D_freeze is 2 in the run, 0 on'),
                               ('--no-freeze-mapping', r"G_freeze is \['G_mapping'\] in the run, \[\] on")):
                with self.assertRaisesRegex(UserError, text):
                    resumed(flag)
            del stored['G_freeze'], stored['D_freeze']
            self.assertEqual(resumed('--freeze-d=0', '--no-freeze-mapping'), stored)
            with self.assertRaisesRegex(UserError, 'D_freeze is None in the run, 1 on'):
                resumed('--freeze-d=1')


if __name__ == '__main__':
    tf.test.main()
