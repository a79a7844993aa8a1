"""StyleGAN2 networks (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN").

G_main = G_mapping + G_synthesis_stylegan2, and D_stylegan2; for the growing configs B to D
G_synthesis_stylegan_revised and D_stylegan. Each has the official keyword arguments, defaults, variable names
and weight layouts. Inputs and outputs are NHWC; `dnnlib.tflib.Network` speaks NCHW for users.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from custom_ops import downsample_2d, upsample_2d
from dnnlib.util import UserError
from training.context import Context
from training.growing_networks import GrowingNetwork
from training.layers import (
    ConstLayer,
    Conv2DLayer,
    DenseLayer,
    Layer,
    ModulatedConv2DLayer,
    NetworkLayer,
    batch_size,
    check_labels,
    fmaps_by_stage,
    log2_resolution,
    minibatch_stddev_layer,
    normal_initializer,
)
from training.style_generator import MappingNetwork, StyleGenerator

ARCHITECTURES = ('orig', 'skip', 'resnet')
SQRT_HALF = float(np.sqrt(0.5))


def _check_architecture(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise UserError(f'architecture must be one of {", ".join(ARCHITECTURES)}. Received: {architecture!r}')


class G_main(StyleGenerator):
    """The generator: G_mapping and a synthesis network of this module. Arguments as in StyleGenerator."""

    def __init__(
        self,
        name: str = 'G',
        truncation_psi: float | None = 0.5,         # (*) Style strength of the truncation trick.
                                                    # None = disable.
        truncation_cutoff: int | None = None,       # (*) Number of layers to truncate. None = all.
        synthesis_func: str = 'G_synthesis_stylegan2',      # Class of the synthesis network.
        **kwargs,                                   # Arguments of StyleGenerator and of the components.
    ):
        super().__init__(name, __name__, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff,
                         synthesis_func=synthesis_func, **kwargs)


class G_mapping(MappingNetwork):
    """The mapping network; layer gains as in the activations. Arguments as in MappingNetwork."""

    def __init__(
        self,
        name: str = 'G_mapping',
        mapping_layers: int = 8,            # Number of layers.
        mapping_lrmul: float = 0.01,        # Learning rate multiplier of the layers.
        mapping_nonlinearity: str = 'lrelu',    # Activation function.
        dtype: str = 'float32',             # Of activations and weights.
        **kwargs,                           # Arguments of MappingNetwork and of other networks.
    ):
        if mapping_layers < 1:
            raise UserError(f'mapping_layers must be at least 1. Received: {mapping_layers}')

        def dense(layer_name: str, in_features: int, fmaps: int) -> Layer:
            return DenseLayer(layer_name, in_features, fmaps, act=mapping_nonlinearity, lrmul=mapping_lrmul,
                              dtype=dtype)
        super().__init__(name, dense, mapping_layers=mapping_layers, dtype=dtype, **kwargs)


class SynthesisBlock(Layer):
    """All layers of one resolution of the synthesis network (StyleGAN2, figures 2d and 7)."""

    def __init__(self, res, in_fmaps, fmaps, *, architecture, has_rgb, num_channels, base_shape, common):
        super().__init__(f'{2 ** res}x{2 ** res}', common['dtype'])
        self.res, self.architecture = res, architecture
        self.resample_kernel = tuple(common['resample_kernel']) if common['resample_kernel'] else None
        noisy = dict(use_noise=True, **common)
        if res == 2:
            self.const = self.add_layer(
                ConstLayer('Const', fmaps, base_shape, normal_initializer(1), common['dtype']))
            self.convs = [self.add_layer(ModulatedConv2DLayer('Conv', fmaps, fmaps, 3, **noisy))]
        else:
            self.convs = [
                self.add_layer(ModulatedConv2DLayer('Conv0_up', in_fmaps, fmaps, 3, up=True, **noisy)),
                self.add_layer(ModulatedConv2DLayer('Conv1', fmaps, fmaps, 3, **noisy))]
        # Number of the first layer's style and noise: Conv0_up 2·res-5, Conv1 2·res-4; ToRGB has 2·res-3.
        self.first = 2 * res - 3 - len(self.convs)
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
        """x: features (None at 4×4), y: image or None, dlatents [N, num_layers, dlatent_size] → (x, y)."""
        if self.res == 2:
            x = ctx.feature('4x4/Const', self.const(batch_size=batch_size(dlatents)))
        shortcut = x
        for index, (conv, noise) in enumerate(zip(self.convs, noises, strict=True)):
            x = ctx.feature(f'{self.name}/{conv.name}', conv(x, dlatents[:, self.first + index], noise))
        if self.skip is not None:
            x = ctx.feature(f'{self.name}/Skip', (x + self.skip(shortcut)) * SQRT_HALF)
        if y is not None:
            y = ctx.feature(f'{self.name}/Upsample',
                            upsample_2d(y, k=self.resample_kernel, data_format='NHWC'))
        if self.to_rgb is not None:
            rgb = self.to_rgb(x, dlatents[:, 2 * self.res - 3])
            y = ctx.feature(f'{self.name}/ToRGB', rgb if y is None else y + rgb)
        return x, y


class SynthesisNetwork(NetworkLayer):
    """What the synthesis networks share: the noise inputs and the layers of each resolution.

    Call arguments: dlatents_in [N, num_layers, dlatent_size]; randomize_noise overrides the constructor's, in
    growing networks also structure and lod (a scalar tensor). Of these None means the network's own.
    Returns images [N, H, W, num_channels].
    """

    def __init__(self, name, *, dlatent_size, num_channels, resolution, randomize_noise, base_shape, dtype,
                 **growing):
        super().__init__(name, dtype, **growing)    # Of GrowingNetwork, where that is the other base.
        self.resolution_log2 = log2_resolution(resolution)
        self.num_layers = self.resolution_log2 * 2 - 2
        self.randomize_noise = randomize_noise
        self.base_shape = tuple(base_shape)
        self.noise_inputs = [self.add_variable(f'noise{index}', [1, 1, *self._size((index + 5) // 2)],
                                               normal_initializer(1), trainable=False)
                             for index in range(self.num_layers - 1)]
        self.blocks: list[SynthesisBlock] = []
        self.set_interface({'dlatents_in': [None, self.num_layers, dlatent_size]},
                           {'images_out': [None, num_channels, *self._size(self.resolution_log2)]})

    def _size(self, res: int) -> list[int]:
        """Height and width at level `res` (4×4 is level 2)."""
        return [size * 2 ** (res - 2) for size in self.base_shape]

    def _run_block(self, block: SynthesisBlock, x, y, dlatents, ctx, randomize_noise: bool):
        """The block with its noise: (x, y) → (x, y), see SynthesisBlock."""
        noises = []
        for variable in self.noise_inputs[block.first:block.first + len(block.convs)]:
            height, width = variable.shape[2:]
            noises.append(ctx.normal([batch_size(dlatents), height, width, 1], dlatents.dtype)
                          if randomize_noise else tf.reshape(variable, [1, height, width, 1]))
        return block(x, y, dlatents, noises, ctx=ctx)


class G_synthesis_stylegan2(SynthesisNetwork):
    """The synthesis network of configs E and F and of architecture 'orig' (StyleGAN2, figures 2 and 7)."""

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
        super().__init__(name, dlatent_size=dlatent_size, num_channels=num_channels, resolution=resolution,
                         randomize_noise=randomize_noise, base_shape=base_shape, dtype=dtype)
        _check_architecture(architecture)
        nf = fmaps_by_stage(fmap_base, fmap_decay, fmap_min, fmap_max)
        common = dict(dlatent_size=dlatent_size, act=nonlinearity, resample_kernel=resample_kernel,
                      dtype=dtype)
        for res in range(2, self.resolution_log2 + 1):
            has_rgb = architecture == 'skip' or res == self.resolution_log2
            self.blocks.append(self.add_layer(SynthesisBlock(
                res, nf(res - 2), nf(res - 1), architecture=architecture, has_rgb=has_rgb,
                num_channels=num_channels, base_shape=self.base_shape, common=common)))

    def call(self, dlatents_in: tf.Tensor, ctx: Context | None = None, **dynamic) -> tf.Tensor:
        ctx = ctx or Context()
        x = y = None
        for block in self.blocks:
            x, y = self._run_block(block, x, y, dlatents_in, ctx,
                                   dynamic.get('randomize_noise', self.randomize_noise))
        return y


class G_synthesis_stylegan_revised(SynthesisNetwork, GrowingNetwork):
    """The growing synthesis network of configs B to D: StyleGAN's with weight demodulation (table 1)."""

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
        nonlinearity: str = 'lrelu',        # Activation function.
        dtype: str = 'float32',             # Of activations and weights.
        resample_kernel=(1, 3, 3, 1),       # FIR filter of the convolutions; images use box and nearest.
        structure: str | None = 'auto',     # See training.growing.running_stage. None = 'auto'.
        base_shape: tuple[int, int] = (4, 4),   # Height and width at the lowest level.
        fused_modconv: bool = True,         # Accepted for compatibility: one form serves all.
        is_template_graph: bool = False,    # Accepted for compatibility, like
        force_clean_graph: bool = False,    # this one.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        super().__init__(name, dlatent_size=dlatent_size, num_channels=num_channels, resolution=resolution,
                         randomize_noise=randomize_noise, base_shape=base_shape, dtype=dtype,
                         structure=structure)
        nf = fmaps_by_stage(fmap_base, fmap_decay, fmap_min, fmap_max)
        common = dict(dlatent_size=dlatent_size, act=nonlinearity, resample_kernel=resample_kernel,
                      dtype=dtype)
        for res in range(2, self.resolution_log2 + 1):
            self.blocks.append(self.add_layer(SynthesisBlock(
                res, nf(res - 2), nf(res - 1), architecture='orig', has_rgb=False, num_channels=num_channels,
                base_shape=self.base_shape, common=common)))
            self.add_rgb(ModulatedConv2DLayer, 'ToRGB', res, nf(res - 1), num_channels, 1, demodulate=False,
                         **{**common, 'act': 'linear'})

    def call(self, dlatents_in: tf.Tensor, ctx: Context | None = None, lod: tf.Tensor | None = None,
             **dynamic) -> tf.Tensor:
        ctx = ctx or Context()
        randomize_noise = dynamic.get('randomize_noise', self.randomize_noise)

        def features(x, res):
            return self._run_block(self.blocks[res - 2], x, None, dlatents_in, ctx, randomize_noise)[0]

        return self.grow(features, ctx, lod=lod, structure=dynamic.get('structure'),
                         style=lambda res: dlatents_in[:, 2 * res - 3])


