"""The devices of a run: which tf.distribute strategy it has."""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError

_TEXT_BYTES = 4096      # Of what the chief tells the workers.


def make_strategy(num_gpus: int = 1, name: str = 'auto') -> tf.distribute.Strategy:
    """The distribution strategy of a run.

    Args:
        num_gpus: Number of replicas: GPUs, or logical CPUs on a machine without a GPU.
        name: 'auto' = one device as it is, several by MirroredStrategy, several workers (TF_CONFIG is set) by
            MultiWorkerMirroredStrategy; or 'none', 'mirrored', 'multiworker'.

    Errors: UserError when there are fewer devices than asked for.
    """
    if name == 'auto':
        name = 'multiworker' if is_multiworker(name) else 'none' if num_gpus == 1 else 'mirrored'
    if name == 'multiworker':
        return _all_workers()
    if name == 'none':
        if num_gpus != 1:
            raise UserError(f'--strategy=none is for one device. Received: --num-gpus={num_gpus}')
        return tf.distribute.get_strategy()
    if not tf.config.list_physical_devices('GPU'):
        _split_cpu(num_gpus)
    gpus = tf.config.list_logical_devices('GPU')
    if len(gpus) >= num_gpus:
        return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus[:num_gpus]])
    if gpus:
        raise UserError(f'--num-gpus={num_gpus} was asked for, but TensorFlow sees {len(gpus)} GPUs. '
                        f'Use --num-gpus={len(gpus)}')
    cpus = tf.config.list_logical_devices('CPU')
    if len(cpus) < num_gpus:
        raise UserError(f'--num-gpus={num_gpus} was asked for, but there is no GPU and {len(cpus)} logical '
                        f'CPUs. Use --num-gpus={len(cpus)}')
    return tf.distribute.MirroredStrategy([cpu.name for cpu in cpus[:num_gpus]],
                                          cross_device_ops=tf.distribute.ReductionToOneDevice())


def local_strategy(num_gpus: int = 1, name: str = 'auto') -> tf.distribute.Strategy:
    """The strategy of what runs on this machine alone: TF_CONFIG does not count. See `make_strategy`."""
    return make_strategy(num_gpus, name if name != 'auto' else 'none' if num_gpus == 1 else 'mirrored')


def is_multiworker(name: str) -> bool:
    """Whether the strategy of that name spans several machines, as TF_CONFIG says."""
    return name == 'multiworker' or (name == 'auto' and bool(os.environ.get('TF_CONFIG')))


@functools.cache
def _all_workers() -> tf.distribute.Strategy:
    """The strategy of all workers, who meet only once, before TensorFlow is used for anything else."""
    return tf.distribute.MultiWorkerMirroredStrategy()


def worker_index() -> int:
    """Which of several workers this process is, as TF_CONFIG says; 0 is the chief, also without workers.

    Errors: UserError for a TF_CONFIG that does not say so.
    """
    text = os.environ.get('TF_CONFIG')
    if not text:
        return 0
    try:
        config = json.loads(text)
        tasks = [(kind, index) for kind in ('chief', 'worker')
                 for index in range(len(config['cluster'].get(kind, [])))]
        return tasks.index((config['task']['type'], int(config['task']['index'])))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError('TF_CONFIG: expected {"cluster": {"worker": ["host:port", ...]}, "task": {"type": '
                        f'"worker", "index": 0}}}} with a task of the cluster. Received: {text}') from None


def from_chief(strategy: tf.distribute.Strategy, text: str) -> str:
    """A short text that the chief has, on every worker; what the others hand in does not matter."""
    sent = np.frombuffer(text.encode().ljust(_TEXT_BYTES, b'\0'), np.uint8).astype(np.float32)
    values = strategy.experimental_distribute_values_from_function(
        lambda ctx: tf.constant(sent if ctx.replica_id_in_sync_group == 0 else 0 * sent))
    received = strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)
    return received.numpy().astype(np.uint8).tobytes().rstrip(b'\0').decode()


def any_worker(strategy: tf.distribute.Strategy, value: bool) -> bool:
    """Whether the value is true on any worker; all of them have to ask at the same moment."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return value
    values = strategy.experimental_distribute_values_from_function(lambda _: tf.constant(float(value)))
    return bool(strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy() > 0)


@contextlib.contextmanager
def worker_errors(strategy: tf.distribute.Strategy | None) -> Iterator[None]:
    """Makes one line of what TensorFlow says when another worker has gone; nothing else without workers."""
    try:
        yield
    except tf.errors.UnavailableError as error:
        if strategy is None:
            raise
        reason = re.sub(r'\{\{.*?\}\} ?', '', error.message.splitlines()[0])
        raise UserError(f'another worker has gone ({reason}). See what it says; then start all of them '
                        'again, a run that had begun with --resume') from error


def _split_cpu(count: int) -> None:
    """Makes TensorFlow see `count` CPUs, so that several replicas run on a machine without a GPU."""
    try:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        pass  # TensorFlow is in use already, with the devices that it has.
