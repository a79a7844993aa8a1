"""Monitors of runs: what they measure, when they give alarm, what they keep, how a run goes back."""

import json
import os
import pathlib
from types import SimpleNamespace
from unittest import mock

import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.tflib import autosummary
from dnnlib.util import EasyDict, UserError
from metrics.metric_base import MetricBase
from tests import test_hooks, testutil
from tests import test_training_biggan as trainers
from tests import training_testutil as util
from training import monitors
from training.context import StepContext
from training.dataset import load_dataset
from training.hooks import Hook
from training.layers_biggan import Pass
from training.monitors import CollapseAlarm, GradientNorms, KeepBest, SpectralMonitor
from training.snapshots import load_networks

SPECTRAL = dict(func_name='training.monitors.SpectralMonitor', interval=1)
ALARM = dict(func_name='training.monitors.CollapseAlarm', patience=2)


class SpectralMonitorTest(tf.test.TestCase):

    def test_singular_values(self):
        subject = trainers.make_trainer(G_update_args=())
        rnd = np.random.RandomState(0)
        for network in subject.G, subject.D:
            for layer in network.normalized_layers().values():
                layer.weight.assign(rnd.normal(size=layer.weight.shape))
        hook = SpectralMonitor(count=3)
        hook.build(SimpleNamespace(trainer=subject, seed=5))
        before = {name: variable.numpy() for name, variable in subject.state().items()}
        layers = {f'{role}/{scope}': layer for role in 'GD'
                  for scope, layer in getattr(subject, role).normalized_layers().items()}
        used = {name: float(layer.sigma(Pass(StepContext(tf.constant([0, 0])), is_training=True)))
                for name, layer in layers.items()}
        first = hook.measure()
        for name, sigma in used.items():
            # What the normalization of the next pass divides by.
            self.assertAllClose(first[f'{name}/sigma0'], sigma, rtol=1e-5)
        for layer in layers.values():
            u, _, _ = np.linalg.svd(layer.matrix(layer.weight).numpy())
            layer.u.assign(u[:, 0])
        for _ in range(300):
            values = hook.measure()
        expected = {}
        for name, layer in layers.items():
            matrix = layer.matrix(layer.weight).numpy()
            for index, value in enumerate(np.linalg.svd(matrix, compute_uv=False)[:3]):
                expected[f'{name}/sigma{index}'] = value
            expected[f'{name}/norm'] = np.linalg.norm(matrix)
        self.assertEqual(set(values), set(expected))
        self.assertIn('G/Output/Conv/sigma2', values)
        self.assertNotIn('D/Linear/sigma1', values)     # A single row.
        for name, value in expected.items():
            self.assertAllClose(values[name], value, rtol=3e-3, msg=name)
        for name, variable in subject.state().items():
            if not name.endswith('/u'):
                self.assertAllEqual(variable, before[name], name)

    def test_a_weight_that_is_zero_for_a_moment(self):
        subject = trainers.make_trainer(G_update_args=())
        hook = SpectralMonitor(networks='G')
        hook.build(SimpleNamespace(trainer=subject, seed=5))
        layer = subject.G.normalized_layers()['Linear']
        weight, vectors = layer.weight.numpy(), hook.variables()['G/Linear/u']
        before = vectors.numpy()
        for value in 0.0, np.nan:
            layer.weight.assign(weight * value)
            hook.measure()
            self.assertAllEqual(vectors, before)
        layer.weight.assign(weight)
        hook.measure()
        self.assertNotAllClose(vectors, before)
        self.assertAllClose(np.linalg.norm(vectors.numpy(), axis=1), [1, 1])

    def test_wrong_arguments(self):
        with self.assertRaisesRegex(UserError, 'spectral monitor: expected an interval'):
            SpectralMonitor(interval=0)
        run = SimpleNamespace(trainer=SimpleNamespace(strategy=None, G=object(), D=object()), seed=0)
        with self.assertRaisesRegex(UserError, 'no spectrally normalized weights'):
            SpectralMonitor().build(run)


class GradientNormsTest(tf.test.TestCase):

    def test_norms(self):
        """beta1 is 0: the first moment of Adam is the gradient."""
        testutil.run_eagerly(self)
        subject = trainers.make_trainer(G_update_args=[GradientNorms(per_layer=True)],
                                        D_update_args=[GradientNorms()], D_repeats=1)
        images, labels = trainers.make_images(8)
        found = {}
        for report in subject.step(0, images, labels, 4, 1e-3, 1e-3, 0.5):
            found.update({name: moments.numpy() for name, moments in report.items()})
        for role in 'GD':
            slots = {name: slot.numpy() for name, slot in subject.optimizers[role].state().items()
                     if name.endswith('/m')}
            norm = np.sqrt(sum(np.sum(np.square(slot)) for slot in slots.values()))
            self.assertAllClose(found[f'Gradients/{role}'], [1, norm, norm ** 2, 0], rtol=1e-4)
        name = 'Gradients/G/Block0/Conv1/weight'
        self.assertAllClose(found[name][1], np.linalg.norm(subject.optimizers['G'].state()[
            'Block0/Conv1/weight/m']), rtol=1e-4)
        self.assertNotIn('Gradients/D/Block0/Conv1/weight', found)


