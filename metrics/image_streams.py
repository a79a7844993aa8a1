"""Streams of images: minibatches from anywhere, random numbers that are a function of an image's index."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from dnnlib import tflib
from training.context import Context

if TYPE_CHECKING:
    from .evaluation import Evaluation

__all__ = ['DEFAULT_BATCH', 'ImageNoise', 'ImageStream', 'filled', 'groups', 'philox', 'rgb', 'to_rgb']

DEFAULT_BATCH = 32


def philox(*parts: Any) -> np.random.Philox:
    """A bit generator that is a function of numbers and texts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], np.uint64))


class ImageNoise(Context):
    """A forward pass in which every image has random numbers of its own, a function of its seed.

    Args:
        seeds: int32 tensor [N, 2].
        stage: training.growing.Stage that growing networks run in; None = what their lod says.
    """

    def __init__(self, seeds: tf.Tensor, stage: Any = None):
        super().__init__(stage=stage)
        self._seeds, self._num_draws = seeds, 0

    def _draw(self, function: Callable, shape: Any) -> tf.Tensor:
        shape = tf.get_static_value(tf.convert_to_tensor(shape)).tolist()
        self._num_draws += 1
        seeds = self._seeds + tf.constant([0, self._num_draws])
        if not shape or shape[0] != seeds.shape[0]:     # Not one per image.
            return function(shape, seeds[0])
        return tf.stack([function(shape[1:], seed) for seed in tf.unstack(seeds)])

    def normal(self, shape, dtype=tf.float32):
        return self._draw(lambda s, seed: tf.random.stateless_normal(s, seed, dtype=dtype), shape)

    def uniform(self, shape, dtype=tf.float32):
        return self._draw(lambda s, seed: tf.random.stateless_uniform(s, seed, dtype=dtype), shape)

    def integers(self, shape, low, high):
        return self._draw(lambda s, seed: tf.random.stateless_uniform(s, seed, low, high, tf.int32), shape)


class ImageStream:
    """A number of images as uint8 NHWC RGB minibatches.

    Either `inputs` gives what `images` makes pictures of on the devices, or both are left out and `batches`
    gives the pictures: a home-made stream is ImageStream(num, key, batches=function).

    Args:
        num: Number of images.
        key: What the images depend on, as a tuple: streams with equal keys have equal images.
        batches: Function without arguments → iterable of uint8 [n, H, W, 3].
        inputs: Function (size of a minibatch) → iterable of tuples of arrays with `size` rows, the last
            with fewer.
        images: Function (*tensors) → uint8 [n, H, W, 3], within a graph.
        function_key: What `images` depends on, for the cache of traced functions.
        fingerprint: For reals, what the disk cache knows them by.
        facts: About the images, for results: count, resize, mirror.
    """

    def __init__(self, num: int, key: tuple, batches: Callable | None = None, *,
                 inputs: Callable | None = None, images: Callable | None = None, function_key: Any = None,
                 fingerprint: dict[str, Any] | None = None, facts: dict[str, Any] | None = None,
                 ev: 'Evaluation | None' = None, kind: str = 'images'):
        self.num, self.key, self._batches = int(num), key, batches
        self._inputs, self._images, self.function_key = inputs, images, function_key
        self.fingerprint, self.facts, self._ev, self.kind = fingerprint, facts or {}, ev, kind

    def __len__(self) -> int:
        return self.num

    def inputs(self, size: int) -> Iterable[tuple[np.ndarray, ...]]:
        """Inputs of `images`."""
        if self._inputs is not None:
            return self._inputs(size)
        return ((images,) for images in self._batches())

    def images(self, *tensors: tf.Tensor) -> tf.Tensor:
        """The pictures of inputs, within a graph: uint8 [n, H, W, 3]."""
        return tensors[0] if self._images is None else self._images(*tensors)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Minibatches of pictures, uint8 [n, H, W, 3], in order."""
        if self._images is None:
            yield from (images for images, in self.inputs(DEFAULT_BATCH))
            return
        yield from self._ev.map(self.images, self.inputs(self._ev.batch), self.num, self.kind,
                                key=('images', self.function_key))


def to_rgb(images: tf.Tensor) -> tf.Tensor:
    """uint8 [n, H, W, 3] of images [n, C, H, W] in [-1, 1]: trunc(clamp(x · 127.5 + 128, 0, 255))."""
    return rgb(tflib.convert_images_to_uint8(images, nchw_to_nhwc=True))


def rgb(images: Any) -> Any:
    """Gray images as RGB, transparent ones on white: uint8 [n, H, W, 1, 3 or 4] → [n, H, W, 3]."""
    channels = images.shape[3]
    if channels == 1:
        return tf.repeat(images, 3, axis=3) if tf.is_tensor(images) else np.repeat(images, 3, axis=3)
    if channels == 4:
        is_tensor = tf.is_tensor(images)
        values = tf.cast(images, tf.float32) if is_tensor else images.astype(np.float32)
        alpha = values[..., 3:] / 255
        values = values[..., :3] * alpha + 255 * (1 - alpha) + 0.5
        return tf.cast(values, tf.uint8) if is_tensor else values.astype(np.uint8)
    return images


def filled(array: np.ndarray, size: int) -> np.ndarray:
    """An array with `size` rows: the last one is repeated."""
    missing = size - len(array)
    return array if missing <= 0 else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items; the last may be shorter."""
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
