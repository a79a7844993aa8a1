"""The phases of a training step: replicas and rounds, updates that are left out, and the official numbers."""

import json
import os
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib import tflib
from dnnlib.util import UserError
from tests import testutil
from tests.test_training_replay import Replay, check_variables
from training import loss, strategies, trainer
from training.datasets.base import one_hot
from training.growing import Stage

SHAPE = dict(num_channels=3, resolution=8, label_size=3)
G_ARGS = dict(fmap_base=32, fmap_max=8, latent_size=8, dlatent_size=8, mapping_fmaps=8, mapping_layers=2,
              randomize_noise=True)
D_ARGS = dict(fmap_base=32, fmap_max=8)
STEP_SIZES = (4, 4, 4, 8, 8)    # Minibatch of each step of the runs that are compared.
MINIBATCH_GPU = 2


def make_images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images uint8 [count, 8, 8, 3] and labels."""
    rnd = np.random.RandomState(seed)
    return rnd.randint(0, 256, [count, 8, 8, 3]).astype(np.uint8), one_hot(
        rnd.randint(0, 3, count), 'test', 3
    )


def make_trainer(strategy=None, D_args=None, D_loss_args=None, **kwargs) -> trainer.Trainer:
    """A trainer of small conditional networks, the same one at each call.

    With epsilon 1 Adam is smooth: rounding cannot turn the sign of a step, as it does at the usual epsilon.
    """
    strategy = strategy or strategies.make_strategy(1)
    keras.utils.set_random_seed(1)
    kwargs = {
        'G_opt_args': dict(epsilon=1.0),
        'D_opt_args': dict(epsilon=1.0),
        'labels': make_images(40, 7)[1],
        'G_reg_interval': 2,
        'D_reg_interval': 3,
        **kwargs,
    }
    losses = [kwargs.pop('G_loss', loss.G_logistic_ns_pathreg), {}, kwargs.pop('D_loss', loss.D_logistic_r1),
              D_loss_args or {}]
    with strategy.scope():
        G = tflib.Network('G', 'training.networks_stylegan2.G_main', **SHAPE, **G_ARGS)
        D = tflib.Network('D', 'training.networks_stylegan2.D_stylegan2', **SHAPE, **D_ARGS, **(D_args or {}))
        Gs = G.clone('Gs')
        for var in Gs.trainables.values():  # Not where G is, so that the moving average moves.
            var.assign(var + 0.1)
        return trainer.Trainer(strategy, G.layer, D.layer, Gs.layer, *losses, **kwargs)


def state_of(subject: trainer.Trainer) -> dict[str, np.ndarray]:
    """Copies of all variables."""
    return {name: variable.numpy() for name, variable in subject.state().items()}


def summed(reports: list[dict]) -> dict[str, np.ndarray]:
    """Reports of one step, summed up by name as the training loop does."""
    total = {}
    for report in reports:
        for name, moments in report.items():
            total[name] = total.get(name, 0) + np.asarray(moments)
    return total


def save_run(path: str, num_gpus: int) -> None:
    """Runs a few steps on one or two replicas and saves all variables and reports."""
    subject = make_trainer(strategies.make_strategy(num_gpus))
    arrays = {f'initial/{name}': value for name, value in state_of(subject).items()}
    for step, size in enumerate(STEP_SIZES):
        images, labels = make_images(size, step)
        reports = subject.step(step, images, labels, MINIBATCH_GPU, 0.05, 0.05, ema_beta=0.5)
        arrays.update({f'report{step}/{name}': value for name, value in summed(reports).items()})
    arrays.update({f'final/{name}': value for name, value in state_of(subject).items()})
    copies = [subject.strategy.experimental_local_results(variable) for variable in subject.state().values()]
    spread = max(
        float(np.max(np.abs(copy.numpy() - of[0].numpy()))) for of in copies for copy in of if copy.shape
    )
    arrays['meta_json'] = json.dumps({'copies': len(copies[0]), 'spread': spread})
    np.savez(path, **arrays)


class ReplicaTest(tf.test.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # TensorFlow makes two CPUs of one only before it is used: in a process of its own.
        path = os.path.join(cls().get_temp_dir(), 'two.npz')
        code = f'from tests.test_trainer import save_run; save_run({path!r}, 2)'
        process = subprocess.Popen(
            [sys.executable, '-c', code], cwd=testutil.ROOT, stderr=subprocess.PIPE, text=True
        )
        one = path.replace('two', 'one')
        save_run(one, 1)
        _, stderr = process.communicate(timeout=300)
        if process.returncode:
            raise AssertionError(stderr)
        cls.stderr = stderr
        cls.one, cls.two = (dict(np.load(file)) for file in (one, path))
        cls.meta = json.loads(str(cls.two.pop('meta_json')))

    def test_tensorflow_does_not_warn_of_tracing(self):
        """There are many functions, but each is traced once."""
        self.assertNotIn('retracing', self.stderr)

    def test_copies_of_the_variables_stay_equal(self):
        self.assertEqual(self.meta, {'copies': 2, 'spread': 0.0})

    def test_initial_weights(self):
        for name, value in self.one.items():
            if name.startswith('initial/'):
                self.assertAllEqual(value, self.two[name], name)

    def test_two_replicas_compute_what_one_computes_in_twice_the_rounds(self):
        self.assertEqual(set(self.one) - {'meta_json'}, set(self.two))
        for name, value in self.one.items():
            if name.startswith(('final/', 'report')):
                testutil.assert_close(self, self.two[name], value, 2e-5, 2e-5, msg=name)

    def test_everything_moves(self):
        """The comparison above means something: weights, moments, averages are not where they were."""
        fixed = (
            '/lod',
            '/num_skipped',
            '/skipped_in_a_row',
            '/beta1_power',
            '/m',
        )  # With beta1 0, m is the last gradient.
        for name, value in self.one.items():
            kind, _, name = name.partition('/')
            if kind == 'initial' and not name.endswith(fixed) and '/noise' not in name:
                self.assertNotAllEqual(value, self.one[f'final/{name}'], name)
        regularized = [step for step in range(len(STEP_SIZES)) if f'report{step}/Loss/pl_lengths' in self.one]
        self.assertEqual(regularized, [0, 2, 4])
        regularized = [
            step for step in range(len(STEP_SIZES)) if f'report{step}/Loss/gradient_penalty' in self.one
        ]
        self.assertEqual(regularized, [0, 3])

    def test_reports_count_all_samples(self):
        for step, size in enumerate(STEP_SIZES):
            self.assertEqual(
                self.one[f'report{step}/Loss/scores/real'][0], size * (2 if step % 3 == 0 else 1)
            )
            self.assertEqual(self.one[f'report{step}/Loss/scores/fake'][0], 2 * size)  # In G and in D.


def poisoned(function):
    """The loss, turned into NaN for a piece of white images, and for everything while POISON is set."""
    def with_poison(G, D, ctx, minibatch_size, *data, **kwargs):
        parts = function(G, D, ctx, minibatch_size, *data, **kwargs)
        white = tf.reduce_all(data[0] > 0.99) if data else False
        factor = tf.where(tf.logical_or(white, POISON > 0), np.nan, 1.0)
        return tuple(lambda part=part: part() * factor for part in parts)
    with_poison.state = getattr(function, 'state', {})
    return with_poison


POISON = None


class SkipTest(tf.test.TestCase):
    """Gradients that are not finite change nothing but the counters."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        global POISON
        POISON = tf.Variable(0.0)
        cls.subject = make_trainer(
            G_loss=poisoned(loss.G_logistic_ns_pathreg),
            D_loss=poisoned(loss.D_logistic_r1),
            D_loss_args=dict(gamma=1.0),
        )
        cls.phases = {phase.name: phase for phase in cls.subject.phases}

    def run_phase(self, name, images, rounds):
        labels = make_images(len(images), 3)[1]
        return self.subject.run_phase(
            self.phases[name], 0, images, labels, len(images) // rounds, rounds, 0.05
        )

    def assert_skipped(self, before, role):
        for name, value in state_of(self.subject).items():
            counts = {f'Train{role}/num_skipped', f'Train{role}/skipped_in_a_row'}
            self.assertAllEqual(value, before[name] + (name in counts), name)

    def test_every_phase(self):
        for name in ('G', 'G_reg', 'D', 'D_reg'):
            POISON.assign(1.0)
            before = state_of(self.subject)
            self.run_phase(name, make_images(2)[0], rounds=1)
            self.assert_skipped(before, name[0])
            self.assertEqual(
                self.subject.skipped_in_a_row()[name[0]], before[f'Train{name[0]}/skipped_in_a_row'] + 1
            )
            POISON.assign(0.0)
            self.run_phase(name, make_images(2)[0], rounds=1)
            self.assertEqual(self.subject.skipped_in_a_row()[name[0]], 0)
            self.assertEqual(self.subject.optimizers[name[0]].num_applied.numpy(),
                             before[f'Train{name[0]}/num_applied'] + 1)

    def test_one_bad_round_spoils_the_update_but_not_the_next(self):
        images = make_images(4)[0]
        spoiled = np.concatenate([images[:2], np.full_like(images[:2], 255)])
        before = state_of(self.subject)
        self.run_phase('D', spoiled, rounds=2)
        self.assert_skipped(before, 'D')
        self.run_phase('D', images, rounds=2)
        for name, value in state_of(self.subject).items():
            self.assertAllInRange(value, np.finfo(np.float32).min, np.finfo(np.float32).max)
            if name.startswith('D/') and name.endswith('weight'):
                self.assertNotAllEqual(value, before[name], name)


