"""The networks whose features the metrics and the projector compare: Inception-v3, VGG16, EfficientNet-Lite0.

    extractor = find_extractor('inception', weights_dir)
    features = extractor(images)                # uint8 or float [N, H, W, 3] in [0, 255] → [N, 2048]
    extractor.name, extractor.file, extractor.sha256

Images are [N, height, width, channels], gray ones are repeated to RGB; each network resizes and scales them
as it wants them. Everything is float32. Batch normalizations are folded into the convolutions before them.
"""

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dnnlib.util import UserError, did_you_mean

from . import weights
from .extractor import Builder, Extractor, resize_tf1
from .weights import Entry

__all__ = ['EXTRACTORS', 'Extractor', 'find_extractor', 'unit_distance']

HEADS_FILE = os.path.join(os.path.dirname(__file__), 'data', 'lpips_lin_v0.1_vgg.npz')


# Inception-v3 as it was trained in 2015: what FID, KID and the Inception score are defined by.

class Inception(Extractor):
    """The Inception-v3 of FID: 2048 features 'pool_3', 1008 logits.

    Outputs besides: 'pool_1', 'pool_2', 'mixed_7', feature maps on the way.
    """

    name, kind, num_features = 'inception', 'inception', 2048
    use = 'a metric with Inception features (FID, KID, IS)'

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        return (resize_tf1(images, 299) - 128) / 128

    def build(self, net: Builder) -> dict[str, Any]:
        outputs = {}
        x = _branch(net, net.input, '', '', ('Conv2d_1a_3x3', 32, 3, 2, 'valid'),
                    ('Conv2d_2a_3x3', 32, 3, 1, 'valid'), ('Conv2d_2b_3x3', 64, 3))
        x = outputs['pool_1'] = net.pool(x, 'max', 3, 2, 'valid')
        x = _branch(net, x, '', '', ('Conv2d_3b_1x1', 80, 1), ('Conv2d_4a_3x3', 192, 3, 1, 'valid'), start=3)
        x = outputs['pool_2'] = net.pool(x, 'max', 3, 2, 'valid')
        for name, graph, filters in (('5b', 'mixed', 32), ('5c', 'mixed_1', 64), ('5d', 'mixed_2', 64)):
            x = _mixed_5(net, x, f'Mixed_{name}.', f'{graph}/', filters)
        x = _mixed_6a(net, x, 'Mixed_6a.', 'mixed_3/')
        for name, graph, filters in (('6b', 4, 128), ('6c', 5, 160), ('6d', 6, 160), ('6e', 7, 192)):
            x = _mixed_6(net, x, f'Mixed_{name}.', f'mixed_{graph}/', filters)
        outputs['mixed_7'] = x
        x = _mixed_7a(net, x, 'Mixed_7a.', 'mixed_8/')
        x = _mixed_7(net, x, 'Mixed_7b.', 'mixed_9/', 'average')
        x = _mixed_7(net, x, 'Mixed_7c.', 'mixed_10/', 'max')
        x = outputs['features'] = keras.layers.GlobalAveragePooling2D(dtype=net.dtype)(x)
        outputs['logits'] = net.dense(x, 'fc', 1008, 'softmax', optional=True)
        _, self._classes = net.layers[-1]
        return outputs

    def logits(self, images: Any, bias: bool = False) -> tf.Tensor:
        """[N, 1008]; without the bias, as the Inception score wants them. Errors: UserError if unknown."""
        self._check_classes()
        return self.outputs(images)['logits'] if bias else self.logits_of(self.features(images))

    def logits_of(self, features: Any) -> tf.Tensor:
        self._check_classes()
        return tf.matmul(tf.convert_to_tensor(features), self._classes.kernel)

    def _check_classes(self) -> None:
        if 'fc' not in self.available:
            raise UserError(f'{self.file} has no class probabilities, which the Inception score needs; use '
                            'another file of this network')


def _branch(net: Builder, x: Any, block: str, graph: str, *convs: tuple, start: int = 0) -> Any:
    """Convolutions (name, filters, size, strides, padding) in a row; the graph numbers those of a scope."""
    for i, (name, *args) in enumerate(convs, start):
        x = net.conv(x, f'{block}{name}.conv', *args, norm=f'{block}{name}.bn',
                     graph=f'{graph}conv_{i}' if i else f'{graph}conv')
    return x


