"""The layers of ProGAN and StyleGAN. Activations are NHWC; weights have the official names and layouts.

Two things differ from StyleGAN2 (training.layers): the gain sqrt(2) of the activation sits in the weight and
so leaves bias and noise alone, and what follows a convolution, the epilogue, has more parts.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from custom_ops import conv_downsample_2d, fused_bias_act, upfirdn_2d, upsample_conv_2d
from dnnlib.util import UserError
from training.layers import Layer, add_weight, batch_size, check_conv, full_precision

ACTIVATION_GAINS = {'linear': 1.0, 'relu': float(np.sqrt(2)), 'lrelu': float(np.sqrt(2))}

# Added to the bias before a leaky ReLU of StyleGAN, whose slope at 0 is that of the positive side: it changes
# nothing but an exact 0.
ABOVE_ZERO = 1e-30

FUSED_MIN_RESOLUTION = 128      # fused_scale 'auto': fused from this resolution on (the larger of the two).


class Epilogue(NamedTuple):
    """What follows a dense layer, a convolution or the constant, in this order; the bias is always there."""

    act: str = 'linear'                     # 'linear', 'relu' or 'lrelu'.
    unit_slope: bool = False                # Slope of the leaky ReLU at exactly 0: 1 (StyleGAN), not 0.2?
    use_noise: bool = False                 # Noise before the bias, with a trainable weight per channel?
    pixelnorm_epsilon: float | None = None  # Pixel norm after the activation. None = disable.
    use_instance_norm: bool = False         # Instance norm after that?
    dlatent_size: int | None = None         # Size of the w that gives scale and shift, last. None = disable.


def check_nonlinearity(nonlinearity: str) -> str:
    """The nonlinearity, if it is one of those that StyleGAN has; UserError otherwise."""
    if nonlinearity not in ('relu', 'lrelu'):
        raise UserError(f'nonlinearity must be one of relu, lrelu. Received: {nonlinearity!r}')
    return nonlinearity


def _scaled(weight, coef: float, dtype: tf.DType) -> tf.Tensor:
    """A weight times its runtime coefficient."""
    return weight * tf.constant(coef, dtype)


class EpilogueLayer(Layer):
    """A layer that ends in an epilogue.

    Call arguments: x, w [N, dlatent_size] or None, noise [N or 1, H, W, 1] or None.
    """

    def __init__(self, name: str, fmaps: int, epilogue: Epilogue, gain: float | None = None,
                 use_wscale: bool = True, lrmul: float = 1, dtype: str = 'float32'):
        super().__init__(name, dtype)
        self.fmaps, self.epilogue, self.use_wscale, self.lrmul = fmaps, epilogue, use_wscale, lrmul
        self.gain = ACTIVATION_GAINS[epilogue.act] if gain is None else gain

    def add_epilogue(self) -> None:
        """Creates the weights of the epilogue; called last, which is their place in the official order."""
        parts = self.epilogue
        self.noise_weight = self.add_variable('Noise/weight', [self.fmaps], 0.0) if parts.use_noise else None
        self.bias = self.add_variable('bias', [self.fmaps], 0.0)
        self.style_weight = None
        if parts.dlatent_size is not None:
            self.style_weight, self.style_coef = add_weight(
                self, [parts.dlatent_size, 2 * self.fmaps], 1, self.use_wscale, name='StyleMod/weight')
            self.style_bias = self.add_variable('StyleMod/bias', [2 * self.fmaps], 0.0)

    def finish(self, x: tf.Tensor, dlatents: tf.Tensor | None = None,
               noise: tf.Tensor | None = None) -> tf.Tensor:
        """The epilogue of x [N, ..., fmaps]."""
        parts = self.epilogue
        if self.noise_weight is not None:
            x += noise * self.noise_weight
        bias = tf.convert_to_tensor(self.bias)
        if self.lrmul != 1:
            bias *= tf.constant(self.lrmul, x.dtype)
        if parts.act == 'lrelu' and parts.unit_slope:
            bias += tf.constant(ABOVE_ZERO, x.dtype)
        x = fused_bias_act(x, bias, axis=x.shape.rank - 1, act=parts.act, gain=1)
        if parts.pixelnorm_epsilon is not None:
            x = pixel_norm(x, parts.pixelnorm_epsilon)
        style = None
        if self.style_weight is not None:
            style = tf.matmul(dlatents, _scaled(self.style_weight, self.style_coef, x.dtype))
            style = tf.reshape(style + self.style_bias, [-1, 2, self.fmaps])
        return normalize_and_style(x, parts.use_instance_norm, style)


class DenseLayer(EpilogueLayer):
    """Fully connected layer: [N, in_features] → [N, fmaps], or [N, 4, 4, fmaps] with `grid`.

    Inputs of rank 4 (NHWC) are flattened, and a grid is filled, as C, H, W like the official weights.
    """

    def __init__(
        self,
        name: str,                      # Scope of the weights.
        in_features: int,               # Number of inputs (C·H·W for images).
        fmaps: int,                     # Number of outputs, of output channels with a grid.
        epilogue: Epilogue,
        grid: bool = False,             # Output 4×4 pixels?
        **options,                      # gain, use_wscale, lrmul, dtype.
    ):
        super().__init__(name, fmaps, epilogue, **options)
        self.grid = grid
        self.weight, self.coef = add_weight(self, [in_features, fmaps * 16 if grid else fmaps], self.gain,
                                            self.use_wscale, self.lrmul)
        self.add_epilogue()

    def call(self, x: tf.Tensor, dlatents: tf.Tensor | None = None, noise: tf.Tensor | None = None):
        if x.shape.rank == 4:
            x = tf.reshape(tf.transpose(x, [0, 3, 1, 2]), [-1, int(np.prod(x.shape[1:]))])
        x = tf.matmul(x, _scaled(self.weight, self.coef, x.dtype))
        if self.grid:
            x = tf.transpose(tf.reshape(x, [-1, self.fmaps, 4, 4]), [0, 2, 3, 1])
        return self.finish(x, dlatents, noise)


class ConstLayer(EpilogueLayer):
    """The learned constant 4×4 input (StyleGAN, section 2): x gives the minibatch size only."""

    def __init__(self, name: str, fmaps: int, epilogue: Epilogue, **options):
        super().__init__(name, fmaps, epilogue, **options)
        self.const = self.add_variable('const', [1, fmaps, 4, 4], 1.0)
        self.add_epilogue()

    def call(self, x: tf.Tensor, dlatents: tf.Tensor | None = None, noise: tf.Tensor | None = None):
        x = tf.tile(tf.transpose(self.const, [0, 2, 3, 1]), [batch_size(x), 1, 1, 1])
        return self.finish(x, dlatents, noise)


class ConvLayer(EpilogueLayer):
    """Convolution, optionally after nearest-neighbour upscaling or before box downscaling by 2.

    Both resamplings are computed in one with the convolution. A fused one is the same thing downwards;
    upwards, officially, it convolves with the spatially flipped kernel.
    """

    def __init__(
        self,
        name: str,                      # Scope of the weights.
        in_fmaps: int,                  # Number of input channels.
        fmaps: int,                     # Number of output channels.
        kernel: int,                    # Width and height of the kernel, odd.
        epilogue: Epilogue,
        up: bool = False,               # Upscale by 2 before the convolution?
        down: bool = False,             # Downscale by 2 after it?
        flipped: bool = False,          # Is the weight stored spatially flipped, as of a fused upscaling?
        out_in: bool = False,           # Is it stored as [k, k, out, in], as of ProGAN's upscaling?
        blur_filter=None,               # Blur after the upscaling or before the downscaling. None = disable.
        **options,                      # gain, use_wscale, lrmul, dtype.
    ):
        super().__init__(name, fmaps, epilogue, **options)
        check_conv(kernel, up, down)
        self.up, self.down, self.flipped, self.out_in = up, down, flipped, out_in
        self.blur_filter = None if blur_filter is None else np.asarray(blur_filter, np.float32)
        shape, gain = [kernel, kernel, in_fmaps, fmaps], self.gain
        if out_in:  # fan_in stays k²·in.
            shape, gain = [kernel, kernel, fmaps, in_fmaps], gain * np.sqrt(fmaps / in_fmaps)
        self.weight, self.coef = add_weight(self, shape, gain, self.use_wscale, self.lrmul)
        self.add_epilogue()

    def call(self, x: tf.Tensor, dlatents: tf.Tensor | None = None, noise: tf.Tensor | None = None):
        w = _scaled(self.weight, self.coef, x.dtype)
        w = tf.transpose(w, [0, 1, 3, 2]) if self.out_in else w
        w = tf.reverse(w, [0, 1]) if self.flipped and w.shape[0] > 1 else w
        if self.up:
            x = upsample_conv_2d(x, w, data_format='NHWC')
            x = x if self.blur_filter is None else blur2d(x, self.blur_filter)
        elif self.down:
            x = x if self.blur_filter is None else blur2d(x, self.blur_filter)
            x = conv_downsample_2d(x, w, data_format='NHWC')
        else:
            x = tf.nn.conv2d(x, w, strides=1, padding='SAME')
        return self.finish(x, dlatents, noise)


def is_fused(fused_scale: bool | str, resolution: int) -> bool:
    """Whether a layer whose larger side (input of down, output of up) has this resolution is a fused one."""
    return resolution >= FUSED_MIN_RESOLUTION if fused_scale == 'auto' else bool(fused_scale)


def check_fused_scale(fused_scale: bool | str, auto: bool = True) -> None:
    """Raises UserError unless fused_scale is True, False or, where allowed, 'auto'."""
    choices = (True, False, 'auto') if auto else (True, False)
    if fused_scale not in choices:
        raise UserError(f'fused_scale must be one of {choices}. Received: {fused_scale!r}')


def blur2d(x: tf.Tensor, f=(1, 2, 1), normalize: bool = True) -> tf.Tensor:
    """Filters every channel of x [N, H, W, C], zeros beyond the border, keeping the size.

    Args: f taps, 1-D = separable, or 2-D; normalize to sum 1.
    """
    f = np.asarray(f, np.float32)
    f = np.outer(f, f) if f.ndim == 1 else f
    f = f / np.sum(f) if normalize else f
    (pady0, pady1), (padx0, padx1) = [((taps - 1) // 2, taps // 2) for taps in f.shape]
    # Officially a correlation; upfirdn_2d flips.
    return upfirdn_2d(x, f[::-1, ::-1], pady0=pady0, pady1=pady1, padx0=padx0, padx1=padx1)


def pixel_norm(x: tf.Tensor, epsilon: float = 1e-8) -> tf.Tensor:
    """x / sqrt(mean of squares over the channels): pixelwise feature normalization (ProGAN, section 4.2)."""
    power = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
    return x * tf.math.rsqrt(power + tf.constant(epsilon, x.dtype))


def normalize_and_style(x: tf.Tensor, use_instance_norm: bool = True, style: tf.Tensor | None = None,
                        epsilon: float = 1e-8) -> tf.Tensor:
    """Instance norm, then x·(style[:, 0] + 1) + style[:, 1] (AdaIN; StyleGAN, equation 1).

    Args: x [N, H, W, C]; style [N, 2, C] or None.
    """
    dtype, scale, shift = x.dtype, None, None
    if use_instance_norm:
        # The mean is taken off first: in one step, x·scale + shift, it would swallow the style of a constant
        # map, which the first one of a new network is.
        # tf.nn.moments will not do: it takes the mean for a constant, which is wrong in second derivatives.
        x = full_precision(x)
        x -= tf.reduce_mean(x, axis=[1, 2], keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(x), axis=[1, 2]) + tf.constant(epsilon, x.dtype))
    if style is not None:
        gain, shift = tf.unstack(tf.cast(style, x.dtype), axis=1)
        scale = gain + 1 if scale is None else scale * (gain + 1)
    if scale is not None:
        x *= scale[:, tf.newaxis, tf.newaxis]
    if shift is not None:
        x += shift[:, tf.newaxis, tf.newaxis]
    return tf.cast(x, dtype)
