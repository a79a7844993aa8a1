"""Fine-tunes a snapshot on other images, with parts of it frozen, by the public functions of training.

The same as a command: python train.py --resume=SNAPSHOT --dataset=IMAGES --freeze-d=2 --freeze-mapping …;
the script shows how a program of one's own starts such a run, and what of the networks it has changed.
"""

import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # Runs without an installation too.

from dnnlib import flags
from dnnlib.startup import load_tensorflow

# TensorFlow, and all modules that import it, are imported inside the functions: --help is answered at once.


def fine_tune(
    network_pkl: str,                       # Snapshot (G, D, Gs) to start from.
    dataset: str | None = None,             # Images to train on. None = the embedded ones.
    config: str = 'config-f',               # That of the snapshot.
    kimg: float = 10,                       # Length in thousands of images.
    freeze_d: int | list | None = 2,        # Highest resolutions of D, or layers, that stay as they are.
    freeze_mapping: bool = True,            # The mapping network stays as it is?
    result_dir: str = 'results',            # Where the run directory goes.
    **changes: Any,                         # More arguments of the training loop.
) -> Any:
    """Returns the progress of the run, with its directory as run_dir. Errors: those of the training loop."""
    from dnnlib.submission import SubmitConfig, submit_run
    from training.configs import find_config, merge
    from training.training_loop import check_arguments
    kwargs = merge(find_config(config), dict(
        resume_pkl=os.path.abspath(network_pkl), resume_kimg=0.0, total_kimg=kimg,
        dataset_args=dict(dataset=dataset and os.path.abspath(dataset)),
        G_freeze=['G_mapping'] if freeze_mapping else [], D_freeze=freeze_d,
        G_smoothing_kimg=min(10.0, kimg / 5),   # The average must follow within the short run.
        image_snapshot_ticks=1))
    kwargs = merge(kwargs, changes)
    check_arguments(**kwargs)               # Mistakes are said before there is a run directory.
    submit_config = SubmitConfig(run_dir_root=result_dir, run_desc='fine-tune', config=config)
    return submit_run(submit_config, 'training.training_loop.training_loop', **kwargs)


def changed_weights(before_pkl: str, after_pkl: str) -> dict[str, tuple[list[str], list[str]]]:
    """{'G' and 'D': (names of the weights that have changed, names of those that are bit-identical)}."""
    import numpy as np

    from training.snapshots import load_networks
    result = {}
    for before, after in zip(load_networks(before_pkl)[:2], load_networks(after_pkl)[:2], strict=True):
        names = list(before.trainables)
        same = [name for name in names if np.array_equal(before.get_var(name), after.get_var(name))]
        result[before.name] = [name for name in names if name not in same], same
    return result


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser('Fine-tunes a snapshot with parts of it frozen.', examples=[
        'python examples/fine_tune.py --network=network-final.pkl --dataset=~/my-images --config=demo',
    ], prog='fine_tune.py')
    parser.add_flag('network', flags.path, 'snapshot (G, D, Gs) to start from', required=True)
    parser.add_flag('dataset', flags.path, 'images to train on (default: the embedded ones)')
    parser.add_flag('config', help='configuration of the snapshot', default='config-f')
    parser.add_flag('kimg', flags.nonneg_float, 'length in thousands of images', default=10.0)
    parser.add_flag('freeze-d', flags.nonneg_int, 'highest resolutions of D that stay as they are', default=2)
    parser.add_flag('freeze-mapping', bool, 'the mapping network stays as it is', default=True)
    parser.add_flag('result-dir', flags.path, 'where the run directory goes', default='results')
    return parser


def run(args: Any) -> int:
    """Trains, and says how much of the networks has changed."""
    load_tensorflow()
    network, dataset = (path and os.path.expanduser(path) for path in (args.network, args.dataset))
    progress = fine_tune(network, dataset, args.config, args.kimg, args.freeze_d, args.freeze_mapping,
                         args.result_dir)
    if progress.stop_reason is not None:
        return 128 + progress.stop_signal if progress.stop_signal else 0
    for name, (changed, same) in changed_weights(
            network, os.path.join(progress.run_dir, 'network-final.pkl')).items():
        print(f'{name}: {len(changed)} weights trained, {len(same)} as they were')
    return 0


if __name__ == '__main__':
    flags.run(run, make_parser)
