"""Trains classifiers of image attributes, which the metric ls (linear separability) needs; see
`python train_classifiers.py --help`.

Flags → run directory (dnnlib.submit_run) → training.classifier_loop.
"""

import json
import os
import re
import shlex
from typing import Any

from dnnlib import flags
from dnnlib.startup import load_tensorflow
from dnnlib.submission import SubmitConfig, load_submit_config, submit_run
from dnnlib.submission.submit import to_plain
from dnnlib.util import UserError, is_remote_path

# TensorFlow, and all modules that import it, are imported inside the functions: --help and most mistakes are
# answered at once.

LOOP = 'training.classifier_loop.classifier_loop'

# What may change when a run goes on: it has no influence on the steps to come.
CHANGEABLE = ('total_kimg', 'snapshot_ticks', 'keep_snapshots', 'data_dir', 'table', 'strategy')

EXAMPLES = [
    '%(prog)s --attributes=glassesVariant,hatVariant,skinColor --total-kimg=30    # the embedded data set',
    '%(prog)s --dataset=celeba-images --labels=list_attr_celeba.txt --attributes=Male,Smiling,Eyeglasses',
    '%(prog)s --dataset=cats.zip --labels=cats.csv --attributes=all --fmap-base=2048',
    '%(prog)s --data-dir=~/datasets --dataset=cars --attributes=colour=red+orange,doors=any',
    '%(prog)s --dataset=photos.npz --list-attributes',
    '%(prog)s --resume                          # go on with the latest such run in --result-dir',
    'run_metrics.py --network=network-final.pkl --metrics=ls --classifiers=results/00004-classifiers-cats',
]


def make_parser() -> flags.Parser:
    """The command line. Defaults stand in the help texts: a flag that was not given is None."""
    parser = flags.Parser(
        'Trains classifiers of image attributes on labelled images, one network per attribute: the '
        'discriminator of StyleGAN without minibatch standard deviation, with the settings of its paper '
        '(appendix C). The metric ls measures generators with them.', examples=EXAMPLES)
    add = parser.add_flag
    add('result-dir', flags.path, help='where run directories go (default: results)')
    add('data-dir', flags.path, help='directory that holds data sets')
    add('dataset', flags.path, 'data set: directory of TFRecords or images, .zip of images, or .npz '
                               '(default: the embedded pixelart32)')
    add('labels', flags.path, 'attributes of the images: .csv with a first line file,<attribute>,… or '
                              "CelebA's list_attr_celeba.txt; or labels as of train.py: .json, .labels "
                              '(default: what the data set has: arrays attr/… of .npz, labels, subfolders)')
    add('attributes', attribute_list, 'what to learn, comma list: name; name=value or name=value+pattern*, '
                                      'against the rest; name=any, whether there is one; all')
    add('list-attributes', bool, 'print the attributes of the data set and stop', default=False)
    add('name', set_name, 'first part of the names of the files (default: that of the data set)')
    parser.add_argument('--resume', nargs='?', const='latest', metavar='WHAT',
                        help='go on with the latest such run in --result-dir (no value), or with a run '
                             'directory')
    add('total-kimg', flags.number(0.001), 'length of the training of each classifier in thousands of images '
                                           '(default: 150)')
    add('lrate', flags.nonneg_float, 'learning rate (default: 0.001)')
    add('minibatch-size', flags.positive_int, 'images per step (default: 8)')
    add('beta1', flags.number(0, 0.999999), 'of Adam (default: 0)')
    add('beta2', flags.number(0, 0.999999), 'of Adam (default: 0.99)')
    add('resolution', flags.positive_int, 'larger images are averaged down to this, smaller ones stay '
                                          '(default: 256)')
    add('fmap-base', flags.positive_int, 'overall number of feature maps (default: 8192)')
    add('fmap-max', flags.positive_int, 'greatest number of feature maps of a layer (default: 512)')
    add('mirror-augment', bool, 'flip half of the images (default: false)')
    add('holdout', flags.number(0.001, 0.9), 'share of the images that is kept for measuring the accuracy '
                                             '(default: 0.1)')
    add('seed', flags.nonneg_int, 'of weights, choice and order of the images (default: 1000)')
    add('tick-kimg', flags.number(0.001), 'thousands of images between two measurements (default: 10)')
    add('snap', flags.positive_int, 'ticks between two checkpoints (default: 1)')
    add('keep-snapshots', flags.nonneg_int, 'networks of earlier checkpoints to keep for each classifier '
                                            '(default: 0)')
    add('channels', flags.positive_int, 'of a directory or .zip of images: 1 gray, 3 RGB, 4 RGBA '
                                        '(default: by its files)')
    add('skip-bad', bool, 'leave out damaged or unfitting images of the data set instead of stopping '
                          '(default: false)')
    add('num-gpus', flags.integer(1, 8), 'number of GPUs, or of logical CPUs without a GPU (default: 1)')
    add('strategy', help='auto, none or mirrored (default: auto)', choices=['auto', 'none', 'mirrored'])
    flags.add_custom_ops_flag(parser)
    add('dry-run', bool, 'print the configuration as JSON and stop', default=False)
    return parser


