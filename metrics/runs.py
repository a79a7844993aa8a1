"""What run_metrics.py does: settings of a run, evaluations of its networks, plots of the results."""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import dnnlib
from dnnlib.util import UserError, get_obj_by_name, gfile, is_remote_path

from .evaluation import Evaluation
from .feature_cache import default_directory
from .image_sources import DatasetSource, FolderSource, OwnSource, reduced
from .metric_base import MetricGroup
from .metric_defaults import better_of

__all__ = ['Settings', 'check', 'run', 'settings_of_run']


@dataclasses.dataclass
class Settings:
    """What run_metrics.py was told; None = as in training."""

    data_dir: str | None = None
    dataset: str | None = None
    mirror_augment: bool | None = None
    cond: bool | None = None
    label_attr: str | None = None
    labels: str | None = None
    reals: str | None = None                        # Folders of images.
    fakes: str | None = None
    resolution: tuple[int, int] | None = None       # Of these.
    resize: str | None = None
    num_gpus: int = 1
    batch: int | None = None
    seed: int = 0
    generator: str = 'Gs'
    class_idx: int | None = None
    generation: str = 'stylegan2'
    truncation: float | None = None
    truncation_mode: str | None = None
    statistics: str | None = None
    weights_dir: str | None = None
    cache_dir: str | None = None
    cache: bool = True

    @classmethod
    def names(cls) -> list[str]:
        """Names of all settings."""
        return [field.name for field in dataclasses.fields(cls)]

    @property
    def role(self) -> str:
        """Which network of a snapshot."""
        return 'G' if self.generator == 'G' else 'Gs'

    @property
    def own_generator(self) -> str | None:
        """Name of the user's class that makes images."""
        return self.generator if '.' in self.generator else None


def settings_of_run(network_pkl: str) -> dict[str, Any]:
    """Arguments of the training that a snapshot is from, by submit_config.json beside it; {} without one."""
    import pretrained_networks
    path = os.path.join(os.path.dirname(network_pkl), 'submit_config.json')
    if pretrained_networks.is_address(network_pkl) or is_remote_path(path) and not gfile().exists(path):
        return {}
    try:
        if is_remote_path(path):
            with gfile().GFile(path, 'r') as file:
                text = file.read()
        else:
            with open(path, encoding='utf-8') as file:
                text = file.read()
        kwargs = json.loads(text)['run_func_kwargs']
    except FileNotFoundError:
        return {}
    except Exception as error:  # TensorFlow's file systems have error classes of their own.
        print(f'Warning: {path} cannot be read ({type(error).__name__}); give --data-dir, --dataset and '
              '--mirror-augment where they are not the defaults', file=sys.stderr)
        return {}
    return kwargs if isinstance(kwargs, dict) and 'dataset_args' in kwargs else {}


def dataset_arguments(settings: Settings, network: Any, network_pkl: str | None) -> dict[str, Any]:
    """Arguments of training.dataset.load_dataset: those of the training under those of the flags."""
    trained = settings_of_run(network_pkl) if network_pkl else {}
    args = dict(trained.get('dataset_args') or {})
    args['data_dir'] = trained.get('data_dir')
    if settings.dataset is not None or settings.data_dir is not None:
        # Another data set has other labels and files.
        args = {'data_dir': settings.data_dir, 'dataset': settings.dataset,
                'max_label_size': args.get('max_label_size', 0)}
        if settings.data_dir is None and not os.path.isabs(settings.dataset):
            args['data_dir'] = trained.get('data_dir') if settings.dataset != 'pixelart32' else None
    args = {key: value for key, value in args.items() if key not in ('seed', 'verbose')}
    label_size = label_size_of(network)
    if settings.label_attr is not None:
        args['label_attr'] = settings.label_attr
    if settings.labels is not None:
        args['label_file'] = settings.labels
    if settings.cond is not None:
        args['max_label_size'] = 'full' if settings.cond else 0
    elif label_size or settings.label_attr or settings.labels:
        args['max_label_size'] = args.get('max_label_size') or 'full'
    if network is not None:
        args['resolution'] = int(network.output_shape[2])
    return args


def label_size_of(network: Any) -> int:
    """Number of label components of a network; 0 = unconditional, or no network."""
    return network.input_shapes[1][1] if network is not None and network.num_inputs > 1 else 0


def open_reals(settings: Settings, network: Any, network_pkl: str | None) -> Any:
    """The source of real images. Errors: UserError where the data set does not fit the network."""
    if settings.reals is not None:
        size = settings.resolution
        if size is None and network is not None:
            size = int(network.output_shape[3]), int(network.output_shape[2])
        return FolderSource(settings.reals, size, settings.resize or 'lanczos')
    from training.dataset import load_dataset
    args = dataset_arguments(settings, network, network_pkl)
    resolution = args.pop('resolution', None)
    try:
        dataset = load_dataset(**args)
        available = dataset.shape[1]
        if resolution is not None and available > resolution:
            dataset.close()
            dataset = load_dataset(resolution=resolution, **args)
    except UserError as error:
        raise UserError(f'the real images: {error}') from None
    if network is not None and list(dataset.shape) != [int(size) for size in network.output_shape[1:]]:
        raise UserError(f'network {network.name} draws images of shape {list(network.output_shape[1:])}; '
                        f'those of data set {dataset.name} have {list(dataset.shape)}. Choose the one that '
                        'it was trained with by --data-dir and --dataset')
    return DatasetSource(dataset, reduced(dataset))


