"""The networks of StyleGAN (Karras et al., "A Style-Based Generator Architecture for Generative Adversarial
Networks").

G_style = G_mapping + G_synthesis, and D_basic, each with the official keyword arguments, defaults, variable
names and weight layouts; the arguments of G_synthesis also make the traditional generators of the paper's
tables 1 and 4. Inputs and outputs are NHWC; `dnnlib.tflib.Network` speaks NCHW for users.
"""

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from training.context import Context
from training.growing_networks import GrowingDiscriminator, GrowingGenerator
from training.layers import Layer, batch_size, check_labels, fmaps_by_stage, normal_initializer
from training.layers_stylegan import (
    ConstLayer,
    DenseLayer,
    Epilogue,
    check_fused_scale,
    check_nonlinearity,
    is_fused,
)
from training.style_generator import MappingNetwork, StyleGenerator


class G_style(StyleGenerator):
    """The generator: G_mapping and G_synthesis. Arguments as in StyleGenerator."""

    def __init__(
        self,
        name: str = 'G',
        truncation_psi: float | None = 0.7,     # (*) Style strength of the truncation trick. None = disable.
        truncation_cutoff: int | None = 8,      # (*) Number of layers to truncate. None = disable.
        **kwargs,                               # Arguments of StyleGenerator and of the components.
    ):
        super().__init__(name, __name__, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff,
                         **kwargs)

    def truncate(self, dlatents: tf.Tensor, psi, cutoff) -> tf.Tensor:
        """As in StyleGenerator, but cutoff None means none of the layers."""
        return dlatents if cutoff is None else super().truncate(dlatents, psi, cutoff)


class G_mapping(MappingNetwork):
    """The mapping network; the gain sits in its weights. Arguments as in MappingNetwork."""

    def __init__(
        self,
        name: str = 'G_mapping',
        mapping_layers: int = 8,            # Number of layers, 0 = w is the normalized z.
        mapping_lrmul: float = 0.01,        # Learning rate multiplier of the layers.
        mapping_nonlinearity: str = 'lrelu',    # 'relu' or 'lrelu'.
        use_wscale: bool = True,            # Equalized learning rate?
        dtype: str = 'float32',             # Of activations and weights.
        **kwargs,                           # Arguments of MappingNetwork and of other networks.
    ):
        if mapping_layers < 0:
            raise UserError(f'mapping_layers must be at least 0. Received: {mapping_layers}')
        epilogue = Epilogue(check_nonlinearity(mapping_nonlinearity), unit_slope=True)

        def dense(layer_name: str, in_features: int, fmaps: int) -> Layer:
            return DenseLayer(layer_name, in_features, fmaps, epilogue, use_wscale=use_wscale,
                              lrmul=mapping_lrmul, dtype=dtype)
        super().__init__(name, dense, mapping_layers=mapping_layers, dtype=dtype, **kwargs)