def attribute_list(text: str) -> list[str]:
    """'a,b=c+d' → ['a', 'b=c+d']."""
    specs = [spec.strip() for spec in text.split(',')]
    if not all(spec and not spec.startswith('=') for spec in specs):
        raise UserError(f'expected attributes such as glasses,hair=red+brown, received {text!r}')
    return specs


attribute_list.metavar = 'LIST'


def set_name(text: str) -> str:
    """The name of a set of classifiers, a part of names of files."""
    if not re.fullmatch(r'\w[\w.+-]*', text):
        raise UserError(f'expected letters, digits, hyphens, dots and underscores, received {text!r}')
    return text


def flag_changes(args: Any) -> dict[str, Any]:
    """What the given flags say, as arguments of the loop."""
    table, label_file = _label_files(args.labels)
    embedded = args.data_dir is None and args.dataset in (None, 'pixelart32')
    # Its attributes are no labels; those of a table stand in for them.
    no_labels = embedded or table is not None
    dataset_args = {'dataset': args.dataset if args.data_dir is not None or embedded
                    else _absolute(args.dataset),
                    'max_label_size': 0 if no_labels else 'auto', 'label_file': label_file,
                    'channels': args.channels, 'skip_bad': args.skip_bad}
    values = {
        'attribute_specs': args.attributes, 'set_name': args.name, 'data_dir': _absolute(args.data_dir),
        'dataset_args': _without_none(dataset_args), 'table': table,
        'D_args': _without_none({'fmap_base': args.fmap_base, 'fmap_max': args.fmap_max}),
        'opt_args': _without_none({'beta1': args.beta1, 'beta2': args.beta2}),
        'max_resolution': args.resolution, 'holdout': args.holdout, 'mirror_augment': args.mirror_augment,
        'lrate': args.lrate, 'minibatch_size': args.minibatch_size, 'total_kimg': args.total_kimg,
        'tick_kimg': args.tick_kimg, 'snapshot_ticks': args.snap, 'keep_snapshots': args.keep_snapshots,
        'seed': args.seed, 'num_gpus': args.num_gpus, 'strategy': args.strategy,
    }
    return _without_none(values)


def _label_files(labels: str | None) -> tuple[str | None, str | None]:
    """--labels as (table of attributes, file of labels of the data set)."""
    if labels is None:
        return None, None
    path = _absolute(labels) if os.path.exists(os.path.expanduser(labels)) else labels
    if not path.lower().endswith(('.csv', '.txt')):
        return None, path       # Which may lie in the data set.
    if not is_remote_path(path) and not os.path.isfile(path):
        raise UserError(f'--labels: there is no file {labels}')
    return path, None


