"""Times the stages of a growing config; see `python -m benchmarks.growing --help`.

At every resolution, and in the fade that leads there: a training step (D, moving average, G) and the first
one, which traces the functions of the stage. StyleGAN2's step at the final resolution, with as many feature
maps and images, is measured in the same run to hold them against.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import machine, measure, peak_memory, print_heading, print_table, write_json
from benchmarks.networks import make_networks, phase_functions
from dnnlib import flags
from dnnlib.startup import load_tensorflow
from dnnlib.util import UserError, get_obj_by_name
from training.configs import find_config, growing_configs

PEER = 'StyleGAN2'


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser('Times the stages of a growing config.', examples=[
        'python -m benchmarks.growing                               # stylegan-f to 64x64',
        'python -m benchmarks.growing --config=progan --resolution=256 --fmap-base=4096 --json=progan.json',
    ], prog='benchmarks.growing')
    parser.add_flag('config', help='a config that grows', default='stylegan-f', choices=growing_configs())
    parser.add_flag('resolution', flags.positive_int, 'final resolution', default=64)
    parser.add_flag('fmap-base', flags.positive_int, 'overall number of feature maps', default=8 << 10)
    parser.add_flag('fmap-max', flags.positive_int, 'greatest number of feature maps of a layer', default=512)
    parser.add_flag('batch', flags.positive_int, 'images of a step', default=4)
    parser.add_flag('repeats', flags.positive_int, 'measurements; the table shows their median', default=5)
    parser.add_flag('json', help='also write all numbers to this file', metavar='FILE')
    return parser


def make_trainer(config: dict[str, Any], shape: dict[str, int]) -> Any:
    """The trainer of a config for networks of that shape."""
    import keras
    import tensorflow as tf

    from dnnlib import tflib
    from training.trainer import Trainer
    keras.utils.set_random_seed(1)
    G, D = (tflib.Network(role, **{**config[f'{role}_args'], **shape}) for role in 'GD')
    losses = []
    for role in 'GD':
        kwargs = dict(config[f'{role}_loss_args'])
        losses += [get_obj_by_name(kwargs.pop('func_name')), kwargs]
    return Trainer(tf.distribute.get_strategy(), G.layer, D.layer, G.clone('Gs').layer, *losses,
                   lazy_regularization=config['lazy_regularization'], D_first=config.get('D_first', False))


def step_function(trainer: Any, size: int, batch: int) -> Callable[[], Any]:
    """One training step at the present stage, whose images are size × size."""
    images = np.random.RandomState(1).randint(0, 256, [batch, size, size, 3], dtype=np.uint8)
    labels = np.zeros([batch, 0], np.float32)

    def run():
        # Step 1: no regularization is due where it is lazy.
        reports = trainer.step(1, images, labels, batch, 0.001, 0.001, 0.99)
        return [reports, [optimizer.num_applied.value() for optimizer in trainer.optimizers.values()]]

    return run


def benchmark(config_name: str, resolution: int, fmap_base: int, fmap_max: int, batch: int,
              repeats: int) -> dict[str, Any]:
    """Measures everything; returns plain numbers, seconds by stage."""
    import tensorflow as tf
    config = find_config(config_name)
    shape = dict(num_channels=3, resolution=resolution, label_size=0, fmap_base=fmap_base, fmap_max=fmap_max)
    start = config['sched_args']['lod_initial_resolution']
    if start > resolution:
        raise UserError(f'--resolution: {config_name} starts at {start}. Received: {resolution}')
    trainer = make_trainer(config, shape)
    final_log2, seconds, first, lods = resolution.bit_length() - 1, {}, {}, {}
    for res_log2 in range(start.bit_length() - 1, final_log2 + 1):
        lod = final_log2 - res_log2
        for name, value in [(f'{2 ** res_log2}x{2 ** res_log2}, fading in', lod + 0.5),
                            (f'{2 ** res_log2}x{2 ** res_log2}', float(lod))]:
            if value > final_log2 - (start.bit_length() - 1):
                continue
            begin = time.perf_counter()
            trainer.set_lod(value)
            trainer.reset_optimizers()
            run = step_function(trainer, 2 ** res_log2, batch)
            tf.nest.map_structure(np.asarray, run())
            first[name], lods[name] = time.perf_counter() - begin, value
            seconds.update(measure({name: run}, repeats))
    memory = peak_memory()
    peers = phase_functions(make_networks(resolution, fmap_base, fmap_max), ['G', 'D'], batch)
    seconds[PEER] = measure({PEER: lambda: [function() for function in peers.values()]}, repeats)[PEER]
    return dict(config=config_name, resolution=resolution, fmap_base=fmap_base, fmap_max=fmap_max,
                batch=batch, repeats=repeats, lods=lods, seconds=seconds, first_step=first,
                memory=memory, **machine())


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """The table: name, median, least and greatest seconds of a step, and what follows from them."""
    rows = [['', 'seconds', 'least', 'greatest', '']]
    for name, times in result['seconds'].items():
        median = statistics.median(times)
        note = f'{result["batch"] / median:.2f} images/s'
        if name in result['first_step']:
            note += f', lod {result["lods"][name]}, first step {result["first_step"][name]:.1f} s'
        else:
            note += ', G + D without regularization'
        rows.append([name, *(f'{value:.4g}' for value in (median, min(times), max(times))), note])
    rows.append(['peak memory', '', '', '', f'{result["memory"]:.2f} GiB after all stages'])
    return rows


def run(args: Any) -> None:
    """Measures and prints one table."""
    load_tensorflow()
    result = benchmark(args.config, args.resolution, args.fmap_base, args.fmap_max, args.batch, args.repeats)
    print_heading('{config} to {resolution}x{resolution}, fmap_base {fmap_base}, fmap_max {fmap_max}, '
                  'batch {batch}, float32, median of {repeats}', result)
    print_table(rows_of(result))
    if args.json:
        write_json(result, args.json)


def main() -> None:
    """Entry point."""
    flags.run(run, make_parser)


if __name__ == '__main__':
    main()
