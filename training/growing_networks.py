"""What the networks of progressive growing share: the level of detail, the layers to and from RGB, and the
generator and discriminator of ProGAN's table 2, which StyleGAN builds upon.

Levels are numbered by log2 of their resolution: 4×4 is `res` 2.
"""

from collections.abc import Callable

import tensorflow as tf

from training.context import Context
from training.growing import (
    Stage,
    check_structure,
    downscale2d,
    grow_images,
    running_stage,
    shrink_images,
)
from training.layers import Layer, NetworkLayer, log2_resolution, minibatch_stddev_layer
from training.layers_stylegan import ConvLayer, DenseLayer, Epilogue, EpilogueLayer


class GrowingNetwork(NetworkLayer):
    """A network of progressive growing: a variable `lod`, a structure, a ToRGB or FromRGB layer per level.

    Subclasses set `resolution_log2`, the level of the final resolution, before they add layers.
    """

    grows = True

    def __init__(self, name: str, dtype: str, *, structure: str | None):
        super().__init__(name, dtype)
        self.structure = structure or 'auto'
        check_structure(self.structure)
        self.lod = self.add_variable('lod', [], 0.0, trainable=False)
        # A plain dictionary by level, outside of Keras' attribute tracking: add_layer tracks the layers.
        self.__dict__['rgb_layers'] = {}

    def add_rgb(self, layer_class: type[Layer], prefix: str, res: int, *args, **options) -> None:
        """Adds the ToRGB or FromRGB layer of a level; its name counts from the final resolution."""
        name = f'{prefix}_lod{self.resolution_log2 - res}'
        self.rgb_layers[res] = self.add_layer(layer_class(name, *args, **options))

    def grow(
        self,
        features: Callable[[tf.Tensor | None, int], tf.Tensor],     # As in training.growing.grow_images.
        ctx: Context,
        *,
        lod: tf.Tensor | None,                                  # Level of detail. None = the variable.
        structure: str | None,                                  # None = the constructor's.
        style: Callable[[int], tf.Tensor] | None = None,        # res → w of its ToRGB layer. None = no style.
    ) -> tf.Tensor:
        """The images of a generator [N, H, W, C]."""
        def to_rgb(x, res):
            layer = self.rgb_layers[res]
            return ctx.feature(layer.name, layer(x) if style is None else layer(x, style(res)))

        lod, stage = self._running(lod, structure, ctx)
        return grow_images(features, to_rgb, self.resolution_log2, lod, stage, ctx)

    def shrink(
        self,
        images: tf.Tensor,                                  # [N, H, W, C], or of the size of the stage.
        block: Callable[[tf.Tensor, int], tf.Tensor],       # As in training.growing.shrink_images.
        ctx: Context,
        *,
        structure: str | None,                              # None = the constructor's.
    ) -> tf.Tensor:
        """The features of a discriminator at 4×4, before its last block."""
        def from_rgb(y, res):
            layer = self.rgb_layers[res]
            return ctx.feature(layer.name, layer(y))

        lod, stage = self._running(None, structure, ctx)
        return shrink_images(images, from_rgb, block, self.resolution_log2, lod, stage, ctx)

    def _running(self, lod: tf.Tensor | None, structure: str | None,
                 ctx: Context) -> tuple[tf.Tensor, Stage | None]:
        lod = tf.convert_to_tensor(self.lod if lod is None else lod)
        return lod, running_stage(structure or self.structure, lod, ctx)


class _LayeredNetwork(GrowingNetwork):
    """A growing network whose levels are layers in a row (ProGAN, table 2)."""

    def __init__(self, name: str, dtype: str, *, resolution: int, structure: str | None):
        super().__init__(name, dtype, structure=structure)
        self.resolution_log2 = log2_resolution(resolution)
        self.__dict__['levels'] = {}    # Plain like rgb_layers.

    def add_level(self, res: int, layers: list[EpilogueLayer]) -> None:
        """Adds the layers of a level below the scope of its resolution."""
        scope = self.add_layer(Layer(f'{2 ** res}x{2 ** res}', self.compute_dtype))
        self.levels[res] = [scope.add_layer(layer) for layer in layers]


