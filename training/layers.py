"""The layers that networks are made of. Activations are NHWC; weights have the official names and layouts."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from custom_ops import (
    activation_funcs,
    conv_downsample_2d,
    filter_noise_bias_act,
    fused_bias_act,
    unfiltered_upsample_conv_2d,
    upsample_conv_2d,
)
from dnnlib.util import UserError
from training.growing import stage_of

# Activations with act(g·x) = g·act(x) for g > 0.
HOMOGENEOUS = ('linear', 'relu', 'lrelu')

NO_PADS = (0, 0, 0, 0)

_unused_values = contextvars.ContextVar('unused_initial_values', default=False)
_plan: contextvars.ContextVar[Callable | None] = contextvars.ContextVar('planned_variables', default=None)


@dataclasses.dataclass(frozen=True)
class PlannedVariable:
    """What stands for a variable in a layer that is made to see the names and shapes of its variables."""

    shape: tf.TensorShape
    trainable: bool


@contextlib.contextmanager
def planned_variables(note: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Layers made inside take no memory: their variables are PlannedVariables, and they cannot be called.

    Args:
        note: Is called for each variable; what it raises ends the construction.
    """
    token = _plan.set(note)
    try:
        yield
    finally:
        _plan.reset(token)


@contextlib.contextmanager
def unused_initial_values() -> Iterator[None]:
    """All variables of layers made inside start as zeros, because their initial values take their time.

    For networks that take over the values of another network or of a file.
    """
    token = _unused_values.set(True)
    try:
        yield
    finally:
        _unused_values.reset(token)


class Layer(keras.layers.Layer):
    """A Keras layer whose weights and sub-layers have official names such as '64x64/Conv0_up/weight'.

    Everything is created in the constructor: StyleGAN's shapes are known there, and a network can be filled
    from a pickle as soon as it exists.
    """

    def __init__(self, name: str | None = None, dtype: str = 'float32'):
        super().__init__(name=name, dtype=dtype)
        self.built = True
        # Kept out of Keras' attribute tracking: the same weights are tracked by add_weight, the layers by
        # add_layer.
        self.__dict__['_own_variables'] = {}
        self.__dict__['_children'] = {}

    def add_variable(self, name: str, shape, initializer, trainable: bool = True) -> keras.Variable:
        """Creates a weight under its official local name. The initializer is a Keras one or a number."""
        note = _plan.get()
        if note is not None:
            note()
            self._own_variables[name] = PlannedVariable(tf.TensorShape(tuple(shape)), trainable)
            return self._own_variables[name]
        if _unused_values.get():
            initializer = 0
        if isinstance(initializer, int | float):
            initializer = keras.initializers.Constant(initializer)
        variable = self.add_weight(name=name.replace('/', '_'), shape=tuple(shape), initializer=initializer,
                                   trainable=trainable)
        self._own_variables[name] = variable
        return variable

    def add_layer(self, layer: 'Layer') -> 'Layer':
        """Registers a sub-layer; its weights appear below its name."""
        if layer.name in self._children:
            raise ValueError(f'{self.name} already has a sub-layer named {layer.name}')
        setattr(self, f'_{layer.name}', layer)
        self._children[layer.name] = layer
        return layer

    def named_variables(self, recursive: bool = True) -> dict[str, keras.Variable]:
        """All weights by official name, in official order: own ones first, then those of the sub-layers."""
        named = dict(self._own_variables)
        if recursive:
            for child in self._children.values():
                named.update({f'{child.name}/{key}': variable
                              for key, variable in child.named_variables().items()})
        return named

    def named_trainables(self) -> dict[str, keras.Variable]:
        """The trainable part of named_variables()."""
        return {name: variable for name, variable in self.named_variables().items() if variable.trainable}


def normal_initializer(stddev: float) -> keras.initializers.Initializer:
    """N(0, stddev²), with a seed from Keras' generator (keras.utils.set_random_seed makes it repeatable)."""
    return keras.initializers.RandomNormal(0.0, stddev)


