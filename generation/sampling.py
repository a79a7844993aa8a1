"""Pictures of a trained generator: the random numbers of a seed, images in batches, style mixing."""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dnnlib import tflib
from dnnlib.util import UserError
from training.context import Context
from training.growing import Stage

_LINE_EVERY = 10  # Seconds between lines of progress where there is no terminal.


class GivenNoise(Context):
    """A forward pass whose noise inputs are given, one picture each, in the order noise0, noise1, …

    The noise variables of a network are the same for the whole batch; with randomize_noise=True it asks its
    context for noise of every sample instead, so that each can have what its seed would put into them.

    Args:
        noises: Tensors [N, H, W, 1].
        stage: training.growing.Stage that growing networks run in; None = what their lod says.
    """

    def __init__(self, noises: Iterable[tf.Tensor], stage=None):
        super().__init__(stage=stage)
        self._noises = list(noises)

    def normal(self, shape, dtype=tf.float32):
        if not self._noises:
            raise RuntimeError('the network draws more random numbers than it has noise inputs')
        noise = self._noises.pop(0)
        if tf.get_static_value(tf.convert_to_tensor(shape)).tolist() != noise.shape.as_list():
            raise RuntimeError(f'the network draws random numbers of shape {shape}, expected {noise.shape}')
        return tf.cast(noise, dtype)


def check_generator(network: 'tflib.Network') -> None:
    """Raises: UserError for a network that does not make images from latents (D, a component)."""
    if len(network.input_shape) != 2 or len(network.output_shape) != 4:
        raise UserError(f'network {network.name} ({type(network.layer).__name__}) is no generator; '
                        'expected one that makes images from latents, such as Gs')


def has_dlatents(network: 'tflib.Network') -> bool:
    """Whether a generator has intermediate latents w: those of StyleGAN and StyleGAN2 do, ProGAN's do not."""
    return {'mapping', 'synthesis'} <= set(network.components) and 'dlatent_avg' in network.own_vars


def check_dlatents(network: 'tflib.Network', styles: bool = False) -> None:
    """Checks that a generator has intermediate latents w, with `styles` also one for each layer.

    Raises: UserError for another kind of network.
    """
    check_generator(network)
    if not has_dlatents(network):
        raise UserError(f'network {network.name} ({type(network.layer).__name__}) has no intermediate '
                        'latents w; expected a style-based generator')
    if styles and network.components.synthesis.input_shape[1] == 1:
        raise UserError(f'network {network.name} has no styles (use_styles=False); expected a style-based '
                        'generator')


def load_generator(network_pkl: str | os.PathLike, generator: str = 'Gs', class_idx: int | None = None,
                   ) -> tuple['tflib.Network', np.ndarray]:
    """A generator and the label of a class, see `class_label`.

    Args:
        network_pkl: Path, address or alias, see pretrained_networks.load_network.
        generator: 'Gs' or 'G', which network of a snapshot.
        class_idx: Class, for conditional networks.

    Raises: UserError for a file or network that is none, or a class that does not fit.
    """
    import pretrained_networks
    network = pretrained_networks.load_network(network_pkl, generator)
    try:
        check_generator(network)
        return network, class_label(network, class_idx)
    except UserError as error:
        raise UserError(f'{pretrained_networks.shown(network_pkl)}: {error}') from None


def class_label(network: 'tflib.Network', class_idx: int | None) -> np.ndarray:
    """The label of a class, one-hot: float32 [1, label_size]; [1, 0] for an unconditional generator.

    Raises: UserError for a class that the network does not have, or none where it needs one.
    """
    label_size = network.input_shapes[1][1] if network.num_inputs > 1 else 0
    label = np.zeros([1, label_size], np.float32)
    if label_size and class_idx is None:
        raise UserError(f'network {network.name} is conditional (label_size {label_size}): '
                        f'choose a class by --class=0 … --class={label_size - 1}')
    if class_idx is not None:
        if not label_size:
            raise UserError(f'network {network.name} is unconditional; leave --class={class_idx} out')
        if not 0 <= class_idx < label_size:
            raise UserError(f'network {network.name} has classes 0 to {label_size - 1}, '
                            f'received class {class_idx}')
        label[0, class_idx] = 1
    return label


def noise_vars(network: 'tflib.Network') -> list:
    """The noise variables [1, 1, H, W] of a generator, in the official order."""
    synthesis = network.components.get('synthesis')
    return [var for name, var in synthesis.vars.items() if name.startswith('noise')] if synthesis else []