def _absolute(path: str | None) -> str | None:
    """The path as it is from any directory: a run may go on from another one."""
    return path if path is None or is_remote_path(path) else os.path.abspath(os.path.expanduser(path))


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def new_run(args: Any) -> tuple[SubmitConfig, dict[str, Any]]:
    """Submit configuration and arguments of the loop for a run of its own."""
    changes = flag_changes(args)
    dataset = args.dataset or args.data_dir or 'pixelart32'
    dataset_name = os.path.splitext(os.path.basename(os.path.normpath(dataset)))[0]
    name = args.name or re.sub(r'[^\w.+-]+', '-', dataset_name).strip('-.+') or 'own'
    kwargs: dict[str, Any] = dict(
        attribute_specs=[], set_name=name, max_resolution=256, holdout=0.1, mirror_augment=False, lrate=0.001,
        minibatch_size=8, total_kimg=150, tick_kimg=10, snapshot_ticks=1, keep_snapshots=0, seed=1000,
        num_gpus=1, strategy='auto')
    kwargs.update(changes)
    kwargs['D_args'] = {'func_name': 'training.networks_stylegan.D_basic', 'fmap_base': 8192, 'fmap_max': 512,
                        **changes['D_args']}
    kwargs['opt_args'] = {'beta1': 0.0, 'beta2': 0.99, **changes['opt_args']}
    return SubmitConfig(run_dir_root=args.result_dir or 'results', num_gpus=kwargs['num_gpus'],
                        run_desc=f'classifiers-{name}'), kwargs


def resumed_run(run_dir: str, args: Any) -> tuple[SubmitConfig, dict[str, Any]]:
    """Submit configuration and arguments of a run that goes on.

    Errors: UserError where a flag would change its course.
    """
    from training.classifier_loop import can_resume
    if not can_resume(run_dir):
        raise UserError(f'--resume: {run_dir} holds no checkpoint of train_classifiers.py; start a new run')
    submit_config = load_submit_config(run_dir)
    stored = dict(submit_config.run_func_kwargs)
    changes = flag_changes(args)
    changes['dataset_args'].pop('max_label_size')   # Nobody said it.
    for key in ('dataset_args', 'D_args', 'opt_args'):
        changes[key] = {**stored[key], **changes[key]}
    differences = [f'{key} is {stored.get(key)!r} in the run, {value!r} on the command line'
                   for key, value in changes.items()
                   if key not in CHANGEABLE and _comparable(value) != _comparable(stored.get(key))]
    if differences:
        raise UserError(f'--resume: this run cannot go on with other settings ({"; ".join(differences)}). '
                        'Leave the flags out, or start a new run')
    submit_config.update(resume=True)
    return submit_config, {**stored, **changes}


def _comparable(value: Any) -> Any:
    """Without what may change in the arguments of the data set: where it lies."""
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key not in ('dataset', 'label_file', 'skip_bad')}
    return value


def find_run(what: str, result_dir: str) -> str:
    """The run directory that --resume means."""
    if what == 'latest':
        from training.classifier_loop import find_latest_run
        return find_latest_run(result_dir)
    path = _absolute(what)
    if not what.strip() or not is_remote_path(path) and not os.path.isdir(path):
        raise UserError(f'--resume: expected a run directory. Received: {what!r}')
    return path


def run(args: Any) -> int:
    """Resolves the configuration and trains; the exit status."""
    if args.resume is not None and (args.list_attributes or args.name):
        raise UserError(f'--resume goes without --{"name" if args.name else "list-attributes"}')
    flag_changes(args)      # Mistakes before the seconds that TensorFlow takes.
    load_tensorflow()
    if args.list_attributes:
        from training.classifier_loop import list_attributes
        print(list_attributes(**new_run(args)[1]))
        return 0
    run_dir = find_run(args.resume, args.result_dir or 'results') if args.resume is not None else None
    submit_config, kwargs = new_run(args) if run_dir is None else resumed_run(run_dir, args)
    from training.classifier_loop import check_arguments
    questions = check_arguments(**kwargs)
    if args.dry_run:
        counts = {question.name: dict(attribute=question.attribute, positive=question.positive,
                                      yes=int(question.targets.sum()), no=int((~question.targets).sum()))
                  for question in questions}
        print(json.dumps(to_plain({'run_dir_root': submit_config.run_dir_root,
                                   'run_desc': submit_config.run_desc, 'resume_run_dir': run_dir, **kwargs,
                                   'classifiers': counts}), indent=2))
        return 0
    flags.use_custom_ops(args.custom_ops)
    progress = submit_run(submit_config, LOOP, **kwargs)
    if progress.stop_reason is not None:
        print(f'To go on: python train_classifiers.py --resume={shlex.quote(progress.run_dir)}')
    return 128 + progress.stop_signal if progress.stop_signal else 0


def main() -> None:
    """Entry point of the command `stylegan-classifiers`."""
    flags.run(run, make_parser)


if __name__ == '__main__':
    main()
