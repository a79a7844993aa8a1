"""What the user gave to a training run, looked at before there is a run directory."""

import inspect
import sys
from collections.abc import Sequence
from typing import Any

from dnnlib.util import UserError, get_obj_by_name
from metrics.evaluation import Evaluation
from metrics.image_sources import DatasetSource
from metrics.metric_base import MetricGroup
from training.checkpoint import stored_progress
from training.configs import configs_with, network_names
from training.dataset import Dataset, keep_open, opened_dataset
from training.freeze import frozen_names
from training.misc import snapshot_grid_size
from training.schedule import training_schedule
from training.snapshots import load_networks
from training.strategies import is_multiworker, make_strategy

MOST_CONFIGS = 5        # That a message names.


def check_arguments(
    data_dir: str | None = None, dataset_args: dict | None = None, sched_args: dict | None = None,
    grid_args: dict | None = None, G_args: dict | None = None, D_args: dict | None = None,
    D_loss_args: dict | None = None, metric_arg_list: Sequence[dict] = (), weights_dir: str | None = None,
    resume_pkl: str | None = None, seed: int = 1000, num_gpus: int = 1, strategy: str = 'auto',
    G_freeze: list | None = None, D_freeze: list | int | None = None, run_dir: str | None = None,
    **_others: Any,
) -> None:
    """Looks at what the user gave to `training_loop` (same arguments), before a run directory is made, or
    before anything is written to that of a run that goes on (`run_dir`).

    Errors: UserError for devices that are not there, an unusable data set, a minibatch that does not divide,
    an unknown size of the sample grid, labels that a loss does not look at, or a snapshot that does not fit
    the data set or the configuration or does not have what is to be frozen.
    """
    if not is_multiworker(strategy):  # Workers meet only once.
        make_strategy(num_gpus, strategy)
    metrics = MetricGroup(metric_arg_list or ())
    metrics.check(weights_dir)              # Not hours later, for want of a file.
    training_set = opened_dataset(data_dir=data_dir, seed=seed, **(dataset_args or {}))
    try:
        if run_dir is not None:
            check_same_data(training_set, (stored_progress(run_dir) or {}).get('dataset'))
        resolution_log2 = training_set.resolution_log2
        if training_set.label_size:
            _check_conditional(G_args or {}, D_args or {}, D_loss_args or {})
        if resume_pkl is None:
            _check_architecture(G_args or {}, training_set.resolution)
        if metrics.metrics:
            metrics.check_images(Evaluation(reals=DatasetSource(training_set)))
        snapshot_grid_size(training_set.shape, (grid_args or {}).get('size', '1080p'))
        group = _minibatch_group(D_args or {})
        for pieces in _minibatches_gpu(dict(sched_args or {}, resolution_log2=resolution_log2,
                                            num_gpus=num_gpus)):
            if resume_pkl is None and group > 1 and pieces % min(group, pieces):
                raise UserError('--minibatch-gpu must be at most, or divisible by, the group size '
                                f'{group} of the minibatch standard deviation. Received: {pieces}')
        if resume_pkl is not None:
            networks = load_networks(resume_pkl)
            _check_config(networks, dict(G_args=G_args, D_args=D_args), resume_pkl)
            check_networks(networks, training_set, resume_pkl)
            frozen_names(networks[0].layer, G_freeze, 'G_freeze')
            frozen_names(networks[1].layer, D_freeze, 'D_freeze')
    except BaseException:
        training_set.close()
        raise
    keep_open(training_set, data_dir=data_dir, seed=seed, **(dataset_args or {}))


def check_same_data(training_set: Dataset, fingerprint: str | None) -> None:
    """Raises UserError for another data set than the one that a run was started with, if that is known."""
    if fingerprint not in (None, training_set.fingerprint):
        raise UserError(f'--resume: the data set {training_set.name} is not the one that the run was started '
                        'with; choose that one by --data-dir and --dataset, or start a new run from a '
                        'network-snapshot-*.pkl')


