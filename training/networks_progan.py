"""The networks of ProGAN (Karras et al., "Progressive Growing of GANs for Improved Quality, Stability, and
Variation").

G_paper and D_paper with the official keyword arguments, defaults, variable names and weight layouts. Inputs
and outputs are NHWC; `dnnlib.tflib.Network` speaks NCHW for users.
"""

import numpy as np
import tensorflow as tf

from training.context import Context
from training.growing_networks import GrowingDiscriminator, GrowingGenerator
from training.layers import check_labels, fmaps_by_stage
from training.layers_stylegan import DenseLayer, Epilogue, check_fused_scale, pixel_norm


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
        super().__init__(name, dtype, resolution=resolution, structure=structure)
        check_fused_scale(fused_scale, auto=False)
        self.label_size, self.normalize_latents = label_size, normalize_latents
        self.pixelnorm_epsilon, self.tanh_at_end = pixelnorm_epsilon, tanh_at_end
        latent_size = min(fmap_base, fmap_max) if latent_size is None else latent_size
        epilogue = Epilogue('lrelu' if use_leakyrelu else 'relu',
                            pixelnorm_epsilon=pixelnorm_epsilon if use_pixelnorm else None)
        nf = fmaps_by_stage(fmap_base, fmap_decay, 1, fmap_max)
        options = dict(use_wscale=use_wscale, dtype=dtype)
        up = ('Conv0_up', dict(flipped=True, out_in=True)) if fused_scale else ('Conv0', {})
        # The gain is that of the original, Theano implementation.
        first = DenseLayer('Dense', latent_size + label_size, nf(1), epilogue, grid=True,
                           gain=float(np.sqrt(2) / 4), **options)
        self.add_levels(first, num_channels=num_channels, fmaps=nf, epilogue=epilogue, up=lambda _size: up,
                        **options)
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
        images = self.generate(x, ctx, structure=dynamic.get('structure'))
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
            name, num_outputs=1 + label_size, epilogue=Epilogue('lrelu'), num_channels=num_channels,
            resolution=resolution, fmaps=fmaps_by_stage(fmap_base, fmap_decay, 1, fmap_max),
            use_wscale=use_wscale, mbstd_group_size=mbstd_group_size, dtype=dtype, structure=structure,
            fused_scale=bool(fused_scale))
        self.set_interface({'images_in': [None, num_channels, resolution, resolution]},
                           {'scores_out': [None, 1], 'labels_out': [None, label_size]})

    def call(self, images_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None,
             **dynamic) -> tuple[tf.Tensor, tf.Tensor]:
        x = self.discriminate(images_in, ctx or Context(), structure=dynamic.get('structure'))
        return x[:, :1], x[:, 1:]
