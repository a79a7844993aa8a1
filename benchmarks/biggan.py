"""Times the training steps of BigGAN; see `python -m benchmarks.biggan --help`.

The steps of G and D are those of the trainer, with the hinge loss, and are set beside the best 3×3
convolution of the same run.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import machine, measure, peak_memory, print_heading, print_table, write_json
from benchmarks.networks import machine_functions
from dnnlib import flags
from dnnlib.startup import load_tensorflow

CLASSES = 1000


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser('Times the training steps of BigGAN.', examples=[
        'python -m benchmarks.biggan --ch=32',
        'python -m benchmarks.biggan --ch=96 --json=96.json',
        'python -m benchmarks.biggan --resolution=64 --ch=32 --batch=16 --recompute',
    ], prog='benchmarks.biggan')
    parser.add_flag('resolution', flags.positive_int, 'resolution of the images', default=128)
    parser.add_flag('ch', flags.positive_int, 'factor on the number of feature maps', default=96)
    parser.add_flag('batch', flags.positive_int, 'images at a time', default=4)
    parser.add_flag('repeats', flags.positive_int, 'measurements; the table shows their median', default=5)
    parser.add_flag('recompute', bool, 'also time steps that compute what is inside of blocks again, as '
                                       'train.py --recompute, and show the memory that they take',
                    default=False)
    flags.add_custom_ops_flag(parser)
    parser.add_flag('json', help='also write all numbers to this file', metavar='FILE')
    return parser


def forward_flops(network: Any) -> int:
    """Floating point operations per image of a forward pass, as it is computed.

    A multiplication and its addition count 2. A convolution that upsamples runs at the resolution of its
    input, one that downsamples at that of its output. What works element by element is left out, and so
    is the power iteration, which does not depend on the batch.
    """
    layers, total = network.layer.normalized_layers(), 0
    shapes = {name: shape for name, shape, _ in network.list_layers()}
    for name, layer in layers.items():
        pixels = 1
        if len(layer.weight.shape) == 4:
            scale = 2 if layer.up and layer.weight.shape[0] > 1 else 1
            pixels = shapes[name][2] // scale * (shapes[name][3] // scale)
        total += 2 * math.prod(layer.weight.shape) * pixels
    for resolution, layer in network.layer.attention.items():
        channels = layer.theta.weight.shape[3] + layer.g.weight.shape[3]
        total += 2 * channels * resolution ** 4 // 4
    return total


def step_flops(of_G: int, of_D: int, batch: int) -> dict[str, int]:
    """Operations of the steps. Gradients cost as much as the forward pass for inputs, and again for weights.

    G: G forward and both gradients, D forward and that of its input. D: G forward; D on fakes and reals.
    """
    return {'G': batch * (3 * of_G + 2 * of_D), 'D': batch * (of_G + 2 * 3 * of_D)}


def make_networks(resolution: int, ch: int) -> tuple[Any, Any]:
    """(G, D) for CLASSES classes. Attention is switched on, so that it shows."""
    import keras

    from dnnlib import tflib
    keras.utils.set_random_seed(1)
    shape = dict(num_channels=3, resolution=resolution, label_size=CLASSES, ch=ch, init='normal')
    G = tflib.Network('G', 'training.networks_biggan.G_biggan', **shape)
    D = tflib.Network('D', 'training.networks_biggan.D_biggan', **shape)
    for network in (G, D):
        network.set_vars({name: 0.5 for name in network.vars if name.endswith('gamma')})
    return G, D


def step_functions(G: Any, D: Any, batch: int) -> dict[str, Callable[[], Any]]:
    """One training step of each network, as the training loop takes it."""
    import tensorflow as tf

    from training import loss
    from training.trainer import Trainer
    labels = np.eye(CLASSES, dtype=np.float32)[np.arange(batch) % CLASSES]
    # The average of the weights is not part of a step, and so needs no network of its own here.
    trainer = Trainer(tf.distribute.get_strategy(), G.layer, D.layer, G.layer, loss.G_hinge, {}, loss.D_hinge,
                      {}, labels=np.eye(CLASSES, dtype=np.float32), lazy_regularization=False)
    resolution = G.output_shape[2]
    images = np.random.RandomState(1).randint(0, 256, [batch, resolution, resolution, 3], dtype=np.uint8)

    def run(phase):
        reports = trainer.run_phase(phase, 0, images, labels, batch, 1, 1e-4)
        return [reports, phase.optimizer.num_applied.value()]

    return {phase.name: lambda phase=phase: run(phase) for phase in trainer.phases}


def recomputing_functions(G: Any, D: Any, batch: int) -> dict[str, Callable[[], Any]]:
    """The steps that compute results again for gradients, traced; the networks are as before."""
    functions = {f'{name}, recomputed': function for name, function in step_functions(G, D, batch).items()}
    for network in (G, D):
        network.layer.recompute = True
    for function in functions.values():
        function()
    for network in (G, D):
        network.layer.recompute = False
    return functions


def benchmark(resolution: int, ch: int, batch: int, repeats: int, recompute: bool = False) -> dict[str, Any]:
    """Measures everything; returns plain numbers: seconds, operations, GiB (see `rows_of`)."""
    G, D = make_networks(resolution, ch)
    result = dict(resolution=resolution, ch=ch, batch=batch, repeats=repeats, **machine())
    result['flops'] = step_flops(forward_flops(G), forward_flops(D), batch)
    sizes = sorted({(shape[2], shape[1]) for name, shape, _ in G.list_layers() if name.endswith('/Conv1')})
    limits = machine_functions(sizes[::-1], batch)
    steps, again = step_functions(G, D, batch), {}
    if recompute:       # First of all: the peak of a process only grows.
        result['memory_before'] = peak_memory()
        again = recomputing_functions(G, D, batch)
        result['memory_recompute'] = peak_memory()
    result['seconds'] = measure({**steps, **again, **limits}, repeats)
    result['conv_flops'] = {f'conv 3x3, {size}x{size}x{channels}': 2 * 9 * batch * (size * channels) ** 2
                            for size, channels in sizes}
    result['memory'] = peak_memory()
    return result


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """The table: name, median, least and greatest seconds, and what follows from the median."""
    median = {name: statistics.median(times) for name, times in result['seconds'].items()}
    speed = {name: flops / median[name] / 1e9 for name, flops in result['conv_flops'].items()}
    peak = max(speed.values())
    notes = {name: f'{value:.1f} GFLOP/s' for name, value in speed.items()}
    for name, flops in result['flops'].items():
        gflops = flops / median[name] / 1e9
        notes[name] = f'{flops / 1e9:.1f} GFLOP, {gflops:.1f} GFLOP/s, {gflops / peak:.0%} of the peak'
    for name in result['flops']:
        if f'{name}, recomputed' in median:
            notes[f'{name}, recomputed'] = f'{median[f"{name}, recomputed"] / median[name]:.2f} times as long'
    rows = [['', 'seconds', 'least', 'greatest', '']]
    for name, times in result['seconds'].items():
        numbers = [f'{value:.4g}' for value in (median[name], min(times), max(times))]
        is_step = name.partition(',')[0] in result['flops']
        rows.append([f'step of {name}' if is_step else name, *numbers, notes.get(name, '')])
    rows.append(['convolution peak', '', '', '', f'{peak:.1f} GFLOP/s, the best 3x3 convolution'])
    rows.append(['peak memory', '', '', '', f'{result["memory"]:.2f} GiB'])
    if 'memory_recompute' in result:
        rows.append(['... of steps, recomputed', '', '', '', '{memory_recompute:.2f} GiB, '
                     '{memory_before:.2f} GiB before'.format(**result)])
    return rows


def run(args: Any) -> None:
    """Measures and prints one table."""
    flags.use_custom_ops(args.custom_ops)
    load_tensorflow()
    result = benchmark(args.resolution, args.ch, args.batch, args.repeats, args.recompute)
    print_heading('BigGAN {resolution}x{resolution}, ch {ch}, batch {batch}, float32, '
                  'median of {repeats}', result)
    print_table(rows_of(result))
    if args.json:
        write_json(result, args.json)


def main() -> None:
    """Entry point."""
    flags.run(run, make_parser)


if __name__ == '__main__':
    main()
