"""The networks of BigGAN-deep (Brock et al., appendix B): twice as many blocks, each a bottleneck.

All of z, beside the embedded class, conditions every normalization. The published generators are of this
kind; their batch normalizations have a table of statistics, a row for each of 51 truncations, and their
spectral normalization is fixed by two stored vectors. Inputs and outputs are NHWC; `dnnlib.tflib.Network`
speaks NCHW for users.

Variables of G_biggan_deep (`v` with store_v alone; a table of statistics is [num_statistics, C]):
    Embedding/weight [classes, shared_dim], not normalized
    Linear/{weight, bias, u, v}, outputs in the order H, W, C
    Block<i>/BN<j>/{moving_mean, moving_variance}, Block<i>/BN<j>/{gain,bias}/{weight, u, v},
        Block<i>/Conv<j>/{weight, bias, u, v}, j = 0 … 3
    Attention_<r>x<r>/{theta,phi,g,o}/{weight, u, v}, Attention_<r>x<r>/gamma, after the blocks that make r×r
    Output/BN/{gain, bias, moving_mean, moving_variance}, Output/Conv/{weight, bias, u, v}
Variables of D_biggan_deep:
    Stem/{weight, bias, u}, Block<i>/Conv<j>/{weight, bias, u}, Block<i>/Shortcut/{weight, bias, u} where a
        block adds channels, Attention_<r>x<r>/… as above, Linear/{weight, bias, u}, Embedding/{weight, u}
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from custom_ops import upsample_2d
from dnnlib.util import UserError
from training.context import Context
from training.layers import log2_resolution
from training.layers_biggan import (
    BigGANLayer,
    ConditionalBatchNorm,
    Conv2D,
    Dense,
    Embedding,
    Options,
    Pass,
    add_residual,
)
from training.networks_biggan import (
    BigGANNetwork,
    check_discriminator,
    check_sizes,
    find_architecture,
    make_pass,
    resolutions,
)

REDUCTION = 4       # Channels of a block over those of its bottleneck.


@dataclasses.dataclass(frozen=True)
class DeepArchitecture:
    """The networks of one resolution. A stage is two blocks; channels are multiples of ch."""

    G: tuple[int, ...]                  # Channels at 4×4, then those that each stage puts out.
    latent_size: int = 128
    attention: tuple[int, ...] = ()     # Resolutions with attention, in both networks. D is G backwards.


ARCHITECTURES: dict[int, DeepArchitecture] = {
    32: DeepArchitecture((4, 4, 4, 4)),
    64: DeepArchitecture((16, 8, 4, 2, 1)),
    128: DeepArchitecture((16, 16, 8, 4, 2, 1), attention=(64,)),
    256: DeepArchitecture((16, 16, 8, 8, 4, 2, 1), attention=(64,)),
    512: DeepArchitecture((16, 16, 8, 8, 4, 2, 1, 1), attention=(64,)),
}


def _stages(ch: int, multipliers: Sequence[int], resolution: int) -> list[int]:
    """Channels at 4×4, 8×8, …; UserError where they do not fit."""
    fmaps = [ch * factor for factor in multipliers]
    if len(fmaps) != log2_resolution(resolution) - 1:
        raise UserError(f'{resolution}x{resolution} images need {log2_resolution(resolution) - 1} '
                        f'multipliers. Received: {len(fmaps)}')
    if min(fmaps) < REDUCTION or any(a < b for a, b in zip(fmaps, fmaps[1:], strict=False)):
        raise UserError(f'the layers need at least {REDUCTION} channels, at 4x4 most and then ever fewer. '
                        f'Received: {fmaps}')
    return fmaps


class DeepGeneratorBlock(BigGANLayer):
    """The bottleneck block of G; the skip connection drops channels and needs no convolution."""

    def __init__(self, name: str, in_fmaps: int, fmaps: int, condition_size: int, up: bool, options: Options):
        super().__init__(name, options.dtype)
        self.fmaps, self.up = fmaps, up
        inside = in_fmaps // REDUCTION
        sizes = [(in_fmaps, inside, 1), (inside, inside, 3), (inside, inside, 3), (inside, fmaps, 1)]
        self.pairs = []
        for index, (before, after, kernel) in enumerate(sizes):
            bn = self.add_layer(ConditionalBatchNorm(f'BN{index}', before, condition_size, options))
            conv = self.add_layer(Conv2D(f'Conv{index}', before, after, kernel, options,
                                         up=up and index == 1))
            self.pairs.append((bn, conv))

    def call(self, x: tf.Tensor, condition: tf.Tensor, *, run: Pass) -> tf.Tensor:
        y = x
        for bn, conv in self.pairs:
            y = conv(bn(y, condition, run=run), run=run)
        x = x[..., :self.fmaps]
        if self.up:
            x = upsample_2d(x, data_format='NHWC')
        return run.ctx.feature(self.scope, x + y)


class G_biggan_deep(BigGANNetwork):
    """The generator.

    Call arguments: those of G_biggan; truncation: where in a table of statistics, 0 to 1.
    Returns images [N, H, W, num_channels] in [-1, 1].
    """

    def __init__(
        self,
        name: str = 'G',
        num_channels: int = 3,              # Number of color channels of the images.
        resolution: int = 128,              # Resolution of the images.
        label_size: int = 0,                # Number of classes, 0 = unconditional.
        ch: int = 128,                      # Factor on the number of feature maps.
        latent_size: int | None = None,     # Size of z. None = that of ARCHITECTURES.
        shared_dim: int = 128,              # Size of the embedding of classes.
        attention: Sequence[int] | None = None,     # Resolutions with attention. None = as in ARCHITECTURES.
        attention_chunk: int | None = None,     # Pixels whose scores are computed at a time, see Attention.
        multipliers: Sequence[int] | None = None,   # DeepArchitecture.G. None = that of ARCHITECTURES.
        latent_distribution: str = 'normal',    # Distribution of z, a name in training.latents.
        output_fmaps: int | None = None,    # Feature maps of the last convolution, of which the first are the
                                            # image. None = num_channels; published weights have ch.
        num_statistics: int = 0,            # Rows of a table of statistics over truncations, 0 = none.
        store_v: bool = False,              # Keep both vectors of the power iteration, not to iterate in
                                            # inference?
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
        check_sizes(num_channels=num_channels, label_size=label_size, ch=ch, latent_size=latent_size)
        if shared_dim < 1:
            raise UserError(f'shared_dim must be at least 1. Received: {shared_dim}')
        row = find_architecture(resolution, ARCHITECTURES, bool(multipliers and latent_size))
        fmaps = _stages(ch, multipliers or row.G, resolution)
        self.label_size, self.latent_distribution = label_size, latent_distribution
        self.num_channels = num_channels
        latent_size = latent_size or row.latent_size
        if num_statistics < 0 or num_statistics == 1 or (output_fmaps or num_channels) < num_channels:
            raise UserError('num_statistics must be 0 or at least 2, and output_fmaps at least num_channels. '
                            f'Received: {num_statistics}, {output_fmaps}')
        options = Options(init=init, sn_epsilon=sn_epsilon, store_v=store_v, bn_epsilon=bn_epsilon,
                          bn_momentum=bn_momentum, bn_unbiased=bn_unbiased, bn_table=num_statistics,
                          dtype=dtype)
        self.embedding = self.add_layer(
            Embedding('Embedding', self.num_classes, shared_dim, options, normalize=False))
        self.linear = self.add_layer(Dense('Linear', latent_size + shared_dim, 16 * fmaps[0], options))
        self.blocks: list[DeepGeneratorBlock] = []
        wanted = resolutions(attention, row.attention if row else ())
        for stage, (in_fmaps, out) in enumerate(zip(fmaps, fmaps[1:], strict=False)):
            for last in (False, True):
                self.blocks.append(self.add_layer(DeepGeneratorBlock(
                    f'Block{2 * stage + last}', in_fmaps, out if last else in_fmaps, latent_size + shared_dim,
                    last, options)))
            self.add_attention(8 << stage, out, wanted, options, attention_chunk)
        self.check_attention(wanted)
        self.add_output(fmaps[-1], output_fmaps or num_channels, options, final_bn_epsilon)
        self.set_scopes('')
        self.set_interface({'latents_in': [None, latent_size], 'labels_in': [None, label_size]},
                           {'images_out': [None, num_channels, resolution, resolution]})

    def call(self, latents_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None, *,
             is_training: bool = False, statistics: str = 'running', truncation: float | None = None,
             **_dynamic) -> tf.Tensor:
        run = make_pass(ctx, is_training, statistics, truncation)
        embedded = self.embedding(self.labels_or_ones(labels_in, latents_in), run=run)
        condition = tf.concat([latents_in, embedded], axis=1)
        x = self.linear(condition, run=run)
        x = tf.reshape(x, [-1, 4, 4, x.shape[1] // 16])
        for block in self.blocks:
            x = self.through(block, x, condition, run=run)
            if block.up and x.shape[1] in self.attention:
                x = self.through(self.attention[x.shape[1]], x, run=run)
        x = self.final_conv(self.final_bn(x, run=run), run=run)
        return run.ctx.feature('Output', tf.tanh(x[..., :self.num_channels]))


class DeepDiscriminatorBlock(BigGANLayer):
    """The bottleneck block of D; the skip connection gets further channels from a 1×1 convolution."""

    def __init__(self, name: str, in_fmaps: int, fmaps: int, down: bool, options: Options):
        super().__init__(name, options.dtype)
        self.down = down
        inside = fmaps // REDUCTION
        sizes = [(in_fmaps, inside, 1), (inside, inside, 3), (inside, inside, 3)]
        self.convs = [self.add_layer(Conv2D(f'Conv{index}', *size, options, act='relu'))
                      for index, size in enumerate(sizes)]
        self.last = self.add_layer(Conv2D('Conv3', inside, fmaps, 1, options))
        self.shortcut = None
        if in_fmaps != fmaps:
            self.shortcut = self.add_layer(Conv2D('Shortcut', in_fmaps, fmaps - in_fmaps, 1, options))

    def call(self, x: tf.Tensor, *, run: Pass) -> tf.Tensor:
        y = tf.nn.relu(x)
        for conv in self.convs:
            y = conv(y, run=run)
        if self.down:
            x, y = (tf.nn.avg_pool2d(value, 2, 2, 'VALID') for value in (x, y))
        if self.shortcut is not None:
            x = tf.concat([x, self.shortcut(x, run=run)], axis=3)
        return run.ctx.feature(self.scope, add_residual(x, self.last(y, run=run)))


class D_biggan_deep(BigGANNetwork):
    """The projection discriminator. Call arguments and result as those of D_biggan."""

    def __init__(
        self,
        name: str = 'D',
        num_channels: int = 3,              # Number of color channels of the images.
        resolution: int = 128,              # Resolution of the images.
        label_size: int = 0,                # Number of classes, 0 = unconditional.
        ch: int = 128,                      # Factor on the number of feature maps.
        attention: Sequence[int] | None = None,     # Resolutions with attention. None = as in ARCHITECTURES.
        attention_chunk: int | None = None,     # Pixels whose scores are computed at a time, see Attention.
        multipliers: Sequence[int] | None = None,   # DeepArchitecture.G. None = that of ARCHITECTURES.
        sn_epsilon: float = 1e-4,           # Least norm that the power iteration divides by.
        dropout: float = 0.0,               # Share of the last features that training drops.
        init: str = 'orthogonal',           # Initial weights: 'orthogonal', 'normal' or 'xavier'.
        recompute: bool = False,            # Compute what is inside of blocks again for their gradients?
        dtype: str = 'float32',             # Of activations and weights.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        super().__init__(name, dtype, recompute)
        check_sizes(num_channels=num_channels, label_size=label_size, ch=ch)
        row = find_architecture(resolution, ARCHITECTURES, bool(multipliers))
        fmaps = _stages(ch, multipliers or row.G, resolution)[::-1]
        check_discriminator(resolution, len(fmaps) - 1, len(fmaps) - 1, dropout)
        self.label_size, self.dropout = label_size, dropout
        options = Options(init=init, sn_epsilon=sn_epsilon, dtype=dtype)
        self.stem = self.add_layer(Conv2D('Stem', num_channels, fmaps[0], 3, options))
        self.blocks: list[DeepDiscriminatorBlock] = []
        wanted = resolutions(attention, row.attention if row else ())
        for stage, (in_fmaps, out) in enumerate(zip(fmaps, fmaps[1:], strict=False)):
            for first in (True, False):
                self.blocks.append(self.add_layer(DeepDiscriminatorBlock(
                    f'Block{2 * stage + (not first)}', in_fmaps if first else out, out, first, options)))
            self.add_attention(resolution >> stage + 1, out, wanted, options, attention_chunk)
        self.check_attention(wanted)
        self.linear = self.add_layer(Dense('Linear', fmaps[-1], 1, options))
        self.embedding = self.add_layer(Embedding('Embedding', self.num_classes, fmaps[-1], options))
        self.set_scopes('')
        self.set_interface({'images_in': [None, num_channels, resolution, resolution],
                            'labels_in': [None, label_size]}, {'scores_out': [None, 1]})

    def call(self, images_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None, *,
             is_training: bool = False, **_dynamic) -> tf.Tensor:
        run = make_pass(ctx, is_training)
        x = self.stem(images_in, run=run)
        for block in self.blocks:
            x = self.through(block, x, run=run)
            if not block.down and x.shape[1] in self.attention:
                x = self.through(self.attention[x.shape[1]], x, run=run)
        return self.pooled_scores(x, labels_in, self.dropout, run)
