"""What feature networks have in common: how they are built, filled, fed and traced."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dnnlib.util import UserError

from . import weights
from .weights import Entry

NORM_EPSILON = 1e-3         # Of all batch normalizations here.


class Builder:
    """Convolutions and dense layers, and in the same order what is in a file of each."""

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.input = keras.Input([None, None, 3], dtype=dtype)
        self.layers: list[tuple[Entry, keras.Layer]] = []

    def conv(self, x: Any, name: str, filters: int = 0, size: int | tuple[int, int] = 1, strides: int = 1,
             padding: str = 'same', activation: str | None = 'relu', norm: str | None = None,
             graph: str = '') -> Any:
        """A convolution with bias; depthwise without `filters`."""
        size = (size, size) if isinstance(size, int) else size
        options = dict(strides=strides, padding=padding, activation=activation, dtype=self.dtype)
        if filters:
            layer = keras.layers.Conv2D(filters, size, **options)
            shape = (filters, x.shape[-1], *size)
        else:
            layer = keras.layers.DepthwiseConv2D(size, **options)
            shape = (x.shape[-1], 1, *size)
        self.layers.append((Entry(name, shape, norm, graph), layer))
        return layer(x)

    def dense(self, x: Any, name: str, units: int, graph: str = '', optional: bool = False) -> Any:
        """x·W + b."""
        layer = keras.layers.Dense(units, dtype=self.dtype)
        self.layers.append((Entry(name, (units, x.shape[-1]), None, graph, optional), layer))
        return layer(x)

    def pool(self, x: Any, kind: str, size: int, strides: int = 1, padding: str = 'same') -> Any:
        """A pooling; what is outside of the image does not count in averages."""
        pooling = keras.layers.MaxPooling2D if kind == 'max' else keras.layers.AveragePooling2D
        return pooling(size, strides, padding, dtype=self.dtype)(x)

    def concat(self, maps: Sequence[Any]) -> Any:
        return keras.layers.Concatenate(dtype=self.dtype)(maps)

    @property
    def entries(self) -> list[Entry]:
        return [entry for entry, _ in self.layers]

    def set_weights(self, values: dict[str, np.ndarray]) -> None:
        """Gives the layers their weights, {PyTorch name: array}; optional ones keep zeros."""
        for entry, layer in self.layers:
            layer.trainable = False
            if f'{entry.name}.weight' not in values:
                layer.set_weights([np.zeros(var.shape) for var in layer.weights])
                continue
            kernel = values[f'{entry.name}.weight'].astype(np.float64)
            shift = values.get(entry.vectors['shift'], np.zeros(len(kernel))).astype(np.float64)
            if entry.norm is not None:
                scale = 1 / np.sqrt(values[entry.vectors['variance']].astype(np.float64) + NORM_EPSILON)
                scale *= values.get(entry.vectors['scale'], 1.0)
                shift -= values[entry.vectors['mean']] * scale
                kernel *= scale.reshape(-1, *[1] * (kernel.ndim - 1))
            if isinstance(layer, keras.layers.DepthwiseConv2D):
                kernel = kernel.transpose(2, 3, 0, 1)
            else:
                kernel = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
            layer.set_weights([kernel, shift])


class Extractor:
    """A feature network with its weights.

    Attributes:
        name: Key of EXTRACTORS, which stands in results and keys of caches.
        num_features: Length of a feature vector.
        file, sha256: The file of the weights; '' for those that need none.
    """

    name = ''
    kind = ''               # Key of weights.SOURCES.
    num_features = 0
    use = ''                # For the message that weights are missing.

    def __init__(self, weights_dir: str | None = None, dtype: str = 'float32'):
        self.dtype = dtype
        net = Builder(dtype)
        outputs = self.build(net)
        self.file, self.sha256, values = self.load(net.entries, weights_dir)
        net.set_weights(values)
        self.available = {entry.name for entry in net.entries if f'{entry.name}.weight' in values}
        self._model = keras.Model(net.input, outputs)
        self._functions: dict[str, Callable] = {}

    def load(self, entries: Sequence[Entry], weights_dir: str | None) -> weights.Weights:
        """The weights of the layers."""
        return weights.load(self.kind, entries, weights_dir, self.use)

    def build(self, net: Builder) -> dict[str, Any]:
        """The network: {name: output}."""
        raise NotImplementedError

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        """RGB images in [0, 255] as the network wants them."""
        raise NotImplementedError

    def outputs(self, images: Any) -> dict[str, tf.Tensor]:
        """All outputs of the network by name: feature maps [N, h, w, C], vectors [N, C]."""
        return self._model(self.prepare(self.as_images(images)))

    def features(self, images: Any) -> tf.Tensor:
        """Feature vectors [N, num_features] of images, for use within a graph; else call the extractor."""
        return self.outputs(images)['features']

    def logits(self, images: Any) -> tf.Tensor:
        """What a softmax makes class probabilities of: [N, classes]."""
        raise UserError(f'the network {self.name} has no classes')

    def logits_of(self, features: Any) -> Any:
        """What `logits` gives for the images of some features [N, num_features], without another pass."""
        raise UserError(f'the network {self.name} has no classes')

    def __call__(self, images: Any, output: str = 'features') -> tf.Tensor:
        """As `features`, or another method of that form, traced once for all sizes.

        Args:
            images: uint8 or float [N, H, W, 1 or 3] in [0, 255], tensor or array.
        """
        if output not in self._functions:
            signature = [tf.TensorSpec([None, None, None, 3], self.dtype)]
            self._functions[output] = tf.function(getattr(self, output), signature, autograph=False)
        return self._functions[output](self.as_images(images))

    def as_images(self, images: Any) -> tf.Tensor:
        """Images [N, H, W, 3] of the number type of the network. Errors: UserError for other shapes."""
        images = tf.convert_to_tensor(images)
        if images.shape.rank != 4 or images.shape[3] not in (1, 3):
            raise UserError(f'{self.name}: expected images [N, height, width, 1 or 3], received shape '
                            f'{images.shape}')
        images = tf.cast(images, self.dtype)
        return tf.repeat(images, 3, axis=3) if images.shape[3] == 1 else images


def resize_tf1(images: tf.Tensor, size: int) -> tf.Tensor:
    """The bilinear resize of TensorFlow 1: pixel 0 on pixel 0, no half-pixel centers, no antialiasing."""
    resized = tf.raw_ops.ResizeBilinear(images=images, size=[size, size], align_corners=False,
                                        half_pixel_centers=False)
    return tf.cast(resized, images.dtype)
