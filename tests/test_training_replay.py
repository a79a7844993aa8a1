"""Whole training iterations with recorded random numbers against the official ones."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib.tflib import legacy
from tests import testutil
from training import loss
from training.growing import downscale2d, stage_of
from training.optimizer import Optimizer
from training.schedule import ema_beta, lazy_regularization


class Replay:
    """Training of (G, D, Gs), fed with the recorded arrays `feed/*` (first axis: the iteration).

    Args:
        networks: (G, D, Gs) as layers.
        meta: settings of the recorded run. Those of ProGAN and StyleGAN name their losses; there D is updated
            first, and loss and regularizer are minimized as a sum.
        feed: {name: array}. lods: level of detail of each iteration.
        stage_size: Shrink the reals to the size of the stage, as the training loop feeds them?
    """

    def __init__(self, networks, meta: dict, feed: dict[str, np.ndarray], lods=None, stage_size=False):
        self.networks = self.G, self.D, self.Gs = networks
        if self.G.components:
            self.G.synthesis.randomize_noise = False
        self.meta, self.feed, self.lods, self.stage_size = meta, feed, lods, stage_size
        self.lazy = meta.get('lazy_regularization', False)
        self.D_first = 'G_loss' in meta
        if self.D_first:
            self.losses = {'G': (meta['G_loss'], {}), 'D': (meta['D_loss'], meta['D_loss_kwargs'])}
            self.ema_beta = meta['Gs_beta']
        else:
            pl = {f'pl_{key}': value for key, value in (meta['pl'] or {}).items()}
            self.losses = {'G': ('G_logistic_ns_pathreg' if pl else 'G_logistic_ns', pl),
                           'D': ('D_logistic_r1', dict(gamma=meta['r1_gamma']))}
            self.ema_beta = ema_beta(meta['minibatch'], meta['G_smoothing_kimg'])
        self.loss_state = {name: tf.Variable(value, dtype=tf.float64) for func, _ in self.losses.values()
                           for name, value in getattr(getattr(loss, func), 'state', {}).items()}
        self.lrates, self.optimizers = {}, {}
        for name, network in [('G', self.G), ('D', self.D)]:
            self.lrates[name], beta1, beta2 = lazy_regularization(
                meta['lrate'], meta['beta1'], meta['beta2'], meta.get(f'{name}_reg_interval'))
            trainables = network.named_trainables()
            self.optimizers[name] = Optimizer(f'Train{name}', list(trainables.values()), beta1, beta2,
                                              meta['epsilon'], variable_names=list(trainables))

    def iteration(self, index: int) -> dict[str, float | np.ndarray]:
        """One iteration in the official order. Returns what was logged, by the names of `log/*`."""
        if self.lods is not None:
            testutil.set_lod(self.networks, self.lods[index])
        log = {}
        if not self.D_first:
            self._update('G', index, log)
        self._update('D', index, log, between=self._update_average)
        if self.D_first:
            self._update('G', index, log)
        log.update({name: variable.numpy() for name, variable in self.loss_state.items()})
        if self.G.components:
            log['dlatent_avg'] = self.G.dlatent_avg.numpy()
        return log

    def _update(self, name, index, log, between=lambda: None):
        """The update of G or D by its loss, `between`, and the update by its regularizer where it is due."""
        log[f'{name}_loss'] = self._phase(name, index, name.lower(), use_loss=True, use_reg=not self.lazy)
        between()
        if self.lazy and index % self.meta[f'{name}_reg_interval'] == 0:
            draws = 'pl' if name == 'G' else None
            log[f'{name}_reg'] = self._phase(name, index, draws, use_loss=False, use_reg=True)

    def _phase(self, name, index, draws, use_loss, use_reg):
        """One step of the optimizer; returns the mean of what is minimized, before the lazy factor."""
        ctx = self._context(index, draws)
        func, kwargs = self.losses[name]
        arguments = () if name == 'G' else self._reals(index)
        part, reg = getattr(loss, func)(self.G, self.D, ctx, self.meta['minibatch'], *arguments, **kwargs)
        factor = 1 if use_loss else self.meta[f'{name}_reg_interval']
        network = self.G if name == 'G' else self.D

        def total():
            terms = [part()] if use_loss else []
            return sum(tf.reduce_mean(term) for term in terms + ([reg()] if use_reg and reg else [])) * factor

        value, gradients = testutil.gradients(network, total)
        trainables = network.named_trainables()
        self.optimizers[name].apply([tf.zeros_like(trainables[key].value) if gradient is None else gradient
                                     for key, gradient in gradients.items()], self.lrates[name])
        if not ctx.all_used():
            raise AssertionError(f'{name}: recorded numbers are left over')
        return float(value) / factor

    def _stage(self, index):
        return stage_of(self.lods[index]) if self.stage_size else None

    def _reals(self, index):
        reals = tf.constant(testutil.nhwc(self.feed['reals'][index]))
        if self.stage_size:
            reals = downscale2d(reals, 2 ** self._stage(index).lod_floor)
        return reals, tf.constant(self.feed['labels'][index])

    def _context(self, index, draws):
        feed = {name: values[index] for name, values in self.feed.items()}

        def recorded(*names):
            return [feed[f'{draws}_{name}'] for name in names if f'{draws}_{name}' in feed]

        normals = recorded('latents', 'mix_latents')
        if draws == 'pl':
            normals.append(testutil.nhwc(feed['pl_noise']))
        return testutil.RecordedContext(
            normals, recorded('mix_u', 'mixing_factors'), recorded('mix_cutoff'), recorded('labels'),
            self.loss_state, self._stage(index))

    def _update_average(self):
        sources = self.G.named_variables()
        for name, variable in self.Gs.named_variables().items():
            value = tf.convert_to_tensor(sources[name])
            variable.assign(value + (variable - value) * self.ema_beta if variable.trainable else value)


def check_variables(test, networks, run: str, index: int, lrate: float, updates: int) -> None:
    """Compares the networks with those that were recorded after iteration `index` (counted from 1) of a run.

    As golden/README.md says: all trained elements but 1 % agree; with beta1 = 0 the rest may differ by two
    steps per update of the optimizer, of which there were `updates`.
    """
    states = legacy.load_pkl(testutil.golden('training', f'{run}_after{index}.pkl'))
    for network, state in zip(networks, states, strict=True):
        msg = f'{state.name} after {index}'
        variables, expected = network.named_variables(), state.all_variables()
        test.assertEqual(list(variables), list(expected))
        trained = []
        for name, value in expected.items():
            error = np.abs(variables[name].numpy() - value)
            if variables[name].trainable:
                trained.append(np.ravel(error - (1e-4 + 1e-5 * np.abs(value))))
            else:
                testutil.assert_close(test, variables[name], value, msg=f'{msg}: {name}')
        excess = np.concatenate(trained)
        test.assertLess(np.mean(excess > 0), 0.01, msg)
        test.assertLess(np.max(excess), 2 * lrate * updates, msg)


class ReplayTest(parameterized.TestCase, tf.test.TestCase):

    def _check_run(self, run, updates, stage_size=False, **kwargs):
        """Replays all iterations; `updates` is the number of steps of an optimizer in one of them."""
        a = testutil.load('training', f'{run}.npz')
        meta = a['meta']
        # In float64: on which side of a leaky ReLU's kink an activation lies is no matter of rounding then.
        feed = {key.removeprefix('feed/'): value if value.dtype.kind == 'i' else np.float64(value)
                for key, value in a.items() if key.startswith('feed/')}
        networks = testutil.load_networks('training', f'{run}_init.pkl', dtype='float64', **kwargs)
        lods = a['lods'] if networks[1].grows else None
        replay = Replay(networks, meta, feed, lods, stage_size)
        logs = {}
        for index in range(len(feed['reals'])):
            for name, value in replay.iteration(index).items():
                logs.setdefault(name, []).append(value)
            if index + 1 in meta['snapshots_after']:
                check_variables(self, networks, run, index + 1, meta['lrate'], updates * (index + 1))
        self.assertEqual({f'log/{name}' for name in logs}, {key for key in a if key.startswith('log/')})
        for name, values in logs.items():
            testutil.assert_close(self, np.float32(values), a[f'log/{name}'], msg=name)

    def test_config_f_with_lazy_regularization(self):
        self._check_run('stylegan2_f', updates=2)

    @parameterized.product(run=('stylegan2_bcd_nolazy', 'stylegan', 'progan_label4'),
                           mode=('linear', 'stage_size'))
    @testutil.needs_golden
    def test_growing(self, run, mode):
        """lod goes from 1 to 0 by way of 0.7 and 0.3."""
        if mode == 'stage_size':
            self._check_run(run, updates=1, stage_size=True)
        else:
            self._check_run(run, updates=1, structure=mode)


if __name__ == '__main__':
    tf.test.main()
