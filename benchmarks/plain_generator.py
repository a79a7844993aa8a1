"""A plain StyleGAN2 generator to compare with: the equations one after the other, nothing merged.

It is what one writes first in TensorFlow: NHWC; modulate, convolve, demodulate, noise, bias, leaky ReLU and
gain as operations of their own; demodulation from the modulated weights of every sample (StyleGAN2, equation
3); FIR filters as a pad and a depthwise convolution. It reads the weights of a Network, so that both can be
checked to draw the same images.
"""

import numpy as np
import tensorflow as tf

from dnnlib.tflib import Network
from dnnlib.util import UserError

GAIN = float(np.sqrt(2))
FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64


class PlainGenerator:
    """The forward pass of G_main without labels and truncation, on the weights of `network`.

    Args:
        network: G_main with the default architecture, filter and activation functions.

    Errors: UserError for a network of another kind.
    """

    def __init__(self, network: Network):
        unusual = {key for key in ('architecture', 'resample_kernel', 'nonlinearity', 'mapping_nonlinearity')
                   if key in network.static_kwargs}
        if unusual or network.input_shapes[1][1]:
            raise UserError('the plain generator is for unconditional networks of the default architecture, '
                            f'filter and activation. Received: {", ".join(sorted(unusual)) or "labels"}')
        self._vars = network.vars
        self._resolution_log2 = network.output_shape[2].bit_length() - 1
        self._num_dense = len({name for name in self._vars if name.startswith('G_mapping/Dense')}) // 2

    def __call__(self, latents: tf.Tensor, randomize_noise: bool = True) -> tf.Tensor:
        """Images [N, H, W, C] of latents [N, latent_size]; the noise is new, or that of the variables."""
        w = self._mapping(latents)
        batch = latents.shape[0]
        x = tf.tile(tf.transpose(self._var('G_synthesis/4x4/Const/const'), [0, 2, 3, 1]), [batch, 1, 1, 1])
        x = self._layer(x, w, '4x4/Conv', 0, randomize_noise)
        y = self._to_rgb(x, w, '4x4/ToRGB')
        for res in range(3, self._resolution_log2 + 1):
            scope = f'{2 ** res}x{2 ** res}'
            x = self._layer(x, w, f'{scope}/Conv0_up', 2 * res - 5, randomize_noise, up=True)
            x = self._layer(x, w, f'{scope}/Conv1', 2 * res - 4, randomize_noise)
            y = _upsample(y) + self._to_rgb(x, w, f'{scope}/ToRGB')
        return y

    def _var(self, name: str) -> tf.Tensor:
        return tf.convert_to_tensor(self._vars[name])

    def _mapping(self, x: tf.Tensor) -> tf.Tensor:
        x *= tf.math.rsqrt(tf.reduce_mean(tf.square(x), axis=1, keepdims=True) + 1e-8)
        for index in range(self._num_dense):
            weight = self._var(f'G_mapping/Dense{index}/weight')
            x = tf.matmul(x, weight * (0.01 / np.sqrt(weight.shape[0])))
            x = tf.nn.bias_add(x, self._var(f'G_mapping/Dense{index}/bias') * 0.01)
            x = tf.nn.leaky_relu(x, 0.2) * GAIN
        return x

    def _modulated_conv(self, x, w, scope, demodulate=True, up=False) -> tf.Tensor:
        weight = self._var(f'G_synthesis/{scope}/weight')
        weight *= float(1 / np.sqrt(np.prod(weight.shape[:3])))
        mod_weight = self._var(f'G_synthesis/{scope}/mod_weight')
        style = tf.matmul(w, mod_weight * float(1 / np.sqrt(mod_weight.shape[0])))
        style = tf.nn.bias_add(style, self._var(f'G_synthesis/{scope}/mod_bias')) + 1
        x *= style[:, tf.newaxis, tf.newaxis]
        x = _upsample_conv(x, weight) if up else tf.nn.conv2d(x, weight, strides=1, padding='SAME')
        if demodulate:
            modulated = weight * style[:, tf.newaxis, tf.newaxis, :, tf.newaxis]    # [N, kh, kw, in, out].
            factor = tf.math.rsqrt(tf.reduce_sum(tf.square(modulated), axis=[1, 2, 3]) + 1e-8)
            x *= factor[:, tf.newaxis, tf.newaxis]
        return x

    def _layer(self, x, w, scope, index, randomize_noise, up=False) -> tf.Tensor:
        x = self._modulated_conv(x, w, scope, up=up)
        noise = (tf.random.normal([*x.shape[:3], 1]) if randomize_noise
                 else tf.transpose(self._var(f'G_synthesis/noise{index}'), [0, 2, 3, 1]))
        x += noise * self._var(f'G_synthesis/{scope}/noise_strength')
        x = tf.nn.bias_add(x, self._var(f'G_synthesis/{scope}/bias'))
        return tf.nn.leaky_relu(x, 0.2) * GAIN

    def _to_rgb(self, x, w, scope) -> tf.Tensor:
        return tf.nn.bias_add(self._modulated_conv(x, w, scope, demodulate=False),
                              self._var(f'G_synthesis/{scope}/bias'))


def _fir(x: tf.Tensor, before: int, after: int) -> tf.Tensor:
    """Filters every channel with 4 · FILTER, which is symmetric, after padding with zeros."""
    x = tf.pad(x, [[0, 0], [before, after], [before, after], [0, 0]])
    kernel = np.tile(4 * FILTER[:, :, np.newaxis, np.newaxis], [1, 1, x.shape[3], 1])
    return tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], 'VALID')


def _upsample(x: tf.Tensor) -> tf.Tensor:
    batch, height, width, channels = x.shape
    x = tf.reshape(x, [batch, height, 1, width, 1, channels])
    x = tf.pad(x, [[0, 0], [0, 0], [0, 1], [0, 0], [0, 1], [0, 0]])
    return _fir(tf.reshape(x, [batch, height * 2, width * 2, channels]), 2, 1)


def _upsample_conv(x: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    batch, height, width, _ = x.shape
    # A transposed convolution turns its kernel around; the layer means a correlation.
    flipped = tf.transpose(weight[::-1, ::-1], [0, 1, 3, 2])
    shape = [batch, height * 2 + 1, width * 2 + 1, weight.shape[3]]
    return _fir(tf.nn.conv2d_transpose(x, flipped, shape, strides=2, padding='VALID'), 1, 1)
