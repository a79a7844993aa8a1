"""What watches a run, mostly of BigGAN, whose training ends in a collapse sooner or later.

Singular values of weights and norms of gradients for TensorBoard, an alarm with advice, the best snapshot by
a metric, and the share of images that D takes for real in and outside of the training set. All are hooks
(training.hooks) that a configuration names.
"""

import math
import os
import re
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dnnlib.tflib import autosummary
from dnnlib.util import UserError, atomic_write, gfile, is_remote_path
from metrics.metric_defaults import FAMILIES, better_of, metric_of_result
from training.hooks import Hook, Run, UpdateHook
from training.layers import full_precision
from training.layers_biggan import SpectralLayer
from training.replica import local_assign, local_read
from training.spectral import kept, matrix_shape, normalized_layers, power_iteration, start_vectors

BEST_NAME = 'network-best.pkl'

# What a metric with several results is judged by.
_SUMMARIES = ('', '_mean', '_avg')

ADVICE = {
    'sigma': 'Weights whose largest singular value explodes are how the collapse of BigGAN begins, mostly in '
             'the first layers of G. Use a snapshot from before (network-best.pkl with --keep-best), train '
             'on from one, or with --rollback-on-collapse; --sigma-clamp holds the values down but does not '
             'prevent the end, R1 (--gamma=1) does at the price of quality, and so do lower learning rates.',
    'loss': 'A loss of D that jumps up after a long time near one level means that D has lost hold of G: '
            'images are about to collapse or have done so. Look at the latest fakes*.png and use a snapshot '
            'from before; larger minibatches, R1 (--gamma=1 to 10), more updates of D (--d-repeats) or lower '
            'learning rates make it last longer.',
    'metric': 'If the metric does not recover with the next snapshot, the run has collapsed: more training '
              'will not bring it back. Use the best snapshot (network-best.pkl with --keep-best), which is '
              'what the authors of BigGAN did, or --rollback-on-collapse.',
}


class SpectralMonitor(Hook):
    """The largest singular values of all spectrally normalized weights, and their norms, to TensorBoard.

    Tags: Spectra/G/Block0/Conv0/sigma0, …/sigma1, …/sigma2 and …/norm, the Frobenius norm. A measurement is
    one step of the power iteration: of the vector that the normalization works with, a copy of it, and of
    others that lie in the checkpoint. The run is not changed by it.

    Args:
        interval: Steps between two measurements.
        count: Number of singular values.
        networks: Of which networks.
    """

    def __init__(self, interval: int = 10, count: int = 3, networks: Sequence[str] = ('G', 'D')):
        if interval < 1 or count < 1 or not set(networks) <= {'G', 'D'}:
            raise UserError('spectral monitor: expected an interval and a count of at least 1, and networks '
                            f'of G and D. Received: {interval}, {count}, {networks!r}')
        self.interval, self.count, self.networks = interval, count, tuple(networks)
        self.layers: dict[str, SpectralLayer] = {}
        self.others: dict[str, tf.Variable] = {}        # u1, u2 ... [count - 1, out] of every layer.
        self._measure = tf.function(self._run, autograph=False)
        self._strategy: Any = None

    def build(self, run: Run) -> None:
        self._strategy = run.trainer.strategy
        for role in self.networks:
            for scope, layer in normalized_layers(getattr(run.trainer, role)).items():
                name = f'{role}/{scope}'
                self.layers[name] = layer
                count = min(self.count, *matrix_shape(layer)) - 1
                if count:
                    vectors = start_vectors(layer, count, run.seed + len(self.layers))
                    self.others[name] = tf.Variable(vectors, trainable=False)
        if not self.layers:
            raise UserError('spectral monitor: the networks of this config have no spectrally normalized '
                            f'weights. Leave {type(self).__name__} out of hook_args')

    def variables(self) -> dict[str, tf.Variable]:
        return {f'{name}/u': variable for name, variable in self.others.items()}

    def step(self, run: Run) -> None:
        if run.progress.step % self.interval == 0:
            for name, values in self.measure().items():
                autosummary.autosummary(f'Spectra/{name}', values)

    def measure(self) -> dict[str, float]:
        """{'G/Block0/Conv0/sigma0': value, …}, after one step of the iteration."""
        values = iter(self._measure().numpy().tolist())
        return {f'{name}/{what}': next(values) for name in self.layers for what in self._kinds(name)}

    def _kinds(self, name: str) -> list[str]:
        count = 1 + (self.others[name].shape[0] if name in self.others else 0)
        return [*(f'sigma{index}' for index in range(count)), 'norm']

    def _run(self) -> tf.Tensor:
        return self._strategy.experimental_local_results(self._strategy.run(self._of_replica))[0]

    def _of_replica(self) -> tf.Tensor:
        """All values one after the other."""
        values = []
        for name, layer in self.layers.items():
            weight = full_precision(tf.ensure_shape(local_read(layer.weight), layer.weight.shape))
            u = tf.ensure_shape(tf.cast(local_read(layer.u), weight.dtype), layer.u.shape)[tf.newaxis]
            if name in self.others:
                others = tf.ensure_shape(local_read(self.others[name]), self.others[name].shape)
                u = tf.concat([u, tf.cast(others, weight.dtype)], axis=0)
            sigma, u, _ = power_iteration(layer.matrix(weight), u)
            if name in self.others:
                local_assign(self.others[name], kept(u[1:], others))
            values += [tf.cast(sigma, tf.float32), tf.cast(tf.norm(weight), tf.float32)[tf.newaxis]]
        return tf.concat(values, axis=0)


