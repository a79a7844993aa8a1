"""StyleGAN2 networks (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN").

G_main = G_mapping + G_synthesis_stylegan2, and D_stylegan2, each with the official keyword arguments,
defaults, variable names and weight layouts. Inputs and outputs are NHWC; `dnnlib.tflib.Network` speaks NCHW
for users.
"""

import numpy as np
import tensorflow as tf

from custom_ops import downsample_2d, upsample_2d
from dnnlib.util import UserError, get_obj_by_name
from training.context import Context
from training.layers import (
    ConstLayer,
    Conv2DLayer,
    DenseLayer,
    Layer,
    ModulatedConv2DLayer,
    NetworkLayer,
    feature_maps,
    log2_resolution,
    minibatch_stddev_layer,
    normal_initializer,
    normalize_2nd_moment,
)

ARCHITECTURES = ('orig', 'skip', 'resnet')
SQRT_HALF = float(np.sqrt(0.5))


def _check_architecture(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise UserError(f'architecture must be one of {", ".join(ARCHITECTURES)}. Received: {architecture!r}')


def _resolve(func, name: str, static_kwargs: dict) -> NetworkLayer:
    """Builds a component from a class, a name in this module or a dotted name."""
    if isinstance(func, str):
        func = get_obj_by_name(func if '.' in func else f'{__name__}.{func}')
    if not (isinstance(func, type) and issubclass(func, NetworkLayer)):
        raise UserError(f'{name} must be made by a network class. Received: {func!r}')
    return func(name=name, **static_kwargs)


class G_main(NetworkLayer):
    """The generator: mapping and synthesis, truncation, style mixing and the moving average of w.

    Call arguments:
        latents_in: z, [N, latent_size].
        labels_in: [N, label_size] or None where label_size is 0.
        ctx: training.context.Context with the random numbers of the pass.
        Any of the arguments below marked (*), to override it for this call.

    Returns images [N, H, W, num_channels], with return_dlatents also w [N, num_layers, dlatent_size].
    """

    def __init__(
        self,
        name: str = 'G',
        truncation_psi: float | None = 0.5,         # (*) Style strength of the truncation trick.
                                                    # None = disable.
        truncation_cutoff: int | None = None,       # (*) Number of layers to truncate. None = all.
        truncation_psi_val: float | None = None,    # (*) truncation_psi during validation.
        truncation_cutoff_val: int | None = None,   # (*) truncation_cutoff during validation.
        dlatent_avg_beta: float | None = 0.995,     # (*) Decay of the moving average of w in training.
                                                    # None = disable.
        style_mixing_prob: float | None = 0.9,      # (*) Probability of mixing styles in training.
                                                    # None = disable.
        is_training: bool = False,                  # (*) Training: mixing and average on, truncation off.
        is_validation: bool = False,                # (*) Validation: truncation by the _val arguments.
        return_dlatents: bool = False,              # (*) Return w beside the images?
        mapping_func: str = 'G_mapping',                    # Class of the mapping network.
        synthesis_func: str = 'G_synthesis_stylegan2',      # Class of the synthesis network.
        is_template_graph: bool = False,            # Accepted for compatibility.
        **kwargs,                                   # Arguments of mapping and synthesis.
    ):
        super().__init__(name, kwargs.get('dtype', 'float32'))
        self.truncation_psi, self.truncation_cutoff = truncation_psi, truncation_cutoff
        self.truncation_psi_val, self.truncation_cutoff_val = truncation_psi_val, truncation_cutoff_val
        self.dlatent_avg_beta, self.style_mixing_prob = dlatent_avg_beta, style_mixing_prob
        self.is_training, self.is_validation = is_training, is_validation
        self.return_dlatents = return_dlatents

        self.synthesis = self.add_component('synthesis', _resolve(synthesis_func, 'G_synthesis', kwargs))
        self.num_layers = self.synthesis.input_shapes[0][1]
        self.dlatent_size = self.synthesis.input_shapes[0][2]
        self.mapping = self.add_component('mapping', _resolve(
            mapping_func, 'G_mapping', {'dlatent_broadcast': self.num_layers, **kwargs}))

        # Level of detail of progressive growing; stays 0 where the networks do not grow.
        self.lod = self.add_variable('lod', [], 0.0, trainable=False)
        self.dlatent_avg = self.add_variable('dlatent_avg', [self.dlatent_size], 0.0, trainable=False)
        self.set_interface(dict(zip(self.mapping.input_names, self.mapping.input_shapes, strict=True)),
                           {'images_out': self.synthesis.output_shapes[0]})

    # The options stand one by one because Keras refuses tensors among other values in **dynamic; ... means
    # not given.
    def call(self, latents_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None, *,
             truncation_psi=..., truncation_cutoff=..., truncation_psi_val=..., truncation_cutoff_val=...,
             dlatent_avg_beta=..., style_mixing_prob=..., is_training=..., is_validation=...,
             return_dlatents=..., **dynamic):
        ctx = ctx or Context()
        option = dict(
            truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff,
            truncation_psi_val=truncation_psi_val, truncation_cutoff_val=truncation_cutoff_val,
            dlatent_avg_beta=dlatent_avg_beta, style_mixing_prob=style_mixing_prob,
            is_training=is_training, is_validation=is_validation, return_dlatents=return_dlatents)
        option = {name: getattr(self, name) if value is ... else value for name, value in option.items()}
        if option['is_training'] and option['is_validation']:
            raise UserError('is_training and is_validation exclude each other. Received: both')
        dlatents = self.mapping(latents_in, labels_in, ctx=ctx, **dynamic)
        if option['is_training']:
            dlatents = self._train_dlatents(dlatents, latents_in, labels_in, ctx, option, dynamic)
        elif option['is_validation']:
            dlatents = self.truncate(dlatents, option['truncation_psi_val'], option['truncation_cutoff_val'])
        else:
            dlatents = self.truncate(dlatents, option['truncation_psi'], option['truncation_cutoff'])
        images = self.synthesis(dlatents, ctx=ctx, **dynamic)
        return (images, dlatents) if option['return_dlatents'] else images

    def _train_dlatents(self, dlatents, latents_in, labels_in, ctx, option, dynamic):
        """Updates the moving average of w, then mixes styles (StyleGAN, section 3.1)."""
        if option['dlatent_avg_beta'] is not None:
            batch_avg = tf.reduce_mean(dlatents[:, 0], axis=0)
            average = ctx.value(self.dlatent_avg)
            ctx.update(self.dlatent_avg, batch_avg + (average - batch_avg) * option['dlatent_avg_beta'])
        if option['style_mixing_prob'] is None or option['style_mixing_prob'] <= 0:
            return dlatents
        latents2 = ctx.normal(tf.shape(latents_in), latents_in.dtype)
        dlatents2 = self.mapping(latents2, labels_in, ctx=ctx, **dynamic)
        current_layers = self.num_layers - 2 * tf.cast(self.lod, tf.int32)
        mix = ctx.uniform([]) < option['style_mixing_prob']
        cutoff = tf.where(mix, ctx.integers([], 1, current_layers), current_layers)
        return tf.where(self._layer_index() < cutoff, dlatents, dlatents2)

    def truncate(self, dlatents: tf.Tensor, psi, cutoff) -> tf.Tensor:
        """Moves w [N, num_layers, dlatent_size] towards its average (StyleGAN, appendix B)."""
        if psi is None or (isinstance(psi, int | float) and psi == 1):
            return dlatents
        psi = tf.cast(psi, dlatents.dtype) if tf.is_tensor(psi) else tf.constant(psi, dlatents.dtype)
        coefficient = psi if cutoff is None else tf.where(self._layer_index() < cutoff, psi, 1)
        return self.dlatent_avg + (dlatents - self.dlatent_avg) * coefficient

    def _layer_index(self) -> tf.Tensor:
        return tf.range(self.num_layers)[tf.newaxis, :, tf.newaxis]


class G_mapping(NetworkLayer):
    """The mapping network z → w (StyleGAN, section 2).

    Call arguments: latents_in [N, latent_size], labels_in [N, label_size] or None.
    Returns w [N, dlatent_broadcast, dlatent_size], or [N, dlatent_size] where dlatent_broadcast is None.
    """

    def __init__(
        self,
        name: str = 'G_mapping',
        latent_size: int = 512,             # Size of z.
        label_size: int = 0,                # Size of the labels, 0 if there are none.
        dlatent_size: int = 512,            # Size of w.
        dlatent_broadcast: int | None = None,   # Copies of w to output. None = one, without the axis.
        mapping_layers: int = 8,            # Number of layers.
        mapping_fmaps: int = 512,           # Number of activations of the hidden layers.
        mapping_lrmul: float = 0.01,        # Learning rate multiplier of the layers.
        mapping_nonlinearity: str = 'lrelu',    # Activation function.
        normalize_latents: bool = True,     # Normalize z to unit second moment?
        dtype: str = 'float32',             # Of activations and weights.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        super().__init__(name, dtype)
        if mapping_layers < 1:
            raise UserError(f'mapping_layers must be at least 1. Received: {mapping_layers}')
        self.latent_size, self.label_size, self.dlatent_broadcast = latent_size, label_size, dlatent_broadcast
        self.normalize_latents = normalize_latents
        in_features = latent_size
        if label_size:
            # The embedding of the label has no equalized learning rate.
            self.label_concat = self.add_layer(Layer('LabelConcat', dtype))
            self.label_weight = self.label_concat.add_variable('weight', [label_size, latent_size],
                                                               normal_initializer(1))
            in_features += latent_size
        self.layers = []
        for index in range(mapping_layers):
            fmaps = dlatent_size if index == mapping_layers - 1 else mapping_fmaps
            self.layers.append(self.add_layer(DenseLayer(
                f'Dense{index}', in_features, fmaps,
                act=mapping_nonlinearity, lrmul=mapping_lrmul, dtype=dtype)))
            in_features = fmaps
        shape = [None, dlatent_size] if dlatent_broadcast is None else [None, dlatent_broadcast, dlatent_size]
        self.set_interface({'latents_in': [None, latent_size], 'labels_in': [None, label_size]},
                           {'dlatents_out': shape})

    def call(self, latents_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None,
             **_dynamic):
        ctx = ctx or Context()
        x = latents_in
        if self.label_size:
            x = tf.concat([x, tf.matmul(check_labels(labels_in, self.label_size), self.label_weight)], axis=1)
        if self.normalize_latents:
            x = normalize_2nd_moment(x)
        for layer in self.layers:
            x = ctx.feature(layer.name, layer(x))
        if self.dlatent_broadcast is not None:
            x = tf.tile(x[:, tf.newaxis], [1, self.dlatent_broadcast, 1])
        return x


class SynthesisBlock(Layer):
    """All layers of one resolution of the synthesis network (StyleGAN2, figures 2d and 7)."""

    def __init__(self, res, in_fmaps, fmaps, architecture, has_rgb, num_channels, common):
        super().__init__(f'{2 ** res}x{2 ** res}', common['dtype'])
        self.res, self.architecture = res, architecture
        self.resample_kernel = tuple(common['resample_kernel']) if common['resample_kernel'] else None
        noisy = dict(use_noise=True, **common)
        if res == 2:
            self.convs = [self.add_layer(ModulatedConv2DLayer('Conv', fmaps, fmaps, 3, **noisy))]
        else:
            self.convs = [
                self.add_layer(ModulatedConv2DLayer('Conv0_up', in_fmaps, fmaps, 3, up=True, **noisy)),
                self.add_layer(ModulatedConv2DLayer('Conv1', fmaps, fmaps, 3, **noisy))]
        self.skip = None
        if architecture == 'resnet' and res > 2:
            self.skip = self.add_layer(Conv2DLayer(
                'Skip', in_fmaps, fmaps, 1, up=True, use_bias=False,
                resample_kernel=common['resample_kernel'], dtype=common['dtype']))
        self.to_rgb = None
        if has_rgb:
            self.to_rgb = self.add_layer(ModulatedConv2DLayer(
                'ToRGB', fmaps, num_channels, 1, demodulate=False, **{**common, 'act': 'linear'}))

    def call(self, x, y, dlatents, noises, ctx):
        """x: features, y: image or None, dlatents [N, num_layers, dlatent_size] → (features, image)."""
        shortcut = x
        first = 2 * self.res - 3 - len(self.convs)  # Conv0_up 2·res-5, Conv1 2·res-4, ToRGB 2·res-3.
        for index, (conv, noise) in enumerate(zip(self.convs, noises, strict=True)):
            x = ctx.feature(f'{self.name}/{conv.name}', conv(x, dlatents[:, first + index], noise))
        if self.skip is not None:
            x = ctx.feature(f'{self.name}/Skip', (x + self.skip(shortcut)) * SQRT_HALF)
        if y is not None:
            y = ctx.feature(f'{self.name}/Upsample',
                            upsample_2d(y, k=self.resample_kernel, data_format='NHWC'))
        if self.to_rgb is not None:
            rgb = self.to_rgb(x, dlatents[:, 2 * self.res - 3])
            y = ctx.feature(f'{self.name}/ToRGB', rgb if y is None else y + rgb)
        return x, y


class G_synthesis_stylegan2(NetworkLayer):
    """The synthesis network w → image (StyleGAN2, figures 2 and 7), configs E and F and architecture 'orig'.

    Call arguments: dlatents_in [N, num_layers, dlatent_size]; randomize_noise overrides the argument below.
    Returns images [N, H, W, num_channels].
    """

    def __init__(
        self,
        name: str = 'G_synthesis',
        dlatent_size: int = 512,            # Size of w.
        num_channels: int = 3,              # Number of color channels of the images.
        resolution: int = 1024,             # Resolution of the images.
        fmap_base: int = 16 << 10,          # Overall factor on the number of feature maps.
        fmap_decay: float = 1.0,            # log2 reduction of feature maps when the resolution doubles.
        fmap_min: int = 1,                  # Least number of feature maps in any layer.
        fmap_max: int = 512,                # Greatest number of feature maps in any layer.
        randomize_noise: bool = True,       # True = new noise in every call, False = the noise variables.
        architecture: str = 'skip',         # 'orig', 'skip' or 'resnet'.
        nonlinearity: str = 'lrelu',        # Activation function.
        dtype: str = 'float32',             # Of activations and weights.
        resample_kernel=(1, 3, 3, 1),       # FIR filter of the resampling. None = box.
        base_shape: tuple[int, int] = (4, 4),   # Height and width at the lowest level; (4, 3) gives 4:3
                                                # images of resolution x resolution·3/4.
        fused_modconv: bool = True,         # Accepted for compatibility: one form serves all.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        super().__init__(name, dtype)
        _check_architecture(architecture)
        resolution_log2 = log2_resolution(resolution)
        self.num_layers = resolution_log2 * 2 - 2
        self.randomize_noise = randomize_noise
        self.base_shape = tuple(base_shape)

        def nf(stage: int) -> int:
            return feature_maps(stage, fmap_base, fmap_decay, fmap_min, fmap_max)

        common = dict(dlatent_size=dlatent_size, act=nonlinearity, resample_kernel=resample_kernel,
                      dtype=dtype)
        self.noise_inputs = [self.add_variable(f'noise{index}', [1, 1, *self._size((index + 5) // 2)],
                                               normal_initializer(1), trainable=False)
                             for index in range(self.num_layers - 1)]
        self.blocks = []
        for res in range(2, resolution_log2 + 1):
            block = SynthesisBlock(res, nf(res - 2), nf(res - 1), architecture,
                                   architecture == 'skip' or res == resolution_log2, num_channels, common)
            if res == 2:
                # The constant comes first in the official order of variables.
                self.const = ConstLayer('Const', nf(1), self.base_shape, normal_initializer(1), dtype)
                block.__dict__['_children'] = {'Const': self.const, **block._children}
            self.blocks.append(self.add_layer(block))
        self.set_interface({'dlatents_in': [None, self.num_layers, dlatent_size]},
                           {'images_out': [None, num_channels, *self._size(resolution_log2)]})

    def _size(self, res: int) -> list[int]:
        """Height and width at level `res` (4×4 is level 2)."""
        return [size * 2 ** (res - 2) for size in self.base_shape]

    def call(self, dlatents_in: tf.Tensor, ctx: Context | None = None, **dynamic) -> tf.Tensor:
        ctx = ctx or Context()
        randomize_noise = dynamic.get('randomize_noise', self.randomize_noise)
        batch = dlatents_in.shape[0] if dlatents_in.shape[0] is not None else tf.shape(dlatents_in)[0]
        noises = []
        for variable in self.noise_inputs:
            height, width = variable.shape[2:]
            noises.append(ctx.normal([batch, height, width, 1], dlatents_in.dtype) if randomize_noise
                          else tf.reshape(variable, [1, height, width, 1]))
        x, y = ctx.feature('4x4/Const', self.const(batch_size=batch)), None
        for block in self.blocks:
            x, y = block(x, y, dlatents_in, noises[:len(block.convs)], ctx=ctx)
            noises = noises[len(block.convs):]
        return y


class DiscriminatorBlock(Layer):
    """All layers of one resolution of the discriminator above 4×4 (StyleGAN2, figure 7)."""

    def __init__(self, res, fmaps, out_fmaps, architecture, from_rgb, num_channels, common):
        super().__init__(f'{2 ** res}x{2 ** res}', common['dtype'])
        self.architecture = architecture
        plain = dict(act=common['act'], dtype=common['dtype'])
        self.from_rgb = None
        if from_rgb:
            self.from_rgb = self.add_layer(Conv2DLayer('FromRGB', num_channels, fmaps, 1, **plain))
        self.conv0 = self.add_layer(Conv2DLayer('Conv0', fmaps, fmaps, 3, **plain))
        self.conv1_down = self.add_layer(Conv2DLayer('Conv1_down', fmaps, out_fmaps, 3, down=True, **common))
        self.skip = None
        if architecture == 'resnet':
            self.skip = self.add_layer(Conv2DLayer('Skip', fmaps, out_fmaps, 1, down=True, use_bias=False,
                                                   **{**common, 'act': 'linear'}))

    def call(self, x, y, ctx):
        """x: features or None, y: image at this resolution → features at half of it."""
        if self.from_rgb is not None:
            rgb = self.from_rgb(y)
            x = ctx.feature(f'{self.name}/FromRGB', rgb if x is None else x + rgb)
        shortcut = x
        x = ctx.feature(f'{self.name}/Conv0', self.conv0(x))
        x = ctx.feature(f'{self.name}/Conv1_down', self.conv1_down(x))
        if self.skip is not None:
            x = ctx.feature(f'{self.name}/Skip', (x + self.skip(shortcut)) * SQRT_HALF)
        return x


class D_stylegan2(NetworkLayer):
    """The discriminator (StyleGAN2, figure 7), architectures orig, skip (input skips) and resnet.

    Call arguments: images_in [N, H, W, num_channels], labels_in [N, label_size] or None.
    Returns scores [N, 1]; with labels the score of the given class.
    """

    def __init__(
        self,
        name: str = 'D',
        num_channels: int = 3,              # Number of color channels of the images.
        resolution: int = 1024,             # Resolution of the images.
        label_size: int = 0,                # Size of the labels, 0 if there are none.
        fmap_base: int = 16 << 10,          # Overall factor on the number of feature maps.
        fmap_decay: float = 1.0,            # log2 reduction of feature maps when the resolution doubles.
        fmap_min: int = 1,                  # Least number of feature maps in any layer.
        fmap_max: int = 512,                # Greatest number of feature maps in any layer.
        architecture: str = 'resnet',       # 'orig', 'skip' or 'resnet'.
        nonlinearity: str = 'lrelu',        # Activation function.
        mbstd_group_size: int = 4,          # Group size of the minibatch standard deviation, < 2 = disable.
        mbstd_num_features: int = 1,        # Number of features of the minibatch standard deviation.
        dtype: str = 'float32',             # Of activations and weights.
        resample_kernel=(1, 3, 3, 1),       # FIR filter of the resampling. None = box.
        base_shape: tuple[int, int] = (4, 4),   # Height and width at the lowest level, as in the generator.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        super().__init__(name, dtype)
        _check_architecture(architecture)
        resolution_log2 = log2_resolution(resolution)
        self.label_size, self.architecture = label_size, architecture
        self.mbstd_group_size, self.mbstd_num_features = mbstd_group_size, mbstd_num_features
        self.resample_kernel = tuple(resample_kernel) if resample_kernel else None

        def nf(stage: int) -> int:
            return feature_maps(stage, fmap_base, fmap_decay, fmap_min, fmap_max)

        common = dict(act=nonlinearity, resample_kernel=resample_kernel, dtype=dtype)
        plain = dict(act=nonlinearity, dtype=dtype)
        self.blocks = []
        for res in range(resolution_log2, 2, -1):
            from_rgb = architecture == 'skip' or res == resolution_log2
            self.blocks.append(self.add_layer(DiscriminatorBlock(
                res, nf(res - 1), nf(res - 2), architecture, from_rgb, num_channels, common)))

        self.final = self.add_layer(Layer('4x4', dtype))
        self.from_rgb = None
        if architecture == 'skip' or resolution_log2 == 2:
            self.from_rgb = self.final.add_layer(Conv2DLayer('FromRGB', num_channels, nf(1), 1, **plain))
        new_features = mbstd_num_features if mbstd_group_size > 1 else 0
        self.conv = self.final.add_layer(Conv2DLayer('Conv', nf(1) + new_features, nf(1), 3, **plain))
        self.dense0 = self.final.add_layer(
            DenseLayer('Dense0', nf(1) * int(np.prod(base_shape)), nf(0), **plain))
        self.output_layer = self.add_layer(DenseLayer('Output', nf(0), max(label_size, 1), dtype=dtype))
        size = [side * 2 ** (resolution_log2 - 2) for side in base_shape]
        self.set_interface({'images_in': [None, num_channels, *size], 'labels_in': [None, label_size]},
                           {'scores_out': [None, 1]})

    def call(self, images_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None,
             **_dynamic):
        ctx = ctx or Context()
        x, y = None, images_in
        for block in self.blocks:
            x = block(x, y, ctx=ctx)
            if self.architecture == 'skip':
                y = downsample_2d(y, k=self.resample_kernel, data_format='NHWC')
        if self.from_rgb is not None:
            rgb = self.from_rgb(y)
            x = ctx.feature('4x4/FromRGB', rgb if x is None else x + rgb)
        if self.mbstd_group_size > 1:
            x = ctx.feature('4x4/MinibatchStddev',
                            minibatch_stddev_layer(x, self.mbstd_group_size, self.mbstd_num_features))
        x = ctx.feature('4x4/Conv', self.conv(x))
        x = ctx.feature('4x4/Dense0', self.dense0(x))
        x = ctx.feature('Output', self.output_layer(x))
        if self.label_size:
            x = tf.reduce_sum(x * check_labels(labels_in, self.label_size), axis=1, keepdims=True)
        return x


def check_labels(labels: tf.Tensor | None, label_size: int) -> tf.Tensor:
    """The labels of a conditional network; UserError where they are missing or of another size."""
    if labels is None or labels.shape[-1] != label_size:
        raise UserError(f'This network is conditional: it needs labels of shape [N, {label_size}]. '
                        f'Received: {None if labels is None else tuple(labels.shape)}')
    return labels