def _mixed_5(net: Builder, x: Any, block: str, graph: str, filters: int) -> Any:
    return net.concat([
        _branch(net, x, block, graph, ('branch1x1', 64, 1)),
        _branch(net, x, block, f'{graph}tower/', ('branch5x5_1', 48, 1), ('branch5x5_2', 64, 5)),
        _branch(net, x, block, f'{graph}tower_1/', ('branch3x3dbl_1', 64, 1), ('branch3x3dbl_2', 96, 3),
                ('branch3x3dbl_3', 96, 3)),
        _branch(net, net.pool(x, 'average', 3), block, f'{graph}tower_2/', ('branch_pool', filters, 1))])


def _mixed_6a(net: Builder, x: Any, block: str, graph: str) -> Any:
    return net.concat([
        _branch(net, x, block, graph, ('branch3x3', 384, 3, 2, 'valid')),
        _branch(net, x, block, f'{graph}tower/', ('branch3x3dbl_1', 64, 1), ('branch3x3dbl_2', 96, 3),
                ('branch3x3dbl_3', 96, 3, 2, 'valid')),
        net.pool(x, 'max', 3, 2, 'valid')])


def _mixed_6(net: Builder, x: Any, block: str, graph: str, filters: int) -> Any:
    return net.concat([
        _branch(net, x, block, graph, ('branch1x1', 192, 1)),
        _branch(net, x, block, f'{graph}tower/', ('branch7x7_1', filters, 1),
                ('branch7x7_2', filters, (1, 7)), ('branch7x7_3', 192, (7, 1))),
        _branch(net, x, block, f'{graph}tower_1/', ('branch7x7dbl_1', filters, 1),
                ('branch7x7dbl_2', filters, (7, 1)), ('branch7x7dbl_3', filters, (1, 7)),
                ('branch7x7dbl_4', filters, (7, 1)), ('branch7x7dbl_5', 192, (1, 7))),
        _branch(net, net.pool(x, 'average', 3), block, f'{graph}tower_2/', ('branch_pool', 192, 1))])


def _mixed_7a(net: Builder, x: Any, block: str, graph: str) -> Any:
    return net.concat([
        _branch(net, x, block, f'{graph}tower/', ('branch3x3_1', 192, 1),
                ('branch3x3_2', 320, 3, 2, 'valid')),
        _branch(net, x, block, f'{graph}tower_1/', ('branch7x7x3_1', 192, 1), ('branch7x7x3_2', 192, (1, 7)),
                ('branch7x7x3_3', 192, (7, 1)), ('branch7x7x3_4', 192, 3, 2, 'valid')),
        net.pool(x, 'max', 3, 2, 'valid')])


def _mixed_7(net: Builder, x: Any, block: str, graph: str, pooling: str) -> Any:
    """The last blocks. That the second pools by its maxima is a peculiarity of the network of 2015."""
    one = _branch(net, x, block, graph, ('branch1x1', 320, 1))
    three = _branch(net, x, block, f'{graph}tower/', ('branch3x3_1', 384, 1))
    three = [_branch(net, three, block, f'{graph}tower/mixed/', ('branch3x3_2a', 384, (1, 3))),
             _branch(net, three, block, f'{graph}tower/mixed/', ('branch3x3_2b', 384, (3, 1)), start=1)]
    deep = _branch(net, x, block, f'{graph}tower_1/', ('branch3x3dbl_1', 448, 1), ('branch3x3dbl_2', 384, 3))
    deep = [_branch(net, deep, block, f'{graph}tower_1/mixed/', ('branch3x3dbl_3a', 384, (1, 3))),
              _branch(net, deep, block, f'{graph}tower_1/mixed/', ('branch3x3dbl_3b', 384, (3, 1)), start=1)]
    pool = _branch(net, net.pool(x, pooling, 3), block, f'{graph}tower_2/', ('branch_pool', 192, 1))
    return net.concat([one, *three, *deep, pool])


# VGG16.

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _vgg16(net: Builder) -> tuple[list[Any], Any]:
    """(feature maps relu1_2, 2_2, 3_3, 4_3, 5_3; the last pooling)."""
    x, index, maps = net.input, 0, []
    for block in VGG16:
        for filters in block:
            x = net.conv(x, f'features.{index}', filters, 3)
            index += 2
        maps.append(x)
        x = net.pool(x, 'max', 2, 2, 'valid')
        index += 1
    return maps, x


class VGG16FC(Extractor):
    """VGG16's second fully connected layer, of which precision and recall are made.

    Outputs besides: 'fc2', the same before its ReLU.
    """

    name, kind, num_features = 'vgg16', 'vgg16', 4096
    use = 'precision and recall with VGG16 features'

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        mean, std = (tf.constant(np.float64(x) * 255, self.dtype) for x in (IMAGENET_MEAN, IMAGENET_STD))
        return (resize_tf1(images, 224) - mean) / std

    def build(self, net: Builder) -> dict[str, Any]:
        net.input = keras.Input([224, 224, 3], dtype=net.dtype)
        _, x = _vgg16(net)
        # The weights are those of [C, H, W].
        x = keras.layers.Flatten(dtype=net.dtype)(keras.layers.Permute([3, 1, 2], dtype=net.dtype)(x))
        relu = keras.layers.ReLU(dtype=net.dtype)
        fc2 = net.dense(relu(net.dense(x, 'classifier.0', 4096)), 'classifier.3', 4096)
        return {'fc2': fc2, 'features': relu(fc2)}