class Fake:
    """A run as the alarm sees it; what it was told."""

    def __init__(self, run_dir: str = '/nowhere'):
        self.progress, self.run_dir = EasyDict(nimg=0), run_dir
        self.metrics = SimpleNamespace(results=lambda: self.results, stopped=False, failed=[])
        self.is_chief = True
        self.writer = SimpleNamespace(add_text=lambda tag, text, step: self.texts.append((tag, text, step)))
        self.texts, self.results, self.rollbacks = [], {}, []
        self.request_rollback = lambda reason, path=None: self.rollbacks.append((reason, path))

    def tick(self, hook, **values) -> list[str]:
        """A tick with these means; returns the new messages."""
        autosummary.reset()
        for name, value in values.items():
            autosummary.autosummary(name.replace('__', '/'), value)
        self.progress.nimg += 1000
        before = len(self.texts)
        hook.tick(self)
        autosummary.reset()
        return [text for _, text, _ in self.texts[before:]]

    def snapshot(self, hook, name: str = 'network-snapshot-000001.pkl', **results) -> list[str]:
        self.results, before = results, len(self.texts)
        hook.snapshot(self, os.path.join(self.run_dir, name))
        return [text for _, text, _ in self.texts[before:]]


@mock.patch('builtins.print')
class CollapseAlarmTest(util.RunTest):

    def test_singular_values(self, _):
        run, hook = Fake(), CollapseAlarm(patience=3, window=4)
        steady = dict(Spectra__G__Linear__sigma0=2.0, Spectra__D__Linear__sigma0=1.0,
                      Spectra__G__Linear__sigma1=1.0)
        self.assertEmpty(run.tick(hook, Spectra__G__Linear__sigma0=1.0, Spectra__D__Linear__sigma0=1.0))
        self.assertEmpty(run.tick(hook, Spectra__G__Linear__sigma0=50.0))      # Nothing to compare with.
        for _ in range(4):
            self.assertEmpty(run.tick(hook, **steady))
        self.assertEqual(hook.history['Spectra/G/Linear/sigma0'], [2.0] * 4)
        self.assertEmpty(run.tick(hook, **steady | dict(Spectra__G__Linear__sigma0=5.9)))
        self.assertEmpty(run.tick(hook, **steady | dict(Spectra__G__Linear__sigma1=100.0)))
        hook.set_state(json.loads(json.dumps(hook.state())))
        message, = run.tick(hook, **steady | dict(Spectra__G__Linear__sigma0=7.0))
        self.assertIn('Collapse alarm at 9.0 kimg: the largest singular value is far above its median of the '
                      'last 4 ticks in G/Linear (3.5 times). ', message)
        self.assertIn('--rollback-on-collapse', message)
        self.assertEqual(run.texts[-1][::2], ('Alarm', 9000))
        self.assertEmpty(run.tick(hook, **steady | dict(Spectra__G__Linear__sigma0=70.0)))  # The same event.
        self.assertEmpty(run.tick(hook, **steady))
        self.assertLen(run.tick(hook, **steady | dict(Spectra__G__Linear__sigma0=70.0)), 1)
        self.assertEmpty(run.rollbacks)

    def test_loss(self, _):
        run, hook = Fake(), CollapseAlarm(patience=2)
        for fake, real in (0.5, 0.5), (0.4, 0.6), (0.5, 1.4):
            self.assertEmpty(run.tick(hook, Loss__D_fake=fake, Loss__D_real=real))
        message, = run.tick(hook, Loss__D_fake=1.0, Loss__D_real=1.2)
        self.assertIn('the loss of D is 2.2 after a median of 1 in the last 3 ticks', message)
        self.assertEmpty(run.tick(hook))
        self.assertEmpty(run.tick(hook, Loss__D_fake=np.nan))

    def test_metrics(self, _):
        run, hook = Fake(), CollapseAlarm(metric_factor=1.5)
        self.assertEmpty(run.snapshot(hook, fid5k=100.0, is5k_mean=3.0, is5k_std=1.0, kid5k=-0.1))
        self.assertEmpty(run.snapshot(hook, fid5k=40.0, is5k_mean=6.0, is5k_std=9.0, kid5k=0.1))
        self.assertEmpty(run.snapshot(hook, fid5k=59.0, is5k_mean=4.1, is5k_std=1.0, kid5k=9.0))
        message, = run.snapshot(hook, fid5k=np.nan, is5k_mean=3.9)
        self.assertIn('is5k_mean is 3.9 after 6.', message)
        self.assertEmpty(run.snapshot(hook, fid5k=40.0))
        message, = run.snapshot(hook, fid5k=61.0, is5k_mean=1.0)
        self.assertIn('fid5k is 61 after 40, is5k_mean is 1 after 6.', message)
        self.assertEqual(hook.best, dict(fid5k=40.0, is5k_mean=6.0, kid5k=-0.1))

    def test_rollback(self, _):
        run_dir = self.folder()
        run, hook = Fake(run_dir), CollapseAlarm(patience=1, rollback=True, max_rollbacks=3)
        names = [f'network-snapshot-00000{index}.pkl' for index in range(3)]
        for name in names[:2]:
            pathlib.Path(run_dir, name).touch()
            run.snapshot(hook, name)
        run.snapshot(hook, names[2])    # Not on the disk any more.

        def collapse():
            self.assertEmpty(run.tick(hook, Loss__D_fake=1.0))
            self.assertEmpty(run.snapshot(hook, names[1]))
            self.assertLen(run.tick(hook, Loss__D_fake=5.0), 1)
            return run.rollbacks[-1]
        reason, path = collapse()
        self.assertIn('Collapse alarm: the loss of D is 5 after a median of 1', reason)
        self.assertEqual(path, os.path.join(run_dir, names[1]))
        self.assertEqual((hook.history, hook.good), ({}, names[:1] + names[2:]))
        with mock.patch.object(monitors, '_exists', lambda path: path.endswith('best.pkl')):
            self.assertEqual(collapse()[1], os.path.join(run_dir, 'network-best.pkl'))
        os.remove(os.path.join(run_dir, names[1]))
        self.assertEqual(collapse()[1], os.path.join(run_dir, names[0]))
        self.assertEqual(hook.num_rollbacks, 3)
        collapse()
        self.assertLen(run.rollbacks, 3)

    def test_wrong_arguments(self, _):
        for arguments in dict(sigma_factor=1.0), dict(metric_factor=0.5), dict(patience=0), dict(
                patience=3, window=2), dict(max_rollbacks=-1), dict(loss_jump=0):
            with self.assertRaisesRegex(UserError, 'collapse alarm: expected'):
                CollapseAlarm(**arguments)


