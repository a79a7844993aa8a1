"""Whole training iterations with recorded random numbers against the official ones."""

import numpy as np
import tensorflow as tf

from dnnlib.tflib import legacy
from tests import testutil
from training import loss
from training.optimizer import Optimizer
from training.schedule import ema_beta, lazy_regularization


class Replay:
    """StyleGAN2 training of (G, D, Gs), fed with the recorded arrays `feed/*` (first axis: the iteration).

    Args:
        networks: (G, D, Gs) as layers. meta: settings of the recorded run. feed: {name: array}.
    """

    def __init__(self, networks, meta: dict, feed: dict[str, np.ndarray]):
        self.G, self.D, self.Gs = networks
        self.G.synthesis.randomize_noise = False
        self.meta, self.feed = meta, feed
        self.loss_state = {name: tf.Variable(value)
                           for name, value in loss.G_logistic_ns_pathreg.state.items()}
        self.lrates, self.optimizers = {}, {}
        for name, network in [('G', self.G), ('D', self.D)]:
            self.lrates[name], beta1, beta2 = lazy_regularization(
                meta['lrate'], meta['beta1'], meta['beta2'], meta[f'{name}_reg_interval'])
            trainables = network.named_trainables()
            self.optimizers[name] = Optimizer(f'Train{name}', list(trainables.values()), beta1, beta2,
                                              meta['epsilon'], variable_names=list(trainables))
        self.ema_beta = ema_beta(meta['minibatch'], meta['G_smoothing_kimg'])

    def iteration(self, index: int) -> dict[str, np.ndarray]:
        """One iteration in the official order. Returns what was logged, by the names of `log/*`."""
        log = {'G_loss': self._phase('G', index, 'g', regularize=False)}
        if index % self.meta['G_reg_interval'] == 0:
            log['G_reg'] = self._phase('G', index, 'pl', regularize=True)
        log['D_loss'] = self._phase('D', index, 'd', regularize=False)
        self._update_average()
        if index % self.meta['D_reg_interval'] == 0:
            log['D_reg'] = self._phase('D', index, None, regularize=True)
        return {**log, 'pl_mean': self.loss_state['pl_mean'].numpy(),
                'dlatent_avg': self.G.dlatent_avg.numpy()}

    def _phase(self, name, index, draws, regularize):
        """One update of G or D by its loss or regularizer; returns the mean of what was recorded of it."""
        size, pl = self.meta['minibatch'], self.meta['pl']
        ctx = self._context(index, draws)
        if name == 'G':
            parts = loss.G_logistic_ns_pathreg(self.G, self.D, ctx, size, pl['minibatch_shrink'], pl['decay'],
                                               pl['weight'])
        else:
            reals = tf.constant(testutil.nhwc(self.feed['reals'][index]))
            labels = tf.constant(self.feed['labels'][index])
            parts = loss.D_logistic_r1(self.G, self.D, ctx, size, reals, labels, gamma=self.meta['r1_gamma'])
        part, factor = (parts[1], self.meta[f'{name}_reg_interval']) if regularize else (parts[0], 1)
        network = self.G if name == 'G' else self.D
        values, gradients = testutil.gradients(network, lambda: part() * factor)
        self.optimizers[name].apply(list(gradients.values()), self.lrates[name])
        if not ctx.all_used():
            raise AssertionError(f'{name}: recorded numbers are left over')
        return float(tf.reduce_mean(values)) / factor

    def _context(self, index, draws):
        if draws is None:
            return testutil.RecordedContext(loss_state=self.loss_state)
        feed = {name: values[index] for name, values in self.feed.items()}
        normals = [feed[f'{draws}_latents'], feed[f'{draws}_mix_latents']]
        if draws == 'pl':
            normals.append(testutil.nhwc(feed['pl_noise']))
        return testutil.RecordedContext(
            normals, [feed[f'{draws}_mix_u']], [feed[f'{draws}_mix_cutoff']],
            [feed[f'{draws}_labels']] if f'{draws}_labels' in feed else [], self.loss_state)

    def _update_average(self):
        sources = self.G.named_variables()
        for name, variable in self.Gs.named_variables().items():
            value = tf.convert_to_tensor(sources[name])
            variable.assign(value + (variable - value) * self.ema_beta if variable.trainable else value)


class ReplayTest(tf.test.TestCase):

    def _check_variables(self, network, state, lrate, updates, msg):
        """All trained elements but 1 % agree; with beta1 = 0 the rest may differ by two steps per update."""
        variables, expected = network.named_variables(), state.all_variables()
        self.assertEqual(list(variables), list(expected))
        trained = []
        for name, value in expected.items():
            error = np.abs(variables[name].numpy() - value)
            if variables[name].trainable:
                trained.append(np.ravel(error - (1e-4 + 1e-5 * np.abs(value))))
            else:
                testutil.assert_close(self, variables[name], value, msg=f'{msg}: {name}')
        excess = np.concatenate(trained)
        self.assertLess(np.mean(excess > 0), 0.01, msg)
        self.assertLess(np.max(excess), 2 * lrate * updates, msg)

    def test_config_f_with_lazy_regularization(self):
        a = testutil.load('training', 'stylegan2_f.npz')
        meta = a['meta']
        self.assertTrue(meta['lazy_regularization'])
        feed = {key.removeprefix('feed/'): value for key, value in a.items() if key.startswith('feed/')}
        replay = Replay(testutil.load_networks('training', 'stylegan2_f_init.pkl'), meta, feed)
        logs = {}
        for index in range(6):
            for name, value in replay.iteration(index).items():
                logs.setdefault(name, []).append(value)
            if index + 1 in meta['snapshots_after']:
                states = legacy.load_pkl(testutil.golden('training', f'stylegan2_f_after{index + 1}.pkl'))
                for network, state in zip((replay.G, replay.D, replay.Gs), states, strict=True):
                    self._check_variables(network, state, meta['lrate'], 2 * (index + 1),
                                          f'{state.name} after {index + 1}')
        self.assertEqual({f'log/{name}' for name in logs}, {key for key in a if key.startswith('log/')})
        for name, values in logs.items():
            testutil.assert_close(self, np.float32(values), a[f'log/{name}'], msg=name)


if __name__ == '__main__':
    tf.test.main()
