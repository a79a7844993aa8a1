"""Times the networks and the phases of a training step; see `python -m benchmarks.networks --help`.

Everything is measured in one run, so that the numbers belong together: the generator, a plain generator with
the same weights, the phases of the trainer, and what the machine can do at best (3×3 convolutions, copying).
"""

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import machine, measure, peak_memory, print_heading, print_table, write_json
from dnnlib import flags
from dnnlib.startup import load_tensorflow
from dnnlib.util import UserError

PHASES = ('G', 'D', 'D_reg', 'G_reg')
NUM_CONV_SIZES = 4      # How many of the largest 3×3 convolutions are measured.
COPY_BYTES = 256 << 20  # Larger than the caches.


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser('Times generator and training steps of StyleGAN2.', examples=[
        'python -m benchmarks.networks                                # 256x256',
        'python -m benchmarks.networks --resolution=64 --json=64.json',
        'python -m benchmarks.networks --phases=none                  # the generator only',
    ], prog='benchmarks.networks')
    parser.add_flag('resolution', flags.positive_int, 'resolution of the images', default=256)
    parser.add_flag('fmap-base', flags.positive_int, 'overall number of feature maps; 8192 is what '
                    'stylegan2-ada-pytorch calls channel_base 16384', default=8 << 10)
    parser.add_flag('fmap-max', flags.positive_int, 'greatest number of feature maps of a layer', default=512)
    parser.add_flag('batch', flags.positive_int, 'images at a time', default=4)
    parser.add_flag('phases', _phase_list, 'training phases to time, or none', default=','.join(PHASES))
    parser.add_flag('repeats', flags.positive_int, 'measurements; the table shows their median', default=7)
    flags.add_custom_ops_flag(parser)
    parser.add_flag('json', help='also write all numbers to this file', metavar='FILE')
    return parser


def _phase_list(text: str) -> list[str]:
    names = [] if text == 'none' else text.split(',')
    wrong = [name for name in names if name not in PHASES]
    if wrong:
        raise UserError(f'expected none or some of {",".join(PHASES)}, received {text!r}')
    return names


_phase_list.metavar = 'LIST'


def forward_flops(network: Any) -> int:
    """Floating point operations of the convolutions and dense layers of G_main, per image.

    A multiplication and its addition count 2. Convolutions that upsample run at the resolution of their
    input. Filters, demodulation and everything that works element by element are left out.
    """
    total = 0
    for name, shape, params in network.list_layers():
        for var in params:
            local = var.name.rpartition('/')[2].removesuffix(':0')
            if local not in ('weight', 'mod_weight'):
                continue
            pixels = 1
            if len(var.shape) == 4:
                scale = 2 if name.endswith(('_up', '/Skip')) else 1
                pixels = shape[2] // scale * (shape[3] // scale)
            total += 2 * math.prod(var.shape) * pixels
    return total


def conv_sizes(network: Any) -> list[tuple[int, int]]:
    """(resolution, channels) of the largest 3×3 convolutions of the generator, most operations first."""
    sizes = {(shape[2], shape[1]) for name, shape, _ in network.list_layers() if name.endswith('/Conv1')}
    sizes = sizes or {(4, network.find_var('G_synthesis/4x4/Conv/weight').shape[3])}
    return sorted(sizes, key=lambda size: (size[0] * size[1], size[0]), reverse=True)[:NUM_CONV_SIZES]


def make_networks(resolution: int, fmap_base: int, fmap_max: int) -> tuple[Any, Any, Any]:
    """(G, D, Gs) of config F. What starts at 0, biases and noise strengths, is set, so that it shows."""
    import keras

    from dnnlib import tflib
    keras.utils.set_random_seed(1)
    shape = dict(num_channels=3, resolution=resolution, label_size=0, fmap_base=fmap_base, fmap_max=fmap_max)
    G = tflib.Network('G', 'training.networks_stylegan2.G_main', **shape)
    D = tflib.Network('D', 'training.networks_stylegan2.D_stylegan2', **shape)
    rnd = np.random.RandomState(1)
    G.set_vars({name: 0.1 * rnd.randn(*var.shape) for name, var in G.trainables.items()
                if name.endswith(('bias', 'noise_strength'))})
    return G, D, G.clone('Gs')


def phase_functions(networks: tuple, names: list[str], batch: int) -> dict[str, Callable[[], Any]]:
    """One training step of each phase, as the training loop takes it, by the name of the phase."""
    import tensorflow as tf

    from training import loss
    from training.trainer import Trainer
    G, D, Gs = networks
    trainer = Trainer(tf.distribute.get_strategy(), G.layer, D.layer, Gs.layer,
                      loss.G_logistic_ns_pathreg, {}, loss.D_logistic_r1, dict(gamma=10))
    resolution = G.output_shape[2]
    images = np.random.RandomState(1).randint(0, 256, [batch, resolution, resolution, 3], dtype=np.uint8)
    labels = np.zeros([batch, 0], np.float32)

    def run(phase):
        lrate = trainer.learning_rate(phase.name[0], 0.002)
        reports = trainer.run_phase(phase, 0, images, labels, batch, 1, lrate)
        return [reports, phase.optimizer.num_applied.value()]

    return {phase.name: lambda phase=phase: run(phase) for phase in trainer.phases if phase.name in names}


