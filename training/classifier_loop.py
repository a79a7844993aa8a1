"""Training of the classifiers that linear separability needs (StyleGAN, section 4.2 and appendix C).

One classifier per question (see training.attributes), one after the other: the discriminator of StyleGAN
without minibatch standard deviation learns to tell yes (positive scores) from no on images with known
attributes, and is measured on images that were held out.
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.submission import RunContext, run_number
from dnnlib.tflib import autosummary, legacy
from dnnlib.util import EasyDict, UserError, atomic_write, format_time, gfile, is_remote_path
from training import attributes
from training.checkpoint import TrainingCheckpoint, has_checkpoint
from training.context import Context
from training.dataset import Dataset, keep_open, opened_dataset, process_reals
from training.growing import stage_of
from training.optimizer import Optimizer
from training.replica import unwrap
from training.strategies import local_strategy

STATE_FOLDER = 'state'      # Its own folder: `train.py --resume` does not take such a run for one of its own.
RESULTS_FILE = 'classifiers.json'
MAX_SKIPPED = 100           # Updates in a row without finite gradients, after which training has diverged.
_EVAL_BATCH = 64


def classifier_loop(
    submit_config,                          # Of the run, from dnnlib.submit_run.
    attribute_specs: Sequence[str],         # What to learn, see training.attributes.find_questions.
    set_name: str,                          # First part of the names of the pickles.
    D_args: dict,                           # Arguments of the network, func_name among them.
    opt_args: dict | None = None,           # beta1, beta2, epsilon of Adam.
    dataset_args: dict | None = None,       # Arguments of training.dataset.load_dataset.
    data_dir: str | None = None,            # Directory to load data sets from.
    table: str | None = None,               # File of attributes, see training.attributes.read_table.
    max_resolution: int = 256,              # Larger images are box-averaged to this.
    holdout: float = 0.1,                   # Share of the images that is only measured on.
    mirror_augment: bool = False,           # Flip half of the images?
    lrate: float = 0.001,                   # Learning rate.
    minibatch_size: int = 8,                # Images per step over all replicas.
    total_kimg: float = 150,                # Length of the training of each classifier.
    tick_kimg: float = 10,                  # Thousands of images between two measurements.
    snapshot_ticks: int = 1,                # Ticks between two checkpoints.
    keep_snapshots: int = 0,                # Networks of earlier ticks to keep for each classifier.
    seed: int = 1000,                       # Of initial weights, split and data order.
    num_gpus: int = 1,                      # Number of replicas.
    strategy: str = 'auto',                 # See training.strategies.local_strategy.
) -> EasyDict:
    """Trains classifiers, writing `<set_name>-classifier-<NN>-<name>.pkl` and their accuracy (RESULTS_FILE).

    Where the run directory holds a checkpoint, the run goes on from it exactly as if it had not stopped.

    Returns: the progress with `results`, the run directory and why the run stopped early.
    Errors: UserError for unusable data or arguments, and when training has diverged.
    """
    del submit_config
    ctx = RunContext.get()
    distribution = local_strategy(num_gpus, strategy)
    tflib.init_tf()
    data = open_data(attribute_specs, dataset_args, data_dir, table, max_resolution, holdout, seed)
    _describe(data)
    with distribution.scope():
        trainer = ClassifierTrainer(distribution, make_network(data.train.shape, D_args), opt_args)
    progress = EasyDict(index=0, nimg=0, step=0, tick=0, tick_nimg=0, total_time=0.0, start_time=0.0,
                        loss=0.0, loss_count=0.0, loss_sum=0.0, results=[], dataset=data.train.fingerprint)
    checkpoint = TrainingCheckpoint(os.path.join(ctx.run_dir, STATE_FOLDER), trainer.state())
    stored = checkpoint.restore()
    progress.update(stored or {})
    if progress.dataset != data.train.fingerprint:
        raise UserError(f'--resume: data set {data.whole.name} or its attributes are not those that the run '
                        'was started with; choose them by --data-dir and --dataset, or start a new run')
    time_before = progress.total_time
    writer = autosummary.FileWriter(ctx.run_dir)

    def save_state() -> None:
        progress.total_time = time_before + ctx.get_time_since_start()
        checkpoint.save(progress, progress.step)

    if stored is None:
        print(f'Training {len(data.questions)} classifiers for {total_kimg:g} kimg each...\n')
    elif progress.index < len(data.questions):
        print(f'Resuming at classifier {progress.index} of {len(data.questions)}...\n')
    else:
        print('All classifiers of this run are trained; a longer training of them is a new run.')
    try:
        while progress.index < len(data.questions) and not ctx.should_stop():
            question = data.questions[progress.index]
            if progress.nimg == 0:
                trainer.reset(seed + progress.index)
                progress.start_time = time_before + ctx.get_time_since_start()
            schedule = EasyDict(
                minibatch_size=minibatch_size, lrate=lrate, total=max(int(total_kimg * 1000), 1),
                tick=max(int(tick_kimg * 1000), 1), seed=seed, mirror=mirror_augment)
            for is_last in _ticks(trainer, data.train, progress, schedule, ctx):
                result = _measure(trainer, data.test, progress.index)
                seconds = time_before + ctx.get_time_since_start() - progress.start_time
                _report(question, progress, result, seconds, writer)
                if not is_last and progress.tick % snapshot_ticks == 0:
                    save_state()
                    _save_snapshot(trainer, ctx.run_dir, question, progress, keep_snapshots)
            if progress.nimg < schedule.total:
                break       # Asked to stop.
            file = f'{set_name}-classifier-{progress.index:02d}-{question.name}.pkl'
            legacy.save_pkl(trainer.network.state(), os.path.join(ctx.run_dir, file))
            progress.results.append(dict(
                index=progress.index, name=question.name, attribute=question.attribute,
                positive=list(question.positive), file=file, **result, kimg=progress.nimg / 1000,
                num_train=len(data.train), seconds=round(seconds, 1)))
            with atomic_write(os.path.join(ctx.run_dir, RESULTS_FILE), 'w') as results_file:
                json.dump(progress.results, results_file, indent=2)
            progress.update(index=progress.index + 1, nimg=0, tick=0, tick_nimg=0)
            save_state()
        if progress.index < len(data.questions):
            save_state()
            print(f'\nStopped at classifier {progress.index}, kimg {progress.nimg / 1000:.1f} '
                  f'({ctx.stop_reason}); the state is saved.')
        else:
            print(f'\n{results_table(progress.results)}\n\nWrote {len(progress.results)} classifiers to '
                  f'{ctx.run_dir}')
            ctx.stop_reason = ctx.stop_signal = None
    finally:
        writer.close()
        data.whole.close()
    return EasyDict(progress, run_dir=ctx.run_dir, stop_reason=ctx.stop_reason, stop_signal=ctx.stop_signal)


# Before the run.

def open_data(attribute_specs: Sequence[str], dataset_args: dict | None, data_dir: str | None,
              table: str | None, max_resolution: int, holdout: float, seed: int) -> EasyDict:
    """The data set `whole`, its `attributes`, the `questions` and the parts `train` and `test`.

    Errors: UserError for a data set, attributes or questions that cannot be used.
    """
    arguments = dict(data_dir=data_dir, seed=seed, **(dataset_args or {}))
    whole = opened_dataset(**arguments)
    try:
        found = attributes.find_attributes(whole, whole.path, table)
        if not found:
            raise UserError(f'{whole.path} has neither labels nor attributes; give a table of them by '
                            '--labels=FILE.csv')
        if not attribute_specs:
            raise UserError('--attributes is required, but was not given; there are '
                            f'{", ".join(found)}, see --list-attributes')
        questions = attributes.find_questions(attribute_specs, found)
        train, test = attributes.split(whole, questions, holdout, seed, max_resolution)
    except BaseException:
        whole.close()
        raise
    return EasyDict(whole=whole, arguments=arguments, attributes=found, questions=questions, train=train,
                    test=test)


def list_attributes(dataset_args: dict | None = None, data_dir: str | None = None, table: str | None = None,
                    seed: int = 1000, **_others: Any) -> str:
    """One line per attribute of a data set: its values and how many images have them."""
    whole = opened_dataset(data_dir=data_dir, seed=seed, **(dataset_args or {}))
    try:
        return attributes.listing(attributes.find_attributes(whole, whole.path, table))
    finally:
        whole.close()


def check_arguments(
    attribute_specs: Sequence[str], D_args: dict, dataset_args: dict | None = None,
    data_dir: str | None = None, table: str | None = None, max_resolution: int = 256, holdout: float = 0.1,
    minibatch_size: int = 8, seed: int = 1000, num_gpus: int = 1, strategy: str = 'auto', **_others: Any,
) -> list[attributes.Question]:
    """Looks at what the user gave to `classifier_loop` (same arguments), before a run directory is made.

    Returns: the questions. Errors: UserError.
    """
    local_strategy(num_gpus, strategy)
    if minibatch_size % num_gpus:
        raise UserError(f'--minibatch-size must be a multiple of --num-gpus={num_gpus}. '
                        f'Received: {minibatch_size}')
    data = open_data(attribute_specs, dataset_args, data_dir, table, max_resolution, holdout, seed)
    keep_open(data.whole, **data.arguments)
    return data.questions


def find_latest_run(result_dir: str) -> str:
    """The run of this kind with the highest number that can go on; UserError where there is none."""
    numbered = [name for name in _listed(result_dir) if run_number(name) is not None]
    for name in sorted(numbered, key=run_number, reverse=True):
        if can_resume(os.path.join(result_dir, name)):
            return os.path.join(result_dir, name)
    raise UserError(f'--resume: no run directory of train_classifiers.py with a checkpoint in {result_dir}')


def can_resume(run_dir: str) -> bool:
    """Whether a run directory holds a checkpoint of this loop."""
    return has_checkpoint(os.path.join(run_dir, STATE_FOLDER))


def make_network(shape: Sequence[int], D_args: dict) -> tflib.Network:
    """A new classifier for images [C, H, W]: a discriminator that looks at each image by itself."""
    return tflib.Network('D', **{**dict(num_channels=shape[0], resolution=shape[1], label_size=0,
                                        mbstd_group_size=0), **D_args})


# The steps.

class ClassifierTrainer:
    """A classifier, its optimizer and the traced functions that train and ask it.

    Args:
        strategy: In whose scope all is made.
        network: The classifier.
        opt_args: beta1, beta2, epsilon of Adam; by default those of the discriminator.
    """

    def __init__(self, strategy: tf.distribute.Strategy, network: tflib.Network,
                 opt_args: dict | None = None):
        self.strategy, self.network = strategy, network
        self._layer = network.layer
        trainables = self._layer.named_trainables()
        self.optimizer = Optimizer('TrainD', list(trainables.values()), variable_names=list(trainables),
                                   **(opt_args or {}))
        shape = [None, *self._layer.input_shapes[0][2:], self._layer.input_shapes[0][1]]
        self._train = tf.function(self._train_replicas, autograph=False)
        self._ask = tf.function(self._logits, autograph=False,
                                input_signature=[tf.TensorSpec(shape, tf.uint8)])

    def reset(self, seed: int) -> None:
        """New initial weights, and an optimizer that knows nothing."""
        with self.strategy.scope():
            keras.utils.set_random_seed(seed % 2 ** 32)
            self.network.reset_vars()
            self.optimizer.reset()

    def step(self, images: np.ndarray, answers: np.ndarray, lrate: float) -> tf.Tensor:
        """One step of Adam.

        Args:
            images: uint8 [N, H, W, C].
            answers: float32 [N], 1 = yes, 0 = no.

        Returns: moments of the loss, see autosummary.reduce_moments.
        """
        count = self.strategy.num_replicas_in_sync

        def piece(array):
            if count == 1:
                return tf.convert_to_tensor(array)
            parts = np.split(array, count)
            return self.strategy.experimental_distribute_values_from_function(
                lambda ctx: tf.convert_to_tensor(parts[ctx.replica_id_in_sync_group]))
        return self._train(piece(images), piece(answers), tf.constant(lrate, tf.float32))

    def _train_replicas(self, images, answers, lrate):
        moments = self.strategy.run(self._train_replica, args=(images, answers, lrate))
        if self.strategy.num_replicas_in_sync == 1:
            return moments
        return self.strategy.reduce('SUM', moments, axis=None)

    def _train_replica(self, images, answers, lrate):
        sources = [unwrap(variable) for variable in self.optimizer.variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            loss = classification_loss(self._logits(images), answers)
            mean = tf.reduce_mean(loss)
        self.optimizer.apply(tape.gradient(mean, sources), lrate)
        return autosummary.reduce_moments(loss)

    def _logits(self, images):
        ctx = Context(stage=stage_of(0))
        return self._layer(process_reals(images), None, ctx=ctx)[:, 0]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Scores float32 [N] of images uint8 [N, H, W, C]; positive = yes."""
        return self._ask(tf.convert_to_tensor(images)).numpy()

    def state(self) -> dict[str, tf.Variable]:
        """Every variable that a checkpoint has to hold."""
        weights = {f'D/{name}': unwrap(variable)
                   for name, variable in self._layer.named_variables().items()}
        return weights | {f'TrainD/{name}': variable for name, variable in self.optimizer.state().items()}


