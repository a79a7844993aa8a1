"""Resampling of images by FIR filters: pad, upsample, filter, downsample (StyleGAN2, appendix B).

The filter is applied as a true convolution. `data_format` is that of the arguments; the work is done in NHWC,
the fast layout of CPU convolutions and of tensor cores.
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from custom_ops.dispatch import check_impl, compiled_ops, has_gpu, host_constant, in_xla
from dnnlib.util import UserError

# With so few channels (images) a dense convolution beats a depthwise one, which vectorizes over channels.
_FEW_CHANNELS = 4
# Numbers in an image from which on a depthwise convolution is the fastest filter.
_LARGE = 1 << 22
# What the compiled operation takes: taps along each axis; taps in all, on a GPU.
MAX_TAPS = 32
_MAX_GPU_TAPS = 256


def setup_kernel(k) -> np.ndarray:
    """The 2-D FIR filter [kh, kw], float32 with sum 1, of a 1-D (separable) or 2-D sequence of taps."""
    k = np.asarray(k, dtype=np.float32)
    if k.ndim == 1:
        k = np.outer(k, k)
    if k.ndim != 2 or k.size == 0 or np.sum(k) == 0:
        raise UserError('A resampling kernel must be 1-D or 2-D with a non-zero sum. '
                        f'Received shape: {k.shape}')
    return k / np.sum(k)


def _kernel_or_box(k, factor: int) -> np.ndarray:
    """No kernel means a box: nearest-neighbour upsampling, average pooling."""
    return setup_kernel([1] * factor if k is None else k)


def _to_nhwc(x: tf.Tensor, data_format: str) -> tf.Tensor:
    if data_format not in ('NCHW', 'NHWC'):
        raise UserError(f"data_format must be 'NCHW' or 'NHWC'. Received: {data_format!r}")
    return x if data_format == 'NHWC' else tf.transpose(x, [0, 2, 3, 1])


def _from_nhwc(x: tf.Tensor, data_format: str) -> tf.Tensor:
    return x if data_format == 'NHWC' else tf.transpose(x, [0, 3, 1, 2])


def _fir(x: tf.Tensor, k: np.ndarray, stride: int, pads: list) -> tf.Tensor:
    """Filters every channel of x [N, H, W, C] with k, padded with zeros, keeping each stride-th pixel."""
    channels = x.shape[-1]
    k = k[::-1, ::-1]  # TensorFlow's convolutions are correlations.
    if channels <= _FEW_CHANNELS:
        kernel = k[:, :, np.newaxis, np.newaxis] * np.eye(channels, dtype=k.dtype)
        return tf.nn.conv2d(x, tf.constant(kernel, x.dtype), strides=stride, padding=pads)
    kernel = np.tile(k[:, :, np.newaxis, np.newaxis], [1, 1, channels, 1])
    y = tf.nn.depthwise_conv2d(x, tf.constant(kernel, x.dtype), [1, stride, stride, 1], pads)
    # A barrier. TensorFlow's graph optimizer fuses a depthwise convolution with the bias that follows, loses
    # the padding on the way and aborts the process.
    return tf.ensure_shape(y, y.shape)


def upfirdn_2d(
    x: tf.Tensor,       # Input [majorDim, inH, inW, minorDim], NHWC.
    k,                  # FIR filter [kh, kw], array-like of constants, used as given.
    upx: int = 1,       # Zero-insertion factor along x, ≥ 1.
    upy: int = 1,       # Zero-insertion factor along y, ≥ 1.
    downx: int = 1,     # Keep every downx-th column of the result, ≥ 1.
    downy: int = 1,     # Keep every downy-th row of the result, ≥ 1.
    padx0: int = 0,     # Columns of zeros to add on the left of the upsampled image; negative = crop.
    padx1: int = 0,     # ... on the right.
    pady0: int = 0,     # Rows of zeros to add at the top; negative = crop.
    pady1: int = 0,     # ... at the bottom.
    impl: str = 'auto', # 'custom' = compiled, 'ref' = composed of TensorFlow operations,
                        # 'auto' = the fastest at hand.
) -> tf.Tensor:
    """Upsamples, pads, filters and downsamples a batch of 2-D images, channel by channel.

    Returns [majorDim, outH, outW, minorDim] with outH = (inH·upy + pady0 + pady1 - kh) // downy + 1, outW
    likewise. Differentiable to any order with respect to `x`. Raises UserError where the arguments do not
    fit.
    """
    check_impl(impl)
    x = tf.convert_to_tensor(x)
    k = np.asarray(k)
    if x.shape.rank != 4 or k.ndim != 2 or k.size == 0:
        raise UserError('upfirdn_2d expects x of rank 4 and k of rank 2, not empty. '
                        f'Received: {x.shape} and {k.shape}')
    _check_static(x)
    if min(upx, upy, downx, downy) < 1:
        raise UserError('upfirdn_2d expects factors of at least 1. '
                        f'Received: up {upx}x{upy}, down {downx}x{downy}')
    sizes = [x.shape[1] * upy + pady0 + pady1, x.shape[2] * upx + padx0 + padx1]
    if any(size < taps for size, taps in zip(sizes, k.shape, strict=True)):
        raise UserError(f'upfirdn_2d: the filter {k.shape} is larger than the padded image {tuple(sizes)}')
    up, down = (upy, upx), (downy, downx)
    compute = _find_compute(impl, x, k, up, down)
    return _differentiable(x, k, up, down, ((pady0, pady1), (padx0, padx1)), compute)


def _find_compute(impl: str, x: tf.Tensor, k: np.ndarray, up: tuple, down: tuple) -> Callable:
    """The function that computes the forward pass, and with it the gradients."""
    ops = compiled_ops(impl if fits_compiled(k, impl) else 'ref', x.dtype, _faster(x, up, down))
    if ops:
        return functools.partial(_compute_compiled, ops)
    return _compute_shifted if impl == 'auto' and in_xla() else _compute


def fits_compiled(k: np.ndarray, impl: str) -> bool:
    """Whether the compiled operations take the filter k; UserError if not, and impl='custom' insists."""
    fits = max(k.shape) <= MAX_TAPS and not (has_gpu() and k.size > _MAX_GPU_TAPS)
    if impl == 'custom' and not fits:
        raise UserError(f"impl='custom' takes filters of up to {MAX_TAPS}x{MAX_TAPS} taps, on a GPU "
                        f'{_MAX_GPU_TAPS} in all. Received: {k.shape}')
    return fits


def _faster(x: tf.Tensor, up: tuple, down: tuple) -> bool:
    """Whether the compiled operation is the faster one on a CPU: see the table of `python -m benchmarks.ops`.

    It is, except for large filters without resampling, where TensorFlow's depthwise convolution is as fast as
    memory allows (rows `filter`).
    """
    if up != (1, 1) or down != (1, 1) or x.shape[3] <= _FEW_CHANNELS:
        return True
    return x.shape[1] * x.shape[2] * x.shape[3] < _LARGE


def _differentiable(x: tf.Tensor, k: np.ndarray, up: tuple, down: tuple, pads: tuple,
                    compute: Callable) -> tf.Tensor:
    """upfirdn_2d whose gradient is another upfirdn_2d, with up and down exchanged and the filter flipped.

    So gradients of every order exist, and they cost what the operation costs: TensorFlow's own gradient of a
    depthwise convolution takes twice as long.
    """
    sizes = x.shape[1:3]

    @tf.custom_gradient
    def operation(x):
        # What is inside must leave no trace of its own on a gradient tape.
        y = compute(tf.stop_gradient(x), k, up, down, pads)

        def gradient(dy):
            axes = zip(k.shape, sizes, y.shape[1:3], up, down, pads, strict=True)
            mirrored = [(taps - pad[0] - 1, size * u - out * d + pad[0] - u + 1)
                        for taps, size, out, u, d, pad in axes]
            return _differentiable(dy, k[::-1, ::-1], down, up, tuple(mirrored), compute)

        return y, gradient

    return operation(x)


def _compute(x: tf.Tensor, k: np.ndarray, up: tuple, down: tuple, pads: tuple) -> tf.Tensor:
    """The forward pass. up, down: factors along (y, x); pads: ((before, after) along y, (...) along x)."""
    x, pads = _upsample_and_crop(x, up, pads)
    pads = [[0, 0], list(pads[0]), list(pads[1]), [0, 0]]
    y = _fir(x, k, down[0], pads) if down[0] == down[1] else _fir(x, k, 1, pads)[:, ::down[0], ::down[1]]
    # TensorFlow's convolution of no images has the height and width of its input.
    return y if x.shape[0] != 0 else tf.zeros([0, *_output_size(x, k, down, pads), x.shape[3]], x.dtype)


def _output_size(x: tf.Tensor, k: np.ndarray, down: tuple, pads: list) -> list[int]:
    return [(x.shape[i] + sum(pads[i]) - k.shape[i - 1]) // down[i - 1] + 1 for i in (1, 2)]


def _compute_shifted(x: tf.Tensor, k: np.ndarray, up: tuple, down: tuple, pads: tuple) -> tf.Tensor:
    """The same as a sum of shifted images, one per tap, for XLA, which is slow at depthwise convolutions."""
    x, pads = _upsample_and_crop(x, up, pads)
    x = tf.pad(x, [[0, 0], *map(list, pads), [0, 0]])
    k = k[::-1, ::-1]
    column, row = _separate(k)
    if column is not None:
        return _shifted_sum(_shifted_sum(x, column, 1, down[0]), row, 2, down[1])
    last = x.shape[1] - len(k) + 1
    return tf.add_n([_shifted_sum(x[:, i:last + i:down[0]], row, 2, down[1]) for i, row in enumerate(k)])


def _shifted_sum(x: tf.Tensor, taps: np.ndarray, axis: int, step: int) -> tf.Tensor:
    """Correlation along one axis, of which each step-th sample is kept."""
    terms, last = [], x.shape[axis] - len(taps) + 1
    for i, tap in enumerate(taps):
        part = slice(i, last + i, step)
        terms.append((x[:, part] if axis == 1 else x[:, :, part]) * tf.constant(tap, x.dtype))
    return functools.reduce(tf.add, terms)


def _separate(k: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(column, row) whose outer product is k; (None, None) where there are none."""
    i, j = np.unravel_index(np.argmax(np.abs(k)), k.shape)
    if k[i, j] == 0:
        return None, None
    column, row = k[:, j], k[i] / k[i, j]
    tolerance = 4 * np.finfo(np.result_type(k, np.float32)).eps * abs(k[i, j])
    fits = np.all(np.abs(np.outer(column, row) - k) <= tolerance)
    return (column, row) if fits else (None, None)


