"""Training of BigGAN: recorded iterations, rounds, replicas, and whole runs."""

import os
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from dnnlib import tflib
from tests import biggan_testutil as biggan
from tests import testutil
from training import context, loss, strategies, trainer
from training.hooks import Run, UpdateHook
from training.monitors import SpectralMonitor
from training.networks_biggan import G_biggan

# Networks for 8×8 images of three classes.
SHAPE = dict(num_channels=3, resolution=8, label_size=3)
G_ARGS = dict(ch=4, multipliers=[2, 2], latent_size=8, shared_dim=4)
D_ARGS = dict(ch=4, multipliers=[2, 2], num_down=1)
ORTHOGONAL = dict(func_name='training.regularizers.OrthogonalRegularization', strength=1e-4)
SIGMA_CLAMP = dict(func_name='training.spectral.SigmaClamp', ratio=0.9)
GLOBAL_BATCH = 8


def make_images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images uint8 [count, 8, 8, 3] and labels."""
    rnd = np.random.RandomState(seed)
    return rnd.randint(0, 256, [count, 8, 8, 3]).astype(np.uint8), np.eye(3, dtype=np.float32)[
        rnd.randint(0, 3, count)]


def make_trainer(strategy=None, epsilon: float = 1.0, **kwargs) -> trainer.Trainer:
    """A trainer of small networks, the same one at each call. With epsilon 1 a step of Adam is smooth."""
    strategy = strategy or strategies.make_strategy(1)
    keras.utils.set_random_seed(1)
    opt_args = dict(beta1=0.0, beta2=0.999, epsilon=epsilon)
    kwargs = dict(G_opt_args=opt_args, D_opt_args=opt_args, label_classes=np.arange(3), D_first=True,
                  lazy_regularization=False, ema_after='G', D_repeats=2, G_update_args=[ORTHOGONAL]) | kwargs
    with strategy.scope():
        G = tflib.Network('G', 'training.networks_biggan.G_biggan', **SHAPE, **G_ARGS)
        D = tflib.Network('D', 'training.networks_biggan.D_biggan', **SHAPE, **D_ARGS)
        Gs = G.clone('Gs')
        return trainer.Trainer(strategy, G.layer, D.layer, Gs.layer, loss.G_hinge, {},
                               loss.D_hinge_joint, dict(gamma=0.5), **kwargs)


def run_steps(subject: trainer.Trainer, minibatch_gpu: int, steps: int = 2, lrate: float = 0.02) -> dict:
    """Trains a few steps; returns all variables."""
    for step in range(steps):
        batches = [make_images(GLOBAL_BATCH, 10 * step + repeat) for repeat in range(subject.D_repeats)]
        subject.step(step, *zip(*batches, strict=True), minibatch_gpu, lrate, lrate, 0.5)
    return {name: variable.numpy() for name, variable in subject.state().items()}


class GoldenLoopTest(tf.test.TestCase):

    @biggan.needs_golden
    def test_two_iterations(self):
        """Recorded latents, labels and reals through the trainer: the losses and the whole state after it."""
        a = biggan.load('loop_r32_hier')
        config = a['config']
        G, D = biggan.networks(a)
        Gs = biggan.fill(G_biggan(**biggan.generator_args(a), name='Gs'), 'G', biggan.below(a, 'G'), config)
        opt_args = dict(beta1=0.0, beta2=0.999, epsilon=config['adam_eps'], epsilon_form='pytorch')
        subject = trainer.Trainer(
            strategies.make_strategy(1), G, D, Gs, loss.G_hinge, {}, loss.D_hinge_joint, {},
            G_opt_args=opt_args, D_opt_args=opt_args, lazy_regularization=False, D_first=True,
            D_repeats=config['num_D_steps'],
            G_update_args=[ORTHOGONAL | dict(strength=config['G_ortho'], form='half')],
            ema_start=config['ema_start'], ema_after='G', ema_all=True)
        testutil.run_eagerly(self)
        reals, real_labels = testutil.nhwc(a['in/x'].reshape(-1, *a['in/x'].shape[2:])), biggan.one_hot(
            a['in/y_real'])
        batch = config['batch']
        for iteration in range(config['iterations']):
            latents = iter(map(tf.constant, a['in/z'][iteration]))
            labels = iter(map(tf.constant, biggan.one_hot(a['in/y'][iteration])))
            images = reals.reshape(config['iterations'], 2, batch, 32, 32, 3)[iteration]
            y_real = real_labels[iteration].reshape(2, batch, 10)
            with mock.patch.object(context.StepContext, 'normal', side_effect=latents), \
                    mock.patch.object(context.StepContext, 'random_labels', side_effect=labels), \
                    mock.patch.object(trainer, 'process_reals', tf.convert_to_tensor):
                reports = subject.step(iteration, list(images), list(y_real), batch, config['G_lr'],
                                       config['D_lr'], config['ema_decay'])
            self.assertEmpty([*latents, *labels])
            means = {name: float(moments[1] / moments[0]) for report in reports
                     for name, moments in report.items()}
            self.assertAllClose([means['Loss/G'], means['Loss/D_real'], means['Loss/D_fake']],
                                a[f'loop/losses_itr{iteration + 1}'], rtol=1e-4)
        for role, network, key in (('G', G, 'G'), ('D', D, 'D'), ('G', Gs, 'E')):
            expected = biggan.convert(role, biggan.below(a, f'loop/after_{key}'), config)
            found = network.named_variables()
            self.assertEqual(set(found), set(expected))
            for name, value in expected.items():
                # The true gradient of these biases, which a normalization removes, is zero.
                if role == 'G' and name.startswith('Block') and name.endswith(
                        ('Conv0/bias', 'Conv1/bias', 'Shortcut/bias')):
                    continue
                self.assertAllClose(found[name].numpy(), value, rtol=0, atol=5e-5, msg=f'{key} {name}')


class Spoil(UpdateHook):
    """Gradients that are no numbers."""

    def gradients(self, ctx, values, gradients):
        return {name: gradient * np.nan for name, gradient in gradients.items()}


class RoundsTest(tf.test.TestCase):

    def test_each_round_moves_the_state_on(self):
        """Rounds in a traced step leave what their passes, done by hand one after another, leave."""
        images, labels = make_images(4)
        for role in 'G', 'D':
            subject, twin = make_trainer(D_repeats=1), make_trainer(D_repeats=1)
            before = {name: variable.numpy() for name, variable in subject.state().items()}
            phase, by_hand = ({phase.name: phase for phase in of.phases}[role] for of in (subject, twin))
            subject.run_phase(phase, 5, images, labels, 2, 2, 0.0)
            for index in range(2):
                seed = tf.constant([1000, 5])
                for number in (phase.index, index):
                    seed = tf.random.experimental.stateless_fold_in(seed, number)
                ctx = context.StepContext(seed, twin.label_table)
                rows = slice(2 * index, 2 * index + 2)
                reals = tf.cast(images[rows], tf.float32) / 127.5 - 1
                by_hand.total(ctx, 2, reals, tf.constant(labels[rows]))
                for variable, value in ctx.updates:
                    variable.assign(value)
            moved = set()
            for name, variable in twin.state().items():
                if name.startswith(('G/', 'D/')):
                    self.assertAllClose(subject.state()[name], variable, 1e-5, 1e-5, msg=name)
                    if not np.array_equal(variable, before[name]):
                        moved.add(name)
            state = {name for name in before if name.startswith(('G/', 'D/')) and name.endswith(
                ('/u', 'moving_mean', 'moving_variance'))}
            self.assertLessEqual(moved, state)
            # A pass of D's update runs G, too. The sign of a vector with one element may be what it was.
            missing = {name for name in state - moved if before[name].shape != (1,)}
            self.assertEmpty(missing)

    def test_an_update_that_is_left_out(self):
        """Nothing moves but what the rounds of a minibatch have moved on, which is as without the mishap."""
        testutil.run_eagerly(self)
        images, labels = make_images(4)
        for rounds in (1, 2):
            subject, plain = make_trainer(G_update_args=[Spoil()]), make_trainer(G_update_args=())
            before = {name: variable.numpy() for name, variable in subject.state().items()}
            for of in subject, plain:
                phase = {phase.name: phase for phase in of.phases}['G']
                of.run_phase(phase, 0, images, labels, 4 // rounds, rounds, 0.0)
            counters = {'TrainG/num_skipped', 'TrainG/skipped_in_a_row'}
            state = plain.state()
            for name, variable in subject.state().items():
                is_moved = rounds > 1 and name.endswith(('/u', 'moving_mean', 'moving_variance'))
                expected = state[name] if is_moved else before[name] + (name in counters)
                self.assertAllClose(variable, expected, rtol=1e-6, atol=1e-7, msg=name)
            self.assertEqual(np.allclose(before['G/Linear/u'], subject.state()['G/Linear/u']), rounds == 1)

    def test_hooks_change_gradients_of_the_loss_alone(self):
        """Not those of a regularizer that has updates of its own; what both minimize sees the progress."""
        testutil.run_eagerly(self)

        def D_loss(_G, _D, ctx, *_args, **_kwargs):
            return lambda: ctx.report('Progress', tf.reshape(ctx.progress, [1])), lambda: tf.zeros([1])
        with mock.patch.object(loss, 'D_hinge_joint', D_loss), mock.patch.object(
                loss, 'G_hinge', lambda *_args: (lambda: tf.zeros([1]), None)):
            subject = make_trainer(D_update_args=[Spoil()], G_update_args=(), lazy_regularization=True,
                                   D_reg_interval=1, D_repeats=1)
        reports = subject.step(0, *make_images(4), 4, 0.1, 0.1, 0.5, 0.25)
        optimizer = subject.optimizers['D']
        self.assertEqual((int(optimizer.num_applied), int(optimizer.num_skipped)), (1, 1))
        self.assertAllClose([report['Progress'][1] for report in reports if 'Progress' in report], [0.25])

    def test_a_step_sees_fresh_data_and_counts_intervals_by_minibatch(self):
        """D is updated on other images each time; its regularizer is due by minibatches, not by steps."""
        subject = make_trainer(lazy_regularization=True, G_reg_interval=1, D_reg_interval=3)
        calls = []

        def recorded(_self, phase, number, images, *_args):
            calls.append((phase.name, number, float(np.mean(images))))
            return []

        with mock.patch.object(trainer.Trainer, 'run_phase', recorded):
            run_steps(subject, GLOBAL_BATCH, steps=3)
        means = [float(np.mean(make_images(GLOBAL_BATCH, 10 * (number // 2) + number % 2)[0]))
                 for number in range(6)]
        expected = []
        for step in range(3):
            for number in (2 * step, 2 * step + 1):
                expected += [('D', number, means[number])]
                expected += [('D_reg', number, means[number])] if number % 3 == 0 else []
            expected += [('G', step, means[2 * step])]
        self.assertEqual(calls, expected)

    def test_average(self):
        """Copies up to ema_start; then weights and running statistics are averaged, u only by ema_all."""
        testutil.run_eagerly(self)
        for ema_all in (False, True):
            subject = make_trainer(ema_start=2, ema_all=ema_all, D_repeats=1)
            states = []
            for step in range(2):
                subject.step(step, *make_images(4, step), 4, 0.05, 0.05, 0.75)
                states.append({name: variable.numpy() for name, variable in subject.state().items()})
            first, second = states
            for name, value in second.items():
                if name.startswith('Gs/'):
                    source = f'G/{name[3:]}'
                    self.assertAllEqual(first[name], first[source], name)
                    expected = value if name.endswith('/u') and not ema_all else (
                        0.75 * first[name] + 0.25 * second[source])
                    self.assertAllClose(value, expected, rtol=1e-5, atol=1e-6, msg=name)
            self.assertNotAllClose(second['Gs/Block0/BN0/moving_mean'], second['G/Block0/BN0/moving_mean'])
            self.assertEqual(np.allclose(second['Gs/Linear/u'], second['G/Linear/u']), not ema_all)


def sample_by_sample(ctx, shape, dtype=tf.float32, integers: int | None = None) -> tf.Tensor:
    """Numbers of a minibatch by the position of the sample in it, on however many replicas."""
    ctx._num_draws += 1
    seed = tf.constant([ctx._num_draws, 3])
    count = GLOBAL_BATCH
    if integers is None:
        numbers = tf.random.stateless_normal([count, *shape[1:]], seed, dtype=dtype)
    else:
        numbers = tf.random.stateless_uniform([count], seed, 0, integers, tf.int32)
    first = tf.distribute.get_replica_context().replica_id_in_sync_group * shape[0]
    return numbers[first:first + shape[0]]


def save_replicas(path: str, num_gpus: int) -> None:
    """Two steps on a minibatch of eight, all at once over one or two replicas; saves all variables and what
    hooks make of weights."""
    strategy = strategies.make_strategy(num_gpus)
    with mock.patch.object(context.StepContext, 'normal', sample_by_sample), \
            mock.patch.object(context.StepContext, 'integers',
                              lambda self, shape, low, high: sample_by_sample(self, shape, integers=high)):
        subject = make_trainer(strategy, G_update_args=[ORTHOGONAL, SIGMA_CLAMP])
        monitor = SpectralMonitor()
        with strategy.scope():
            monitor.build(Run(subject, subject.G, subject.D, subject.Gs, None, None, ''))
        before = {f'before/{name}': variable.numpy() for name, variable in subject.state().items()}
        after = run_steps(subject, GLOBAL_BATCH // num_gpus)
        spectra = {f'spectra/{name}': value for name, value in monitor.measure().items()}
        vectors = {f'spectra/{name}': variable.numpy() for name, variable in monitor.variables().items()}
        np.savez(path, **before, **after, **spectra, **vectors)


class ReplicaTest(tf.test.TestCase):

    def test_two_replicas_compute_what_one_computes_at_once(self):
        """Moments of batch normalization are those of the whole minibatch, and so are the gradients."""
        paths = [os.path.join(self.get_temp_dir(), f'{count}.npz') for count in (1, 2)]
        # TensorFlow makes two CPUs of one only before it is used: in a process of its own.
        code = f'from tests.test_training_biggan import save_replicas; save_replicas({paths[1]!r}, 2)'
        process = subprocess.Popen([sys.executable, '-c', code], cwd=testutil.ROOT, stderr=subprocess.PIPE,
                                   text=True)
        save_replicas(paths[0], 1)
        _, stderr = process.communicate(timeout=300)
        self.assertEqual(process.returncode, 0, stderr)
        one, two = (dict(np.load(path)) for path in paths)
        self.assertEqual(set(one), set(two))
        for name, value in one.items():
            self.assertAllClose(two[name], value, rtol=5e-6, atol=5e-6, msg=name)
            if not name.startswith(('before/', 'spectra/')) and name.endswith((
                    'weight', 'moving_mean', 'moving_variance')):
                self.assertNotAllClose(value, one[f'before/{name}'], rtol=0, atol=5e-5, msg=name)


if __name__ == '__main__':
    tf.test.main()
