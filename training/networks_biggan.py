"""The networks of BigGAN (Brock et al., "Large Scale GAN Training for High Fidelity Natural Image
Synthesis").

G_biggan and D_biggan for the resolutions in ARCHITECTURES, which users can extend; labels are classes,
one-hot or soft. Inputs and outputs are NHWC; `dnnlib.tflib.Network` speaks NCHW for users.

Variables of G_biggan (B blocks; `u` belongs to the spectral normalization, see training.layers_biggan):
    Embedding/weight [classes, shared_dim], not normalized; absent without a shared embedding
    Linear/{weight, bias, u}, outputs in the order H, W, C
    Block<i>/BN0/{moving_mean, moving_variance}, Block<i>/BN0/{gain,bias}/{weight, u}, Block<i>/BN1/…, and
        Block<i>/{Conv0,Conv1,Shortcut}/{weight, bias, u}; without a shared embedding gain/weight and
        bias/weight are tables [classes, C] without u
    Attention_<r>x<r>/{theta,phi,g,o}/{weight, u}, Attention_<r>x<r>/gamma, after the block that makes r×r
    Output/BN/{gain, bias, moving_mean, moving_variance}, Output/Conv/{weight, bias, u}
The rows of gain/weight and bias/weight are those of the latents first, then those of the embedding.

Variables of D_biggan:
    Block<i>/{Conv0,Conv1,Shortcut}/{weight, bias, u}, Attention_<r>x<r>/… as above
    Linear/{weight, bias, u}, Embedding/{weight [classes, C], u [classes]}
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from custom_ops import upsample_2d
from dnnlib.util import UserError
from training.context import Context
from training.layers import NetworkLayer, batch_size, check_labels, log2_resolution
from training.layers_biggan import (
    STATISTICS,
    Attention,
    BatchNorm,
    BigGANLayer,
    ConditionalBatchNorm,
    Conv2D,
    Dense,
    Embedding,
    Options,
    Pass,
    SpectralLayer,
    add_residual,
)
from training.recompute import call_layer


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The networks of one resolution. Channels are multiples of ch."""

    G: tuple[int, ...]                      # Channels at 4×4, then those that each block puts out.
    D: tuple[int, ...]                      # Channels that each block puts out.
    D_down: int                             # How many of D's blocks, the first ones, halve the resolution.
    latent_size: int                        # Size of z before it is divided.
    G_attention: tuple[int, ...] = ()       # Resolutions with attention.
    D_attention: tuple[int, ...] = ()


