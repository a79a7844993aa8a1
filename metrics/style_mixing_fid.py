"""FID while several latents are mixed at random crossovers: how well styles get along with each other that
were not made for each other (StyleGAN, table 2).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from dnnlib.util import UserError

from .frechet_inception_distance import COVARIANCE_DDOF, frechet_distance, warn_if_few
from .metric_base import MetricBase

if TYPE_CHECKING:
    from dnnlib.tflib import Network
    from training.context import Context

    from .evaluation import Evaluation

MAX_LATENTS = 4     # Of the table.


def latent_of_layer(uniform: tf.Tensor, num_latents: int) -> tf.Tensor:
    """Which latent each layer takes: 0, …, 0, 1, …, 1, 2, …

    Args:
        uniform: Uniform numbers [N, num_layers - 1]. The smallest num_latents - 1 of them are where the next
            latent begins, so that all crossovers are equally likely and no two coincide.

    Returns: int32 [N, num_layers].
    """
    if num_latents == 1:
        return tf.zeros([tf.shape(uniform)[0], uniform.shape[1] + 1], tf.int32)
    rank = tf.argsort(tf.argsort(uniform, axis=1), axis=1)
    begins = tf.cast(rank < num_latents - 1, tf.int32)
    return tf.pad(tf.cumsum(begins, axis=1), [[0, 0], [1, 0]])


def mixed_images(network: 'Network', latents: tf.Tensor, labels: tf.Tensor, ctx: 'Context',
                 truncation_psi: float | None = None) -> tf.Tensor:
    """Images [N, C, H, W] of latents [N, num_latents, latent_size] that are mixed at random crossovers."""
    num_latents = latents.shape[1]
    layer, components = network.layer, network.components
    inputs = [tf.reshape(latents, [-1, latents.shape[2]])]
    if network.num_inputs > 1:
        inputs.append(tf.repeat(labels, num_latents, axis=0))
    dlatents = components.mapping.get_output_for(*inputs, ctx=ctx)
    num_layers, size = dlatents.shape[1:]
    dlatents = tf.reshape(dlatents, [-1, num_latents, num_layers, size])
    chosen = latent_of_layer(ctx.uniform([latents.shape[0], num_layers - 1]), num_latents)
    dlatents = tf.einsum('nkls,nlk->nls', dlatents, tf.one_hot(chosen, num_latents, dtype=dlatents.dtype))
    dlatents = layer.truncate(dlatents, truncation_psi, layer.truncation_cutoff)
    options: dict[str, Any] = dict(ctx=ctx, randomize_noise=True)
    if layer.grows:     # The generator's level of detail counts, not the one stored in its component.
        options['lod'] = tf.convert_to_tensor(layer.lod)
    return components.synthesis.get_output_for(dlatents, **options)


class MixingFID(MetricBase):
    """FID of images of 1, 2, 3, 4 latents each, mixed at random crossovers.

    Results: NAME_1, NAME_2, … for several numbers of latents; NAME alone for one.

    Args:
        num_images: Of reals, and of fakes of each number of latents.
        num_latents: The numbers of latents.
        extractor: Key of feature_nets.EXTRACTORS; with another than 'inception' it is no FID.
    """

    needs_network = True
    min_images = 2

    def __init__(self, name: str, num_images: int = 50000, num_latents: Sequence[int] = (1, 2, 3, 4),
                 extractor: str = 'inception', **kwargs: Any):
        super().__init__(name, extractor, **kwargs)
        if not num_latents or not all(1 <= k <= MAX_LATENTS for k in num_latents):
            raise UserError(f'{name}: expected 1 to {MAX_LATENTS} latents, received {list(num_latents)}')
        self.num_images, self.num_latents = num_images, list(num_latents)

    def check_images(self, ev: 'Evaluation') -> None:
        """See MetricBase."""
        super().check_images(ev)
        if ev.Gs is not None:
            self._check(ev.Gs)

    def _evaluate(self, ev: 'Evaluation') -> None:
        self._check(ev.require_network())
        ddof_real, ddof_fake = COVARIANCE_DDOF[ev.generation]
        stream = ev.reals(self.num_images)
        real = ev.features(stream, self.extractor).moments(ddof=ddof_real)
        psi = ev.sampler.run_kwargs.get('truncation_psi')
        for k in self.num_latents:
            fakes = self._fakes(ev, k, psi)
            if k == self.num_latents[0]:
                warn_if_few(self.name, len(real[0]), reals=len(stream), fakes=len(fakes))
            fake = ev.features(fakes, self.extractor).moments(ddof=ddof_fake)
            suffix = f'_{k}' if len(self.num_latents) > 1 else ''
            self._report_result(frechet_distance(real, fake), suffix)
        self.details['num_latents'] = self.num_latents

    def _fakes(self, ev: 'Evaluation', num_latents: int, psi: float | None) -> Any:
        """Generated images; those of one latent are the ones that FID has."""
        if num_latents == 1:
            return ev.fakes(self.num_images)

        def synthesize(network, latents, labels, ctx):
            return mixed_images(network, latents, labels, ctx, psi)
        return ev.fakes(self.num_images, name=f'mix{num_latents}', num_latents=num_latents,
                        synthesize=synthesize)

    def _check(self, network: 'Network') -> None:
        """Errors: UserError for a network whose layers do not take a latent each."""
        kind = type(network.layer).__name__
        if not {'mapping', 'synthesis'} <= set(network.components):
            raise UserError(f'{self.name}: network {network.name} ({kind}) has no styles that could be '
                            'mixed; expected a style-based generator')
        num_layers = network.components.synthesis.input_shape[1]
        if num_layers < max(self.num_latents):
            raise UserError(f'{self.name}: network {network.name} ({kind}) has {num_layers} style layer'
                            f'{"s" * (num_layers != 1)}; expected {max(self.num_latents)} or more, one for '
                            'each latent')
