"""Hooks into updates and the loop: what they are given, what becomes of it, that a run resumes exactly."""

import json
import os
import pathlib
from unittest import mock

import numpy as np
import tensorflow as tf

from generation import classes
from metrics.metric_base import MetricGroup
from tests import test_training_biggan as biggan
from tests import testutil
from tests import training_testutil as util
from training.configs import find_config, merge
from training.hooks import Hook, UpdateHook
from training.snapshots import load_networks
from training.trainer import Trainer

# 8×8 images of the embedded data set, of two minibatches of 8 per step; 128 images are 8 steps.
SMALL = dict(
    G_args=dict(biggan.G_ARGS), D_args=dict(biggan.D_ARGS),
    sched_args=dict(minibatch_size_base=8, minibatch_gpu_base=4, tick_kimg_base=0.06),
    dataset_args=dict(resolution=8), grid_args=dict(size='4x2'), D_repeats=2, ema_start=3, total_kimg=0.128,
    hook_args=[], image_snapshot_ticks=1, network_snapshot_ticks=1, minibatch_repeats=1)
TRACKED = 'Block0/Conv0/weight'


class Clamp(UpdateHook):
    """Adds 1 to the gradient of one weight, then bounds the weight; counts and remembers in variables."""

    def __init__(self, bound: float = 0.01):
        self.bound = bound

    def build(self, network, trained):
        self.shapes = {name: tuple(variable.shape) for name, variable in trained.items()}
        self.count = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.mean = tf.Variable(0.0, trainable=False)
        self.noise = tf.Variable(0.0, trainable=False)

    def variables(self):
        return {'count': self.count, 'mean': self.mean, 'noise': self.noise}

    def gradients(self, ctx, values, gradients):
        assert {name: tuple(value.shape) for name, value in values.items()} == self.shapes  # noqa: S101
        ctx.report('Loss/tracked', gradients[TRACKED])
        ctx.update(self.mean, tf.reduce_mean(values[TRACKED]))
        ctx.update(self.noise, ctx.normal([]))
        return gradients | {TRACKED: gradients[TRACKED] + 1}

    def after_update(self, ctx, values):
        ctx.update(self.count, ctx.value(self.count) + 1)
        return {TRACKED: tf.clip_by_value(values[TRACKED], -self.bound, self.bound)}