class GrowingGenerator(_LayeredNetwork):
    """The generator of ProGAN (table 2), with styles and noise that of StyleGAN: two layers per level."""

    def add_levels(
        self,
        first: EpilogueLayer,               # What makes the features at 4×4: dense layer or constant.
        *,
        num_channels: int,                  # Number of color channels of the images.
        fmaps: Callable[[int], int],        # stage → feature maps.
        epilogue: Epilogue,                 # Of all layers but ToRGB.
        up: Callable[[int], tuple[str, dict]],  # resolution → name and arguments of its upscaling ConvLayer.
        **options,                          # use_wscale, dtype.
    ) -> None:
        """Creates all layers in the official order."""
        for res in range(2, self.resolution_log2 + 1):
            if res == 2:
                layers = [first, ConvLayer('Conv', fmaps(1), fmaps(1), 3, epilogue, **options)]
            else:
                name, arguments = up(2 ** res)
                layers = [ConvLayer(name, fmaps(res - 2), fmaps(res - 1), 3, epilogue, up=True, **arguments,
                                    **options),
                          ConvLayer('Conv1', fmaps(res - 1), fmaps(res - 1), 3, epilogue, **options)]
            self.add_level(res, layers)
            self.add_rgb(ConvLayer, 'ToRGB', res, fmaps(res - 1), num_channels, 1, Epilogue(), **options)

    def generate(
        self,
        x: tf.Tensor,                                       # Input of the first layer.
        ctx: Context,
        *,
        lod: tf.Tensor | None = None,                       # Level of detail. None = the variable.
        structure: str | None,                              # None = the constructor's.
        dlatents: tf.Tensor | None = None,                  # [N, number of layers, dlatent_size], for styles.
        noise: Callable[[int], tf.Tensor] | None = None,    # Number of a layer → its noise.
    ) -> tf.Tensor:
        """The images [N, H, W, C]."""
        def features(below, res):
            y = x if below is None else below
            for index, layer in enumerate(self.levels[res], 2 * res - 4):
                y = layer(y, None if dlatents is None else dlatents[:, index],
                          None if noise is None else noise(index))
                y = ctx.feature(f'{2 ** res}x{2 ** res}/{layer.name}', y)
            return y

        return self.grow(features, ctx, lod=lod, structure=structure)


class GrowingDiscriminator(_LayeredNetwork):
    """The discriminator of ProGAN (table 2), and with blur_filter that of StyleGAN."""

    def __init__(
        self,
        name: str,
        *,
        num_outputs: int,                   # Size of the output.
        epilogue: Epilogue,                 # Of all layers but the last.
        num_channels: int,                  # Number of color channels of the images.
        resolution: int,                    # Resolution of the images.
        fmaps: Callable[[int], int],        # stage → feature maps.
        use_wscale: bool,                   # Equalized learning rate?
        mbstd_group_size: int,              # Group size of the minibatch standard deviation, < 2 = disable.
        mbstd_num_features: int = 1,        # Number of features of the minibatch standard deviation.
        dtype: str,                         # Of activations and weights.
        blur_filter=None,                   # Filter before downscaling. None = disable.
        structure: str | None,              # See training.growing.running_stage. None = 'auto'.
        fused_scale: bool = True,           # Downscaling in one with the convolution? False = after its
                                            # activation.
    ):
        super().__init__(name, dtype, resolution=resolution, structure=structure)
        self.mbstd_group_size, self.mbstd_num_features = mbstd_group_size, mbstd_num_features
        self.fused_scale = fused_scale
        options = dict(use_wscale=use_wscale, dtype=dtype)
        for res in range(self.resolution_log2, 1, -1):
            self.add_rgb(ConvLayer, 'FromRGB', res, num_channels, fmaps(res - 1), 1, epilogue, **options)
            if res > 2:
                self.add_level(res, [
                    ConvLayer('Conv0', fmaps(res - 1), fmaps(res - 1), 3, epilogue, **options),
                    ConvLayer('Conv1_down' if fused_scale else 'Conv1', fmaps(res - 1), fmaps(res - 2), 3,
                              epilogue, down=fused_scale, blur_filter=blur_filter, **options)])
        new_features = mbstd_num_features if mbstd_group_size > 1 else 0
        self.add_level(2, [
            ConvLayer('Conv', fmaps(1) + new_features, fmaps(1), 3, epilogue, **options),
            DenseLayer('Dense0', fmaps(1) * 16, fmaps(0), epilogue, **options),
            DenseLayer('Dense1', fmaps(0), num_outputs, Epilogue(), **options)])

    def discriminate(self, images: tf.Tensor, ctx: Context, *, structure: str | None) -> tf.Tensor:
        """The output of the last layer, [N, num_outputs]. Arguments as in `shrink`."""
        def block(x, res):
            for layer in self.levels[res]:
                x = ctx.feature(f'{2 ** res}x{2 ** res}/{layer.name}', layer(x))
            return x if self.fused_scale or res == 2 else downscale2d(x)

        x = self.shrink(images, block, ctx, structure=structure)
        if self.mbstd_group_size > 1:
            x = ctx.feature('4x4', minibatch_stddev_layer(x, self.mbstd_group_size, self.mbstd_num_features))
        return block(x, 2)