class DiscriminatorBlock(Layer):
    """All layers of one resolution of the discriminator above 4×4 (StyleGAN2, figure 7)."""

    def __init__(self, res, fmaps, out_fmaps, *, architecture, from_rgb, num_channels, common):
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


class Discriminator(NetworkLayer):
    """What the discriminators share: the layers at 4×4 and the output.

    Call arguments: images_in [N, H, W, num_channels], labels_in [N, label_size] or None; in growing networks
    structure overrides the constructor's, unless it is None.
    Returns scores [N, 1]; with labels the score of the given class.
    """

    def __init__(self, name, *, num_channels, resolution, label_size, mbstd_group_size, mbstd_num_features,
                 base_shape, dtype, **growing):
        super().__init__(name, dtype, **growing)    # Of GrowingNetwork, where that is the other base.
        self.resolution_log2 = log2_resolution(resolution)
        self.num_channels, self.label_size, self.base_shape = num_channels, label_size, base_shape
        self.mbstd_group_size, self.mbstd_num_features = mbstd_group_size, mbstd_num_features
        self.blocks: list[DiscriminatorBlock] = []
        size = [side * 2 ** (self.resolution_log2 - 2) for side in base_shape]
        self.set_interface({'images_in': [None, num_channels, *size], 'labels_in': [None, label_size]},
                           {'scores_out': [None, 1]})

    def _add_final(self, nf: Callable[[int], int], nonlinearity: str, has_rgb: bool) -> None:
        """Creates the layers at 4×4 and the output."""
        dtype = self.dtype_policy.name
        plain = dict(act=nonlinearity, dtype=dtype)
        self.final = self.add_layer(Layer('4x4', dtype))
        self.from_rgb = None
        if has_rgb:
            self.from_rgb = self.final.add_layer(Conv2DLayer('FromRGB', self.num_channels, nf(1), 1, **plain))
        new_features = self.mbstd_num_features if self.mbstd_group_size > 1 else 0
        self.conv = self.final.add_layer(Conv2DLayer('Conv', nf(1) + new_features, nf(1), 3, **plain))
        self.dense0 = self.final.add_layer(
            DenseLayer('Dense0', nf(1) * int(np.prod(self.base_shape)), nf(0), **plain))
        self.output_layer = self.add_layer(DenseLayer('Output', nf(0), max(self.label_size, 1), dtype=dtype))

    def _run_final(self, x: tf.Tensor, labels_in: tf.Tensor | None, ctx: Context) -> tf.Tensor:
        """Features at 4×4 → scores."""
        if self.mbstd_group_size > 1:
            x = ctx.feature('4x4/MinibatchStddev',
                            minibatch_stddev_layer(x, self.mbstd_group_size, self.mbstd_num_features))
        x = ctx.feature('4x4/Conv', self.conv(x))
        x = ctx.feature('4x4/Dense0', self.dense0(x))
        x = ctx.feature('Output', self.output_layer(x))
        if self.label_size:
            x = tf.reduce_sum(x * check_labels(labels_in, self.label_size), axis=1, keepdims=True)
        return x


