"""The devices of a run: which tf.distribute strategy it has."""

import os

import tensorflow as tf

from dnnlib.util import UserError


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
        return tf.distribute.MultiWorkerMirroredStrategy()
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


def is_multiworker(name: str) -> bool:
    """Whether the strategy of that name spans several machines, as TF_CONFIG says."""
    return name == 'multiworker' or (name == 'auto' and bool(os.environ.get('TF_CONFIG')))


def _split_cpu(count: int) -> None:
    """Makes TensorFlow see `count` CPUs, so that several replicas run on a machine without a GPU."""
    try:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        pass  # TensorFlow is in use already, with the devices that it has.