class GradientNorms(UpdateHook):
    """The norm of the gradient of a network's loss to TensorBoard: Gradients/G.

    Args:
        per_layer: That of every variable, too: Gradients/G/Block0/Conv0/weight.
    """

    def __init__(self, per_layer: bool = False):
        self.per_layer, self.network_name = per_layer, ''

    def build(self, network: Any, trained: dict[str, Any]) -> None:
        self.network_name = network.name

    def gradients(self, ctx, values, gradients):
        norms = {name: tf.norm(full_precision(gradient)) for name, gradient in gradients.items()}
        if norms:
            total = tf.norm(tf.stack([tf.cast(norm, tf.float32) for norm in norms.values()]))
            ctx.report(f'Gradients/{self.network_name}', total)
        for name, norm in norms.items() if self.per_layer else ():
            ctx.report(f'Gradients/{self.network_name}/{name}', norm)
        return gradients


class CollapseAlarm(Hook):
    """Says, once per event, that a run shows signs of a collapse, and what to do; goes back if told to.

    Signs: the largest singular value of a weight (of `SpectralMonitor`) far above its running median, a loss
    of D far above its own, a metric of the snapshots far from its best. The message is printed and stands in
    TensorBoard under Alarm; Alarm/sigma_ratio shows the largest ratio all along.

    Args:
        sigma_factor: Alarm where a largest singular value is more than so many times its median.
        loss_jump: Alarm where the loss of D is higher than its median by more than this.
        metric_factor: Alarm where a metric is worse than the best one so far by more than this factor.
        window: Number of ticks that medians are taken of.
        patience: Ticks before the first alarm of singular values and losses, and after going back.
        rollback: Go back to network-best.pkl, else to the latest snapshot from before the alarm?
        max_rollbacks: Go back that often at most; each time to an earlier snapshot, if there is no best one.

    None as a limit turns that sign off.
    """

    def __init__(self, sigma_factor: float | None = 3.0, loss_jump: float | None = 1.0,
                 metric_factor: float | None = 1.5, window: int = 20, patience: int = 5,
                 rollback: bool = False, max_rollbacks: int = 3):
        if not (sigma_factor is None or sigma_factor > 1) or not (metric_factor is None or metric_factor > 1):
            raise UserError('collapse alarm: expected factors above 1, or None. Received: sigma_factor '
                            f'{sigma_factor}, metric_factor {metric_factor}')
        if not (loss_jump is None or loss_jump > 0) or not 1 <= patience <= window or max_rollbacks < 0:
            raise UserError('collapse alarm: expected loss_jump above 0, or None, 1 <= patience <= window '
                            f'and max_rollbacks of 0 or more. Received: {loss_jump}, {patience}, {window}, '
                            f'{max_rollbacks}')
        self.sigma_factor, self.loss_jump, self.metric_factor = sigma_factor, loss_jump, metric_factor
        self.window, self.patience = window, patience
        self.rollback, self.max_rollbacks = rollback, max_rollbacks
        self.history: dict[str, list[float]] = {}   # Values of the latest ticks.
        self.best: dict[str, float] = {}            # The best values of metrics.
        self.active: list[str] = []                 # Signs that were there last time.
        self.good: list[str] = []                   # Names of snapshots without a sign, oldest first.
        self.num_rollbacks = 0

    def state(self) -> dict[str, Any]:
        return dict(history=self.history, best=self.best, active=self.active, good=self.good,
                    num_rollbacks=self.num_rollbacks)

    def set_state(self, state: dict[str, Any]) -> None:
        for name in self.state():
            setattr(self, name, state[name])

    def tick(self, run: Run) -> None:
        means = autosummary.get_means()
        sigmas = {name: value for name, value in means.items()
                  if name.startswith('Spectra/') and name.endswith('/sigma0')}
        losses = [means[name] for name in ('Loss/D_fake', 'Loss/D_real') if name in means]
        found = {'sigma': self._exploding(sigmas),
                 'loss': self._jump(sum(losses)) if losses else ''}
        observed = {**sigmas, **({'loss': sum(losses)} if losses else {})}
        if self._judge(run, found):
            return      # Values of a collapse are not what later ones are compared with.
        for name, value in observed.items():
            self.history[name] = [*self.history.get(name, []), value][-self.window:]

    def snapshot(self, run: Run, path: str) -> None:
        worse = []
        for name, value in (run.metrics.results() if run.metrics else {}).items():
            better = better_of(name)
            if not better or not math.isfinite(value):
                continue
            best = self.best.get(name, value)
            low, high = sorted((abs(best), abs(value)))
            is_worse = value > best if better == 'low' else value < best
            # Ratios mean nothing around 0, where unbiased distances may lie.
            if self.metric_factor is not None and is_worse and min(best, value) > 0 and (
                    high > low * self.metric_factor):
                worse.append(f'{name} is {value:.4g} after {best:.4g}')
            self.best[name] = min(best, value) if better == 'low' else max(best, value)
        if not self._judge(run, {'metric': ', '.join(worse)}) and not self.active:
            name = os.path.basename(path)
            self.good = [*(other for other in self.good if other != name), name][-100:]

    def _median(self, name: str) -> float | None:
        """The running median of a value, None while there are too few."""
        values = self.history.get(name, [])
        return statistics.median(values) if len(values) >= self.patience else None

    def _exploding(self, sigmas: dict[str, float]) -> str:
        """What is wrong with the largest singular values, '' if nothing."""
        ratios = {name: value / median for name, value in sigmas.items()
                  if (median := self._median(name)) is not None and median > 0}
        if not ratios:
            return ''
        autosummary.autosummary('Alarm/sigma_ratio', max(ratios.values()))
        if self.sigma_factor is None or max(ratios.values()) <= self.sigma_factor:
            return ''
        high = sorted((name for name in ratios if ratios[name] > self.sigma_factor), key=ratios.get)[::-1]
        texts = [f'{name[len("Spectra/"):-len("/sigma0")]} ({ratios[name]:.1f} times)' for name in high[:3]]
        more = f' and {len(high) - 3} more' if len(high) > 3 else ''
        return (f'the largest singular value is far above its median of {self._ticks(high[0])} in '
                f'{", ".join(texts)}{more}')

    def _jump(self, loss: float) -> str:
        """What is wrong with the loss of D, '' if nothing."""
        median = self._median('loss')
        if median is None or self.loss_jump is None or loss <= median + self.loss_jump:
            return ''
        return f'the loss of D is {loss:.3g} after a median of {median:.3g} in {self._ticks("loss")}'

    def _ticks(self, name: str) -> str:
        return f'the last {len(self.history[name])} ticks'

    def _judge(self, run: Run, found: dict[str, str]) -> bool:
        """Gives alarm for new signs; True if the run goes back.

        Args:
            found: {kind of sign: what is wrong, '' if nothing}, of the kinds that were looked at.
        """
        new = {kind: text for kind, text in found.items() if text and kind not in self.active}
        self.active = [kind for kind in self.active if kind not in found] + [
            kind for kind, text in found.items() if text]
        for kind, text in new.items():
            message = f'Collapse alarm at {run.progress.nimg / 1000:.1f} kimg: {text}. {ADVICE[kind]}'
            print(message, flush=True)
            run.writer.add_text('Alarm', message, step=run.progress.nimg)
        if not new or not self.rollback:
            return False
        if self.num_rollbacks >= self.max_rollbacks:
            print(f'The run has gone back {self.num_rollbacks} times, the most that is allowed '
                  '(max_rollbacks); training goes on.', flush=True)
            return False
        target = self._target(run)
        self.num_rollbacks += 1
        self.active, self.history = [], {}
        run.request_rollback(f'Collapse alarm: {next(iter(new.values()))}', target)
        return True

    def _target(self, run: Run) -> str | None:
        """The snapshot to go back to, None for what the loop takes then."""
        best = os.path.join(run.run_dir, BEST_NAME)
        if _exists(best):
            return best
        while self.good:
            path = os.path.join(run.run_dir, self.good.pop())
            if _exists(path):
                return path
        return None