def _minibatch_group(D_args: dict) -> int:
    """Group size of the minibatch standard deviation of a discriminator, 1 where it has none."""
    if 'func_name' not in D_args:
        return D_args.get('mbstd_group_size', 4)
    parameter = inspect.signature(get_obj_by_name(D_args['func_name'])).parameters.get('mbstd_group_size')
    return D_args.get('mbstd_group_size', parameter.default) if parameter else 1


def _minibatches_gpu(sched_args: dict) -> list[int]:
    """Samples per replica and round at every resolution that a run passes through."""
    lods = range(int(training_schedule(0, **sched_args).lod) + 1)
    # At lod k the schedule is that of a run which starts, and so stays, there.
    starts = [2 ** (sched_args['resolution_log2'] - lod) for lod in lods]
    return [training_schedule(0, **{**sched_args, 'lod_initial_resolution': start}).minibatch_gpu
            for start in starts]


def check_networks(networks: tuple, training_set: Dataset, path: str) -> None:
    """Raises UserError for networks of a snapshot that are not for the shapes of the data set."""
    G, D, _ = networks
    shape, label_size = D.input_shape[1:], G.input_shapes[1][1]
    if shape != training_set.shape or label_size != training_set.label_size:
        raise UserError(f'{path} is for images {shape} with label size {label_size}; the data set has '
                        f'{training_set.shape} and {training_set.label_size}. Choose data of that shape, '
                        '--resolution, --cond or --no-cond')


def _check_config(networks: tuple, config: dict, path: str) -> None:
    """Raises UserError for networks of a snapshot that are not those of the configuration."""
    G, D, _ = networks
    synthesis = G.components.get('synthesis')
    found = tuple(network and type(network.layer).__name__ for network in (G, synthesis, D))
    expected = network_names(config)
    if found != expected:
        fitting = configs_with(found)
        more = f' or another of {len(fitting)}' if len(fitting) > MOST_CONFIGS else ''
        choice = f'{" or ".join(fitting[:MOST_CONFIGS])}{more}'
        raise UserError(f'{path} holds {_joined(found)}; the configuration is for {_joined(expected)}. '
                        + (f'Choose --config={choice}' if fitting else 'No config is for them'))


def _joined(names: tuple) -> str:
    return ', '.join(name for name in names if name)


def _check_conditional(G_args: dict, D_args: dict, D_loss_args: dict) -> None:
    """Raises UserError for a configuration in which labels would have no effect."""
    if D_args.get('func_name', '').endswith('.D_paper') and not D_loss_args['func_name'].endswith('_acgan'):
        raise UserError('--cond: the discriminator of ProGAN learns labels by the loss of AC-GAN only; '
                        'use --config=progan-acgan')
    if G_args.get('mapping_layers') == 0:
        raise UserError('--cond: labels enter the generator through its mapping network, which this config '
                        'does not have; use one with mapping layers, such as stylegan-f')


def _check_architecture(G_args: dict, resolution: int) -> None:
    """Raises UserError for a resolution that the networks of the configuration have no architecture for."""
    if 'func_name' not in G_args:
        return
    module = sys.modules[get_obj_by_name(G_args['func_name']).__module__]
    known = getattr(module, 'ARCHITECTURES', None)
    multipliers = G_args.get('multipliers')     # One for 4×4 and one for each doubling.
    if multipliers and 2 ** (len(multipliers) + 1) != resolution:
        size = 2 ** (len(multipliers) + 1)
        raise UserError(f'the networks of this config are for {size}x{size} images; choose another config, '
                        f'such as biggan-small, or --resolution={size}. Received: {resolution}')
    if isinstance(known, dict) and resolution not in known and not multipliers:
        raise UserError(f'the networks of this config are for the resolutions '
                        f'{", ".join(map(str, sorted(known)))}; choose one by --resolution, or a larger data '
                        f'set. Received: {resolution}')