class D_stylegan2(Discriminator):
    """The discriminator (StyleGAN2, figure 7), architectures orig, skip (input skips) and resnet."""

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
        super().__init__(name, num_channels=num_channels, resolution=resolution, label_size=label_size,
                         mbstd_group_size=mbstd_group_size, mbstd_num_features=mbstd_num_features,
                         base_shape=base_shape, dtype=dtype)
        _check_architecture(architecture)
        self.architecture = architecture
        self.resample_kernel = tuple(resample_kernel) if resample_kernel else None
        nf = fmaps_by_stage(fmap_base, fmap_decay, fmap_min, fmap_max)
        common = dict(act=nonlinearity, resample_kernel=resample_kernel, dtype=dtype)
        for res in range(self.resolution_log2, 2, -1):
            has_rgb = architecture == 'skip' or res == self.resolution_log2
            self.blocks.append(self.add_layer(DiscriminatorBlock(
                res, nf(res - 1), nf(res - 2), architecture=architecture, from_rgb=has_rgb,
                num_channels=num_channels, common=common)))
        self._add_final(nf, nonlinearity, architecture == 'skip' or self.resolution_log2 == 2)

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
        return self._run_final(x, labels_in, ctx)


class D_stylegan(Discriminator, GrowingNetwork):
    """The growing discriminator of configs B to D, that of StyleGAN with StyleGAN2's layers."""

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
        nonlinearity: str = 'lrelu',        # Activation function.
        mbstd_group_size: int = 4,          # Group size of the minibatch standard deviation, < 2 = disable.
        mbstd_num_features: int = 1,        # Number of features of the minibatch standard deviation.
        dtype: str = 'float32',             # Of activations and weights.
        resample_kernel=(1, 3, 3, 1),       # FIR filter of the convolutions; images use box averages.
        structure: str | None = 'auto',     # See training.growing.running_stage. None = 'auto'.
        base_shape: tuple[int, int] = (4, 4),   # Height and width at the lowest level, as in the generator.
        is_template_graph: bool = False,    # Accepted for compatibility.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        super().__init__(name, num_channels=num_channels, resolution=resolution, label_size=label_size,
                         mbstd_group_size=mbstd_group_size, mbstd_num_features=mbstd_num_features,
                         base_shape=base_shape, dtype=dtype, structure=structure)
        nf = fmaps_by_stage(fmap_base, fmap_decay, fmap_min, fmap_max)
        common = dict(act=nonlinearity, resample_kernel=resample_kernel, dtype=dtype)
        for res in range(self.resolution_log2, 1, -1):
            self.add_rgb(Conv2DLayer, 'FromRGB', res, num_channels, nf(res - 1), 1, act=nonlinearity,
                         dtype=dtype)
            if res > 2:
                self.blocks.append(self.add_layer(DiscriminatorBlock(
                    res, nf(res - 1), nf(res - 2), architecture='orig', from_rgb=False,
                    num_channels=num_channels, common=common)))
        self._add_final(nf, nonlinearity, has_rgb=False)

    def call(self, images_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None,
             **dynamic):
        ctx = ctx or Context()

        def block(x, res):
            return self.blocks[self.resolution_log2 - res](x, None, ctx=ctx)

        x = self.shrink(images_in, block, ctx, structure=dynamic.get('structure'))
        return self._run_final(x, labels_in, ctx)