def add_weight(layer: Layer, shape, gain: float = 1, use_wscale: bool = True, lrmul: float = 1,
               name: str = 'weight') -> tuple[keras.Variable, float]:
    """Creates a weight with equalized learning rate (ProGAN, section 4.1).

    Args:
        shape: dense [in, out] or convolution [kh, kw, in, out]; fan_in is the product of all but the last.
        gain: standard deviation of the output for unit normal input.
        use_wscale: False puts the He constant into the initial values instead of the runtime coefficient.
        lrmul: learning rate multiplier of this weight.

    Returns the variable and the runtime coefficient that it has to be multiplied by.
    """
    he_std = gain / np.sqrt(np.prod(shape[:-1]))
    if use_wscale:
        return layer.add_variable(name, shape, normal_initializer(1 / lrmul)), float(he_std * lrmul)
    return layer.add_variable(name, shape, normal_initializer(he_std / lrmul)), float(lrmul)


class BiasActLayer(Layer):
    """A layer that ends in bias, activation and gain."""

    def __init__(self, name, dtype, fmaps, act, lrmul, use_bias=True):
        super().__init__(name, dtype)
        if act not in activation_funcs:
            raise UserError(f'nonlinearity must be one of {", ".join(activation_funcs)}. Received: {act!r}')
        self.fmaps, self.act, self.lrmul, self.use_bias = fmaps, act, lrmul, use_bias

    def add_bias(self) -> None:
        """Creates 'bias'; called last, because the official order has the bias last."""
        self.bias = self.add_variable('bias', [self.fmaps], 0.0) if self.use_bias else None

    @property
    def early_gain(self) -> float:
        """What the input of `bias_act` has to be multiplied by: the gain of an activation in HOMOGENEOUS.

        Put into the weights or a factor that is there anyway, it saves a pass over the activations.
        """
        return activation_funcs[self.act].def_gain if self.act in HOMOGENEOUS else 1.0

    @property
    def late_gain(self) -> float | None:
        """The rest of the activation's default gain; None = all of it."""
        return 1.0 if self.act in HOMOGENEOUS else None

    def scaled_bias(self, dtype: tf.DType) -> tf.Tensor | None:
        """The bias as it is added to inputs multiplied by the early gain; None where there is none."""
        if self.bias is None:
            return None
        bias, factor = tf.convert_to_tensor(self.bias), self.lrmul * self.early_gain
        return bias if factor == 1 else bias * tf.constant(factor, dtype)

    def bias_act(self, x: tf.Tensor) -> tf.Tensor:
        """Adds the bias along the last axis and applies the activation with the rest of its default gain."""
        return fused_bias_act(x, self.scaled_bias(x.dtype), axis=x.shape.rank - 1, act=self.act,
                              gain=self.late_gain)


class DenseLayer(BiasActLayer):
    """Fully connected layer with equalized learning rate, bias and activation.

    Input [N, in] → output [N, fmaps]. Inputs of rank 4 (NHWC) are flattened as C, H, W, like the official
    weights.
    """

    def __init__(
        self,
        name: str,                  # Scope of the weights.
        in_features: int,           # Number of inputs (C·H·W for images).
        fmaps: int,                 # Number of outputs.
        act: str = 'linear',        # Activation function.
        gain: float = 1,            # Gain of the weight.
        use_wscale: bool = True,    # Equalized learning rate?
        lrmul: float = 1,           # Learning rate multiplier.
        use_bias: bool = True,      # Add a bias?
        dtype: str = 'float32',     # Of activations and weights.
    ):
        super().__init__(name, dtype, fmaps, act, lrmul, use_bias)
        self.weight, self.coef = add_weight(self, [in_features, fmaps], gain, use_wscale, lrmul)
        self.add_bias()

    def call(self, x: tf.Tensor) -> tf.Tensor:
        if x.shape.rank == 4:
            x = tf.transpose(x, [0, 3, 1, 2])
        if x.shape.rank > 2:
            x = tf.reshape(x, [-1, int(np.prod(x.shape[1:]))])
        return self.bias_act(tf.matmul(x, self.weight * tf.constant(self.coef * self.early_gain, x.dtype)))