def unit_distance(maps: Sequence[tf.Tensor], others: Sequence[tf.Tensor],
                  heads: Sequence[tf.Tensor] | None = None) -> tf.Tensor:
    """Squared distances between feature maps whose vectors are scaled to unit length.

    Args:
        maps, others: [N, h, w, C] of both images, layer by layer.
        heads: Weights of the channels [C], layer by layer; None = ones.

    Returns: [N, layers], means over the pixels (Zhang et al., The Unreasonable Effectiveness of Deep Features
    as a Perceptual Metric, equation 1).
    """
    result = []
    for i, pair in enumerate(zip(maps, others, strict=True)):
        a, b = (x / (_length(x) + 1e-10) for x in pair)
        squares = tf.square(a - b)
        if heads is not None:
            squares *= heads[i]
        result.append(tf.reduce_mean(tf.reduce_sum(squares, axis=3), axis=[1, 2]))
    return tf.stack(result, axis=1)


def _length(x: tf.Tensor) -> tf.Tensor:
    """Length of the vectors of a map; the gradient at zero is zero, not NaN."""
    return tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(x), axis=3, keepdims=True), 1e-30))


class LPIPS(Extractor):
    """LPIPS 0.1 with VGG16: how different two images look.

    `distance` is what it is there for. The features are the means of the last feature map.
    """

    name, kind, num_features = 'lpips', 'vgg16', 512
    use = 'the LPIPS distance'

    def __init__(self, weights_dir: str | None = None, dtype: str = 'float32'):
        super().__init__(weights_dir, dtype)
        with np.load(HEADS_FILE) as file:
            self._heads = [tf.constant(file[f'lin{i}.model.1.weight'].reshape(-1), dtype) for i in range(5)]

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        shift, scale = (tf.constant(x, self.dtype) for x in (LPIPS_SHIFT, LPIPS_SCALE))
        return (images / 127.5 - 1 - shift) / scale

    def build(self, net: Builder) -> dict[str, Any]:
        maps, _ = _vgg16(net)
        names = ('relu1_2', 'relu2_2', 'relu3_3', 'relu4_3', 'relu5_3')
        features = keras.layers.GlobalAveragePooling2D(dtype=net.dtype)(maps[-1])
        return {**dict(zip(names, maps, strict=True)), 'features': features}

    def maps(self, images: Any) -> list[tf.Tensor]:
        """The five feature maps, from fine to coarse."""
        images = self.as_images(images)
        height, width = images.shape[1:3]
        if min(height or 16, width or 16) < 16:     # Four poolings.
            raise UserError(f'lpips: expected images of at least 16×16, received {width}×{height}')
        outputs = self.outputs(images)
        return [outputs[name] for name in outputs if name != 'features']

    def distance(self, images: Any, others: Any) -> tf.Tensor:
        """[N] of images [N, H, W, 1 or 3] in [0, 255], at least 16×16; differentiable, for use in a graph."""
        return tf.reduce_sum(unit_distance(self.maps(images), self.maps(others), self._heads), axis=1)


# EfficientNet-Lite0.

# (blocks, kernel, stride of the first block, expansion, filters) of each stage.
EFFLITE0 = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
            (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))