def _compute_compiled(ops, x: tf.Tensor, k: np.ndarray, up: tuple, down: tuple, pads: tuple) -> tf.Tensor:
    """The same by the compiled operation."""
    (pady0, pady1), (padx0, padx1) = pads
    return ops.stylegan_up_fir_dn2d(
        x, host_constant(k), upx=up[1], upy=up[0], downx=down[1], downy=down[0],
        padx0=padx0, padx1=padx1, pady0=pady0, pady1=pady1)


def _upsample_and_crop(x: tf.Tensor, up: tuple, pads: tuple) -> tuple[tf.Tensor, tuple]:
    """Inserts zeros and applies negative pads; returns the pads that remain to be added."""
    height, width, channels = x.shape[1:]
    if up != (1, 1):
        x = tf.reshape(x, [-1, height, 1, width, 1, channels])
        x = tf.pad(x, [[0, 0], [0, 0], [0, up[0] - 1], [0, 0], [0, up[1] - 1], [0, 0]])
        x = tf.reshape(x, [-1, height * up[0], width * up[1], channels])
    return _crop(x, pads) if min(pads[0] + pads[1]) < 0 else (x, pads)


def _crop(x: tf.Tensor, pads: tuple) -> tuple[tf.Tensor, tuple]:
    """Takes off what negative pads say; returns what is left and the pads that remain to be added."""
    slices, remaining = [], []
    for size, (before, after) in zip(x.shape[1:3], pads, strict=True):
        # A crop may be larger than the image: it then takes off zeros of the other side, too.
        begin, end = min(max(-before, 0), size), min(max(-after, 0), size)
        slices.append(slice(begin, max(size - end, begin)))
        left = max(before, 0) - max(-after - size, 0)
        remaining.append((left, max(after, 0) - max(-before - size, 0)))
    return x[:, slices[0], slices[1]], tuple(remaining)


