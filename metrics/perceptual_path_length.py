"""Perceptual path length: how far the image moves when the latent moves a little (StyleGAN, section 4.1).

`PPL` is the metric; the functions in front of it are its definition. With `distribution` it also writes how
the lengths of single images are distributed, and what images are at both ends (StyleGAN2, figures 4 and 5).
"""

import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.util import UserError, atomic_write
from training.context import Context

from .metric_base import MetricBase

if TYPE_CHECKING:
    from .evaluation import Evaluation

SPACES, SAMPLINGS = ('z', 'w'), ('full', 'end')
PERCEPTUAL_SIZE = 256       # Images are shrunk to about this height before they are compared.
OUTLIERS = (1, 99)          # Percentiles; what lies beyond them does not count.
PERCENTILES = (1, 10, 90, 99)   # That stand in the .jsonl file.
SHEET = (10, 6)             # Columns and rows of a sample sheet.
BLOCK = 256                 # Pairs whose numbers come from one generator of random numbers.


class SharedNoise(Context):
    """A forward pass in which all images of the batch have the same noise.

    Without that the noise of two neighbours would differ, and they would measure it instead of the path.

    Args:
        seed: int32 tensor [2]; the n-th draw is a function of seed and n alone.
        stage: training.growing.Stage that growing networks run in.
    """

    def __init__(self, seed: tf.Tensor, stage: Any = None):
        super().__init__(stage=stage)
        self._seed, self._num_draws = seed, 0

    def normal(self, shape, dtype=tf.float32):
        self._num_draws += 1
        seed = tf.random.experimental.stateless_fold_in(self._seed, self._num_draws)
        return tf.broadcast_to(tf.random.stateless_normal([1, *shape[1:]], seed, dtype=dtype), shape)


# Interpolation.

def normalize(v: tf.Tensor) -> tf.Tensor:
    """Vectors [..., size] scaled to unit length; zero stays zero."""
    return tf.math.divide_no_nan(v, tf.norm(v, axis=-1, keepdims=True))