class Conv2DLayer(BiasActLayer):
    """Convolution with equalized learning rate, optional up- or downsampling, bias and activation. NHWC."""

    def __init__(
        self,
        name: str,                      # Scope of the weights.
        in_fmaps: int,                  # Number of input channels.
        fmaps: int,                     # Number of output channels.
        kernel: int,                    # Width and height of the kernel, odd.
        up: bool = False,               # Upsample by 2 before the convolution?
        down: bool = False,             # Downsample by 2 after it?
        resample_kernel=None,           # FIR filter of the resampling, None = box.
        act: str = 'linear',            # Activation function.
        gain: float = 1,                # Gain of the weight.
        use_wscale: bool = True,        # Equalized learning rate?
        lrmul: float = 1,               # Learning rate multiplier.
        use_bias: bool = True,          # Add a bias?
        dtype: str = 'float32',         # Of activations and weights.
    ):
        super().__init__(name, dtype, fmaps, act, lrmul, use_bias)
        check_conv(kernel, up, down)
        self.up, self.down, self.resample_kernel = up, down, _as_taps(resample_kernel)
        self.weight, self.coef = add_weight(self, [kernel, kernel, in_fmaps, fmaps], gain, use_wscale, lrmul)
        self.add_bias()

    def call(self, x: tf.Tensor) -> tf.Tensor:
        w = self.weight * tf.constant(self.coef * self.early_gain, x.dtype)
        return self.bias_act(resampling_conv(x, w, self.up, self.down, self.resample_kernel))


def check_conv(kernel: int, up: bool, down: bool) -> None:
    """Raises UserError for a kernel or a resampling that the convolution layers do not have."""
    if kernel < 1 or kernel % 2 != 1 or (up and down):
        raise UserError(f'A convolution has an odd kernel and at most one of up and down. '
                        f'Received: kernel={kernel}, up={up}, down={down}')


def _as_taps(resample_kernel):
    return None if resample_kernel is None else tuple(resample_kernel)


def resampling_conv(x: tf.Tensor, w: tf.Tensor, up: bool, down: bool, resample_kernel) -> tf.Tensor:
    """SAME convolution of x [N, H, W, in] with w [kh, kw, in, out], up- or downsampled by 2 on the way."""
    if up:
        return upsample_conv_2d(x, w, k=resample_kernel, data_format='NHWC')
    if down:
        return conv_downsample_2d(x, w, k=resample_kernel, data_format='NHWC')
    return tf.nn.conv2d(x, w, strides=1, padding='SAME')


