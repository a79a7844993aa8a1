"""Whether the compiled operations compute on a device what TensorFlow's own operations compute there.

Asked once per process before impl='auto' takes the kernels of a GPU: a card, driver or compiler that nobody
has tried must cost speed, not results.
"""

import concurrent.futures
import functools
import itertools
import sys

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError

TOLERANCE = {tf.float32: 1e-4, tf.float16: 2e-2}


@functools.cache
def passed(device: str = '/GPU:0') -> bool:
    """Tries small inputs of every kind of kernel on the device; one warning where it fails."""
    try:
        # A thread of its own is outside of whatever is being traced, recorded or distributed here.
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            wrong = executor.submit(_first_failure, device).result()
    except (UserError, tf.errors.OpError) as error:
        wrong = str(error).splitlines()[0]
    if wrong is not None:
        print(f'Warning: the compiled operations do not work on {device} ({wrong}); the reference path '
              'takes their place, slower. python tests/gpu/check_kernels.py tells more', file=sys.stderr,
              flush=True)
    return wrong is None


def _first_failure(device: str) -> str | None:
    with tf.device(device):
        return next((name for name, custom, ref in _cases() if not _agree(custom, ref)), None)


def _cases():
    """(name, tensors by the compiled operation, the same by TensorFlow's)."""
    from custom_ops.filter_noise_bias_act import filter_noise_bias_act
    from custom_ops.fused_bias_act import fused_bias_act
    from custom_ops.upfirdn_2d import upfirdn_2d
    random = np.random.RandomState(1)
    k = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    for dtype, shape in itertools.product(TOLERANCE, [(2, 9, 10, 16), (2, 9, 10, 3), (6, 9, 10, 1)]):
        x, b, factor, noise = (tf.constant(random.randn(*size), dtype) for size in (
            shape, shape[3:], (shape[0], shape[3]), (*shape[:3], 1)))

        def both(func, x=x):
            return (_with_gradient(functools.partial(func, impl=impl), x) for impl in ('custom', 'ref'))

        yield f'fused_bias_act, {dtype.name}', *both(functools.partial(
            fused_bias_act, b=b, axis=3, act='lrelu'))
        for up, down in [(1, 1), (2, 1), (1, 2)]:
            yield f'upfirdn_2d, up {up}, down {down}, {dtype.name}', *both(functools.partial(
                upfirdn_2d, k=k, upx=up, upy=up, downx=down, downy=down, padx0=2, padx1=1, pady0=2, pady1=1))
        for options in ({}, {'k': k, 'pads': (2, 1, 2, 1)}):
            yield f'filter_noise_bias_act{", filter" * bool(options)}, {dtype.name}', *both(functools.partial(
                filter_noise_bias_act, factor=factor, noise=noise, b=b, act='lrelu', **options))


def _with_gradient(func, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = func(x)
        total = tf.reduce_sum(y * y)
    return y, tape.gradient(total, x)


def _agree(custom, ref) -> bool:
    return all(np.allclose(np.float64(a), np.float64(b), rtol=0, atol=TOLERANCE[b.dtype] * np.max(np.abs(b)))
               for a, b in zip(custom, ref, strict=True))
