"""Trains a network; see `python train.py --help`.

Flags → configuration (training/configs.py) → run directory (dnnlib.submit_run) → training.training_loop.
"""

import json
import math
import os
import re
import shlex
from typing import Any

from dnnlib import flags
from dnnlib.startup import load_tensorflow
from dnnlib.submission import SubmitConfig, load_submit_config, make_run_dir, submit_run
from dnnlib.submission.submit import to_plain
from dnnlib.util import UserError, is_remote_path
from pretrained_networks import check_path, is_address, local_file
from training.configs import CONFIGS, find_config, find_preset, gamma_argument, growing_configs, merge
from training.datasets.base import EMBEDDED_NAME, LABEL_SAMPLING

EXAMPLES = [
    '%(prog)s --config=demo                     # the embedded data set, minutes on two CPU cores',
    '%(prog)s --num-gpus=8 --data-dir=~/datasets --config=config-f --dataset=ffhq --mirror-augment=true',
    '%(prog)s --data-dir=~/datasets --dataset=cars --cond --minibatch-gpu=8 --snap=5',
    '%(prog)s --dataset=photos.zip --labels=photos.csv --label-sampling=uniform --skip-bad',
    '%(prog)s --config=stylegan-f --fmap-base=1024 --latent-size=64 --lod-training-kimg=20 '
    '--lod-transition-kimg=20 --total-kimg=160',
    '%(prog)s --config=biggan-128 --dataset=~/datasets/imagenet128 --num-gpus=8 --minibatch-gpu=64',
    '%(prog)s --config=biggan-demo --label-attr=hairColor --total-kimg=100',
    '%(prog)s --resume                          # go on with the latest run in --result-dir',
    '%(prog)s --resume=results/00003-stylegan2-ffhq-8gpu-config-f --total-kimg=30000',
    '%(prog)s --resume=network-snapshot-010000.pkl --dataset=~/datasets/my-images',
    '%(prog)s --resume=network-snapshot-010000.pkl --dataset=~/datasets/my-images --freeze-d=3 '
    '--freeze-mapping',
]

# What may change when a run goes on, besides where its data lies: it has no influence on the steps to come
# but for the last digits. Of the hooks into the loop this holds until one of them goes back to a snapshot. A
# new one starts afresh, and what the checkpoint holds of one that is gone, or was at another place of the
# list, is left there.
CHANGEABLE = ('total_kimg', 'image_snapshot_ticks', 'network_snapshot_ticks', 'keep_snapshots',
              'metric_arg_list', 'hook_args', 'weights_dir', 'data_dir', 'dataset_args.dataset',
              'dataset_args.label_file', 'dataset_args.skip_bad', 'strategy', 'allow_tf32',
              'G_args.recompute', 'D_args.recompute')

MAX_GRID = 1 << 16      # Images of a snapshot.