def open_fakes(settings: Settings, network: Any) -> Any:
    """The source of generated images that are not simply drawn from a network; None for those that are."""
    if settings.fakes is not None:
        return FolderSource(settings.fakes, settings.resolution, settings.resize or 'lanczos')
    if settings.own_generator is not None:
        return OwnSource(settings.own_generator, network, settings.seed)
    return None


def load_network(settings: Settings, path: str | None) -> Any:
    """The generator of a pickle. Errors: UserError, OSError."""
    if path is None:
        return None
    import pretrained_networks
    from dnnlib.tflib import Network
    from generation.sampling import check_generator
    pretrained_networks.check_path(path)
    file = pretrained_networks.local_file(path)
    try:
        # Not by pretrained_networks.load_network, which keeps all that it has loaded.
        network = Network.load(file, settings.role)
        check_generator(network)
    except UserError as error:
        message = str(error).removeprefix(f'{file}: ')
        raise UserError(f'{pretrained_networks.shown(path)}: {message}') from None
    return network


def check(networks: Sequence[str], metric_arg_list: Sequence[dict[str, Any]], settings: Settings) -> None:
    """Looks for mistakes before there is a run directory. Errors: UserError, OSError."""
    import pretrained_networks
    from training.strategies import local_strategy
    local_strategy(settings.num_gpus)
    group = MetricGroup(metric_arg_list)
    for metric in group.metrics:
        if metric.needs_network and (not networks or settings.own_generator):
            raise UserError(f'metric {metric.name} needs a network; leave it out for folders of images and '
                            'generators of your own')
    group.check(settings.weights_dir)
    if settings.own_generator is not None:
        get_obj_by_name(settings.own_generator)
    for path in networks:
        pretrained_networks.check_path(path)
    network = load_network(settings, networks[0] if networks else None)
    if settings.class_idx is not None:
        from generation.sampling import class_label
        class_label(network, settings.class_idx)
    reals = None
    if any(metric.needs_reals for metric in group.metrics):
        if not networks and settings.reals is None and settings.dataset is None and settings.data_dir is None:
            raise UserError('there is nothing to compare the images with; give --reals with a folder of real '
                            'images, or --dataset')
        reals = open_reals(settings, network, networks[0] if networks else None)
        if settings.class_idx is not None:
            reals.indices_of([settings.class_idx])
        elif settings.generator == 'class' and not reals.label_size:
            raise UserError(f'--generator=class: {reals.name} has no classes; give a data set with labels')
    fakes = open_fakes(settings, network)
    label_size = label_size_of(network)
    if settings.generator == 'class' and not label_size:
        raise UserError('--generator=class: the network is unconditional; leave it out')
    if network is not None and settings.own_generator is None:
        Evaluation(network, truncation=settings.truncation, truncation_mode=settings.truncation_mode,
                   statistics=settings.statistics).check_sampling()
    evaluation = Evaluation(network, reals, fakes, weights_dir=settings.weights_dir)
    group.check_images(evaluation)
    for metric in group.metrics:
        metric.check_extractors(evaluation)