class KeepBest(Hook):
    """Keeps the networks of the snapshot with the best metric as network-best.pkl, whatever else is removed.

    Which one it is stands in network-best.txt.

    Args:
        metric: A metric of the run, fid50k, or one of its results, pr50k3_recall.

    Errors: UserError for a metric that is not run on snapshots, or of which neither high nor low is better.
    """

    def __init__(self, metric: str):
        self.metric = metric
        self.best: float | None = None

    def state(self) -> dict[str, Any]:
        return dict(metric=self.metric, best=self.best)

    def set_state(self, state: dict[str, Any]) -> None:
        # The best value of another metric says nothing about this one.
        self.best = state['best'] if state.get('metric', self.metric) == self.metric else None

    def start(self, run: Run) -> None:
        names = [metric.name for metric in run.metrics.metrics]
        if any(re.fullmatch(family.pattern, self.metric) for family in FAMILIES):
            try:
                metric_of_result(self.metric)
            except UserError as error:      # It has several results.
                raise UserError(f'keep best: {error}') from error
            fits = self.metric in names
        else:
            fits = self._is_of(names)
        if not fits:
            raise UserError(f'keep best: {self.metric} is none of the metrics of this run, '
                            f'{", ".join(names) or "which has none"}; add it by --metrics')

    def _is_of(self, names: Sequence[str]) -> bool:
        """Whether it goes by one of these metrics or a result of one."""
        return any(self.metric == name or self.metric.startswith(f'{name}_') for name in names)

    def snapshot(self, run: Run, path: str) -> None:
        results = run.metrics.results()
        name = next((self.metric + suffix for suffix in _SUMMARIES if self.metric + suffix in results), None)
        if run.metrics.stopped or name is None and self._is_of(run.metrics.failed):
            return
        if name is None or not better_of(name):
            known = [name for name in results if better_of(name)]
            raise UserError(f'keep best: expected one of {", ".join(known)}. Received: {self.metric!r}')
        value = results[name]
        if not math.isfinite(value) or self.best is not None and (
                value >= self.best if better_of(name) == 'low' else value <= self.best):
            return
        self.best = value
        if not run.is_chief:
            return
        best = run.snapshots.save_as(BEST_NAME)
        kimg = f'{run.progress.nimg / 1000:.1f} kimg'
        text = f'{BEST_NAME} = {os.path.basename(path)}, {kimg}, {name} {value:.6g}'
        with atomic_write(f'{os.path.splitext(best)[0]}.txt', 'w') as file:
            file.write(text + '\n')
        print(text, flush=True)