def make_parser() -> flags.Parser:
    """The command line. Defaults stand in the help texts: a flag that was not given is None."""
    parser = flags.Parser('Trains a generative adversarial network.', examples=EXAMPLES)
    add = parser.add_flag
    add('result-dir', flags.path, help='where run directories go (default: results)')
    add('data-dir', flags.path, help='directory that holds data sets')
    add('dataset', flags.path, 'data set: directory of TFRecords or images, .zip of images, or .npz '
                               '(default: the embedded pixelart32)')
    add('config', help='configuration (default: config-f): ' + ', '.join(CONFIGS))
    add('num-gpus', flags.integer(1, 8), 'number of GPUs, or of logical CPUs without a GPU (default: 1)')
    add('total-kimg', flags.number(0), 'length of the training in thousands of images (default: by config)')
    add('gamma', flags.nonneg_float, 'weight of the R1 regularization (default: by config)')
    add('mirror-augment', bool, 'flip half of the images (default: by config, mostly false)')
    add('weights-dir', flags.path, 'with --metrics: folder with the weights of feature networks (default: '
                                   '$STYLEGAN_WEIGHTS_DIR)')
    add('metrics', help='metrics to run on snapshots, comma list such as fid5k,pr5k3 or fd_efflite0_5k, or '
                        'none; run_metrics.py --list shows all (default: none)')
    parser.add_argument('--resume', nargs='?', const='latest', metavar='WHAT',
                        help='go on with the latest run in --result-dir (no value), with a run directory, '
                             'or start from a network-snapshot-*.pkl, which may be https://… or '
                             'gdrive:networks/…')
    add('freeze-d', freeze_d, 'with a snapshot: layers of the discriminator that stay as they are, a number '
                              'of its highest resolutions (of BigGAN: first blocks), from RGB on, or names, '
                              'as 32x32,Output')
    add('freeze-mapping', bool, 'with a snapshot: the mapping network of the generator stays as it is')
    add('rollback-on-collapse', bool, 'where an alarm says that the run collapses, go back to the best or '
                                      'last good snapshot, three times at most (default: false)')
    add('keep-best', keep_best, 'metric, such as fid5k or pr5k3_recall, whose best snapshot is kept as '
                                'network-best.pkl; it joins those of --metrics (default: none)')
    add('sigma-clamp', sigma_clamp, 'BigGAN: after each update take from the largest singular value of every '
                                    'weight of the generator what is above a limit, as 2.5, or above a '
                                    'multiple of the second one, as 1.2x; it holds the values down, but is '
                                    'no strict bound (default: none)')
    add('resume-kimg', flags.nonneg_float, 'progress to start from with a snapshot (default: as in its name)')
    add('seed', flags.nonneg_int, 'of weights, data order and all random numbers (default: 1000)')
    add('minibatch-size', flags.positive_int, 'samples per step over all GPUs, at every resolution '
                                              '(default: by config)')
    add('minibatch-gpu', flags.positive_int, 'samples that one GPU processes at a time; gradients of several '
                                             'rounds are accumulated (default: by config)')
    add('lrate', flags.nonneg_float, 'learning rate of both networks, at every resolution '
                                     '(default: by config)')
    add('g-lrate', flags.nonneg_float, '... of the generator alone')
    add('d-lrate', flags.nonneg_float, '... of the discriminator alone')
    add('d-repeats', flags.positive_int, 'updates of the discriminator, each on new images, per update of '
                                         'the generator (default: by config, 2 in BigGAN, else 1)')
    add('lod-initial-resolution', flags.positive_int, 'resolution that a growing config starts at '
                                                      '(default: by config)')
    add('lod-training-kimg', flags.nonneg_float, 'thousands of images between two fades of a growing config '
                                                 '(default: 600)')
    add('lod-transition-kimg', flags.nonneg_float, 'thousands of images of a fade (default: 600)')
    add('fmap-base', flags.positive_int, 'overall number of feature maps (default: by config)')
    add('fmap-max', flags.positive_int, 'greatest number of feature maps of a layer (default: by config)')
    add('ch', flags.positive_int, 'factor on the number of feature maps of BigGAN (default: by config)')
    add('recompute', bool, 'BigGAN: hold the results between the blocks of the networks alone, and compute '
                           'those inside again for the gradient: less memory, more time (default: false)')
    add('latent-size', flags.positive_int, 'size of z, and of w and the layers between (default: by config, '
                                           'mostly 512)')
    add('smoothing-kimg', flags.nonneg_float, 'half-life of the moving average of the generator in thousands '
                                              'of images (default: by config, mostly 10)')
    add('tick-kimg', flags.number(0), 'length of a tick in thousands of images (default: by resolution)')
    add('snap', flags.positive_int, 'ticks between snapshots of images, networks and state '
                                    '(default: by config)')
    add('grid', help='images in a snapshot: columns and rows as 16x8, or 1080p, 4k, 8k (default: by config)')
    add('keep-snapshots', flags.positive_int, 'network snapshots to keep besides the final one '
                                              '(default: by config, mostly all)')
    add('cond', bool, 'train with the labels of the data set (default: false; BigGAN: if it has any)')
    add('label-attr', help='attribute of an .npz data set that serves as label; implies --cond')
    add('labels', flags.path, 'file with the labels of images, .csv or .json, or of TFRecords, .labels; '
                              'implies --cond (default: the one in the data set, or its subfolders)')
    add('label-sampling', help='labels of generated images: data, as frequent as in the data set, or uniform '
                               '(default: data; BigGAN: uniform)', choices=LABEL_SAMPLING)
    add('channels', flags.positive_int, 'of a directory or .zip of images: 1 gray, 3 RGB, 4 RGBA '
                                        '(default: by its files)')
    add('skip-bad', bool, 'leave out damaged or unfitting images of the data set instead of stopping '
                          '(default: false)')
    add('resolution', flags.positive_int, 'resolution to train at (default: that of the data)')
    add('strategy', help='auto, none, mirrored or multiworker (default: auto)', choices=[
        'auto', 'none', 'mirrored', 'multiworker'])
    add('allow-tf32', bool, 'TensorFloat-32 on GPUs that have it: faster convolutions, with 10 of the 23 bits'
                            ' of what is multiplied (default: false)')
    flags.add_custom_ops_flag(parser)
    add('dry-run', bool, 'print the configuration as JSON and stop', default=False)
    return parser


