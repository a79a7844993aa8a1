"""Times the fused operations, compiled and composed; see `python -m benchmarks.ops --help`.

The sizes are those of a config F network, from 32×32 to 1024×1024. What 'auto' takes on a CPU in
custom_ops/fused_bias_act.py and custom_ops/upfirdn_2d.py was decided with this table.
"""

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import machine, measure, print_heading, print_table, write_json
from dnnlib import flags
from dnnlib.startup import load_tensorflow
from dnnlib.util import UserError

RESOLUTIONS = (32, 64, 128, 256, 512, 1024)
MAX_ELEMENTS = 1 << 25      # Of a tensor: the batch is 4 or what this leaves.
COPY_ELEMENTS = 1 << 24
KERNEL = [1, 3, 3, 1]


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser('Times the fused operations, compiled and composed.', examples=[
        'python -m benchmarks.ops                                 # everything, about four minutes',
        'python -m benchmarks.ops --ops=filter,down --resolutions=256,1024',
        'python -m benchmarks.ops --data-format=NCHW --ops=filter,image-up --json=ops.json',
    ], prog='benchmarks.ops')
    parser.add_flag('ops', _names, 'which operations', default=','.join(OPS))
    parser.add_flag('resolutions', _sizes, 'which resolutions', default=','.join(map(str, RESOLUTIONS)))
    parser.add_flag('fmap-base', flags.positive_int, 'overall number of feature maps', default=16 << 10)
    parser.add_flag('dtype', help='of the activations', default='float32',
                    choices=['float32', 'float64', 'float16', 'bfloat16'])
    parser.add_flag('data-format', help='layout of the filters', default='NHWC', choices=['NHWC', 'NCHW'])
    parser.add_flag('impl', help='what is compared with the composed form', default='custom',
                    choices=['custom', 'auto'])
    parser.add_flag('jit-compile', bool, 'let XLA compile both', default=False)
    parser.add_flag('repeats', flags.positive_int, 'measurements; the table shows their median', default=3)
    parser.add_flag('json', help='also write all numbers to this file', metavar='FILE')
    return parser


def _names(text: str) -> list[str]:
    names = text.split(',')
    if not set(names) <= set(OPS):
        raise UserError(f'expected some of {",".join(OPS)}, received {text!r}')
    return names


def _sizes(text: str) -> list[int]:
    return [flags.positive_int(size) for size in text.split(',')]


_names.metavar = _sizes.metavar = 'LIST'


def _filter(x, impl, data_format):
    """What follows an upsampling convolution; its gradient is what precedes a downsampling one."""
    from custom_ops import filter_2d
    return filter_2d(x, KERNEL, data_format=data_format, impl=impl)


def _down(x, impl, data_format):
    from custom_ops import downsample_2d
    return downsample_2d(x, KERNEL, data_format=data_format, impl=impl)


def _up(x, impl, data_format):
    from custom_ops import upsample_2d
    return upsample_2d(x, KERNEL, data_format=data_format, impl=impl)


def _bias_act(x, b, impl, data_format):
    from custom_ops import fused_bias_act
    return fused_bias_act(x, b, axis=data_format.index('C'), act='lrelu', gain=1, impl=impl)


def _conv_bias_act(x, w, b, impl, data_format):
    import tensorflow as tf
    return _bias_act(tf.nn.conv2d(x, w, strides=1, padding='SAME'), b, impl, 'NHWC')


def _epilogue(x, factor, noise, strength, b, impl, data_format):
    """What follows a modulated convolution."""
    from custom_ops import filter_noise_bias_act
    return filter_noise_bias_act(x, None, factor=factor, noise=noise, strength=strength, b=b, act='lrelu',
                                 gain=1, impl=impl)


def _filter_epilogue(x, factor, noise, strength, b, impl, data_format):
    """... one that upsamples."""
    from custom_ops import filter_noise_bias_act
    from custom_ops.upfirdn_2d import setup_kernel
    return filter_noise_bias_act(x, setup_kernel(KERNEL), (1, 1, 1, 1), factor, noise, strength, b, 'lrelu',
                                 gain=1, impl=impl)


# name: (function, reads an image of 3 channels, passes over memory as multiples of (input, output): forward,
# backward; None = does not count)
OPS = {
    'filter': (_filter, False, (1, 1), (1, 1)),
    'down': (_down, False, (1, 1), (1, 1)),
    'up': (_up, False, (1, 1), (1, 1)),
    'image-down': (_down, True, (1, 1), (1, 1)),
    'image-up': (_up, True, (1, 1), (1, 1)),
    'bias-act': (_bias_act, False, (1, 1), (1, 2)),
    'conv-bias-act': (_conv_bias_act, False, None, None),
    'epilogue': (_epilogue, False, (1, 1), (2, 2)),
    'filter-epilogue': (_filter_epilogue, False, (1, 1), (2, 2)),
}

NHWC_ONLY = ('conv-bias-act', 'epilogue', 'filter-epilogue')