def classification_loss(logits: tf.Tensor, answers: tf.Tensor) -> tf.Tensor:
    """-log p(answer) where p(yes), p(no) = softmax([logit, -logit]), as linear separability reads them.

    Args:
        logits: float32 [N].
        answers: float32 [N], 1 = yes, 0 = no.
    """
    return tf.nn.softplus((1 - 2 * answers) * 2 * logits)


def _ticks(trainer: ClassifierTrainer, train: Dataset, progress: EasyDict, schedule: EasyDict,
           ctx: RunContext):
    """Trains a classifier to its end; yields at ticks, and at the end (True). Ends early when asked to."""
    if progress.nimg >= schedule.total:
        yield True
        return
    losses = []

    def collect() -> None:
        progress.loss_count += float(np.sum([loss[0] for loss in losses]))
        progress.loss_sum += float(np.sum([loss[1] for loss in losses]))
        losses.clear()

    with train.prefetch_minibatches(progress.nimg, schedule.minibatch_size, schedule.seed,
                                    schedule.mirror) as batches:
        while progress.nimg < schedule.total and not ctx.should_stop():
            images, answers = next(batches)
            losses.append(trainer.step(images, answers[:, progress.index], schedule.lrate))
            progress.nimg += len(images)
            progress.step += 1
            if progress.nimg < progress.tick_nimg + schedule.tick and progress.nimg < schedule.total:
                continue
            progress.tick_nimg = progress.nimg
            progress.tick += 1
            collect()
            progress.update(loss=progress.loss_sum / max(progress.loss_count, 1), loss_count=0.0,
                            loss_sum=0.0)
            if int(trainer.optimizer.skipped_in_a_row.numpy()) >= MAX_SKIPPED:
                raise UserError(f'training has diverged: the last {MAX_SKIPPED} updates had non-finite '
                                'gradients and were left out; start a new run with a lower --lrate')
            yield progress.nimg >= schedule.total
    collect()