def run(submit_config: dnnlib.SubmitConfig, networks: Sequence[str],
        metric_arg_list: Sequence[dict[str, Any]], settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measures networks, writing metric-NAME.txt and metric-NAME.jsonl to the run directory.

    Args:
        networks: Pickles; none where folders are compared.
        metric_arg_list: Arguments of the metrics.
        settings: Fields of Settings.

    Returns: {label of the network: {name of the result: value}}.
    """
    del submit_config
    options = Settings(**settings)
    from training.strategies import local_strategy
    strategy = local_strategy(options.num_gpus)
    group = MetricGroup(metric_arg_list)
    run_dir = dnnlib.make_run_dir_path()
    table: dict[str, dict[str, float]] = {}
    reals: dict[str, Any] = {}
    parent = None
    for path in networks or [None]:
        for label, evaluation in _evaluations(path, options, strategy, reals, group):
            evaluation.share(parent)
            parent = evaluation
            evaluation.file_prefix = f'{_short(label)}-' if len(networks) > 1 or table else ''
            print(f'Measuring {label}{evaluation.describe_reals()}...', flush=True)
            group.run(label, run_dir, evaluation=evaluation)
            table[label] = group.results()
    if len(table) > 1:
        _report(table, run_dir)
    return table


def _evaluations(path: str | None, settings: Settings, strategy: Any, reals: dict[str, Any],
                 group: MetricGroup) -> Iterator[tuple[str, Evaluation]]:
    """(label, evaluation) of a network: one, or one per class."""
    import pretrained_networks
    from generation.classes import class_names
    with strategy.scope():
        network = load_network(settings, path)
    if network is not None:
        _warn_if_diverged(network, path)
    source, mirror = None, False
    if any(metric.needs_reals for metric in group.metrics) or _draws_labels(settings, network, path):
        source = _shared_reals(settings, network, path, reals, group)
        trained = settings_of_run(path).get('mirror_augment') if path and not settings.reals else False
        mirror = bool(trained) if settings.mirror_augment is None else settings.mirror_augment
    fakes = open_fakes(settings, network)
    if fakes is not None and source is not None and list(fakes.shape) != list(source.shape):
        sizes = [f'{which.name} has images of {which.shape[2]}x{which.shape[1]}' for which in (fakes, source)]
        print(f'Warning: {", ".join(sizes)}; give --resolution to compare like with like', file=sys.stderr)
    names = None
    if network is not None:
        names = class_names(network, None if pretrained_networks.is_address(path) else path)
    label = path or settings.fakes or settings.own_generator or ''
    cache_dir = (settings.cache_dir or default_directory()) if settings.cache else None
    classes = range(label_size_of(network)) if settings.generator == 'class' else [settings.class_idx]
    for class_idx in classes:
        name = label
        if settings.generator == 'class':
            if source is not None and not source.has_class(class_idx):
                print(f'Warning: {source.name} has no image of class {class_idx}, which is left out',
                      file=sys.stderr)
                continue
            name = f'{os.path.splitext(label)[0]}-class{class_idx}.pkl'
        yield name, Evaluation(
            network, source, fakes, seed=settings.seed, batch=settings.batch, generation=settings.generation,
            mirror=mirror, strategy=strategy, weights_dir=settings.weights_dir, cache_dir=cache_dir,
            truncation=settings.truncation, truncation_mode=settings.truncation_mode,
            statistics=settings.statistics, class_idx=class_idx, class_names=names)


def _warn_if_diverged(network: Any, path: str) -> None:
    """Of a network whose images are no numbers some metrics have a value all the same."""
    bad = [name for name, variable in network.vars.items() if not np.all(np.isfinite(variable.numpy()))]
    if bad:
        print(f'Warning: {path} has values that are not finite, such as {bad[0]}: the training has diverged, '
              'and the results say nothing', file=sys.stderr)


def _draws_labels(settings: Settings, network: Any, path: str | None) -> bool:
    """Do labels come from a data set although no metric compares with reals?"""
    if not label_size_of(network) or settings.class_idx is not None or settings.generator == 'class':
        return False
    is_given = settings.dataset or settings.data_dir or settings.reals
    return bool(is_given or settings.own_generator is None and settings_of_run(path))


def _shared_reals(settings: Settings, network: Any, path: str | None, reals: dict[str, Any],
                  group: MetricGroup) -> Any:
    """The source of real images, opened once for all networks that it suits.

    Where it is there for the labels alone it may be missing: None, with a warning.
    """
    args = '' if settings.reals else repr(sorted(dataset_arguments(settings, network, path).items(),
                                                 key=lambda item: item[0]))
    if args not in reals:
        try:
            reals[args] = open_reals(settings, network, path)
            if not any(metric.needs_reals for metric in group.metrics) and \
                    reals[args].label_size != label_size_of(network):
                raise UserError(f'{reals[args].name} has not the labels of the network')
        except (UserError, OSError) as error:
            if any(metric.needs_reals for metric in group.metrics):
                raise
            print(f'Warning: all classes are drawn equally often, not as in the data set: {error}',
                  file=sys.stderr)
            reals[args] = None
    return reals[args]


def _short(label: str) -> str:
    return os.path.splitext(os.path.basename(label.rstrip('/')))[0]


def _report(table: dict[str, dict[str, float]], run_dir: str) -> None:
    """Says which network is best by each result, and writes a plot where the networks are of one run."""
    from generation import plots
    steps = [re.search(r'network-snapshot-(\d+)$', _short(label)) for label in table]
    names = list(dict.fromkeys(name for results in table.values() for name in results))
    for name in names:
        values = {label: results[name] for label, results in table.items()
                  if np.isfinite(results.get(name, np.nan))}
        better = better_of(name)
        if not values:
            continue
        if better:
            best = (min if better == 'low' else max)(values, key=lambda label: values[label])
            print(f'{name}: best is {values[best]:.4f} of {_short(best)} (the {better}er the better)')
        if all(steps):
            kimg = [int(step[1]) for label, step in zip(table, steps, strict=True) if label in values]
            path = os.path.join(run_dir, f'metric-{name}.png')
            plots.save_curves(path, {name: (kimg, list(values.values()))}, title=name,
                              xlabel='thousands of real images', ylabel=name)
            print(f'Wrote {path}')