class EfficientNetLite0(Extractor):
    """EfficientNet-Lite0: 1280 features that any machine has, by a Python package; 1000 logits.

    Images are resized to 128×128, bilinear and antialiased. Outputs besides: 'stage1', 'stage2', 'stage3',
    'stage5', 'stage7', the last feature maps of each size.
    """

    name, kind, num_features = 'efflite0', 'efflite0', 1280
    use = 'a metric or distance with EfficientNet-Lite0 features'
    size = 128

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        return (self._resize(images, [self.size, self.size]) - 127) / 128

    def _resize(self, images: tf.Tensor, size: Any) -> tf.Tensor:
        return tf.cast(tf.image.resize(images, size, antialias=True), self.dtype)

    def build(self, net: Builder) -> dict[str, Any]:
        outputs = {}
        x = net.conv(net.input, '_conv_stem', 32, 3, 2, activation='relu6', norm='_bn0')
        index = 0
        for stage, (repeats, size, strides, expansion, filters) in enumerate(EFFLITE0, 1):
            for repeat in range(repeats):
                x = _inverted_residual(net, x, f'_blocks.{index}', size, 1 if repeat else strides, expansion,
                                       filters)
                index += 1
            if stage in (1, 2, 3, 5, 7):
                outputs[f'stage{stage}'] = x
        x = net.conv(x, '_conv_head', 1280, activation='relu6', norm='_bn1')
        x = outputs['features'] = keras.layers.GlobalAveragePooling2D(dtype=net.dtype)(x)
        outputs['logits'] = net.dense(x, '_fc', 1000, optional=True)
        _, self._classes = net.layers[-1]
        return outputs

    def logits(self, images: Any) -> tf.Tensor:
        return self.outputs(images)['logits']

    def logits_of(self, features: Any) -> tf.Tensor:
        return self._classes(tf.convert_to_tensor(features))

    def maps(self, images: Any) -> list[tf.Tensor]:
        """Five feature maps, from fine to coarse, of images enlarged so that no side is below 128."""
        images = self.as_images(images)
        height, width = images.shape[1:3] if images.shape[1] else tf.unstack(tf.shape(images)[1:3])
        scale = tf.maximum(1.0, self.size / tf.cast(tf.minimum(height, width), tf.float32))
        size = tf.cast(tf.round(tf.cast([height, width], tf.float32) * scale), tf.int32)
        outputs = self._model((self._resize(images, size) - 127) / 128)
        return [outputs[name] for name in outputs if name.startswith('stage')]

    def distance(self, images: Any, others: Any) -> tf.Tensor:
        """[N], a stand-in for LPIPS without learned heads: the mean of `unit_distance` of the stages.

        Of images [N, H, W, 1 or 3] in [0, 255]; differentiable, for use in a graph.
        """
        return tf.reduce_mean(unit_distance(self.maps(images), self.maps(others)), axis=1)


def _inverted_residual(net: Builder, x: Any, name: str, size: int, strides: int, expansion: int,
                       filters: int) -> Any:
    """1×1 to more channels, depthwise, 1×1 to fewer; added to what came in where that has the same shape."""
    options, y = dict(activation='relu6'), x
    if expansion > 1:
        y = net.conv(y, f'{name}._expand_conv', x.shape[-1] * expansion, norm=f'{name}._bn0', **options)
    y = net.conv(y, f'{name}._depthwise_conv', 0, size, strides, norm=f'{name}._bn1', **options)
    y = net.conv(y, f'{name}._project_conv', filters, activation=None, norm=f'{name}._bn2')
    return keras.layers.Add(dtype=net.dtype)([y, x]) if strides == 1 and x.shape[-1] == filters else y


class RandomNet(Extractor):
    """A small network with fixed random weights, for tests of what uses features: it says nothing."""

    name, num_features = 'random', 64

    def load(self, entries: Sequence[Entry], weights_dir: str | None) -> weights.Weights:
        del weights_dir
        rnd = np.random.RandomState(0)
        return weights.Weights('', '', {f'{entry.name}.weight': rnd.randn(*entry.shape) * np.sqrt(
            2 / np.prod(entry.shape[1:])) for entry in entries})

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        return (images - 128) / 128

    def build(self, net: Builder) -> dict[str, Any]:
        x = net.conv(net.conv(net.input, 'conv0', 32, 3, 2), 'conv1', 64, 3, 2)
        features = keras.layers.GlobalAveragePooling2D(dtype=net.dtype)(x)
        logits = net.dense(features, 'fc', 10)
        _, self._classes = net.layers[-1]
        return {'features': features, 'logits': logits}

    def logits(self, images: Any) -> tf.Tensor:
        return self.outputs(images)['logits']

    def logits_of(self, features: Any) -> tf.Tensor:
        return self._classes(tf.convert_to_tensor(features))


EXTRACTORS: dict[str, type[Extractor]] = {
    cls.name: cls for cls in (Inception, VGG16FC, LPIPS, EfficientNetLite0, RandomNet)}


def find_extractor(name: str, weights_dir: str | None = None, dtype: str = 'float32') -> Extractor:
    """A feature network by name.

    Args:
        name: Key of EXTRACTORS.
        weights_dir: Folder with files of weights; see `weights.find`.
        dtype: 'float32', or 'float64' for tests.

    Errors: UserError for an unknown name, and where the weights are missing, damaged or others.
    """
    if name not in EXTRACTORS:
        raise UserError(f'there is no feature network {name!r}; expected one of {", ".join(EXTRACTORS)}'
                        f'{did_you_mean(name, EXTRACTORS, 1)}')
    return EXTRACTORS[name](weights_dir, dtype)
