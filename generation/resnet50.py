"""ResNet-50 up to its average pooling, a space for nearest neighbours (BigGAN, appendix A)."""

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dnnlib.transfer import file_sha256
from dnnlib.util import UserError
from metrics import weights
from metrics.extractor import NORM_EPSILON, Extractor
from metrics.feature_nets import IMAGENET_MEAN, IMAGENET_STD

# Weights of torchvision, which differ in their training alone.
FILES = ('resnet50-0676ba61.pth', 'resnet50-19c8e357.pth', 'resnet50-11ad3fa6.pth')
_EPSILON = 1e-5             # Of its batch normalizations.
_BLOCKS = (3, 4, 6, 3)
_SIZE = 224


def find(weights_dir: str | None) -> str | None:
    """Path of a file with the weights, searched where `weights.find` searches; None where there is none."""
    paths = (os.path.join(folder, name) for folder in weights.directories(weights_dir) for name in FILES)
    return next((path for path in paths if os.path.isfile(path)), None)


class ResNet50(Extractor):
    """ResNet-50 with the stride in the 3×3 convolutions, as torchvision has it."""

    name, num_features = 'resnet50', 2048

    def load(self, entries: Sequence[weights.Entry], weights_dir: str | None) -> weights.Weights:
        path = find(weights_dir)
        if path is None:
            raise UserError(f'neighbours by resnet50 need its weights of torchvision: found none of '
                            f'{", ".join(FILES)} in {weights.directories(weights_dir)[0]}; put one of them '
                            'into the folder of --weights-dir or $STYLEGAN_WEIGHTS_DIR')
        try:
            values = weights.fit(weights.read(path), entries)
        except UserError as error:
            message = str(error).removeprefix(f'{path}: ')
            raise UserError(f'{path}: {message} (read as the weights of ResNet-50)') from None
        for entry in entries:   # The other networks have another epsilon, which is added later.
            name = entry.vectors['variance']
            values[name] = values[name].astype(np.float64) + (_EPSILON - NORM_EPSILON)
        with open(path, 'rb') as file:
            return weights.Weights(path, file_sha256(file), values)

    def prepare(self, images: tf.Tensor) -> tf.Tensor:
        resized = tf.cast(tf.image.resize(images, [_SIZE, _SIZE], antialias=True), images.dtype)
        mean, std = (tf.constant(np.float64(x) * 255, self.dtype) for x in (IMAGENET_MEAN, IMAGENET_STD))
        return (resized - mean) / std

    def build(self, net: Any) -> dict[str, Any]:
        # Padded on both sides, also where the stride is 2.
        x = net.conv(self._padded(net.input, 3), 'conv1', 64, 7, 2, 'valid', norm='bn1')
        x = net.pool(self._padded(x, 1), 'max', 3, 2, 'valid')      # After a ReLU 0 is the least.
        for stage, count in enumerate(_BLOCKS):
            for block in range(count):
                strides = 2 if stage and not block else 1
                x = self._block(net, x, f'layer{stage + 1}.{block}', 64 << stage, strides)
        return {'features': keras.layers.GlobalAveragePooling2D(dtype=net.dtype)(x)}

    def _block(self, net: Any, x: Any, name: str, filters: int, strides: int) -> Any:
        y = net.conv(x, f'{name}.conv1', filters, norm=f'{name}.bn1')
        y = net.conv(self._padded(y, 1), f'{name}.conv2', filters, 3, strides, 'valid', norm=f'{name}.bn2')
        y = net.conv(y, f'{name}.conv3', 4 * filters, activation=None, norm=f'{name}.bn3')
        if x.shape[-1] != 4 * filters:
            x = net.conv(x, f'{name}.downsample.0', 4 * filters, 1, strides, activation=None,
                         norm=f'{name}.downsample.1')
        return keras.layers.ReLU(dtype=net.dtype)(keras.layers.Add(dtype=net.dtype)([y, x]))

    def _padded(self, x: Any, size: int) -> Any:
        return keras.layers.ZeroPadding2D(size, dtype=self.dtype)(x)
