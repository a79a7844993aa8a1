"""The networks of ProGAN (Karras et al., "Progressive Growing of GANs for Improved Quality, Stability, and
Variation").

G_paper and D_paper with the official keyword arguments, defaults, variable names and weight layouts, and what
they share with the networks of StyleGAN. Inputs and outputs are NHWC; `dnnlib.tflib.Network` speaks NCHW for
users.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from training.context import Context
from training.growing import check_structure, downscale2d, grow_images, running_stage, shrink_images
from training.layers import (
    Layer,
    NetworkLayer,
    check_labels,
    feature_maps,
    log2_resolution,
    minibatch_stddev_layer,
)
from training.layers_stylegan import (
    ConvLayer,
    DenseLayer,
    Epilogue,
    EpilogueLayer,
    check_fused_scale,
    pixel_norm,
)


class GrowingNetwork(NetworkLayer):
    """A network of progressive growing: a variable `lod`, a structure, and levels numbered by log2."""

    grows = True

    def __init__(self, name: str, dtype: str, resolution: int, structure: str | None):
        super().__init__(name, dtype)
        self.structure = structure or 'auto'
        check_structure(self.structure)
        self.resolution_log2 = log2_resolution(resolution)
        self.lod = self.add_variable('lod', [], 0.0, trainable=False)
        # Plain dictionaries by level, outside of Keras' attribute tracking: add_layer tracks the layers.
        self.__dict__['levels'] = {}
        self.__dict__['rgb_layers'] = {}

    def add_rgb(self, prefix: str, res: int, *args, **options) -> None:
        """Adds the ToRGB or FromRGB layer of a level; its name counts from the final resolution."""
        self.rgb_layers[res] = self.add_layer(ConvLayer(f'{prefix}_lod{self.resolution_log2 - res}', *args,
                                                        **options))

    def add_level(self, res: int, layers: list[EpilogueLayer]) -> None:
        """Adds the layers of a level below the scope of its resolution."""
        scope = self.add_layer(Layer(f'{2 ** res}x{2 ** res}', self.compute_dtype))
        self.levels[res] = [scope.add_layer(layer) for layer in layers]

    def resolve(self, lod: tf.Tensor | None, structure: str | None, ctx: Context):
        """(level of detail, stage) of a pass; None = the network's own."""
        lod = tf.convert_to_tensor(self.lod if lod is None else lod)
        return lod, running_stage(structure or self.structure, lod, ctx)


class GrowingGenerator(GrowingNetwork):
    """A generator with two layers per level and a ToRGB layer at each (ProGAN, table 2)."""

    def add_levels(
        self,
        first: EpilogueLayer,               # What makes the features at 4×4: dense layer or constant.
        num_channels: int,                  # Number of color channels of the images.
        fmaps: Callable[[int], int],        # stage → feature maps.
        epilogue: Epilogue,                 # Of all layers but ToRGB.
        up_options: Callable[[int], dict],  # resolution → name and arguments of its upscaling ConvLayer.
        **options,                          # use_wscale, dtype.
    ) -> None:
        """Creates all layers in the official order."""
        for res in range(2, self.resolution_log2 + 1):
            if res == 2:
                layers = [first, ConvLayer('Conv', fmaps(1), fmaps(1), 3, epilogue, **options)]
            else:
                name, arguments = up_options(2 ** res)
                layers = [ConvLayer(name, fmaps(res - 2), fmaps(res - 1), 3, epilogue, up=True, **arguments,
                                    **options),
                          ConvLayer('Conv1', fmaps(res - 1), fmaps(res - 1), 3, epilogue, **options)]
            self.add_level(res, layers)
            self.add_rgb('ToRGB', res, fmaps(res - 1), num_channels, 1, Epilogue(), **options)

    def grow(self, x: tf.Tensor, lod: tf.Tensor, stage, ctx: Context, dlatents: tf.Tensor | None = None,
             noise: Callable[[int], tf.Tensor] | None = None) -> tf.Tensor:
        """Images from the input of the first layer.

        Args: dlatents [N, number of layers, dlatent_size] for layers with a style; noise: layer → its noise.
        """
        def features(below, res):
            y = x if below is None else below
            for index, layer in enumerate(self.levels[res], 2 * res - 4):
                y = layer(y, None if dlatents is None else dlatents[:, index],
                          None if noise is None else noise(index))
                y = ctx.feature(f'{2 ** res}x{2 ** res}/{layer.name}', y)
            return y

        def to_rgb(y, res):
            return ctx.feature(self.rgb_layers[res].name, self.rgb_layers[res](y))

        return grow_images(features, to_rgb, self.resolution_log2, lod, stage, ctx)