class ModulatedConv2DLayer(BiasActLayer):
    """Modulated, demodulated convolution, noise, bias, activation (StyleGAN2, section 2.2 and figure 2d).

    The weights are shared by the whole minibatch: instead of scaling the weights per sample (equation 1), the
    input activations are scaled by the style and the output by the demodulation coefficient (equation 3),
    which is the same number and has gradients of every order in every precision.

    Call arguments: x [N, H, W, in_fmaps], style w [N, dlatent_size], noise [N or 1, H', W', 1] or None.
    """

    def __init__(
        self,
        name: str,                      # Scope of the weights.
        in_fmaps: int,                  # Number of input channels.
        fmaps: int,                     # Number of output channels.
        kernel: int,                    # Width and height of the kernel, odd.
        dlatent_size: int,              # Size of the style vector w.
        up: bool = False,               # Upsample by 2 before the convolution?
        down: bool = False,             # Downsample by 2 after it?
        demodulate: bool = True,        # Normalize the output to unit standard deviation?
        use_noise: bool = False,        # Has a noise input, scaled by the trainable scalar noise_strength?
        resample_kernel=None,           # FIR filter of the resampling, None = box.
        act: str = 'linear',            # Activation function.
        gain: float = 1,                # Gain of the weight.
        use_wscale: bool = True,        # Equalized learning rate?
        lrmul: float = 1,               # Learning rate multiplier.
        use_bias: bool = True,          # Add a bias?
        dtype: str = 'float32',         # Of activations and weights.
    ):
        super().__init__(name, dtype, fmaps, act, lrmul, use_bias)
        check_conv(kernel, up, down)
        self.up, self.down, self.resample_kernel = up, down, _as_taps(resample_kernel)
        self.demodulate = demodulate
        self.weight, self.coef = add_weight(self, [kernel, kernel, in_fmaps, fmaps], gain, use_wscale, lrmul)
        self.mod_weight, self.mod_coef = add_weight(self, [dlatent_size, in_fmaps], name='mod_weight')
        self.mod_bias = self.add_variable('mod_bias', [in_fmaps], 0.0)
        self.noise_strength = self.add_variable('noise_strength', [], 0.0) if use_noise else None
        self.add_bias()

    def call(self, x: tf.Tensor, dlatents: tf.Tensor, noise: tf.Tensor | None = None) -> tf.Tensor:
        w = self.weight * tf.constant(self.coef, x.dtype)
        style = tf.matmul(dlatents, self.mod_weight * tf.constant(self.mod_coef, x.dtype)) + self.mod_bias + 1
        gain, factor = tf.constant(self.early_gain, x.dtype), None
        if self.demodulate:
            # Σ over kh, kw, in of (w·s)²: the sum over kh and kw does not depend on the sample.
            power = tf.matmul(tf.square(style), tf.reduce_sum(tf.square(w), axis=[0, 1]))
            factor = tf.math.rsqrt(power + tf.constant(1e-8, x.dtype)) * gain
        else:
            w *= gain
        x, k, pads = self._modulated_conv(x, w, style)
        strength = None if noise is None else self.noise_strength * gain
        return filter_noise_bias_act(x, k, pads, factor, noise, strength, self.scaled_bias(x.dtype),
                                     act=self.act, gain=self.late_gain)

    def _modulated_conv(self, x: tf.Tensor, w: tf.Tensor, style: tf.Tensor) -> tuple:
        """Convolution of x scaled by the style, the filter that has to follow (None = none) and its pads."""
        if w.shape[:2] == [1, 1] and not (self.demodulate or self.up or self.down):
            # ToRGB, per pixel: scaling the weights is faster.
            height, width, channels = x.shape[1:]
            x = tf.matmul(tf.reshape(x, [-1, height * width, channels]), w[0] * style[:, :, tf.newaxis])
            return tf.reshape(x, [-1, height, width, self.fmaps]), None, NO_PADS
        x *= style[:, tf.newaxis, tf.newaxis]
        if self.up:
            x, k, pads = unfiltered_upsample_conv_2d(x, w, self.resample_kernel)
            return x, k, 2 * pads
        return resampling_conv(x, w, False, self.down, self.resample_kernel), None, NO_PADS


class ConstLayer(Layer):
    """The learned constant input of synthesis (StyleGAN, section 2): [1, fmaps, H, W] in official layout."""

    def __init__(self, name: str, fmaps: int, size: tuple[int, int], initializer, dtype: str = 'float32'):
        super().__init__(name, dtype)
        self.const = self.add_variable('const', [1, fmaps, *size], initializer)

    def call(self, batch_size) -> tf.Tensor:
        return tf.tile(tf.transpose(self.const, [0, 2, 3, 1]), [batch_size, 1, 1, 1])


def batch_size(x: tf.Tensor) -> int | tf.Tensor:
    """Size of the minibatch: a number where it is known at tracing time, a scalar tensor otherwise."""
    return x.shape[0] if x.shape[0] is not None else tf.shape(x)[0]


def full_precision(x: tf.Tensor | keras.Variable) -> tf.Tensor:
    """The tensor or variable as a tensor of at least float32."""
    x = tf.convert_to_tensor(x)
    return tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x


def normalize_2nd_moment(x: tf.Tensor, eps: float = 1e-8) -> tf.Tensor:
    """x / sqrt(mean of squares over the last axis): the latent normalization of the mapping network."""
    return x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), axis=-1, keepdims=True) + tf.constant(eps, x.dtype))


