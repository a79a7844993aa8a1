"""What each resolution contributes to the images of a skip generator (StyleGAN2, section 4.3, figure 8)."""

import glob
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from custom_ops import upsample_2d
from dnnlib.util import UserError
from generation import sampling
from training.context import Context

if TYPE_CHECKING:
    from dnnlib.tflib import Network


def check_skip_generator(network: 'Network') -> None:
    """Errors: UserError for a network that does not sum its image over ToRGB layers."""
    from training.networks_stylegan2 import G_synthesis_stylegan2
    sampling.check_generator(network)
    synthesis = network.components.get('synthesis')
    layer = synthesis.layer if synthesis else network.layer
    if not isinstance(layer, G_synthesis_stylegan2) or any(block.to_rgb is None for block in layer.blocks):
        kind = getattr(layer, 'blocks', None) and getattr(layer.blocks[0], 'architecture', None)
        raise UserError(f'network {network.name} ({type(layer).__name__}'
                        f'{f", architecture {kind}" if kind else ""}) is no skip generator, whose image is a '
                        "sum over resolutions; expected StyleGAN2 with architecture 'skip', such as configs "
                        'E and F')


def contributions(network: 'Network', dlatents: tf.Tensor) -> list[tf.Tensor]:
    """What the ToRGB layer of each resolution adds to the images: tensors [N, H, W, C] that sum up to them.

    A contribution runs through the same upsampling on its way to the final resolution as the image does.

    Args:
        network: A skip generator.
        dlatents: [N, num_layers, dlatent_size]. Noise is as stored.
    """
    layer = network.components.synthesis.layer
    ctx = Context(keep_features=True)
    layer(dlatents, ctx=ctx, randomize_noise=False)
    parts = []
    for block in layer.blocks:
        parts = [upsample_2d(part, k=block.resample_kernel, data_format='NHWC') for part in parts]
        total, below = ctx.features[f'{block.name}/ToRGB'], ctx.features.get(f'{block.name}/Upsample')
        parts.append(total if below is None else total - below)
    return parts


def moments_function(network: 'Network') -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """A traced function: w → sums of the contributions and of their squares, float64 [num resolutions]."""
    def moments(dlatents):
        parts = [tf.cast(part, tf.float64) for part in contributions(network, dlatents)]
        return (tf.stack([tf.reduce_sum(part) for part in parts]),
                tf.stack([tf.reduce_sum(tf.square(part)) for part in parts]))
    return tf.function(moments, autograph=False)


def resolution_usage(
    network: 'Network',
    dlatents: np.ndarray,               # Samples of w, [N, num_layers, dlatent_size].
    batch_size: int = 8,                # Samples at a time.
    function: Callable | None = None,   # moments_function(network), where one is at hand.
) -> np.ndarray:
    """The standard deviation of what each resolution adds, over samples, pixels and colors: [resolutions].

    The shares of figure 8 are these values divided by their sum.
    """
    function = function or moments_function(network)
    count, sums, squares = 0, 0.0, 0.0
    size = min(batch_size, len(dlatents))
    pixels = int(np.prod(network.output_shape[1:]))
    for begin in range(0, len(dlatents), size):
        batch = tf.constant(dlatents[begin:begin + size], network.components.synthesis.layer.compute_dtype)
        batch_sums, batch_squares = function(batch)
        count += len(batch) * pixels
        sums, squares = sums + batch_sums.numpy(), squares + batch_squares.numpy()
    return np.sqrt(np.maximum(squares / count - np.square(sums / count), 0))


def resolutions(network: 'Network') -> list[str]:
    """Names of the resolutions, '4x4' and up."""
    return [block.name for block in network.components.synthesis.layer.blocks]


def random_dlatents(network: 'Network', num_samples: int, seed: int, truncation_psi: float = 1.0,
                    label: np.ndarray | None = None) -> np.ndarray:
    """w of random z, [N, num_layers, dlatent_size]; without a label classes are random, too."""
    random = np.random.RandomState(seed)
    latents = random.randn(num_samples, *network.input_shape[1:])
    label_size = network.components.mapping.input_shapes[1][1]
    if label is not None or not label_size:
        return sampling.map_latents(network, latents, truncation_psi, label)
    labels = np.eye(label_size, dtype=np.float32)[random.randint(label_size, size=num_samples)]
    return sampling.truncate(network, network.components.mapping.run(latents, labels), truncation_psi)


def find_snapshots(path: str | os.PathLike) -> list[tuple[float | None, str]]:
    """(progress in kimg, path) of the network pickles of a run directory, or of one pickle.

    network-final.pkl, whose name does not tell its progress, counts only where there is nothing else.

    Errors: UserError for a directory without networks.
    """
    path = os.fspath(path)
    if not os.path.isdir(path):
        return [(_kimg(path), path)]
    found = sorted((_kimg(name), name)
                   for name in glob.glob(os.path.join(glob.escape(path), 'network-snapshot-*.pkl'))
                   if _kimg(name) is not None)
    final = os.path.join(path, 'network-final.pkl')
    if not found and os.path.isfile(final):
        found = [(None, final)]
    if not found:
        raise UserError(f'{path}: expected a run directory with network-snapshot-….pkl files, found none')
    return found


def _kimg(path: str) -> float | None:
    match = re.search(r'network-snapshot-(\d+)\.pkl$', path)
    return float(match[1]) if match else None


def usage_of_snapshots(paths: list[str], generator: str, class_idx: int | None, num_samples: int, seed: int,
                       truncation_psi: float, batch_size: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields (names of the resolutions, standard deviations) for each network pickle.

    Networks of one form share one traced function, and no more than one of them is in memory.

    Errors: UserError for a network that is no skip generator, or a label that does not fit.
    """
    from dnnlib.tflib import Network, legacy
    network = function = None
    for path in paths:
        state = legacy.find_network(legacy.load_pkl(path), generator)
        values = state.all_variables()
        if network is not None and network.static_kwargs == state.static_kwargs and set(values) == set(
                network.vars):
            network.set_vars(values)
        else:
            network = Network.from_state(state)
            check_skip_generator(network)
            function = moments_function(network)
        label = None if class_idx is None else sampling.class_label(network, class_idx)
        dlatents = random_dlatents(network, num_samples, seed, truncation_psi, label)
        yield resolutions(network), resolution_usage(network, dlatents, batch_size, function)