class GrowingDiscriminator(GrowingNetwork):
    """The discriminator of ProGAN (table 2), and with blur_filter that of StyleGAN."""

    def __init__(
        self,
        name: str,
        num_outputs: int,                   # Size of the output.
        epilogue: Epilogue,                 # Of all layers but the last.
        num_channels: int = 1,              # Number of color channels of the images.
        resolution: int = 32,               # Resolution of the images.
        fmap_base: int = 8192,              # Overall factor on the number of feature maps.
        fmap_decay: float = 1.0,            # log2 reduction of feature maps when the resolution doubles.
        fmap_max: int = 512,                # Greatest number of feature maps in any layer.
        use_wscale: bool = True,            # Equalized learning rate?
        mbstd_group_size: int = 4,          # Group size of the minibatch standard deviation, < 2 = disable.
        mbstd_num_features: int = 1,        # Number of features of the minibatch standard deviation.
        dtype: str = 'float32',             # Of activations and weights.
        blur_filter=None,                   # Filter before downscaling. None = disable.
        structure: str | None = 'auto',     # See training.growing.running_stage. None = 'auto'.
        fused_scale: bool = True,           # Downscaling in one with the convolution? False = after its
                                            # activation.
    ):
        super().__init__(name, dtype, resolution, structure)
        self.mbstd_group_size, self.mbstd_num_features = mbstd_group_size, mbstd_num_features
        self.fused_scale = fused_scale
        options = dict(use_wscale=use_wscale, dtype=dtype)

        def nf(stage: int) -> int:
            return feature_maps(stage, fmap_base, fmap_decay, 1, fmap_max)

        for res in range(self.resolution_log2, 1, -1):
            self.add_rgb('FromRGB', res, num_channels, nf(res - 1), 1, epilogue, **options)
            if res > 2:
                self.add_level(res, [
                    ConvLayer('Conv0', nf(res - 1), nf(res - 1), 3, epilogue, **options),
                    ConvLayer('Conv1_down' if fused_scale else 'Conv1', nf(res - 1), nf(res - 2), 3, epilogue,
                              down=fused_scale, blur_filter=blur_filter, **options)])
        new_features = mbstd_num_features if mbstd_group_size > 1 else 0
        self.add_level(2, [
            ConvLayer('Conv', nf(1) + new_features, nf(1), 3, epilogue, **options),
            DenseLayer('Dense0', nf(1) * 16, nf(0), epilogue, **options),
            DenseLayer('Dense1', nf(0), num_outputs, Epilogue(), **options)])

    def shrink(self, images: tf.Tensor, structure: str | None, ctx: Context) -> tf.Tensor:
        """The output of the last layer, [N, num_outputs]."""
        def from_rgb(y, res):
            return ctx.feature(self.rgb_layers[res].name, self.rgb_layers[res](y))

        def block(x, res):
            for layer in self.levels[res]:
                x = ctx.feature(f'{2 ** res}x{2 ** res}/{layer.name}', layer(x))
            return x if self.fused_scale or res == 2 else downscale2d(x)

        lod, stage = self.resolve(None, structure, ctx)
        x = shrink_images(images, from_rgb, block, self.resolution_log2, lod, stage, ctx)
        if self.mbstd_group_size > 1:
            x = ctx.feature('4x4', minibatch_stddev_layer(x, self.mbstd_group_size, self.mbstd_num_features))
        return block(x, 2)