def minibatch_stddev_layer(x: tf.Tensor, group_size: int = 4, num_new_features: int = 1) -> tf.Tensor:
    """Appends the standard deviation within groups of samples as feature maps (ProGAN, section 3).

    Args:
        x: [N, H, W, C]; N must be divisible by the group size, C by num_new_features.
        group_size: samples per group G, at most N. Sample n belongs to group n mod (N / G).
        num_new_features: F; the C channels are averaged in F runs of C / F.

    Returns [N, H, W, C + F].
    """
    batch = batch_size(x)
    height, width, channels = x.shape[1:]
    group_size = min(group_size, batch) if isinstance(batch, int) else tf.minimum(group_size, batch)
    if isinstance(batch, int) and batch % group_size != 0:
        raise UserError(f'The minibatch size must be divisible by the group size {group_size} of the '
                        f'minibatch standard deviation. Received: {batch}')
    if channels % num_new_features != 0:
        raise UserError(f'mbstd_num_features must divide the number of channels {channels}. '
                        f'Received: {num_new_features}')
    shape = [group_size, -1, height, width, num_new_features, channels // num_new_features]
    y = tf.reshape(full_precision(x), shape)
    y -= tf.reduce_mean(y, axis=0, keepdims=True)
    y = tf.sqrt(tf.reduce_mean(tf.square(y), axis=0) + tf.constant(1e-8, y.dtype))  # [M, H, W, F, C/F]
    y = tf.cast(tf.reduce_mean(y, axis=[1, 2, 4])[:, tf.newaxis, tf.newaxis], x.dtype)  # [M, 1, 1, F]
    return tf.concat([x, tf.tile(y, [group_size, height, width, 1])], axis=3)


class NetworkLayer(Layer):
    """A whole network: a layer that knows its official inputs, outputs and components.

    Attributes:
        static_kwargs: the keyword arguments that the network was made with, as they stand in a pickle.
        components: {official component name: NetworkLayer}; their weights appear below the component's name.
        input_names, input_shapes, output_names, output_shapes: official ones (images in NCHW, None = batch).
        grows: True for a network of progressive growing, which has a variable `lod`.
    """

    grows = False

    def __new__(cls, *args, **kwargs):
        # Only here are the arguments known as given: an official pickle does not hold those left at their
        # defaults.
        network = super().__new__(cls, *args, **kwargs)
        network.__dict__['static_kwargs'] = {key: value for key, value in kwargs.items() if key != 'name'}
        return network

    def __init__(self, name: str, dtype: str = 'float32'):
        super().__init__(name, dtype)
        # A plain dictionary stays plain only outside Keras' attribute tracking.
        self.__dict__['components'] = {}

    def set_interface(self, inputs: dict[str, list], outputs: dict[str, list]) -> None:
        """Declares names and shapes of inputs and outputs."""
        self.__dict__['input_names'], self.__dict__['input_shapes'] = list(inputs), list(inputs.values())
        self.__dict__['output_names'], self.__dict__['output_shapes'] = list(outputs), list(outputs.values())

    def stage(self):
        """The training.growing.Stage that the variable `lod` says; None for networks that do not grow."""
        return stage_of(float(self.named_variables()['lod'].numpy())) if self.grows else None

    def add_component(self, key: str, network: 'NetworkLayer') -> 'NetworkLayer':
        """Registers a component under its official key ('synthesis', 'mapping')."""
        self.components[key] = self.add_layer(network)
        return network


def log2_resolution(resolution: int) -> int:
    """log2 of a resolution; UserError unless it is a power of two from 4 up."""
    log2 = int(resolution).bit_length() - 1
    if resolution != 2 ** log2 or log2 < 2:
        raise UserError(f'resolution must be a power of two from 4 up. Received: {resolution}')
    return log2


def feature_maps(stage: int, fmap_base: float, fmap_decay: float, fmap_min: int, fmap_max: int) -> int:
    """Feature maps of a stage: fmap_base / 2^(stage·fmap_decay), clipped to [fmap_min, fmap_max]."""
    return int(np.clip(int(fmap_base / (2.0 ** (stage * fmap_decay))), fmap_min, fmap_max))


def fmaps_by_stage(fmap_base: float, fmap_decay: float, fmap_min: int, fmap_max: int) -> Callable[[int], int]:
    """The function stage → feature maps, see feature_maps."""
    return lambda stage: feature_maps(stage, fmap_base, fmap_decay, fmap_min, fmap_max)


def check_labels(labels: tf.Tensor | None, label_size: int) -> tf.Tensor:
    """The labels of a conditional network; UserError where they are missing or of another size."""
    if labels is None or labels.shape[-1] != label_size:
        raise UserError(f'This network is conditional: it needs labels of shape [N, {label_size}]. '
                        f'Received: {None if labels is None else tuple(labels.shape)}')
    return labels