def make_inputs(name: str, resolution: int, fmap_base: int, dtype: str, data_format: str) -> list:
    """Random inputs of an operation whose larger side is `resolution`."""
    import tensorflow as tf

    from training.layers import feature_maps, log2_resolution
    channels = feature_maps(log2_resolution(resolution) - 1, fmap_base, 1.0, 1, 512)
    channels = 3 if OPS[name][1] else channels
    batch = max(min(4, MAX_ELEMENTS // (resolution ** 2 * channels)), 1)
    size = {'up': resolution // 2, 'image-up': resolution // 2,
            'filter-epilogue': resolution + 1}.get(name, resolution)
    shape = [batch, size, size, channels]
    if data_format == 'NCHW' and name not in NHWC_ONLY:
        shape = [batch, channels, size, size]
    shapes = [shape]
    if name == 'conv-bias-act':
        shapes.append([3, 3, channels, channels])
    if name.endswith('bias-act'):
        shapes.append([channels])
    if name.endswith('epilogue'):
        shapes += [[batch, channels], [batch, resolution, resolution, 1], [], [channels]]
    rnd = np.random.RandomState(1)
    return [tf.constant(np.float32(rnd.randn(*shape)) / np.float32(np.sqrt(np.prod(shape[:-1]))), dtype)
            for shape in shapes]


def make_functions(name: str, inputs: list, data_format: str, impl: str,
                   jit_compile: bool) -> dict[str, Callable]:
    """{label: function}: forward and forward + backward, composed and compiled."""
    import tensorflow as tf
    functions = {}
    for label, form in (('composite', 'ref'), ('custom', 'auto' if jit_compile else impl)):
        def forward(*inputs, form=form):
            return OPS[name][0](*inputs, form, data_format)

        def both(dy, *inputs, forward=forward):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                y = forward(*inputs)
            return [y, *tape.gradient(y, inputs, dy)]

        forward = tf.function(forward, autograph=False, jit_compile=jit_compile)
        dy = forward(*inputs)
        both = tf.function(both, autograph=False, jit_compile=jit_compile)
        functions[f'{label} forward'] = lambda forward=forward: forward(*inputs)
        functions[f'{label} both'] = lambda both=both, dy=dy: both(dy, *inputs)
    return functions


def run_case(name: str, resolution: int, args: Any) -> dict[str, Any]:
    """Measures one operation at one size, and copying beside it."""
    import tensorflow as tf
    inputs = make_inputs(name, resolution, args.fmap_base, args.dtype, args.data_format)
    functions = make_functions(name, inputs, args.data_format, args.impl, args.jit_compile)
    size = np.array([inputs[0].dtype.size * np.prod(tensor.shape)
                     for tensor in (inputs[0], functions['custom forward']())])
    copy = tf.function(lambda x: x + 1, autograph=False)
    large = tf.zeros([COPY_ELEMENTS])
    seconds = measure({**functions, 'copy': lambda: copy(large)}, args.repeats)
    forward, backward = OPS[name][2:]
    return dict(
        op=name, resolution=resolution, shape=inputs[0].shape.as_list(), seconds=seconds,
        copy_bytes=8 * COPY_ELEMENTS, forward_bytes=forward and int(size @ forward),
        both_bytes=forward and int(size @ np.add(forward, backward)))


def rows_of(cases: list[dict[str, Any]]) -> list[list[str]]:
    """The table: milliseconds, how many times as fast, share of the copy bandwidth."""
    rows = [['', 'composite ms', 'custom ms', 'speedup', 'of copy', 'composite ms', 'custom ms', 'speedup',
             'of copy', '']]
    for case in cases:
        median = {key: statistics.median(times) for key, times in case['seconds'].items()}
        row = [f'{case["op"]} ' + 'x'.join(map(str, case['shape']))]
        for step in ('forward', 'both'):
            composite, custom = median[f'composite {step}'], median[f'custom {step}']
            num_bytes = case[f'{step}_bytes']
            speed = num_bytes and num_bytes / custom / (case['copy_bytes'] / median['copy'])
            row += [f'{1000 * composite:.3f}', f'{1000 * custom:.3f}', f'{composite / custom:.2f}',
                    f'{speed:.0%}' if num_bytes else '']
        rows.append([*row, ''])
    return rows


def run(args: Any) -> None:
    """Measures and prints one table."""
    load_tensorflow()
    cases = [run_case(name, resolution, args) for name in args.ops for resolution in args.resolutions]
    copy = statistics.median(time for case in cases for time in case['seconds']['copy'])
    result = dict(cases=cases, dtype=args.dtype, data_format=args.data_format, fmap_base=args.fmap_base,
                  jit_compile=args.jit_compile, repeats=args.repeats, **machine())
    print_heading('{dtype}, {data_format}' + ', XLA' * args.jit_compile
                  + f', impl={args.impl}, fmap_base {args.fmap_base}, median of {args.repeats}', result)
    print(f'copy: {8 * COPY_ELEMENTS / copy / 1e9:.1f} GB/s, read and written. Left: forward; right: forward '
          'and backward.\n')
    print_table(rows_of(cases))
    if args.json:
        write_json(result, args.json)


def main() -> None:
    """Entry point."""
    flags.run(run, make_parser)


if __name__ == '__main__':
    main()