def slerp(a: tf.Tensor, b: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """From the direction of a (t = 0) to that of b (t = 1) on a great circle, at unit length.

    Args:
        a, b: [N, size]; also equal ones.
        t: [N, 1].
    """
    a, b = normalize(a), normalize(b)
    cosine = tf.reduce_sum(a * b, axis=-1, keepdims=True)
    across = b - cosine * a
    # The arc tangent is exact where the arc cosine is not, between directions that are almost the same.
    angle = t * tf.atan2(tf.norm(across, axis=-1, keepdims=True), cosine)
    return normalize(a * tf.cos(angle) + normalize(across) * tf.sin(angle))


def lerp(a: tf.Tensor, b: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """a + (b - a) · t."""
    return a + (b - a) * t


def _slerp_with_length(a: tf.Tensor, b: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """As slerp, at lengths between those of a and b: for networks that take z as it is."""
    return slerp(a, b, t) * lerp(tf.norm(a, axis=-1, keepdims=True), tf.norm(b, axis=-1, keepdims=True), t)


# Images.

def has_w(network: 'tflib.Network') -> bool:
    """Whether a generator has intermediate latents w."""
    return {'mapping', 'synthesis'} <= set(network.components)


def path_images(
    network: 'tflib.Network',
    latents: tf.Tensor,                 # z of the pairs: a0, b0, a1, b1, … [2N, latent_size].
    labels: tf.Tensor,                  # [N, label_size], one for each pair.
    t: tf.Tensor,                       # Where on the way from a to b, [N].
    *,
    space: str,                         # 'z' or 'w': what is interpolated.
    epsilon: float,                     # Length of the step.
    ctx: Context,                       # Whose noise the images get.
    randomize_noise: bool = True,       # False = the noise variables.
    **kwargs,                           # Arguments of networks without w for this call.
) -> tf.Tensor:
    """Images [2N, C, H, W] at t and t + epsilon in turn, without truncation."""
    t = tf.cast(t, latents.dtype)[:, tf.newaxis]
    steps = (t, t + tf.constant(epsilon, latents.dtype))
    twice = tf.repeat(labels, 2, axis=0)
    inputs = [twice] * (network.num_inputs - 1)
    if not has_w(network):
        z = _interleave([_slerp_with_length(latents[0::2], latents[1::2], x) for x in steps])
        return network.get_output_for(z, *inputs, ctx=ctx, **kwargs)
    mapping, synthesis = network.components.mapping, network.components.synthesis
    if space == 'z':
        z = _interleave([slerp(latents[0::2], latents[1::2], x) for x in steps])
        dlatents = mapping.get_output_for(z, *inputs, ctx=ctx)
    else:
        dlatents = mapping.get_output_for(latents, *inputs, ctx=ctx)
        dlatents = _interleave([lerp(dlatents[0::2], dlatents[1::2], x[..., tf.newaxis]) for x in steps])
    options = dict(ctx=ctx, randomize_noise=randomize_noise)
    if network.layer.grows:     # The generator's level of detail counts, not the one stored in its component.
        options['lod'] = tf.convert_to_tensor(network.layer.lod)
    return synthesis.get_output_for(dlatents, **options)


def _interleave(pair: list[tf.Tensor]) -> tf.Tensor:
    """Two tensors [N, ...] as one [2N, ...], in turn."""
    return tf.reshape(tf.stack(pair, axis=1), [-1, *pair[0].shape[1:]])


def perceptual_input(images: tf.Tensor, crop: bool, generation: str = 'stylegan2') -> tf.Tensor:
    """Images [N, C, H, W] in [-1, 1] as the distance wants them: [N, h, w, C] in [0, 255], neither rounded
    nor clamped.

    Args:
        crop: Keep the part where aligned photos have the face?
        generation: 'ada-pytorch' takes the factor of the shrinking from the size before cropping, as that
            code does; others from the size after it.
    """
    images = tf.cast(tf.transpose(images, [0, 2, 3, 1]), tf.float32)
    full = images.shape[1]
    if crop:
        y, x = full // 8, images.shape[2] // 8
        images = images[:, 3 * y:7 * y, 2 * x:6 * x]
    factor = (full if generation == 'ada-pytorch' else images.shape[1]) // PERCEPTUAL_SIZE
    if factor > 1:
        images = tf.nn.avg_pool2d(images, factor, factor, 'VALID')
    return (images + 1) * 127.5


def percentile(lengths: np.ndarray, percent: float, method: str) -> float:
    """The percentile of lengths, one of them; they may be infinite."""
    # Of positions: among the values NumPy would multiply infinity by zero.
    position = int(np.percentile(np.arange(len(lengths)), percent, method=method))
    return float(np.partition(lengths, position)[position])


def mean_length(distances: np.ndarray) -> float:
    """The mean of what is neither below the 1st nor above the 99th percentile."""
    lengths = np.asarray(distances, np.float64)
    low = percentile(lengths, OUTLIERS[0], 'lower')
    high = percentile(lengths, OUTLIERS[1], 'higher')
    return float(np.mean(lengths[(lengths >= low) & (lengths <= high)]))


class PPL(MetricBase):
    """Perceptual path length. With another extractor than 'lpips' it is a path length too, but no PPL.

    Args:
        num_samples: Number of pairs.
        epsilon: Length of the step.
        space: What is interpolated, 'z' or 'w'.
        sampling: Where on the paths: 'full' = anywhere, 'end' = at their beginnings.
        crop: See `perceptual_input`.
        extractor: Key of feature_nets.EXTRACTORS, of a network with a distance.
        distribution: Write the distribution of single lengths too?
    """

    needs_reals, needs_network = False, True

    def __init__(self, name: str, num_samples: int = 50000, epsilon: float = 1e-4, space: str = 'w',
                 sampling: str = 'end', crop: bool = True, extractor: str = 'lpips',
                 distribution: bool = False, **kwargs: Any):
        super().__init__(name, extractor, **kwargs)
        if space not in SPACES or sampling not in SAMPLINGS:
            raise UserError(f"{name}: expected space 'z' or 'w' and sampling 'full' or 'end', received "
                            f'{space!r} and {sampling!r}')
        self.num_samples, self.epsilon, self.space, self.sampling = num_samples, epsilon, space, sampling
        self.crop, self.distribution = crop, distribution

    def check_images(self, ev: 'Evaluation') -> None:
        """See MetricBase."""
        super().check_images(ev)
        if ev.Gs is not None:
            _check(self, ev.Gs)

    def _evaluate(self, ev: 'Evaluation') -> None:
        self.check_images(ev)
        paths = _Paths(self, ev)
        lengths = paths.lengths()
        lengths = np.where(np.isnan(lengths), np.inf, lengths)  # Of a generator that has diverged.
        value = mean_length(lengths)
        self._report_result(value)
        self.details.update(
            num_samples=len(lengths), num_fakes=2 * len(lengths), fakes=paths.describe(), space=self.space,
            sampling=self.sampling, epsilon=self.epsilon, crop=self.crop, median=float(np.median(lengths)),
            percentiles={str(q): percentile(lengths, q, 'nearest') for q in PERCENTILES})
        if self.distribution and ev.result_dir is not None:
            self._write_distribution(paths, lengths, value, os.path.join(
                ev.result_dir, ev.file_prefix + self.name))

    def _write_distribution(self, paths: '_Paths', lengths: np.ndarray, value: float, path: str) -> None:
        """Writes PATH-distribution.png, PATH-lowest.png, PATH-highest.png and PATH-distances.npz."""
        parts = deciles(lengths)
        if not np.isfinite(lengths).any():
            print(f'Warning: {self.name}: no finite path length, no distribution to draw', file=sys.stderr)
            return
        save_histogram(f'{path}-distribution.png', lengths, parts, self.name, value)
        with atomic_write(f'{path}-distances.npz') as file:
            np.savez(file, distances=lengths)
        for key in ('lowest', 'highest'):
            indices = parts[key]
            if not len(indices):    # Of a single pair.
                continue
            chosen = paths.ev.rng(f'ppl/{key}').permutation(indices)[:SHEET[0] * SHEET[1]]
            paths.save_sheet(chosen[np.argsort(lengths[chosen], kind='stable')], f'{path}-{key}.png')


def deciles(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of the tenth with the smallest lengths, the 'lowest', of the 'highest' and what is between."""
    order = np.argsort(lengths, kind='stable')
    count = max(len(lengths) // 10, 1)
    low, high = (count, len(order) - count) if len(order) > 2 else (len(order) // 2, len(order) // 2)
    return {'lowest': order[:low], 'middle': order[low:high], 'highest': order[high:]}


def save_histogram(path: str, lengths: np.ndarray, parts: dict[str, np.ndarray], name: str,
                   value: float) -> None:
    """Writes the histogram of lengths to a PNG file, the outer tenths highlighted (StyleGAN2, figure 5).

    Args:
        parts: See `deciles`.
        name, value: Of the metric.
    """
    from matplotlib.figure import Figure  # No pyplot: nothing global, no display.
    end = percentile(lengths[np.isfinite(lengths)], OUTLIERS[1], 'higher')
    groups = [np.minimum(lengths[parts[key]], end) for key in ('lowest', 'middle', 'highest')]
    figure = Figure(figsize=(8, 4), dpi=120, layout='constrained')
    axes = figure.subplots()
    axes.hist(groups, np.linspace(0, max(end, 1e-12), 101), stacked=True, color=['C1', 'C7', 'C1'])
    if np.isfinite(value):
        axes.axvline(value, color='black', linestyle='--', linewidth=1, label=f'{name} {value:.4g}')
        axes.legend(frameon=False, loc='upper right')
    axes.set(title=f'Path lengths of {len(lengths)} single images; orange: lowest and highest tenth',
             xlabel='path length (the last bar holds all that are longer)', ylabel='images')
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(x=0.01)
    with atomic_write(path) as file:
        figure.savefig(file, format='png')


class _Paths:
    """The pairs of a metric, each a function of the seed and its index, and the images on the way."""

    def __init__(self, metric: PPL, ev: 'Evaluation'):
        self.metric, self.ev = metric, ev
        self.num = ev.count(metric.num_samples)
        sampler = ev.sampler
        self.network, self.run_kwargs = _in_float32(sampler.network), sampler.run_kwargs
        # Read here: within a graph a network cannot know it.
        self.sampler, self.stage = sampler, self.network.layer.stage()
        self.extractor = ev.extractor(metric.extractor)
        if not hasattr(self.extractor, 'distance'):
            raise UserError(f'{metric.name}: the network {metric.extractor} measures no distances between '
                            'images; use lpips or efflite0')
        # Twice as many images as pairs.
        self.size = max(ev.batch // 2, 1)
        self.block: tuple[int, list] = (-1, [])

    def describe(self) -> dict[str, Any]:
        """How the images are made, for results: of w there is no truncation."""
        facts = {'count': 2 * self.num, 'resize': 'none', **self.sampler.describe()}
        return {**facts, 'truncation': None, 'truncation_mode': None} if has_w(self.network) else facts

    def inputs(self, minibatch: int) -> tuple[np.ndarray, ...]:
        """(z of both ends [n, 2, latent_size], labels [n, label_size], t [n], seeds of the noise [n, 2])."""
        indices = range(minibatch * self.size, min((minibatch + 1) * self.size, self.num))
        rows = []
        for index in indices:
            number, row = divmod(index, BLOCK)
            if self.block[0] != number:
                self.block = number, self._block(number)
            rows.append([array[row] for array in self.block[1]])
        return tuple(np.stack(column) for column in zip(*rows, strict=True))

    def _block(self, number: int) -> list[np.ndarray]:
        rnd = self.ev.rng(f'ppl/{number}')
        latents = self.sampler.latents(rnd, 2 * BLOCK).astype(np.float32).reshape(BLOCK, 2, -1)
        labels = self.ev.random_labels(rnd, BLOCK)
        t = rnd.uniform(size=BLOCK).astype(np.float32) * (self.metric.sampling == 'full')
        return [latents, labels, t, rnd.randint(-2 ** 31, 2 ** 31, [BLOCK, 2], np.int64).astype(np.int32)]

    def _images(self, latents, labels, t, seeds) -> tf.Tensor:
        """What path_images gives for inputs, within a graph."""
        # `ev.map` fills minibatches up to its own size.
        latents, labels, t = latents[:self.size], labels[:self.size], t[:self.size]
        latents = tf.reshape(latents, [-1, latents.shape[2]])
        return path_images(self.network, latents, labels, t, space=self.metric.space,
                           epsilon=self.metric.epsilon, ctx=SharedNoise(seeds[0], self.stage),
                           **self.run_kwargs)

    def lengths(self) -> np.ndarray:
        """The lengths of all pairs, float64 [num]."""
        def function(*inputs):
            images = perceptual_input(self._images(*inputs), self.metric.crop, self.ev.generation)
            distances = self.extractor.distance(images[0::2], images[1::2])
            # The activations of a feature network may turn what is no number into one.
            finite = tf.reduce_all(tf.math.is_finite(images), axis=[1, 2, 3])
            return tf.where(finite[0::2] & finite[1::2], distances, np.inf)
        minibatches = (self.inputs(i) for i in range(-(-self.num // self.size)))
        values = list(self.ev.map(function, minibatches, self.num, 'path lengths', key=self._key('lengths'),
                                  unit='pairs'))
        return np.concatenate(values).astype(np.float64) / self.metric.epsilon ** 2

    def save_sheet(self, indices: np.ndarray, path: str) -> None:
        """Writes the images of pairs, before the step, as one picture."""
        from generation import figures
        from training import misc

        def function(*inputs):
            return tflib.convert_images_to_uint8(self._images(*inputs)[0::2])
        # In the minibatches that they were measured in: those share noise.
        minibatches = sorted({index // self.size for index in indices})
        images = self.ev.map(function, (self.inputs(i) for i in minibatches), self.size * len(minibatches),
                             os.path.basename(path), key=self._key('sheet'))
        where = dict(zip(minibatches, images, strict=True))
        scale = figures.default_scale(self.network)
        cells = [figures.enlarge(where[index // self.size][index % self.size], scale) for index in indices]
        columns = min(SHEET[0], len(cells))
        cells += [None] * (-len(cells) % columns)
        rows = [cells[i:i + columns] for i in range(0, len(cells), columns)]
        misc.save_image(figures.sheet(rows), path, drange=[0, 255])

    def _key(self, purpose: str) -> tuple:
        """What the traced functions depend on."""
        metric = self.metric
        return ('ppl', purpose, id(self.network), self.stage, self.size, metric.space,
                metric.epsilon, metric.crop, metric.extractor, self.ev.generation,
                repr(sorted(self.run_kwargs.items())))


def _check(metric: PPL, network: 'tflib.Network') -> None:
    """Errors: UserError for a network that the metric is not defined for."""
    kind = type(network.layer).__name__
    if metric.space == 'w' and not has_w(network):
        raise UserError(f'{metric.name}: network {network.name} ({kind}) has no intermediate latents w; use '
                        f'{metric.name.replace("_w", "_z", 1)}, or a style-based generator')
    _, _, height, width = network.output_shape
    if metric.crop and min(height, width) < 32 and metric.extractor == 'lpips':
        raise UserError(f'{metric.name}: the middle of images of {width}×{height} pixels is too small for '
                        'LPIPS, which needs 16×16; use ppl2_wend, which does not crop')


def _in_float32(network: 'tflib.Network') -> 'tflib.Network':
    """The network, or a copy with float32 activations."""
    return network if network.layer.compute_dtype == 'float32' else network.clone(dtype='float32')