class UpdateHookTest(tf.test.TestCase):
    """In single updates; test_resume_bit_for_bit has hooks in traced functions."""

    def setUp(self):
        super().setUp()
        testutil.run_eagerly(self)

    def test_gradients_weights_and_variables(self):
        hooked = dict(G_update_args=[Clamp(0.05)], D_update_args=(), D_repeats=1)
        subject, plain = biggan.make_trainer(**hooked), biggan.make_trainer(G_update_args=(), D_repeats=1)
        images, labels = biggan.make_images(4)
        before = subject.G.named_variables()[TRACKED].numpy()
        for minibatch_gpu in (4, 2):    # At once, and in two rounds.
            for of in subject, plain:
                of.reset_optimizers()
                for name, variable in of.G.named_variables().items():
                    variable.assign(plain.G.named_variables()[name] if name != TRACKED else before)
                for name, variable in of.D.named_variables().items():
                    variable.assign(plain.D.named_variables()[name])
            phases = [{phase.name: phase for phase in of.phases}['G'] for of in (subject, plain)]
            rounds = 4 // minibatch_gpu
            reports = subject.run_phase(phases[0], 0, images, labels, minibatch_gpu, rounds, 0.1)
            plain.run_phase(phases[1], 0, images, labels, minibatch_gpu, rounds, 0.1)
            slots, expected = subject.optimizers['G'].state(), plain.optimizers['G'].state()
            # beta1 is 0: m is the gradient.
            self.assertAllClose(slots[f'{TRACKED}/m'], expected[f'{TRACKED}/m'] + 1, rtol=1e-5, atol=1e-5)
            self.assertAllClose(slots['Linear/weight/m'], expected['Linear/weight/m'], rtol=1e-5, atol=1e-6)
            count, total = next(report['Loss/tracked'] for report in reports
                                if 'Loss/tracked' in report)[:2]
            self.assertAllClose(total / count, np.mean(expected[f'{TRACKED}/m']), rtol=1e-4, atol=1e-6)
            after = subject.G.named_variables()[TRACKED].numpy()
            self.assertAllClose(np.max(np.abs(after)), 0.05)
            hook = subject.update_hooks['G']['0-Clamp']
            self.assertAllClose(hook.mean, np.mean(before))
        self.assertEqual(int(hook.count), 2)
        self.assertNotEqual(float(hook.noise), 0)
        state = subject.state()
        self.assertEqual({name for name in state if name.startswith('updates/')},
                         {f'updates/G/0-Clamp/{name}' for name in ('count', 'mean', 'noise')})

    def test_an_update_that_is_left_out_leaves_out_the_hook(self):
        subject = biggan.make_trainer(G_update_args=(), D_update_args=[Clamp()], D_repeats=1)
        phase = {phase.name: phase for phase in subject.phases}['D']
        weight = subject.D.named_variables()['Linear/weight']
        weight.assign(weight * np.nan)
        before = {name: variable.numpy() for name, variable in subject.state().items()}
        images, labels = biggan.make_images(4)
        subject.run_phase(phase, 0, images, labels, 4, 1, 0.1)
        for name, variable in subject.state().items():
            if name.startswith(('D/', 'updates/')):
                self.assertAllEqual(variable, before[name], name)
        self.assertEqual(subject.skipped_in_a_row()['D'], 1)


class Recorder(Hook):
    """Remembers what it was called for, in its state and in a variable; goes back once if told to."""

    last = None

    def __init__(self, rollback_at: int | None = None):
        self.rollback_at, self.calls = rollback_at, []
        Recorder.last = self

    def build(self, run):
        self.total = tf.Variable(0.0, trainable=False)

    def variables(self):
        return {'total': self.total}

    def state(self):
        return {'calls': self.calls}

    def set_state(self, state):
        self.calls = list(state['calls'])

    def start(self, run):
        self.started = run.progress.step, float(self.total), len(self.calls)

    def step(self, run):
        scores = [report['Loss/G'] for report in run.reports if 'Loss/G' in report]
        self.total.assign_add(sum(float(moments[1]) for moments in scores))
        self.calls.append(['step', run.progress.step, run.progress.nimg])
        if run.progress.step == self.rollback_at:
            self.path = run.snapshots.save_as('network-best.pkl')
        if self.rollback_at and run.progress.step == self.rollback_at + 2:
            run.request_rollback('Test: it has collapsed', self.path)
            self.before = run.G.get_var(TRACKED)

    def tick(self, run):
        self.calls.append(['tick', run.progress.tick, run.progress.nimg])

    def snapshot(self, run, path):
        self.calls.append(['snapshot', os.path.basename(path), run.progress.nimg])


def train(result_dir: str, **changes):
    kwargs = merge(merge(find_config('biggan-demo'), SMALL), changes)
    return util._train(result_dir, kwargs)