class G_paper(GrowingGenerator):
    """The generator (ProGAN, table 2).

    Call arguments: latents_in z [N, latent_size]; labels_in [N, label_size] or None where label_size is 0;
    structure overrides the argument below. Returns images [N, H, W, num_channels].
    """

    def __init__(
        self,
        name: str = 'G',
        num_channels: int = 1,              # Number of color channels of the images.
        resolution: int = 32,               # Resolution of the images.
        label_size: int = 0,                # Size of the labels, 0 if there are none.
        fmap_base: int = 8192,              # Overall factor on the number of feature maps.
        fmap_decay: float = 1.0,            # log2 reduction of feature maps when the resolution doubles.
        fmap_max: int = 512,                # Greatest number of feature maps in any layer.
        latent_size: int | None = None,     # Size of z. None = min(fmap_base, fmap_max).
        normalize_latents: bool = True,     # Normalize z, and the labels beside it, to unit second moment?
        use_wscale: bool = True,            # Equalized learning rate?
        use_pixelnorm: bool = True,         # Pixelwise feature normalization?
        pixelnorm_epsilon: float = 1e-8,    # Small number in both normalizations.
        use_leakyrelu: bool = True,         # Leaky ReLU? False = ReLU.
        tanh_at_end: float | None = None,   # Images are this times tanh of the last layer. None = no tanh.
        dtype: str = 'float32',             # Of activations and weights.
        fused_scale: bool = True,           # Upscaling in one with the convolution? It names and lays out the
                                            # weights differently.
        structure: str | None = None,       # See training.growing.running_stage. None = 'auto'.
        is_template_graph: bool = False,    # Accepted for compatibility.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        super().__init__(name, dtype, resolution, structure)
        check_fused_scale(fused_scale, auto=False)
        self.label_size, self.normalize_latents = label_size, normalize_latents
        self.pixelnorm_epsilon, self.tanh_at_end = pixelnorm_epsilon, tanh_at_end
        latent_size = min(fmap_base, fmap_max) if latent_size is None else latent_size
        epilogue = Epilogue('lrelu' if use_leakyrelu else 'relu',
                            pixelnorm_epsilon=pixelnorm_epsilon if use_pixelnorm else None)
        options = dict(use_wscale=use_wscale, dtype=dtype)

        def nf(stage: int) -> int:
            return feature_maps(stage, fmap_base, fmap_decay, 1, fmap_max)

        def up_options(size: int) -> tuple[str, dict]:
            del size
            return ('Conv0_up', dict(flipped=True, out_in=True)) if fused_scale else ('Conv0', {})

        # The gain is that of the original, Theano implementation.
        first = DenseLayer('Dense', latent_size + label_size, nf(1), epilogue, grid=True,
                           gain=float(np.sqrt(2) / 4), **options)
        self.add_levels(first, num_channels, nf, epilogue, up_options, **options)
        self.set_interface({'latents_in': [None, latent_size], 'labels_in': [None, label_size]},
                           {'images_out': [None, num_channels, resolution, resolution]})

    def call(self, latents_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None,
             **dynamic) -> tf.Tensor:
        ctx = ctx or Context()
        x = latents_in
        if self.label_size:
            x = tf.concat([x, tf.cast(check_labels(labels_in, self.label_size), x.dtype)], axis=1)
        if self.normalize_latents:
            x = ctx.feature('4x4', pixel_norm(x, self.pixelnorm_epsilon))
        lod, stage = self.resolve(None, dynamic.get('structure'), ctx)
        images = self.grow(x, lod, stage, ctx)
        if self.tanh_at_end is not None:
            images = tf.tanh(images) * tf.constant(float(self.tanh_at_end), images.dtype)
        return images


class D_paper(GrowingDiscriminator):
    """The discriminator (ProGAN, table 2); with labels it is a classifier too (AC-GAN).

    Call arguments: images_in [N, H, W, num_channels], or of the size of the stage; labels_in is ignored;
    structure overrides the argument below. Returns scores [N, 1] and the labels' logits [N, label_size].
    """

    def __init__(
        self,
        name: str = 'D',
        num_channels: int = 1,              # Number of color channels of the images.
        resolution: int = 32,               # Resolution of the images.
        label_size: int = 0,                # Size of the labels, 0 if there are none.
        fmap_base: int = 8192,              # Overall factor on the number of feature maps.
        fmap_decay: float = 1.0,            # log2 reduction of feature maps when the resolution doubles.
        fmap_max: int = 512,                # Greatest number of feature maps in any layer.
        use_wscale: bool = True,            # Equalized learning rate?
        mbstd_group_size: int = 4,          # Group size of the minibatch standard deviation, < 2 = disable.
        dtype: str = 'float32',             # Of activations and weights.
        fused_scale: bool = True,           # Downscaling in one with the convolution? False = after its
                                            # activation, and the layers have other names.
        structure: str | None = None,       # See training.growing.running_stage. None = 'auto'.
        is_template_graph: bool = False,    # Accepted for compatibility.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        check_fused_scale(fused_scale, auto=False)
        super().__init__(
            name, 1 + label_size, Epilogue('lrelu'), num_channels, resolution, fmap_base, fmap_decay,
            fmap_max, use_wscale, mbstd_group_size, dtype=dtype, structure=structure,
            fused_scale=bool(fused_scale))
        self.set_interface({'images_in': [None, num_channels, resolution, resolution]},
                           {'scores_out': [None, 1], 'labels_out': [None, label_size]})

    def call(self, images_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None,
             **dynamic) -> tuple[tf.Tensor, tf.Tensor]:
        x = self.shrink(images_in, dynamic.get('structure'), ctx or Context())
        return x[:, :1], x[:, 1:]