def seed_latents(network: 'tflib.Network', seed: int) -> np.ndarray:
    """z of a seed: float64 [1, latent_size]."""
    return np.random.RandomState(seed).randn(1, *network.input_shape[1:])


def seed_inputs(network: 'tflib.Network', seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """z and the noise of a seed as the official generate-images draws them: z first, then noise0, noise1, …

    Returns: float64 [1, latent_size] and one float64 [1, 1, H, W] for each noise variable.
    """
    rnd = np.random.RandomState(seed)
    latents = rnd.randn(1, *network.input_shape[1:])
    return latents, [rnd.randn(*var.shape) for var in noise_vars(network)]


def generate(
    network: 'tflib.Network',
    seeds: Sequence[int],                       # One image each.
    truncation_psi: float | None = 0.5,         # Truncation trick. None = as in the network.
    label: np.ndarray | None = None,            # [1, label_size], see class_label. None = zeros.
    batch_size: int = 8,                        # Images at a time.
    truncation_cutoff: int | None = None,       # Layers to truncate. None = as in the network.
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (seed, image), the image uint8 [C, H, W], in the order of the seeds.

    z and noise of an image are functions of its seed alone (`seed_inputs`): the size of the batch, which one
    traced function serves, does not show in the pictures beyond rounding.
    """
    check_generator(network)
    size = min(batch_size, len(seeds))
    kwargs = {'randomize_noise': True} if noise_vars(network) else {}
    if truncation_psi is not None and 'dlatent_avg' in network.vars:
        kwargs['truncation_psi'] = truncation_psi
    if truncation_cutoff is not None and 'dlatent_avg' in network.vars:
        kwargs['truncation_cutoff'] = truncation_cutoff

    @tf.function
    def evaluate(latents, noises):
        inputs = [latents]
        if network.num_inputs > 1:
            inputs.append(tf.zeros([size, network.input_shapes[1][1]], latents.dtype) if label is None
                          else tf.repeat(tf.cast(label, latents.dtype), size, axis=0))
        images = network.get_output_for(*inputs, ctx=GivenNoise(noises), **kwargs)
        return tflib.convert_images_to_uint8(images)

    for begin in range(0, len(seeds), size):
        batch = list(seeds[begin:begin + size])
        filled = batch + batch[-1:] * (size - len(batch))  # One shape, one trace.
        latents, noises = zip(*(seed_inputs(network, seed) for seed in filled), strict=True)
        dtype = network.layer.compute_dtype
        latents = tf.constant(np.concatenate(latents), dtype)
        noises = [tf.constant(np.concatenate(noise).transpose(0, 2, 3, 1), tf.float32)
                  for noise in zip(*noises, strict=True)]
        images = evaluate(latents, noises).numpy()
        yield from zip(batch, images[:len(batch)], strict=True)


def seed_dlatents(network: 'tflib.Network', seeds: Sequence[int], truncation_psi: float = 0.5,
                  label: np.ndarray | None = None) -> np.ndarray:
    """w of the seeds, all layers truncated as the official style-mixing-example does it.

    Returns: [N, num_layers, dlatent_size].
    Raises: UserError for a network without intermediate latents.
    """
    latents = np.concatenate([seed_latents(network, seed) for seed in seeds])
    return map_latents(network, latents, truncation_psi, label)


def map_latents(network: 'tflib.Network', latents: np.ndarray, truncation_psi: float = 1.0,
                label: np.ndarray | None = None) -> np.ndarray:
    """w [N, num_layers, dlatent_size] of z [N, latent_size], all layers truncated; errors as above."""
    check_dlatents(network)
    labels = None if label is None else np.repeat(label, len(latents), axis=0)
    return truncate(network, network.components.mapping.run(latents, labels), truncation_psi)


def truncate(network: 'tflib.Network', dlatents: np.ndarray, truncation_psi: float) -> np.ndarray:
    """The truncation trick for w [N, num_layers, dlatent_size] (StyleGAN, appendix B)."""
    average = network.get_var('dlatent_avg')
    return average + (dlatents - average) * truncation_psi


def mix_styles(dlatents: np.ndarray, other: np.ndarray, layers: Sequence[int]) -> np.ndarray:
    """A copy of w [num_layers, dlatent_size] that has `layers` from another one (StyleGAN, section 3.1)."""
    mixed = dlatents.copy()
    mixed[list(layers)] = other[list(layers)]
    return mixed


def draw_dlatents(network: 'tflib.Network', dlatents: tf.Tensor, noises: Sequence[tf.Tensor],
                  stage: Stage | None) -> tf.Tensor:
    """Images [N, C, H, W] of w [N, num_layers, dlatent_size], at the level of detail of the generator.

    Args:
        noises: Tensors [N, H, W, 1], one for each noise variable. None of them = as stored.
        stage: network.layer.stage(), which a traced function cannot find out by itself.
    """
    options = dict(randomize_noise=bool(noises), ctx=GivenNoise(noises, stage))
    if network.layer.grows:
        options['lod'] = tf.convert_to_tensor(network.layer.lod)
    return network.components.synthesis.get_output_for(dlatents, **options)


def synthesize(
    network: 'tflib.Network',
    dlatents: Iterable[np.ndarray],             # w of each image, [num_layers, dlatent_size].
    batch_size: int = 8,                        # Images at a time.
    noises: Iterable[Sequence[np.ndarray]] | None = None,   # Of each image: [1, H, W] for each noise
                                                            # variable. None = as stored.
    as_uint8: bool = True,                      # False = float images, in [-1, 1] but for overshoot.
) -> Iterator[np.ndarray]:
    """Yields images [C, H, W] of w, batch by batch; see `draw_dlatents`."""
    stage = network.layer.stage()

    def evaluate(batch, noise):
        images = draw_dlatents(network, batch, [tf.transpose(value, [0, 2, 3, 1]) for value in noise], stage)
        return tflib.convert_images_to_uint8(images) if as_uint8 else images

    items = zip(dlatents, itertools.repeat(()) if noises is None else noises, strict=noises is not None)
    size = min(batch_size, len(dlatents)) if hasattr(dlatents, '__len__') else batch_size
    yield from run_batches(evaluate, items, size, network.components.synthesis.layer.compute_dtype)


def draw_latents(
    network: 'tflib.Network',
    latents: Iterable[np.ndarray],              # z of each image, [latent_size].
    label: np.ndarray | None = None,            # [1, label_size], see class_label. None = zeros.
    batch_size: int = 8,                        # Images at a time.
) -> Iterator[np.ndarray]:
    """Yields images uint8 [C, H, W] of z, for generators without intermediate latents."""
    label_size = network.input_shapes[1][1] if network.num_inputs > 1 else 0
    label = np.zeros([1, label_size]) if label is None else label
    stage = network.layer.stage()

    def evaluate(batch, noise):
        del noise
        labels = [tf.repeat(tf.cast(label, batch.dtype), batch.shape[0], axis=0)] * (network.num_inputs - 1)
        images = network.get_output_for(batch, *labels, ctx=GivenNoise([], stage))
        return tflib.convert_images_to_uint8(images)

    size = min(batch_size, len(latents)) if hasattr(latents, '__len__') else batch_size
    yield from run_batches(evaluate, ((z, ()) for z in latents), size, network.layer.compute_dtype)


def run_batches(function: Callable, items: Iterable[tuple[np.ndarray, Sequence[np.ndarray]]], batch_size: int,
                dtype: str) -> Iterator[np.ndarray]:
    """Yields, for each item (array, list of arrays), its row of function(batch, list of batches).

    The function is traced once: the last batch is filled up with its last item.
    """
    traced = tf.function(function, autograph=False)
    items = iter(items)
    while batch := list(itertools.islice(items, batch_size)):
        filled = batch + batch[-1:] * (batch_size - len(batch))
        first, rest = zip(*filled, strict=True)
        rest = [tf.constant(np.stack(values), dtype) for values in zip(*rest, strict=True)]
        yield from traced(tf.constant(np.stack(first), dtype), rest).numpy()[:len(batch)]


def progress(items: Iterable, total: int, unit: str = 'img') -> Iterator:
    """Passes items through, with a progress bar on a terminal and a line now and then elsewhere."""
    if sys.stderr is not None and sys.stderr.isatty():
        yield from tqdm(items, total=total, unit=unit, file=sys.stderr)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if count == total or now - last >= _LINE_EVERY:
            last = now
            print(f'{count}/{total} {unit}  {count / max(now - start, 1e-6):.2f} {unit}/s', flush=True)