class RunTest(util.RunTest):
    """Whole runs: calls of hooks, and that a run that was stopped comes to where another one does."""

    def test_resume_bit_for_bit(self):
        args = dict(hook_args=[dict(func_name='tests.test_hooks.Recorder')],
                    D_update_args=[dict(func_name='tests.test_hooks.Clamp', bound=0.3)])
        whole = train(self.folder(), **args)
        calls = Recorder.last.calls
        steps = [['step', step, 16 * step] for step in range(1, 9)]
        self.assertEqual([call for call in calls if call[0] == 'step'], steps)
        self.assertEqual([call for call in calls if call[0] == 'tick'],
                         [['tick', 0, 16], ['tick', 1, 80], ['tick', 2, 128]])
        self.assertEqual([call for call in calls if call[0] == 'snapshot'],
                         [['snapshot', 'network-snapshot-000000.pkl', nimg] for nimg in (16, 80, 128)])
        self.assertEqual((whole.nimg, whole.step), (128, 8))

        result_dir = self.folder()
        run_dir = os.path.join(result_dir, '00000-small')
        with util.at_step(2, lambda: pathlib.Path(run_dir, 'abort.txt').touch()):
            stopped = train(result_dir, **args)
        self.assertEqual(stopped.step, 3)
        util.resume(run_dir)
        self.assertEqual(Recorder.last.started[0], 3)
        self.assertEqual(Recorder.last.started[2], 5)   # Three steps, a tick and its snapshot.
        expected, found = util.checkpoint_values(whole.run_dir), util.checkpoint_values(run_dir)
        self.assertEqual(set(found), set(expected))
        for name, value in expected.items():
            self.assertEqual(found[name].tobytes(), value.tobytes(), name)
        self.assertEqual(Recorder.last.calls, calls)
        final = [pathlib.Path(path, 'network-final.pkl').read_bytes() for path in (whole.run_dir, run_dir)]
        self.assertEqual(*final)
        self.assertIn('reals_by_class.png', util.files(run_dir))
        names = json.loads(pathlib.Path(run_dir, 'class_names.json').read_text())
        G, _, Gs = load_networks(os.path.join(run_dir, 'network-final.pkl'))
        self.assertEqual((G.static_kwargs.class_names, classes.class_names(Gs)), (names, names))
        self.assertIn(f'class {names[-1]}: ', pathlib.Path(run_dir, 'log.txt').read_text())

    def test_what_a_step_is_given(self):
        """Minibatches that are all different, a moving average by the images of a step, the progress."""
        steps = []
        with mock.patch.object(Trainer, 'step', lambda _self, *args: steps.append(args) or []):
            train(self.folder(), G_smoothing=None, G_smoothing_kimg=0.1)
        self.assertEqual([step[0] for step in steps], list(range(8)))
        self.assertAllClose([step[7] for step in steps], np.arange(8) / 8)
        self.assertAllClose([step[6] for step in steps], [0.5 ** (16 / 100)] * 8)
        images = {part.tobytes() for step in steps for part in step[1]}
        self.assertLen(images, 16)
        self.assertEqual([len(part) for step in steps for part in step[2]], [8] * 16)

    def test_rollback(self):
        testutil.run_eagerly(self)
        recorder = dict(func_name='tests.test_hooks.Recorder', rollback_at=2)
        with mock.patch.object(MetricGroup, 'run') as measured:
            progress = train(self.folder(), hook_args=[recorder], dataset_args=dict(max_label_size=0),
                             weights_dir='weights', total_kimg=0.064, sched_args=dict(minibatch_gpu_base=8))
        self.assertEqual([call.kwargs['weights_dir'] for call in measured.call_args_list], ['weights'] * 2)
        log = pathlib.Path(progress.run_dir, 'log.txt').read_text()
        self.assertIn('Test: it has collapsed. Going back to ', log)
        self.assertIn('network-best.pkl', log)
        best, final = (load_networks(os.path.join(progress.run_dir, name))
                       for name in ('network-best.pkl', 'network-final.pkl'))
        for one, two in zip(best, final, strict=True):
            for name, value in one.vars.items():
                self.assertAllEqual(value, two.vars[name], name)
        self.assertNotAllEqual(Recorder.last.before, final[0].get_var(TRACKED))
        slots = [value for name, value in util.checkpoint_values(progress.run_dir).items()
                 if '/Train' in name and name.split('/')[1].endswith(('.Sm', '.Sv'))]
        self.assertGreater(len(slots), 20)
        for value in slots:     # Adam starts afresh.
            self.assertAllEqual(value, np.zeros_like(value))
        self.assertNotIn('reals_by_class.png', util.files(progress.run_dir))


if __name__ == '__main__':
    tf.test.main()