def _resample(x, k, data_format, impl, up=1, down=1, pad0=0, pad1=0):
    """upfirdn_2d with the same factors and pads along both axes, in either layout."""
    x = tf.convert_to_tensor(x)
    resample = functools.partial(upfirdn_2d, k=k, upx=up, upy=up, downx=down, downy=down,
                                 padx0=pad0, padx1=pad1, pady0=pad0, pady1=pad1, impl=impl)
    if data_format == 'NCHW' and x.shape.rank == 4:
        _check_static(x)
        channels, height, width = x.shape[1:]
        images = tf.reshape(x, [-1, height, width, 1])
        if _find_compute(impl, images, k, (up, up), (down, down)) not in (_compute, _compute_shifted):
            # The compiled operation needs no transposition: each channel is an image of its own.
            y = resample(images)
            return tf.reshape(y, [-1, channels, *y.shape[1:3]])
    return _from_nhwc(resample(_to_nhwc(x, data_format)), data_format)


def filter_2d(x: tf.Tensor, k, gain: float = 1, data_format: str = 'NCHW', impl: str = 'auto') -> tf.Tensor:
    """Filters a batch of images with the FIR filter k, keeping their size.

    Args: x [N, C, H, W] or [N, H, W, C]; k taps, 1-D = separable, normalized to sum 1; gain on the signal
    magnitude.
    """
    k = setup_kernel(k) * gain
    p = k.shape[0] - 1
    return _resample(x, k, data_format, impl, pad0=(p + 1) // 2, pad1=p // 2)


def upsample_2d(x: tf.Tensor, k=None, factor: int = 2, gain: float = 1, data_format: str = 'NCHW',
                impl: str = 'auto') -> tf.Tensor:
    """Upsamples a batch of images by an integer factor with the FIR filter k (None = nearest neighbour)."""
    k = _kernel_or_box(k, factor) * (gain * factor ** 2)
    p = k.shape[0] - factor
    return _resample(x, k, data_format, impl, up=factor, pad0=(p + 1) // 2 + factor - 1, pad1=p // 2)


def downsample_2d(x: tf.Tensor, k=None, factor: int = 2, gain: float = 1, data_format: str = 'NCHW',
                  impl: str = 'auto') -> tf.Tensor:
    """Downsamples a batch of images by an integer factor with the FIR filter k (None = box average)."""
    k = _kernel_or_box(k, factor) * gain
    p = k.shape[0] - factor
    return _resample(x, k, data_format, impl, down=factor, pad0=(p + 1) // 2, pad1=p // 2)


def upsample_conv_2d(x: tf.Tensor, w: tf.Tensor, k=None, factor: int = 2, gain: float = 1,
                     data_format: str = 'NCHW', impl: str = 'auto') -> tf.Tensor:
    """upsample_2d, then a SAME convolution with w, computed as a strided transposed convolution and a filter.

    Args: x [N, C, H, W] or [N, H, W, C]; w [kh, kw, in, out], square; k, gain as upsample_2d.
    """
    check_impl(impl)
    x = _to_nhwc(tf.convert_to_tensor(x), data_format)
    x, k, pads = unfiltered_upsample_conv_2d(x, w, k, factor, gain, impl)
    if k is not None:
        x = _resample(x, k, 'NHWC', impl, pad0=pads[0], pad1=pads[1])
    return _from_nhwc(x, data_format)


def unfiltered_upsample_conv_2d(x: tf.Tensor, w: tf.Tensor, k=None, factor: int = 2, gain: float = 1,
                                impl: str = 'auto') -> tuple[tf.Tensor, np.ndarray | None, tuple[int, int]]:
    """upsample_conv_2d but for its last step, the filter, for a caller that joins it with what follows.

    Args: as upsample_conv_2d; x is NHWC.

    Returns the images, the filter and its pads, the same along both axes; the filter is None where it has
    been applied.
    """
    _check_static(x)
    w, taps = _square_kernel(w, x.dtype)
    if taps == 1:  # Works pixel by pixel, so it may come first, where there are fewer pixels.
        x = tf.nn.conv2d(x, w, strides=1, padding='VALID')
        return upsample_2d(x, k, factor, gain, 'NHWC', impl), None, (0, 0)
    k = _kernel_or_box(k, factor) * (gain * factor ** 2)
    p = (k.shape[0] - factor) - (taps - 1)
    height, width = x.shape[1:3]
    batch = x.shape[0] if x.shape[0] is not None else tf.shape(x)[0]
    # A transposed convolution is a true convolution; the layer means a correlation: flip w.
    w = tf.transpose(tf.reverse(w, [0, 1]), [0, 1, 3, 2])
    shape = [batch, (height - 1) * factor + taps, (width - 1) * factor + taps, w.shape[2]]
    x = tf.nn.conv2d_transpose(x, w, shape, strides=factor, padding='VALID')
    return x, k, ((p + 1) // 2 + factor - 1, p // 2 + 1)


def conv_downsample_2d(x: tf.Tensor, w: tf.Tensor, k=None, factor: int = 2, gain: float = 1,
                       data_format: str = 'NCHW', impl: str = 'auto') -> tf.Tensor:
    """A SAME convolution with w followed by downsample_2d, computed as a filter and a strided convolution.

    Args: as upsample_conv_2d.
    """
    check_impl(impl)
    x = _to_nhwc(tf.convert_to_tensor(x), data_format)
    _check_static(x)
    w, taps = _square_kernel(w, x.dtype)
    if taps == 1:  # Works pixel by pixel, so it may come last, where there are fewer pixels.
        x = downsample_2d(x, k, factor, gain, 'NHWC', impl)
        return _from_nhwc(tf.nn.conv2d(x, w, strides=1, padding='VALID'), data_format)
    k = _kernel_or_box(k, factor) * gain
    p = (k.shape[0] - factor) + (taps - 1)
    x = _resample(x, k, 'NHWC', impl, pad0=(p + 1) // 2, pad1=p // 2)
    return _from_nhwc(tf.nn.conv2d(x, w, strides=factor, padding='VALID'), data_format)


def _check_static(x: tf.Tensor) -> None:
    if None in x.shape[1:]:
        raise UserError('Resampling needs images of known height, width and channels; only the batch size '
                        f'may be left open. Received: {x.shape}')


def _square_kernel(w: tf.Tensor, dtype: tf.DType) -> tuple[tf.Tensor, int]:
    w = tf.convert_to_tensor(w, dtype)
    if w.shape.rank != 4 or w.shape[0] != w.shape[1]:
        raise UserError(f'w must have shape [k, k, in, out]. Received: {w.shape}')
    return w, w.shape[0]