def forward_functions(Gs: Any, batch: int) -> tuple[dict[str, Callable[[], Any]], float]:
    """The generator and the plain one, traced, and the largest difference between their images."""
    import tensorflow as tf

    from benchmarks.plain_generator import PlainGenerator
    plain = PlainGenerator(Gs)

    @tf.function(autograph=False)
    def ours(latents, randomize_noise):
        return Gs.layer(latents, truncation_psi=None, randomize_noise=randomize_noise)

    @tf.function(autograph=False)
    def theirs(latents, randomize_noise):
        return plain(latents, randomize_noise)

    latents = tf.constant(np.random.RandomState(2).randn(batch, Gs.input_shape[1]), tf.float32)
    difference = float(np.max(np.abs(ours(latents, False) - theirs(latents, False))))
    functions = {'generator': lambda: ours(latents, True), 'plain generator': lambda: theirs(latents, True)}
    return functions, difference


def machine_functions(sizes: list[tuple[int, int]], batch: int) -> dict[str, Callable[[], Any]]:
    """What the machine does at best: 3×3 convolutions (NHWC, SAME) and x + 1 on a large tensor."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def conv(x, w):
        return tf.nn.conv2d(x, w, strides=1, padding='SAME')

    @tf.function(autograph=False)
    def add(x):
        return x + 1

    functions = {}
    for size, channels in sizes:
        x = tf.random.normal([batch, size, size, channels])
        w = tf.random.normal([3, 3, channels, channels])
        functions[f'conv 3x3, {size}x{size}x{channels}'] = lambda x=x, w=w: conv(x, w)
    large = tf.zeros([COPY_BYTES // 4])
    functions['copy'] = lambda: add(large)
    return functions


def benchmark(resolution: int, fmap_base: int, fmap_max: int, batch: int, phases: list[str],
              repeats: int) -> dict[str, Any]:
    """Measures everything; returns plain numbers: seconds, per second, GiB (see `rows_of`)."""
    networks = make_networks(resolution, fmap_base, fmap_max)
    result = dict(resolution=resolution, fmap_base=fmap_base, fmap_max=fmap_max, batch=batch, repeats=repeats,
                  **machine())
    # Training first: the peak of the memory is that of the process since its start.
    result['memory_before'] = peak_memory()
    times = measure(phase_functions(networks, phases, batch), repeats)
    result['memory_training'] = peak_memory() if phases else None
    forward, result['max_abs_difference'] = forward_functions(networks[2], batch)
    sizes = conv_sizes(networks[2])
    times.update(measure({**forward, **machine_functions(sizes, batch)}, repeats))
    result['seconds'] = times
    result['generator_flops'] = forward_flops(networks[2])
    result['conv_flops'] = {f'conv 3x3, {size}x{size}x{channels}': 2 * 9 * batch * (size * channels) ** 2
                            for size, channels in sizes}
    return result


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """The table: name, median, least and greatest seconds, and what follows from the median."""
    batch = result['batch']
    median = {name: statistics.median(times) for name, times in result['seconds'].items()}
    speed = {name: flops / median[name] / 1e9 for name, flops in result['conv_flops'].items()}
    peak = max(speed.values())
    notes = {name: f'{value:.1f} GFLOP/s' for name, value in speed.items()}
    notes['copy'] = f'{2 * COPY_BYTES / median["copy"] / 1e9:.1f} GB/s, read and written'
    for name in ('generator', 'plain generator'):
        gflops = batch * result['generator_flops'] / median[name] / 1e9
        notes[name] = (f'{batch / median[name]:.2f} images/s, {gflops:.1f} GFLOP/s, '
                       f'{gflops / peak:.0%} of the peak')
    notes['plain generator'] += f', differs by {result["max_abs_difference"]:.1e}'
    rows = [['', 'seconds', 'least', 'greatest', '']]
    for name, times in result['seconds'].items():
        label = f'phase {name}' if name in PHASES else name
        numbers = [f'{value:.4g}' for value in (median[name], min(times), max(times))]
        rows.append([label, *numbers, notes.get(name, '')])
    rows.append(['convolution peak', '', '', '', f'{peak:.1f} GFLOP/s, the best 3x3 convolution'])
    if {'G', 'D'} <= set(median):
        rows.append(['phases G + D', f'{median["G"] + median["D"]:.4g}', '', '', 'sum of the medians'])
    if set(PHASES) <= set(median):
        step = median['G'] + median['D'] + median['G_reg'] / 4 + median['D_reg'] / 16
        rows.append(['training step', f'{step:.4g}', '', '',
                     f'{batch / step:.2f} images/s: G + D + G_reg / 4 + D_reg / 16'])
    if result['memory_training'] is not None:
        rows.append(['peak memory', '', '', '', f'{result["memory_training"]:.2f} GiB after the phases, '
                                                f'{result["memory_before"]:.2f} GiB before'])
    return rows


def run(args: Any) -> None:
    """Measures and prints one table."""
    flags.use_custom_ops(args.custom_ops)
    load_tensorflow()
    result = benchmark(args.resolution, args.fmap_base, args.fmap_max, args.batch, args.phases, args.repeats)
    print_heading('StyleGAN2 {resolution}x{resolution}, fmap_base {fmap_base}, fmap_max {fmap_max}, '
                  'batch {batch}, float32, median of {repeats}', result)
    print_table(rows_of(result))
    if args.json:
        write_json(result, args.json)


def main() -> None:
    """Entry point."""
    flags.run(run, make_parser)


if __name__ == '__main__':
    main()
