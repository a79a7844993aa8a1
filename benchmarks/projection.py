"""Times the steps of the projector; see `python -m benchmarks.projection --help`.

A step is held against one forward and backward pass of the synthesis network in the same run, which it cannot
do without: what is above is the projector's own.
"""

import statistics
from typing import Any

import numpy as np

from benchmarks.common import machine, measure, print_heading, print_table, write_json
from benchmarks.networks import make_networks
from dnnlib import flags
from dnnlib.startup import load_tensorflow


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser('Times the steps of the projector.', examples=[
        'python -m benchmarks.projection --resolution=64 --batch=8'], prog='benchmarks.projection')
    parser.add_flag('resolution', flags.positive_int, 'resolution of the generator', default=256)
    parser.add_flag('fmap-base', flags.positive_int, 'overall number of feature maps', default=8 << 10)
    parser.add_flag('fmap-max', flags.positive_int, 'greatest number of feature maps of a layer', default=512)
    parser.add_flag('batch', flags.positive_int, 'images at a time', default=1)
    parser.add_flag('repeats', flags.positive_int, 'measurements; the table shows their median', default=5)
    parser.add_flag('json', help='also write all numbers to this file', metavar='FILE')
    return parser


def benchmark(resolution: int, fmap_base: int, fmap_max: int, batch: int, repeats: int) -> dict[str, Any]:
    """Measures both; returns plain numbers."""
    import tensorflow as tf

    from projector import Projector
    _, _, Gs = make_networks(resolution, fmap_base, fmap_max)
    proj = Projector()
    proj.dlatent_avg_samples, proj.num_steps, proj.distance = 1000, 1 << 20, 'l2'
    proj.set_network(Gs)
    proj.start(np.random.RandomState(1).uniform(-1, 1, [batch, 3, resolution, resolution]))
    synthesis = Gs.components.synthesis
    dlatents = tf.Variable(tf.random.normal([batch, *synthesis.input_shape[1:]]))

    @tf.function(autograph=False)
    def forward_backward():
        with tf.GradientTape() as tape:
            images = synthesis.layer(dlatents, randomize_noise=False)
            loss = tf.reduce_sum(tf.square(images))
        return tape.gradient(loss, dlatents)

    def step():
        proj.step()
        return proj.history['distance'][-1]

    seconds = measure({'projector step': step, 'forward + backward': forward_backward}, repeats)
    return dict(resolution=resolution, fmap_base=fmap_base, fmap_max=fmap_max, batch=batch, repeats=repeats,
                seconds=seconds, **machine())


def run(args: Any) -> None:
    """Measures, prints, writes."""
    load_tensorflow()
    result = benchmark(args.resolution, args.fmap_base, args.fmap_max, args.batch, args.repeats)
    medians = {name: statistics.median(times) for name, times in result['seconds'].items()}
    rows = [['', 'seconds', 'least', 'greatest', 'steps/s']]
    for name, times in result['seconds'].items():
        median = medians[name]
        rows.append([name, f'{median:.4f}', f'{min(times):.4f}', f'{max(times):.4f}', f'{1 / median:.2f}'])
    print_heading('StyleGAN2 {resolution}x{resolution}, fmap_base {fmap_base}, batch {batch}, '
                  'median of {repeats}', result)
    print_table(rows)
    share = medians['forward + backward'] / medians['projector step']
    print(f'A step spends {100 * share:.0f}% of its time as the pass alone would.')
    if args.json:
        write_json(result, args.json)


def main() -> None:
    """Entry point."""
    flags.run(run, make_parser)


if __name__ == '__main__':
    main()