class RoundsTest(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        testutil.run_eagerly(self)

    def test_rounds_average_to_one_pass(self):
        """R1 has no random numbers and, with groups of one, no minibatch statistics: same gradients."""
        finals = []
        images, labels = make_images(8)
        for rounds in (1, 2, 4):
            subject = make_trainer(D_args=dict(mbstd_group_size=1))
            phase = next(phase for phase in subject.phases if phase.name == 'D_reg')
            subject.run_phase(phase, 0, images, labels, 8 // rounds, rounds, 0.05)
            finals.append(state_of(subject))
        for final in finals[1:]:
            for name, value in finals[0].items():
                testutil.assert_close(self, final[name], value, 1e-5, 1e-5, msg=name)
        self.assertNotAllEqual(finals[0]['TrainD/4x4/Conv/weight/v'], np.zeros([3, 3, 9, 8]))

    def test_minibatch_must_divide(self):
        subject = make_trainer()
        images, labels = make_images(6)
        with self.assertRaisesRegex(UserError, 'multiple of minibatch_gpu .* 4 x 1. Received: 6$'):
            subject.step(0, images, labels, 4, 0.05, 0.05, 0.5)

    def test_regularization_in_every_step_without_lazy(self):
        subject = make_trainer(lazy_regularization=False, G_loss=loss.G_logistic_ns)
        self.assertEqual([(phase.name, phase.interval, phase.use_loss, phase.use_reg, phase.reg_weight)
                          for phase in subject.phases], [('G', 1, True, True, 1), ('D', 1, True, True, 1)])
        images, labels = make_images(2)
        reports = summed(subject.step(1, images, labels, 2, 0.05, 0.05, 0.5))
        self.assertEqual(reports['Loss/gradient_penalty'][0], 2)
        self.assertEqual(subject.learning_rate('D', 0.01), 0.01)
        self.assertEqual(subject.optimizers['D'].beta2, 0.99)

    def test_loss_without_regularizer_has_no_second_phase(self):
        subject = make_trainer(G_loss=loss.G_logistic_ns, D_loss=loss.D_logistic)
        self.assertEqual([phase.name for phase in subject.phases], ['G', 'D'])
        # Lazy regularization changes Adam all the same, as officially in config C, whose G has none.
        self.assertAllClose(subject.learning_rate('G', 0.01), 0.01 * 2 / 3)
        self.assertAllClose(subject.optimizers['G'].beta2, 0.99 ** (2 / 3))


class RandomNumbersTest(tf.test.TestCase):

    def test_no_two_pieces_draw_the_same(self):
        """Steps, phases, rounds and draws of one piece differ; the same piece draws the same again."""
        def draws(_G, _D, ctx, *_args, **_kwargs):
            def part():
                for name in ('first', 'second'):
                    ctx.report(name, ctx.normal([50]))
                return tf.zeros([1])
            return part, part

        def sums(seed):
            subject = make_trainer(G_loss=draws, D_loss=draws, seed=seed)
            images, labels = make_images(4)
            return [float(report[name][1]) for step in range(2) for phase in subject.phases
                    for report in subject.run_phase(phase, step, images, labels, 2, 2, 0.0)
                    for name in ('first', 'second')]

        first = sums(seed=3)
        self.assertLen(set(first), 2 * 4 * 2 * 2)
        self.assertEqual(sums(seed=3), first)
        self.assertEmpty(set(sums(seed=4)) & set(first))


class RecordedStep(testutil.RecordedContext):
    """Recorded random numbers where a step expects its own; updates are collected, as there."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._updates = {}

    def value(self, variable):
        return self._updates[id(variable)][1] if id(variable) in self._updates else super().value(variable)

    def update(self, variable, value):
        self._updates[id(variable)] = (variable, value)

    @property
    def updates(self):
        return list(self._updates.values())


class GoldenTest(parameterized.TestCase, tf.test.TestCase):

    def check_run(self, run, updates):
        """Whole steps with the recorded random numbers give the official losses and variables.

        In float64, for the reason that test_training_replay gives. `updates` is the number of steps of an
        optimizer in one of them.
        """
        a = testutil.load('training', f'{run}.npz')
        meta = a['meta']
        feed = {key.removeprefix('feed/'): value if value.dtype.kind == 'i' else np.float64(value)
                for key, value in a.items() if key.startswith('feed/')}
        networks = testutil.load_networks('training', f'{run}_init.pkl', dtype='float64')
        # For its recorded contexts and what it reads in `meta`.
        replay = Replay(networks, meta, feed, a['lods'], stage_size=networks[0].grows)
        opt_args = {key: meta[key] for key in ('beta1', 'beta2', 'epsilon')}
        losses = [(getattr(loss, name), kwargs) for name, kwargs in replay.losses.values()]
        subject = trainer.Trainer(
            strategies.make_strategy(1), *networks, *losses[0], *losses[1], G_opt_args=opt_args,
            D_opt_args=opt_args, lazy_regularization=replay.lazy, G_reg_interval=meta.get('G_reg_interval'),
            D_reg_interval=meta.get('D_reg_interval'), D_first=replay.D_first)
        draws = {'G': 'g', 'G_reg': 'pl', 'D': 'd', 'D_reg': None}
        logs = {}
        testutil.run_eagerly(self)
        real_total = trainer.Phase.total

        def total(phase, _ctx, *args):
            with mock.patch.object(testutil, 'RecordedContext', RecordedStep):
                ctx = replay._context(self.index, draws[phase.name])
            ctx._loss_state = _ctx._loss_state
            self.assertEqual(ctx.stage, _ctx.stage)
            value = real_total(phase, ctx, *args)
            self.assertTrue(ctx.all_used())
            for update in ctx.updates:
                _ctx.update(*update)
            name = f'{phase.name}_loss' if phase.use_loss else phase.name
            logs.setdefault(name, []).append(float(value) / (phase.reg_weight or 1))
            return value

        # The recorded reals are those that the discriminator saw.
        def process_reals(images, *_args, **_kwargs):
            return tf.convert_to_tensor(images)

        with mock.patch.object(trainer.Phase, 'total', total), \
                mock.patch.object(trainer, 'process_reals', process_reals):
            for self.index in range(len(feed['reals'])):
                subject.set_lod(a['lods'][self.index])
                reals, labels = replay._reals(self.index)
                subject.step(self.index, reals.numpy(), labels.numpy(), meta['minibatch'], meta['lrate'],
                             meta['lrate'], replay.ema_beta)
                for name, variable in subject.loss_state.items():
                    logs.setdefault(name, []).append(variable.numpy())
                if subject.G.components:
                    logs.setdefault('dlatent_avg', []).append(subject.G.dlatent_avg.numpy())
                count = self.index + 1
                if count in meta['snapshots_after']:
                    check_variables(self, networks, run, count, meta['lrate'], updates * count)
        self.assertEqual({f'log/{name}' for name in logs}, {key for key in a if key.startswith('log/')})
        for name, values in logs.items():
            testutil.assert_close(self, np.float32(values), a[f'log/{name}'], msg=name)

    def test_steps_of_config_f(self):
        self.check_run('stylegan2_f', updates=2)

    @parameterized.parameters('stylegan2_bcd_nolazy', 'stylegan', 'progan_label4')
    @testutil.needs_golden
    def test_growing_steps(self, run):
        self.check_run(run, updates=1)


class GrowingTest(tf.test.TestCase):
    """Losses that do not run the growing networks, only keep what they are given."""

    def setUp(self):
        super().setUp()
        self.arrays = testutil.load('primitives', 'stylegan2_images.npz')
        self.images = testutil.nhwc(self.arrays['reals_uint8'])
        self.traced = []

        def G_loss(_G, _D, ctx, _minibatch_size):
            def part():
                self.traced.append(('G', ctx.stage))
                return tf.zeros([1])
            return part, None

        def D_loss(_G, _D, ctx, _minibatch_size, reals, _labels):
            def part():
                self.traced.append(('D', ctx.stage))
                ctx.update(ctx.state('reals'), reals)
                return tf.zeros([1])
            return part, None

        D_loss.state = {'reals': np.zeros(self.images.shape)}
        shape = dict(num_channels=3, resolution=16, fmap_base=32, fmap_max=8)
        G = tflib.Network('G', 'training.networks_progan.G_paper', **shape)
        D = tflib.Network('D', 'training.networks_progan.D_paper', **shape)
        self.subject = trainer.Trainer(strategies.make_strategy(1), G.layer, D.layer, G.clone('Gs').layer,
                                       G_loss, {}, D_loss, {}, lazy_regularization=False)

    def step(self, number, lod, minibatch_gpu=4):
        self.subject.set_lod(lod)
        labels = np.zeros([4, 0], np.float32)
        self.subject.step(number, self.images, labels, minibatch_gpu, 0.001, 0.001, 0.9)

    def test_reals_fade_with_the_networks(self):
        """The official reals of each level, of which the trainer leaves out the enlargement."""
        for number, lod in enumerate((2.25, 1.7, 1, 0.4, 0)):
            self.step(number, lod)
            scale = 2 ** int(lod)
            expected = testutil.nhwc(self.arrays[f'process_reals_lod{lod:g}'])[:, ::scale, ::scale]
            testutil.assert_close(self, self.subject.loss_state['reals'], expected, rtol=0, atol_rel=1e-6,
                                  msg=f'lod {lod}')

    def test_other_values_are_taken_at_the_present_level(self):
        subject = self.subject
        subject.set_lod(1.7)
        others = [type(layer)(num_channels=3, resolution=16, fmap_base=32, fmap_max=8)
                  for layer in (subject.G, subject.D, subject.Gs)]
        slots = subject.optimizers['D'].state()
        for name, slot in slots.items():
            if name.endswith('/v'):
                slot.assign(slot + 1)
        subject.load(others)
        self.assertEqual(max(np.max(slot) for name, slot in slots.items() if name.endswith('/v')), 0)
        for layer, other in zip((subject.G, subject.D, subject.Gs), others, strict=True):
            values = layer.named_variables()
            self.assertAllClose(values['lod'], 1.7)
            for name, value in other.named_variables().items():
                if name != 'lod':
                    self.assertAllEqual(values[name], value, name)
        self.assertEqual(subject.stage, Stage(1, True))

    def test_one_tracing_per_stage(self):
        """What fades is a variable: neither another lod nor another step is a reason to trace again."""
        lods = (2, 2, 1.9, 1.9, 1.5, 1.1, 1, 1, 0.4, 0.3, 0, 0)
        for number, lod in enumerate(lods):
            self.step(number, lod)
        stages = [Stage(2, False), Stage(1, True), Stage(1, False), Stage(0, True), Stage(0, False)]
        self.assertEqual(self.traced, [(role, stage) for stage in stages for role in 'GD'])


if __name__ == '__main__':
    tf.test.main()