def flag_changes(args: Any, config: dict[str, Any]) -> dict[str, Any]:
    """What the given flags say, as changes to the arguments of the training loop.

    Args:
        args: The parsed command line.
        config: The arguments that the changes will be laid over.
    """
    fmaps = _width_changes(args, config)
    values = {
        'data_dir': _absolute(args.data_dir),
        'dataset_args': _dataset_changes(args, config['dataset_args']),
        'total_kimg': args.total_kimg,
        'G_smoothing_kimg': args.smoothing_kimg,
        'D_repeats': args.d_repeats,
        'mirror_augment': args.mirror_augment,
        'seed': args.seed,
        'num_gpus': args.num_gpus,
        'strategy': args.strategy,
        'allow_tf32': args.allow_tf32,
        'sched_args': _schedule_changes(args, config['sched_args']),
        'grid_args': {'size': _grid_size(args.grid)},
        'G_args': {**fmaps, **_latent_changes(args, config['G_args']),
                   **_recompute_changes(args, config['G_args'])},
        'D_args': {**fmaps, **_recompute_changes(args, config['D_args'])},
        'D_loss_args': {} if args.gamma is None else {gamma_argument(config): args.gamma},
        'image_snapshot_ticks': args.snap,
        'network_snapshot_ticks': args.snap,
        'keep_snapshots': args.keep_snapshots,
        'weights_dir': _absolute(args.weights_dir),
        **_freeze_changes(args, config),
    }
    if args.metrics is not None:
        from metrics.metric_base import find_metrics
        values['metric_arg_list'] = find_metrics(args.metrics)
    values.update(_monitor_changes(args, config, values.get('metric_arg_list')))
    changes = _without_none(values)
    if args.smoothing_kimg is not None and config.get('G_smoothing') is not None:
        changes['G_smoothing'] = None  # A half-life takes the place of the factor.
    return changes


def _grid_size(size: str | None) -> str | None:
    """--grid. Errors: UserError for what is no size, and for more images than any sheet is for."""
    if size is not None:
        from training.misc import snapshot_grid_size
        columns, rows = snapshot_grid_size((3, 4, 4), size)
        if columns * rows > MAX_GRID:
            raise UserError(f'--grid: expected at most {MAX_GRID} images, received {size!r}')
    return size


def _dataset_changes(args: Any, dataset_args: dict[str, Any]) -> dict[str, Any]:
    """Flags about the data set. What says the default is a change only where something else was chosen."""
    given = [name for name in ('labels', 'label-attr') if getattr(args, name.replace('-', '_')) is not None]
    cond = True if args.cond is None and given else args.cond
    if args.cond is False and given:
        raise UserError(f'--{given[0]} goes with --cond: without it labels are not used. Leave one of them '
                        'out')
    label_file = args.labels
    if label_file is not None and os.path.exists(os.path.expanduser(label_file)):
        label_file = _absolute(label_file)      # Else it lies in the data set.
    values = {'dataset': _dataset_path(args), 'resolution': args.resolution, 'label_attr': args.label_attr,
              'max_label_size': None if cond is None else 'full' if cond else 0, 'label_file': label_file,
              'channels': args.channels}
    for name, default in (('label_sampling', 'data'), ('skip_bad', False)):
        value = getattr(args, name)
        values[name] = None if value == default and name not in dataset_args else value
    return values


def _schedule_changes(args: Any, sched_args: dict[str, Any]) -> dict[str, Any]:
    """Flags about the schedule. Minibatch, learning rate and tick, if given, hold at every resolution."""
    growth = {name: getattr(args, name)
              for name in ('lod_initial_resolution', 'lod_training_kimg', 'lod_transition_kimg')}
    given = [f'--{name.replace("_", "-")}' for name, value in growth.items() if value is not None]
    if given and sched_args.get('lod_initial_resolution') is None:
        raise UserError(f'{given[0]}: the networks of this config do not grow; leave it out, or choose one '
                        f'of {", ".join(growing_configs())}')
    values = {'minibatch_size': args.minibatch_size, 'minibatch_gpu': args.minibatch_gpu,
              'G_lrate': args.lrate if args.g_lrate is None else args.g_lrate,
              'D_lrate': args.lrate if args.d_lrate is None else args.d_lrate, 'tick_kimg': args.tick_kimg}
    for name, value in values.items():
        if value is not None:
            growth[f'{name}_base'] = value
            if sched_args.get(f'{name}_dict') or name == 'tick_kimg':  # Ticks have a table by default.
                growth[f'{name}_dict'] = {}
    return growth