class Memorization(Hook):
    """How many images of the training set, and of others that D never saw, D takes for real.

    Memorization/training and Memorization/held_out in TensorBoard, measured at every snapshot with as many
    images of each. BigGAN's D reached 98 % of the former and 50 to 55 % of the latter.

    Args:
        held_out: Path of a data set of the same kind, shape and classes, which is not trained on.
        num_images: Number of images of each, at most as many as there are.
        dataset_args: More arguments of training.dataset.load_dataset for it.
    """

    def __init__(self, held_out: str, num_images: int = 1000, dataset_args: dict | None = None):
        self.held_out, self.num_images, self.dataset_args = held_out, num_images, dict(dataset_args or {})

    def start(self, run: Run) -> None:
        from training.dataset import load_dataset
        training = run.training_set
        args = dict(resolution=training.shape[1], max_label_size='full' if training.label_size else 0)
        other = load_dataset(dataset=self.held_out, **args | self.dataset_args)
        try:
            if (other.shape, other.label_size) != (training.shape, training.label_size):
                raise UserError(f'memorization: {self.held_out} has images {other.shape} with label size '
                                f'{other.label_size}, the training set {training.shape} with '
                                f'{training.label_size}')
            self._images = {'held_out': _some_images(other, self.num_images)}
        finally:
            other.close()
        self._images['training'] = _some_images(training, self.num_images)

    def snapshot(self, run: Run, path: str) -> None:
        size = run.sched.minibatch_gpu
        for name, (images, labels) in self._images.items():
            for begin in range(0, len(images), size):
                pixels = np.transpose(images[begin:begin + size], [0, 3, 1, 2]).astype(np.float32)
                scores = run.D.run(pixels / 127.5 - 1, labels[begin:begin + size], minibatch_size=size)
                autosummary.autosummary(f'Memorization/{name}', scores > 0)


def _some_images(dataset: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [N, H, W, C], labels) of up to `count` images of a data set, always the same ones."""
    indices = np.random.RandomState(0).permutation(len(dataset))[:count]
    return dataset.read(np.sort(indices))


def _exists(path: str) -> bool:
    return gfile().exists(path) if is_remote_path(path) else os.path.exists(path)