# Measuring, and what is written.

def _measure(trainer: ClassifierTrainer, test: Dataset, index: int) -> dict[str, Any]:
    """How well a classifier does on the images that were held out."""
    logits, answers = [], []
    for begin in range(0, len(test), _EVAL_BATCH):
        images, labels = test.read(np.arange(begin, min(begin + _EVAL_BATCH, len(test))))
        logits.append(trainer.logits(images))
        answers.append(labels[:, index] > 0)
    return accuracies(np.concatenate(logits), np.concatenate(answers))


def accuracies(logits: np.ndarray, answers: np.ndarray) -> dict[str, Any]:
    """Shares of right answers, for scores [N] and answers bool [N] of both kinds.

    Returns: accuracy; balanced_accuracy, the mean over the two answers; confident_accuracy, of the half with
        the highest |score|, which is what linear separability uses; base_rate, the share of the more frequent
        answer; num_test.
    """
    right = (logits > 0) == answers
    confident = np.argsort(-np.abs(logits), kind='stable')[:max(len(logits) // 2, 1)]
    return dict(
        accuracy=float(right.mean()),
        balanced_accuracy=float((right[answers].mean() + right[~answers].mean()) / 2),
        confident_accuracy=float(right[confident].mean()),
        base_rate=float(max(answers.mean(), 1 - answers.mean())),
        num_test=len(answers))


def _report(question: attributes.Question, progress: EasyDict, result: dict, seconds: float,
            writer: autosummary.FileWriter) -> None:
    """The line of a tick, and the same numbers for TensorBoard."""
    print(f'{progress.index:02d} {question.name:<24s} kimg {progress.nimg / 1000:<8.1f} '
          f'loss {progress.loss:<8.4f} accuracy {result["accuracy"]:<7.2%} '
          f'balanced {result["balanced_accuracy"]:<7.2%} (base {result["base_rate"]:.2%}) '
          f'time {format_time(seconds)}', flush=True)
    names = ('accuracy', 'balanced_accuracy', 'confident_accuracy')
    writer.add_scalars({f'{question.name}/loss': progress.loss,
                        **{f'{question.name}/{name}': result[name] for name in names}}, progress.nimg)
    writer.flush()


def _save_snapshot(trainer: ClassifierTrainer, run_dir: str, question: attributes.Question,
                   progress: EasyDict, keep: int) -> None:
    """Writes the network of this moment, and removes what is too many."""
    if not keep:
        return
    begin = f'snapshot-{progress.index:02d}-{question.name}-'
    legacy.save_pkl(trainer.network.state(),
                    os.path.join(run_dir, f'{begin}{progress.nimg // 1000:06d}.pkl'))
    names = [name for name in _listed(run_dir) if re.fullmatch(re.escape(begin) + r'\d+\.pkl', name)]
    for name in sorted(names)[:-keep]:
        path = os.path.join(run_dir, name)
        gfile().remove(path) if is_remote_path(path) else os.remove(path)


def _listed(folder: str) -> list[str]:
    """Names in a folder, local or remote; none where it does not exist."""
    if is_remote_path(folder):
        return [name.rstrip('/') for name in gfile().listdir(folder)] if gfile().isdir(folder) else []
    return os.listdir(folder) if os.path.isdir(folder) else []


def _describe(data: EasyDict) -> None:
    print(f'Data set {data.whole.name} from {data.whole.path}')
    print(f'Images: {len(data.train)} to train with, {len(data.test)} held out, shape [C, H, W] = '
          f'{data.train.shape}')
    for index, question in enumerate(data.questions):
        yes = int(question.targets.sum())
        print(f'  {index:02d} {question.name}: {yes} yes, {len(question.targets) - yes} no')


def results_table(results: Sequence[dict]) -> str:
    """The accuracy of finished classifiers, one line each."""
    width = max(len(result['name']) for result in results)
    lines = [f'   {"classifier":<{width}s}  accuracy  balanced  confident half  base rate  held out']
    for result in results:
        lines.append(f'{result["index"]:02d} {result["name"]:<{width}s}  {result["accuracy"]:<8.2%}  '
                     f'{result["balanced_accuracy"]:<8.2%}  {result["confident_accuracy"]:<14.2%}  '
                     f'{result["base_rate"]:<9.2%}  {result["num_test"]}')
    return '\n'.join(lines)