class Disaster(Hook):
    """Makes a weight of G a hundred times larger after some steps."""

    def __init__(self, steps):
        self.steps = list(steps)

    def step(self, run):
        if run.progress.step in self.steps:
            weight = run.trainer.G.named_variables()['Linear/weight']
            weight.assign(weight * 100)


class ListedMetric(MetricBase):
    """A metric with the next value of a list."""

    values: list = []

    def _evaluate(self, ev):
        self._report_result(ListedMetric.values.pop(0))


def train(result_dir, *hooks, **changes):
    """A run of 12 steps with a tick and a snapshot after every second one."""
    norms = [dict(func_name='training.monitors.GradientNorms')]
    args = dict(D_repeats=1, total_kimg=0.096, hook_args=list(hooks),
                sched_args=dict(tick_kimg_base=0.016, minibatch_gpu_base=8),
                keep_snapshots=2, image_snapshot_ticks=None, G_update_args=norms,
                D_update_args=norms) | changes
    return test_hooks.train(result_dir, **args)


class RunTest(util.RunTest):

    def test_goes_back_and_resumes_exactly(self):
        """A weight explodes: alarm, back to the best snapshot; a run stopped after that is resumed."""
        testutil.run_eagerly(self)
        hooks = [SPECTRAL, dict(func_name='training.monitors.KeepBest', metric='fid7'),
                 ALARM | dict(rollback=True), dict(func_name='tests.test_monitors.Disaster', steps=[6])]
        args = dict(metric_arg_list=[dict(func_name='tests.test_monitors.ListedMetric', name='fid7')])
        ListedMetric.values = values = [9.0, 5.0, 7.0, np.nan, 6.0, 4.5, 5.0]
        values = list(values)
        whole = train(self.folder(), *hooks, **args)
        log = pathlib.Path(whole.run_dir, 'log.txt').read_text()
        self.assertEqual(log.count('Collapse alarm at '), 1)
        self.assertIn('in G/Linear (', log)
        self.assertEqual(log.count('. Going back to '), 1)
        self.assertIn(f'Going back to {os.path.join(whole.run_dir, "network-best.pkl")}.', log)
        final = load_networks(os.path.join(whole.run_dir, 'network-final.pkl'))[0]
        self.assertLess(np.linalg.norm(final.get_var('Linear/weight')), 50)
        self.assertEqual(whole.hooks['2-CollapseAlarm']['num_rollbacks'], 1)
        found = util.scalars(whole.run_dir)
        self.assertGreater(max(found['Spectra/G/Linear/sigma0'].values()), 30)
        self.assertLess(found['Spectra/G/Linear/sigma0'][96], 3)
        for tag in ('Spectra/D/Embedding/sigma1', 'Gradients/G', 'Gradients/D', 'Alarm/sigma_ratio',
                    'Spectra/G/Block0/Conv0/norm'):
            self.assertIn(tag, found)
        texts = [value.tag for event in util.events(whole.run_dir) for value in event.summary.value
                 if value.metadata.plugin_data.plugin_name == 'text']
        self.assertEqual(texts.count('Alarm'), 1)
        self.assertEqual(pathlib.Path(whole.run_dir, 'network-best.txt').read_text(),
                         'network-best.pkl = network-snapshot-000000.pkl, 0.1 kimg, fid7 4.5\n')
        self.assertLen(load_networks(os.path.join(whole.run_dir, 'network-best.pkl')), 3)

        ListedMetric.values, result_dir = values, self.folder()
        run_dir = os.path.join(result_dir, '00000-small')
        with util.at_step(8, lambda: pathlib.Path(run_dir, 'abort.txt').touch()):
            self.assertEqual(train(result_dir, *hooks, **args).step, 9)
        resumed = util.resume(run_dir)
        expected, found = util.checkpoint_values(whole.run_dir), util.checkpoint_values(run_dir)
        self.assertEqual(set(found), set(expected))
        for name, value in expected.items():
            self.assertEqual(found[name].tobytes(), value.tobytes(), name)
        self.assertEqual(resumed.hooks, whole.hooks)
        self.assertEqual(resumed.hooks['1-KeepBest'], dict(metric='fid7', best=4.5))

    def test_resumes_with_other_hooks(self):
        """New ones start afresh, what others left is not looked at; that of hooks in the same place stays."""
        testutil.run_eagerly(self)
        recorder, best = dict(func_name='tests.test_hooks.Recorder'), 'training.monitors.KeepBest'
        args = dict(metric_arg_list=[dict(func_name='tests.test_monitors.ListedMetric', name=name)
                                     for name in ('fid7', 'is7')], network_snapshot_ticks=None)
        ListedMetric.values = [5.0, 6.0, 9.0, 7.0]
        begun = train(self.folder(), recorder, ALARM, dict(func_name=best, metric='fid7'), total_kimg=0.032,
                      **args)
        values = util.checkpoint_values(begun.run_dir)
        self.assertEqual(begun.hooks['2-KeepBest'], dict(metric='fid7', best=5.0))
        final = pathlib.Path(begun.run_dir, 'network-final.pkl').read_bytes()
        # One more step, in which nothing is learned.
        resumed = util.resume(begun.run_dir, total_kimg=0.04, hook_args=[
            SPECTRAL, ALARM, dict(func_name=best, metric='is7')],
            sched_args=dict(G_lrate_base=0, D_lrate_base=0))
        self.assertEqual(resumed.step, begun.step + 1)
        weight = load_networks(os.path.join(resumed.run_dir, 'network-final.pkl'))[0].get_var('Linear/weight')
        self.assertAllEqual(weight, values['variables/G.SLinear.Sweight/.ATTRIBUTES/VARIABLE_VALUE'])
        self.assertNotEqual(pathlib.Path(begun.run_dir, 'network-final.pkl').read_bytes(), final)
        self.assertEqual(resumed.hooks['2-KeepBest'], dict(metric='is7', best=7.0))
        losses = begun.hooks['1-CollapseAlarm']['history']['loss']
        self.assertEqual(resumed.hooks['1-CollapseAlarm']['history']['loss'][:len(losses)], losses)
        self.assertLen(losses, 3)
        found = set(util.checkpoint_values(begun.run_dir))
        self.assertEqual({name.split('.S')[1] for name in set(values) - found}, {'0-Recorder'})
        self.assertEqual({name.split('.S')[1] for name in found - set(values)}, {'0-SpectralMonitor'})

    def test_wrong_metric(self):
        for metric, message in (('pr5k3', 'keep best: expected one result of pr5k3, pr5k3_precision or '),
                                ('fid5k_full', 'fid5k_full is none of the metrics of this run, fid5k, pr5k3'),
                                ('kid5k', 'kid5k is none of the metrics'), ('pr5', 'pr5 is none of')):
            run = Fake()
            run.metrics.metrics = [SimpleNamespace(name=name) for name in ('fid5k', 'pr5k3')]
            with self.assertRaisesRegex(UserError, message):
                KeepBest(metric).start(run)
        for metric in 'fid5k', 'pr5k3_recall', 'pr5k3_of_my_own':
            KeepBest(metric).start(run)
        run.results = dict(fid5k=1.0, pr5k3_precision=0.5, pr5k3_recall=0.5)
        with self.assertRaisesRegex(UserError, 'keep best: expected one of fid5k, pr5k3_precision, '
                                               "pr5k3_recall. Received: 'pr5k3_of_my_own'"):
            KeepBest('pr5k3_of_my_own').snapshot(run, '')
        run.metrics.metrics = []
        with self.assertRaisesRegex(UserError, 'fid5k is none of the metrics of this run, which has none'):
            KeepBest('fid5k').start(run)

    def test_keeps_the_best(self):
        """By low or high values as the metric says; what is no number, or not measured, is no best."""
        run = Fake(self.folder())
        saved = []
        run.snapshots = SimpleNamespace(save_as=lambda name: saved.append(self.value) or os.path.join(
            run.run_dir, name))
        for metric, result, expected in (('fid5k', 'fid5k', [9, 5, 3]), ('is5k', 'is5k_mean', [9, 10]),
                                         ('pr5k3_recall', 'pr5k3_recall', [9, 10])):
            hook = KeepBest(metric)
            for self.value in 9, 5, 7, np.nan, 10, np.inf, 3, 3:
                run.results = {result: self.value, 'fid1k': -100.0, 'is1k_mean': 100.0}
                with mock.patch('builtins.print'):
                    hook.snapshot(run, 'network-snapshot-000007.pkl')
                hook.set_state(json.loads(json.dumps(hook.state())))
            self.assertEqual(saved, expected)
            text = pathlib.Path(run.run_dir, 'network-best.txt').read_text()
            self.assertEqual(text, f'network-best.pkl = network-snapshot-000007.pkl, 0.0 kimg, {result} '
                                   f'{expected[-1]}\n')
            saved.clear()
        run.results, run.metrics.stopped = {}, True
        hook.snapshot(run, '')
        run.metrics.stopped, run.metrics.failed = False, ['pr5k3']
        hook.snapshot(run, '')
        run.metrics.failed, run.results = ['fid5k'], {'fid5k_class_mean': 8.0}     # Not one of fid5k.
        with mock.patch('builtins.print'):
            KeepBest('fid5k_class').snapshot(run, '')
        self.assertLen(saved, 1)
        saved.clear()
        run.metrics.failed, run.is_chief, run.results = [], False, {'pr5k3_recall': 11.0}
        hook.snapshot(run, '')
        self.assertEqual(hook.best, 11.0)
        self.assertEmpty(saved)

    def test_memorization(self):
        images = np.random.RandomState(0).randint(0, 256, [40, 8, 8, 3]).astype(np.uint8)
        path = os.path.join(self.folder(), 'other.npz')
        np.savez(path, images=images, labels=np.arange(40) % 8)
        training_set = load_dataset(resolution=8, max_label_size='full')
        D = tflib.Network('D', 'training.networks_biggan.D_biggan', **trainers.SHAPE | dict(
            label_size=training_set.label_size), **trainers.D_ARGS)
        run = SimpleNamespace(training_set=training_set, D=D, sched=SimpleNamespace(minibatch_gpu=8))
        hook = monitors.Memorization(path, num_images=30)
        hook.start(run)
        autosummary.reset()
        hook.snapshot(run, '')
        found, counts = autosummary.get_means(), autosummary.get_state()
        chosen = np.random.RandomState(0).permutation(40)[:30]
        scores = D.run(images[chosen].transpose(0, 3, 1, 2) / np.float32(127.5) - 1,
                       np.eye(8, dtype=np.float32)[chosen % 8])
        self.assertAllClose(found['Memorization/held_out'], np.mean(scores > 0))
        self.assertEqual([counts[f'Memorization/{name}'][0] for name in ('held_out', 'training')], [30, 30])
        autosummary.reset()
        np.savez(path, images=images, labels=np.arange(40) % 3)
        with self.assertRaisesRegex(UserError, 'other.npz has images .* label size 3, the training set .* 8'):
            hook.start(run)


if __name__ == '__main__':
    tf.test.main()