ARCHITECTURES: dict[int, Architecture] = {
    32: Architecture((4, 4, 4, 4), (4, 4, 4, 4), 2, 128),
    64: Architecture((16, 16, 8, 4, 2), (1, 2, 4, 8, 16), 4, 120),
    128: Architecture((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5, 120, (64,), (64,)),
    256: Architecture((16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16), 6, 140, (128,), (64,)),
    512: Architecture((16, 16, 8, 8, 4, 2, 1, 1), (1, 1, 2, 4, 8, 8, 16, 16), 7, 160, (64,), (64,)),
}


def find_architecture(resolution: int, table: dict, complete: bool) -> object | None:
    """The row of a table of architectures; UserError where there is none, unless the arguments say it all."""
    log2_resolution(resolution)
    if resolution not in table and not complete:
        raise UserError(f'there is no architecture for resolution {resolution}, only for '
                        f'{", ".join(map(str, sorted(table)))}; pass multipliers, or add one to '
                        'ARCHITECTURES of the module')
    return table.get(resolution)


class BigGANNetwork(NetworkLayer, BigGANLayer):
    """What the networks of BigGAN share: attention, and access to the normalized layers.

    Attributes:
        recompute: Hold the results between blocks alone in training, for a third more operations?
    """

    def __init__(self, name: str, dtype: str, recompute: bool = False):
        super().__init__(name, dtype)
        self.recompute = bool(recompute)
        # A plain dictionary stays plain only outside Keras' attribute tracking.
        self.__dict__['attention'] = {}     # {resolution: Attention}

    def normalized_layers(self) -> dict[str, SpectralLayer]:
        """{scope: layer} of all spectrally normalized layers; layer.matrix(weight) is what is normalized."""
        return {scope: layer for scope, layer in self.inner_layers().items()
                if isinstance(layer, SpectralLayer) and layer.normalize}

    def batch_norms(self) -> dict[str, BatchNorm]:
        """{scope: layer} of all batch normalizations."""
        return {scope: layer for scope, layer in self.inner_layers().items() if isinstance(layer, BatchNorm)}

    def add_attention(self, resolution: int, fmaps: int, wanted: set[int], options: Options,
                      chunk: int | None) -> None:
        """Creates the attention that follows a block, if the resolution is a wanted one and has none yet."""
        if resolution in wanted and resolution not in self.attention:
            self.attention[resolution] = self.add_layer(
                Attention(f'Attention_{resolution}x{resolution}', fmaps, options, chunk))

    @property
    def num_classes(self) -> int:
        """Number of classes, 1 for an unconditional network."""
        return max(self.label_size, 1)

    def add_output(self, in_fmaps: int, out_fmaps: int, options: Options, bn_epsilon: float | None) -> None:
        """Creates the end of a generator: batch normalization, ReLU and a convolution to images."""
        output = self.add_layer(BigGANLayer('Output', options.dtype))
        self.final_bn = output.add_layer(BatchNorm('BN', in_fmaps, options, bn_epsilon))
        self.final_conv = output.add_layer(Conv2D('Conv', in_fmaps, out_fmaps, 3, options))

    def check_attention(self, wanted: set[int]) -> None:
        """Raises UserError where attention was asked for at a resolution that no block has."""
        missing = sorted(wanted - set(self.attention))
        if missing:
            raise UserError('attention is possible at the resolutions that blocks put out. '
                            f'Received: {missing}')

    def through(self, layer: BigGANLayer, *tensors: tf.Tensor, run: Pass) -> tf.Tensor:
        """layer(*tensors, run=run), a block or attention, computed again for its gradient if so chosen."""
        return call_layer(layer, tensors, run) if self.recompute else layer(*tensors, run=run)

    def recomputed_scopes(self) -> list[str]:
        """Scopes of the layers that are computed again."""
        return [layer.scope for layer in [*self.blocks, *self.attention.values()]] if self.recompute else []

    def labels_or_ones(self, labels: tf.Tensor | None, x: tf.Tensor) -> tf.Tensor:
        """The labels; without any there is one class."""
        if self.label_size:
            return tf.cast(check_labels(labels, self.label_size), x.dtype)
        return tf.ones([batch_size(x), 1], x.dtype)

    def pooled_scores(self, x: tf.Tensor, labels: tf.Tensor | None, dropout: float, run: Pass) -> tf.Tensor:
        """The end of a discriminator: features [N, H, W, C] → scores [N, 1]."""
        phi = tf.reduce_sum(tf.nn.relu(x), axis=[1, 2])
        if run.is_training and dropout:
            kept = tf.cast(run.ctx.uniform(tf.shape(phi)) >= dropout, phi.dtype)
            phi *= kept / tf.constant(1 - dropout, phi.dtype)
        phi = run.ctx.feature('Features', phi)
        scores = self.linear(phi, run=run)
        embedded = self.embedding(self.labels_or_ones(labels, phi), run=run)
        return scores + tf.reduce_sum(embedded * phi, axis=1, keepdims=True)


def make_pass(ctx: Context | None, is_training: bool, statistics: str = 'running',
              truncation: float | None = None) -> Pass:
    """The Pass of a network's call; UserError for statistics that there are not."""
    if statistics not in STATISTICS:
        raise UserError(f'statistics must be one of {", ".join(STATISTICS)}. Received: {statistics!r}')
    return Pass(ctx or Context(), bool(is_training), statistics, 1.0 if truncation is None else truncation)


def resolutions(values: Sequence[int] | None, default: Sequence[int]) -> set[int]:
    """A set of resolutions; None = the default."""
    if isinstance(values, int | str):
        raise UserError(f'attention is a list of resolutions, [] for none. Received: {values!r}')
    return set(default if values is None else values)


def check_sizes(**sizes: int | None) -> None:
    """Raises UserError for a size that is negative, or 0 where that means nothing; None passes."""
    for name, size in sizes.items():
        least = 0 if name in ('label_size', 'shared_dim') else 1
        if size is not None and size < least:
            raise UserError(f'{name} must be at least {least}. Received: {size}')


class GeneratorBlock(BigGANLayer):
    """The residual block of G, which doubles the resolution (BigGAN, appendix B)."""

    def __init__(self, name: str, in_fmaps: int, fmaps: int, condition_size: int, plain: bool,
                 options: Options):
        super().__init__(name, options.dtype)
        self.bn0 = self.add_layer(ConditionalBatchNorm('BN0', in_fmaps, condition_size, options, plain))
        self.conv0 = self.add_layer(Conv2D('Conv0', in_fmaps, fmaps, 3, options, up=True))
        self.bn1 = self.add_layer(ConditionalBatchNorm('BN1', fmaps, condition_size, options, plain))
        self.conv1 = self.add_layer(Conv2D('Conv1', fmaps, fmaps, 3, options))
        self.shortcut = self.add_layer(Conv2D('Shortcut', in_fmaps, fmaps, 1, options))

    def call(self, x: tf.Tensor, condition: tf.Tensor, *, run: Pass) -> tf.Tensor:
        y = self.conv0(self.bn0(x, condition, run=run), run=run)
        y = self.conv1(self.bn1(y, condition, run=run), run=run)
        # A 1×1 convolution may as well come before the upsampling.
        x = upsample_2d(self.shortcut(x, run=run), data_format='NHWC')
        return run.ctx.feature(self.scope, x + y)


class G_biggan(BigGANNetwork):
    """The generator.

    Call arguments: latents_in z [N, latent_size]; labels_in [N, label_size], or None where label_size is 0;
    is_training: normalize with the moments of the batch and update the running ones and u; statistics:
    'running' = the stored ones, 'batch' = those of the batch, without any update.
    Returns images [N, H, W, num_channels] in [-1, 1].
    """

    def __init__(
        self,
        name: str = 'G',
        num_channels: int = 3,              # Number of color channels of the images.
        resolution: int = 128,              # Resolution of the images.
        label_size: int = 0,                # Number of classes, 0 = unconditional.
        ch: int = 96,                       # Factor on the number of feature maps.
        latent_size: int | None = None,     # Size of z. None = that of ARCHITECTURES. Hierarchical: it is
                                            # rounded down to a multiple of the number of parts.
        hierarchical: bool | None = None,   # A part of z for each block? None = with a shared embedding, yes.
        shared_dim: int = 128,              # Size of the shared embedding of classes; 0 = every normalization
                                            # has tables of its own.
        attention: Sequence[int] | None = None,     # Resolutions with attention. None = as in ARCHITECTURES.
        attention_chunk: int | None = None,     # Pixels whose scores are computed at a time, see Attention.
        multipliers: Sequence[int] | None = None,   # Architecture.G. None = that of ARCHITECTURES.
        latent_distribution: str = 'normal',    # Distribution of z, a name in training.latents.
        bn_epsilon: float = 1e-4,           # Summand of the variances in batch normalization,
        final_bn_epsilon: float | None = None,  # ... in that before the output; None = the same.
        bn_momentum: float = 0.9,           # Decay of the running statistics.
        bn_unbiased: bool = True,           # Do unbiased variances enter the running ones?
        sn_epsilon: float = 1e-4,           # Least norm that the power iteration divides by.
        init: str = 'orthogonal',           # Initial weights: 'orthogonal', 'normal' or 'xavier'.
        recompute: bool = False,            # Compute what is inside of blocks again for their gradients?
        dtype: str = 'float32',             # Of activations and weights.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        super().__init__(name, dtype, recompute)
        check_sizes(num_channels=num_channels, label_size=label_size, ch=ch, latent_size=latent_size,
                    shared_dim=shared_dim)
        row = find_architecture(resolution, ARCHITECTURES, bool(multipliers and latent_size))
        fmaps = [ch * factor for factor in multipliers or row.G]
        if len(fmaps) != log2_resolution(resolution) - 1:
            raise UserError(f'{resolution}x{resolution} images need {log2_resolution(resolution) - 1} '
                            f'multipliers. Received: {len(fmaps)}')
        self.label_size, self.shared_dim = label_size, shared_dim
        self.latent_distribution = latent_distribution
        self.hierarchical = bool(shared_dim) if hierarchical is None else hierarchical
        part, latent_size, condition_size = self._sizes(latent_size or row.latent_size, len(fmaps))
        options = Options(init=init, sn_epsilon=sn_epsilon, bn_epsilon=bn_epsilon, bn_momentum=bn_momentum,
                          bn_unbiased=bn_unbiased, dtype=dtype)
        if shared_dim:
            self.embedding = self.add_layer(
                Embedding('Embedding', self.num_classes, shared_dim, options, normalize=False))
        self.linear = self.add_layer(Dense('Linear', part, 16 * fmaps[0], options))
        self.blocks: list[GeneratorBlock] = []
        wanted = resolutions(attention, row.G_attention if row else ())
        for index, (in_fmaps, out) in enumerate(zip(fmaps, fmaps[1:], strict=False)):
            self.blocks.append(self.add_layer(GeneratorBlock(
                f'Block{index}', in_fmaps, out, condition_size, not shared_dim, options)))
            self.add_attention(8 << index, out, wanted, options, attention_chunk)
        self.check_attention(wanted)
        self.add_output(fmaps[-1], num_channels, options, final_bn_epsilon)
        self.set_scopes('')
        self.set_interface({'latents_in': [None, latent_size], 'labels_in': [None, label_size]},
                           {'images_out': [None, num_channels, resolution, resolution]})

    def _sizes(self, latent_size: int, num_parts: int) -> tuple[int, int, int]:
        """Sizes of the part of z for the first layer, of z, and of the condition of the blocks."""
        if not self.hierarchical:
            return latent_size, latent_size, self.shared_dim or self.num_classes
        part = latent_size // num_parts
        if not self.shared_dim or part < 1:
            raise UserError('hierarchical latents need a shared embedding and a latent_size of at least '
                            f'{num_parts}. Received: shared_dim {self.shared_dim}, latent_size {latent_size}')
        return part, part * num_parts, part + self.shared_dim

    def call(self, latents_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None, *,
             is_training: bool = False, statistics: str = 'running', **_dynamic) -> tf.Tensor:
        run = make_pass(ctx, is_training, statistics)
        condition = self.labels_or_ones(labels_in, latents_in)
        if self.shared_dim:
            condition = self.embedding(condition, run=run)
        parts = [latents_in] + [None] * len(self.blocks)
        if self.hierarchical:
            parts = tf.split(latents_in, len(parts), axis=1)
        x = self.linear(parts[0], run=run)
        x = tf.reshape(x, [-1, 4, 4, x.shape[1] // 16])
        for block, part in zip(self.blocks, parts[1:], strict=True):
            # The order of the published weights: latents, then class.
            part = condition if part is None else tf.concat([part, condition], axis=1)
            x = self.through(block, x, part, run=run)
            if x.shape[1] in self.attention:
                x = self.through(self.attention[x.shape[1]], x, run=run)
        x = self.final_conv(self.final_bn(x, run=run), run=run)
        return run.ctx.feature('Output', tf.tanh(x))


class DiscriminatorBlock(BigGANLayer):
    """The residual block of D, which may halve the resolution (BigGAN, appendix B)."""

    def __init__(self, name: str, in_fmaps: int, fmaps: int, down: bool, first: bool, options: Options):
        super().__init__(name, options.dtype)
        self.down, self.first = down, first
        self.conv0 = self.add_layer(Conv2D('Conv0', in_fmaps, fmaps, 3, options, act='relu'))
        self.conv1 = self.add_layer(Conv2D('Conv1', fmaps, fmaps, 3, options, down=down))
        self.shortcut = None
        if down or in_fmaps != fmaps:
            self.shortcut = self.add_layer(Conv2D('Shortcut', in_fmaps, fmaps, 1, options))

    def call(self, x: tf.Tensor, *, run: Pass) -> tf.Tensor:
        y = self.conv0(x if self.first else tf.nn.relu(x), run=run)
        y = self.conv1(y, run=run)
        if self.down:
            # Before the 1×1 convolution it is the same, and there are fewer pixels to convolve.
            x = tf.nn.avg_pool2d(x, 2, 2, 'VALID')
        if self.shortcut is not None:
            x = self.shortcut(x, run=run)
        return run.ctx.feature(self.scope, add_residual(x, y))


class D_biggan(BigGANNetwork):
    """The projection discriminator.

    Call arguments: images_in [N, H, W, num_channels]; labels_in [N, label_size], or None where label_size is
    0; is_training: update u, and drop features.
    Returns scores [N, 1].
    """

    def __init__(
        self,
        name: str = 'D',
        num_channels: int = 3,              # Number of color channels of the images.
        resolution: int = 128,              # Resolution of the images.
        label_size: int = 0,                # Number of classes, 0 = unconditional.
        ch: int = 96,                       # Factor on the number of feature maps.
        attention: Sequence[int] | None = None,     # Resolutions with attention. None = as in ARCHITECTURES.
        attention_chunk: int | None = None,     # Pixels whose scores are computed at a time, see Attention.
        multipliers: Sequence[int] | None = None,   # Architecture.D. None = that of ARCHITECTURES.
        num_down: int | None = None,        # Architecture.D_down. None = that of ARCHITECTURES.
        sn_epsilon: float = 1e-4,           # Least norm that the power iteration divides by.
        dropout: float = 0.0,               # Share of the last features that training drops.
        init: str = 'orthogonal',           # Initial weights: 'orthogonal', 'normal' or 'xavier'.
        recompute: bool = False,            # Compute what is inside of blocks again for their gradients?
        dtype: str = 'float32',             # Of activations and weights.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        super().__init__(name, dtype, recompute)
        check_sizes(num_channels=num_channels, label_size=label_size, ch=ch)
        row = find_architecture(resolution, ARCHITECTURES, bool(multipliers and num_down is not None))
        fmaps = [ch * factor for factor in multipliers or row.D]
        num_down = row.D_down if num_down is None else num_down
        check_discriminator(resolution, num_down, len(fmaps), dropout)
        self.label_size, self.dropout = label_size, dropout
        options = Options(init=init, sn_epsilon=sn_epsilon, dtype=dtype)
        self.blocks: list[DiscriminatorBlock] = []
        wanted = resolutions(attention, row.D_attention if row else ())
        in_fmaps = num_channels
        for index, out in enumerate(fmaps):
            self.blocks.append(self.add_layer(DiscriminatorBlock(
                f'Block{index}', in_fmaps, out, index < num_down, index == 0, options)))
            self.add_attention(resolution >> min(index + 1, num_down), out, wanted, options, attention_chunk)
            in_fmaps = out
        self.check_attention(wanted)
        self.linear = self.add_layer(Dense('Linear', in_fmaps, 1, options))
        self.embedding = self.add_layer(Embedding('Embedding', self.num_classes, in_fmaps, options))
        self.set_scopes('')
        self.set_interface({'images_in': [None, num_channels, resolution, resolution],
                            'labels_in': [None, label_size]}, {'scores_out': [None, 1]})

    def call(self, images_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None, *,
             is_training: bool = False, **_dynamic) -> tf.Tensor:
        run, x, pending = make_pass(ctx, is_training), images_in, dict(self.attention)
        for block in self.blocks:
            x = self.through(block, x, run=run)
            if x.shape[1] in pending:
                x = self.through(pending.pop(x.shape[1]), x, run=run)
        return self.pooled_scores(x, labels_in, self.dropout, run)


def check_discriminator(resolution: int, num_down: int, num_blocks: int, dropout: float) -> None:
    """Raises UserError for arguments of a discriminator that do not go together."""
    if not 0 <= num_down <= min(num_blocks, log2_resolution(resolution)):
        raise UserError(f'num_down must be at most the number of blocks, {num_blocks}, and leave an image of '
                        f'{resolution}x{resolution} a pixel. Received: {num_down}')
    if not 0 <= dropout < 1:
        raise UserError(f'dropout is the share of the features that is dropped, 0 or more and below 1. '
                        f'Received: {dropout}')