class G_synthesis(GrowingGenerator):
    """The synthesis network w → image (StyleGAN, figure 1b), and traditional generators.

    Call arguments: dlatents_in [N, num_layers, dlatent_size], [N, 1, dlatent_size] without styles; lod =
    level of detail instead of the variable; randomize_noise and structure override the arguments below.
    Returns images [N, H, W, num_channels].
    """

    def __init__(
        self,
        name: str = 'G_synthesis',
        dlatent_size: int = 512,            # Size of w.
        num_channels: int = 3,              # Number of color channels of the images.
        resolution: int = 1024,             # Resolution of the images.
        fmap_base: int = 8192,              # Overall factor on the number of feature maps.
        fmap_decay: float = 1.0,            # log2 reduction of feature maps when the resolution doubles.
        fmap_max: int = 512,                # Greatest number of feature maps in any layer.
        use_styles: bool = True,            # Scale and shift every layer by its w?
        const_input_layer: bool = True,     # First layer is a learned constant? False = dense layer of w.
        use_noise: bool = True,             # Noise inputs?
        randomize_noise: bool = True,       # True = new noise in every call, False = the noise variables.
        nonlinearity: str = 'lrelu',        # 'relu' or 'lrelu'.
        use_wscale: bool = True,            # Equalized learning rate?
        use_pixel_norm: bool = False,       # Pixelwise feature normalization?
        use_instance_norm: bool = True,     # Instance normalization?
        dtype: str = 'float32',             # Of activations and weights.
        fused_scale: bool | str = 'auto',   # Upscaling in one with the convolution, which flips the kernel?
                                            # 'auto' = from 128×128 on.
        blur_filter=(1, 2, 1),              # Filter after upscaling. None = disable.
        structure: str | None = 'auto',     # See training.growing.running_stage. None = 'auto'.
        is_template_graph: bool = False,    # Accepted for compatibility.
        force_clean_graph: bool = False,    # Accepted for compatibility.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        super().__init__(name, dtype, resolution=resolution, structure=structure)
        check_fused_scale(fused_scale)
        self.num_layers = self.resolution_log2 * 2 - 2
        self.use_styles, self.randomize_noise = use_styles, randomize_noise
        epilogue = Epilogue(
            check_nonlinearity(nonlinearity), unit_slope=True, use_noise=use_noise,
            pixelnorm_epsilon=1e-8 if use_pixel_norm else None, use_instance_norm=use_instance_norm,
            dlatent_size=dlatent_size if use_styles else None)
        nf = fmaps_by_stage(fmap_base, fmap_decay, 1, fmap_max)
        options = dict(use_wscale=use_wscale, dtype=dtype)

        def up(size: int) -> tuple[str, dict]:
            return 'Conv0_up', dict(flipped=is_fused(fused_scale, size), blur_filter=_taps(blur_filter))

        self.noise_inputs = []
        if use_noise:
            sizes = [2 ** (index // 2 + 2) for index in range(self.num_layers)]
            self.noise_inputs = [self.add_variable(f'noise{index}', [1, 1, size, size], normal_initializer(1),
                                                   trainable=False) for index, size in enumerate(sizes)]
        if const_input_layer:
            first = ConstLayer('Const', nf(1), epilogue, **options)
        else:  # The gain is that of ProGAN.
            first = DenseLayer('Dense', dlatent_size, nf(1), epilogue, grid=True, gain=float(np.sqrt(2) / 4),
                               **options)
        self.add_levels(first, num_channels=num_channels, fmaps=nf, epilogue=epilogue, up=up, **options)
        num_styles = self.num_layers if use_styles else 1
        self.set_interface({'dlatents_in': [None, num_styles, dlatent_size]},
                           {'images_out': [None, num_channels, resolution, resolution]})

    def call(self, dlatents_in: tf.Tensor, ctx: Context | None = None, lod: tf.Tensor | None = None,
             **dynamic) -> tf.Tensor:
        ctx = ctx or Context()
        randomize_noise = dynamic.get('randomize_noise', self.randomize_noise)

        def noise(index: int) -> tf.Tensor | None:
            if not self.noise_inputs:
                return None
            size = self.noise_inputs[index].shape[-1]
            if randomize_noise:
                return ctx.normal([batch_size(dlatents_in), size, size, 1], dlatents_in.dtype)
            return tf.reshape(self.noise_inputs[index], [1, size, size, 1])

        return self.generate(dlatents_in[:, 0], ctx, lod=lod, structure=dynamic.get('structure'),
                             dlatents=dlatents_in if self.use_styles else None, noise=noise)


class D_basic(GrowingDiscriminator):
    """The discriminator (StyleGAN, section 2: that of ProGAN, with blurred downscaling).

    Call arguments: images_in [N, H, W, num_channels], or of the size of the stage; labels_in [N, label_size]
    or None; structure overrides the argument below. Returns scores [N, 1]; with labels the score of the given
    class.
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
        nonlinearity: str = 'lrelu',        # 'relu' or 'lrelu'.
        use_wscale: bool = True,            # Equalized learning rate?
        mbstd_group_size: int = 4,          # Group size of the minibatch standard deviation, < 2 = disable.
        mbstd_num_features: int = 1,        # Number of features of the minibatch standard deviation.
        dtype: str = 'float32',             # Of activations and weights.
        fused_scale: bool | str = 'auto',   # Accepted for compatibility: both ways are the same.
        blur_filter=(1, 2, 1),              # Filter before downscaling. None = disable.
        structure: str | None = 'auto',     # See training.growing.running_stage. None = 'auto'.
        is_template_graph: bool = False,    # Accepted for compatibility.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        check_fused_scale(fused_scale)
        super().__init__(
            name, num_outputs=max(label_size, 1),
            epilogue=Epilogue(check_nonlinearity(nonlinearity), unit_slope=True), num_channels=num_channels,
            resolution=resolution, fmaps=fmaps_by_stage(fmap_base, fmap_decay, 1, fmap_max),
            use_wscale=use_wscale, mbstd_group_size=mbstd_group_size, mbstd_num_features=mbstd_num_features,
            dtype=dtype, blur_filter=_taps(blur_filter), structure=structure)
        self.label_size = label_size
        self.set_interface({'images_in': [None, num_channels, resolution, resolution],
                            'labels_in': [None, label_size]}, {'scores_out': [None, 1]})

    def call(self, images_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None,
             **dynamic) -> tf.Tensor:
        x = self.discriminate(images_in, ctx or Context(), structure=dynamic.get('structure'))
        if self.label_size:
            x = tf.reduce_sum(x * check_labels(labels_in, self.label_size), axis=1, keepdims=True)
        return x


def _taps(blur_filter):
    """No filter may be written as None, False or an empty list."""
    return tuple(blur_filter) if blur_filter else None