def _width_changes(args: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The flags about feature maps, of which a family of networks has some."""
    values = {'fmap_base': args.fmap_base, 'fmap_max': args.fmap_max, 'ch': args.ch}
    own = ['ch'] if 'ch' in config['G_args'] else ['fmap_base', 'fmap_max']
    for name, value in values.items():
        if value is not None and name not in own:
            raise UserError(f'--{name.replace("_", "-")} is not for the networks of this config; feature '
                            f'maps are set by --{" and --".join(own).replace("_", "-")}')
    return {name: values[name] for name in own}


def _latent_changes(args: Any, G_args: dict[str, Any]) -> dict[str, Any]:
    names = ['latent_size'] if G_args['func_name'].endswith(('G_paper', 'G_biggan')) else [
        'latent_size', 'dlatent_size', 'mapping_fmaps']
    return dict.fromkeys(names, args.latent_size)


def _recompute_changes(args: Any, network_args: dict[str, Any]) -> dict[str, Any]:
    if args.recompute and '_biggan' not in network_args['func_name']:
        raise UserError('--recompute is for BigGAN, not for this config; leave it out, and for less memory '
                        'lower --minibatch-gpu')
    # What says the default is a change only where something else was chosen.
    return {'recompute': args.recompute} if args.recompute or network_args.get('recompute') else {}


def freeze_d(text: str) -> int | list[str]:
    """The value of --freeze-d: a number of resolutions, or names."""
    if re.fullmatch(r'\s*\d+\s*', text):
        return int(text)
    names = [name.strip() for name in text.split(',')]
    if not all(re.match(r'[A-Za-z*?\[]|\d+x', name) for name in names):
        raise UserError('expected a number of resolutions from 0 up, or names of layers as 32x32,Output, '
                        f'received {text!r}')
    return names


freeze_d.metavar = 'N|NAMES'


def sigma_clamp(text: str) -> dict[str, float]:
    """The value of --sigma-clamp: the argument of training.spectral.SigmaClamp that is meant."""
    match = re.fullmatch(r'\s*(\d+\.?\d*|\.\d+)(x?)\s*', text)
    if not match or not 0 < float(match[1]) < math.inf:
        raise UserError(f'expected a number above 0, or a number and x, as 2.5 or 1.2x, received {text!r}')
    return {'ratio' if match[2] else 'sigma': float(match[1])}


sigma_clamp.metavar = 'X|Rx'


def keep_best(text: str) -> str:
    """The value of --keep-best: the name of a result of a metric, or none."""
    from metrics.metric_defaults import metric_of_result
    name = text.strip()
    if name.lower() == 'none':
        return 'none'
    metric_of_result(name)      # Says what is wrong.
    return name


keep_best.metavar = 'METRIC'


def _monitor_changes(args: Any, config: dict[str, Any], metrics: list[dict] | None) -> dict[str, Any]:
    """What watches the run, and what is done about it.

    Args:
        metrics: Those of --metrics, None where it was not given.
    """
    hooks, changes = [dict(hook) for hook in config.get('hook_args', [])], {}
    metrics = list(config.get('metric_arg_list', []) if metrics is None else metrics)
    if args.keep_best is not None:
        hooks = _with_hook(hooks, 'training.monitors.KeepBest',
                           None if args.keep_best == 'none' else dict(metric=args.keep_best))
    if args.keep_best is not None or args.metrics is not None:
        wanted = [_metric_of(hook['metric']) for hook in hooks
                  if hook['func_name'] == 'training.monitors.KeepBest']
        missing = [metric for metric in wanted if metric and metric['name'] not in [
            other['name'] for other in metrics]]
        if missing:
            metrics += missing
            changes['metric_arg_list'] = metrics
    if args.rollback_on_collapse is not None:
        alarm = 'training.monitors.CollapseAlarm'
        found = [hook for hook in hooks if hook['func_name'] == alarm]
        if args.rollback_on_collapse and not found:
            if not metrics:
                raise UserError('--rollback-on-collapse: only metrics tell a collapse of this config; '
                                'add --metrics or --keep-best')
            found = [dict(func_name=alarm)]
            hooks += found
        for hook in found:
            if args.rollback_on_collapse or hook.get('rollback'):
                hook['rollback'] = args.rollback_on_collapse
    if hooks != list(config.get('hook_args', [])):
        changes['hook_args'] = hooks
    if args.sigma_clamp is not None:
        if '_biggan' not in config['G_args']['func_name']:
            raise UserError('--sigma-clamp is for BigGAN, whose weights are spectrally normalized')
        changes['G_update_args'] = _with_hook(config.get('G_update_args', []),
                                              'training.spectral.SigmaClamp', args.sigma_clamp)
    return changes


def _with_hook(hooks: list[dict[str, Any]], func_name: str, kwargs: dict[str, Any] | None) -> list[dict]:
    """The list with a hook of these arguments, without one for None; all others keep their places."""
    changed = None if kwargs is None else dict(func_name=func_name, **kwargs)
    result = [changed if hook['func_name'] == func_name else hook for hook in hooks]
    result += [changed] if changed not in result else []
    return [hook for hook in result if hook is not None]


def _metric_of(result: str) -> dict[str, Any] | None:
    """Arguments of the metric that has a result of this name, None where it is none of those of names."""
    from metrics.metric_defaults import metric_of_result
    try:
        return metric_of_result(result)
    except UserError:
        return None


def _freeze_changes(args: Any, config: dict[str, Any]) -> dict[str, Any]:
    """What is not trained. Nothing to freeze is no change where nothing was frozen."""
    given = {'G_freeze': None if args.freeze_mapping is None else ['G_mapping'] * args.freeze_mapping,
             'D_freeze': args.freeze_d}
    return {name: value for name, value in given.items() if value or config.get(name)}


def _absolute(path: str | None) -> str | None:
    """The path as it is from any directory: a run may go on from another one."""
    return path if path is None or is_remote_path(path) else os.path.abspath(os.path.expanduser(path))


def _dataset_path(args: Any) -> str | None:
    """--dataset: a name in --data-dir, that of the embedded data set, or a path of its own."""
    is_name = args.data_dir is not None or args.dataset == EMBEDDED_NAME
    return args.dataset if is_name else _absolute(args.dataset)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    nested = {key: _without_none(value) if isinstance(value, dict) else value
              for key, value in values.items()}
    return {key: value for key, value in nested.items()
            if value is not None and (value != {} or key.endswith('_dict'))}


def new_run(args: Any) -> tuple[SubmitConfig, dict[str, Any]]:
    """Submit configuration and arguments of the training loop for a run of its own."""
    config = 'config-f' if args.config is None else args.config
    num_gpus = args.num_gpus or 1
    kwargs = find_config(config, num_gpus)
    kwargs = merge(kwargs, flag_changes(args, kwargs))
    if args.resume is None and (args.freeze_d or args.freeze_mapping):
        raise UserError(f'--freeze-{"d" if args.freeze_d else "mapping"} keeps what a network has learned; '
                        'give one with --resume=network-snapshot-*.pkl')
    if args.resume is not None:
        kwargs.update(resume_pkl=_snapshot_file(args), resume_kimg=args.resume_kimg)
    dataset = kwargs['dataset_args'].get('dataset') or kwargs.get('data_dir') or EMBEDDED_NAME
    name = os.path.splitext(os.path.basename(os.path.normpath(dataset)))[0]
    submit_config = SubmitConfig(run_dir_root=args.result_dir or 'results', num_gpus=num_gpus, config=config,
                                 run_desc=f'{find_preset(config).family}-{name}-{num_gpus}gpu-{config}')
    if args.resume is not None and is_address(args.resume):
        submit_config.update(resume_address=args.resume)  # For the records: resume_pkl is the file.
    return submit_config, kwargs


def _snapshot_file(args: Any) -> str:
    """--resume as a path; an address is downloaded, unless the configuration is only to be shown."""
    if is_address(args.resume):
        return args.resume if args.dry_run else _absolute(local_file(args.resume))
    return _absolute(args.resume)


def resumed_run(run_dir: str, args: Any) -> tuple[SubmitConfig, dict[str, Any]]:
    """Submit configuration and arguments of a run that goes on.

    Errors: UserError where a flag would change its course.
    """
    from training.checkpoint import has_checkpoint
    if not has_checkpoint(run_dir):
        raise UserError(f'--resume: {run_dir} holds no checkpoint; start from one of its '
                        'network-snapshot-*.pkl, or train anew')
    submit_config = load_submit_config(run_dir)
    stored = dict(submit_config.run_func_kwargs)
    kwargs = merge(stored, flag_changes(args, stored))
    # Latents that change over the training go by its length.
    annealed = str(stored.get('G_args', {}).get('latent_distribution')).startswith('annealed')
    differences = [f'{key} is {before!r} in the run, {after!r} on the command line'
                   for key, before, after in _differences(stored, kwargs)
                   if key not in CHANGEABLE or annealed and key == 'total_kimg']
    if args.config is not None and args.config != submit_config.get('config'):
        differences.insert(0, f'config is {submit_config.get("config")!r} in the run, '
                              f'{args.config!r} on the command line')
    if differences:
        raise UserError(f'--resume: this run cannot go on with other settings ({"; ".join(differences)}). '
                        'Leave the flags out, or start a new run from a network-snapshot-*.pkl')
    submit_config.update(resume=True)
    return submit_config, kwargs


def _differences(before: dict, after: dict, prefix: str = ''):
    """(dotted name, before, after) of everything that differs between two nested dicts."""
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f'{prefix}{key}.')
        elif old != new:
            yield f'{prefix}{key}', old, new


def find_run(what: str, result_dir: str) -> str | None:
    """The run directory that --resume means; None where it means a snapshot."""
    if what == 'latest':
        from training.checkpoint import find_latest_run
        return find_latest_run(result_dir)
    if not what.strip():
        raise UserError('--resume: expected a run directory or a network-snapshot-*.pkl, received nothing')
    if is_address(what):
        check_path(what)
        return None
    path = _absolute(what)
    if path.endswith('.pkl'):
        if not is_remote_path(path) and not os.path.isfile(path):
            raise UserError(f'--resume: {path} does not exist')
        return None
    if not is_remote_path(path) and not os.path.isdir(path):
        raise UserError(f'--resume: expected a run directory or a network-snapshot-*.pkl. Received: {what!r}')
    return path


def run(args: Any) -> int:
    """Resolves the configuration and trains; the exit status."""
    if not args.dry_run or args.resume is not None:
        load_tensorflow()
    run_dir = find_run(args.resume, args.result_dir or 'results') if args.resume is not None else None
    if args.resume_kimg is not None and (args.resume is None or run_dir is not None):
        raise UserError('--resume-kimg goes with --resume=network-snapshot-*.pkl; a run directory knows its '
                        'progress')
    submit_config, kwargs = new_run(args) if run_dir is None else resumed_run(run_dir, args)
    if args.dry_run:
        directories = {'run_dir_root': submit_config.run_dir_root, 'run_desc': submit_config.run_desc,
                       'resume_run_dir': run_dir}
        print(json.dumps(to_plain({**directories, **kwargs}), indent=2))
        return 0
    from training.strategies import is_multiworker, make_strategy, worker_errors, worker_index
    workers = None
    if is_multiworker(kwargs['strategy']):
        submit_config.worker = worker_index()
        workers = make_strategy(kwargs['num_gpus'], kwargs['strategy'])     # Waits for all of them.
    from training.training_loop import check_arguments
    check_arguments(**{**kwargs, 'resume_pkl': None if run_dir else kwargs.get('resume_pkl')},
                    run_dir=run_dir)
    with worker_errors(workers):
        if workers is not None:
            _share_run_dir(submit_config, workers)
        flags.use_custom_ops(args.custom_ops)  # No argument of the run: a resumed one may choose anew.
        progress = submit_run(submit_config, 'training.training_loop.training_loop', **kwargs)
    if progress.stop_reason is not None:
        print(f'To go on: python train.py --resume={shlex.quote(progress.run_dir)}')
    return 128 + progress.stop_signal if progress.stop_signal else 0


def _share_run_dir(submit_config: SubmitConfig, workers: Any) -> None:
    """Makes the chief's run directory that of all workers, once none of them has found a mistake."""
    from training.strategies import any_worker, from_chief
    any_worker(workers, False)      # Waits for all of them.
    if submit_config.worker == 0 and not submit_config.resume:
        make_run_dir(submit_config)
    submit_config.run_dir = from_chief(workers, submit_config.run_dir or '')


def main() -> None:
    """Entry point of the command `stylegan-train`."""
    flags.run(run, make_parser)


if __name__ == '__main__':
    main()
