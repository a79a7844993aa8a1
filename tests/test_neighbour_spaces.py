"""generation/resnet50.py: a space of nearest neighbours, by a second formula."""

import os
import tempfile
import unittest.mock

import numpy as np
import tensorflow as tf

from dnnlib import UserError
from dnnlib.tflib import torch_writer
from generation import neighbours, resnet50


def state_dict(rnd):
    """Random weights under the names of torchvision, scaled so that features neither grow nor vanish."""
    values = {}

    def conv(name, norm, rows, columns, size):
        values[f'{name}.weight'] = rnd.randn(rows, columns, size, size) / np.sqrt(columns * size ** 2)
        for key, offset in (('weight', 0.5), ('bias', -0.5), ('running_mean', -0.5), ('running_var', 0.01)):
            values[f'{norm}.{key}'] = rnd.rand(rows) + offset
    conv('conv1', 'bn1', 64, 3, 7)
    channels = 64
    for stage, count in enumerate((3, 4, 6, 3), 1):
        width = 32 << stage
        for block in range(count):
            name = f'layer{stage}.{block}'
            conv(f'{name}.conv1', f'{name}.bn1', width, channels, 1)
            conv(f'{name}.conv2', f'{name}.bn2', width, width, 3)
            conv(f'{name}.conv3', f'{name}.bn3', 4 * width, width, 1)
            values[f'{name}.bn3.weight'] *= 0.3
            if not block:
                conv(f'{name}.downsample.0', f'{name}.downsample.1', 4 * width, channels, 1)
            channels = 4 * width
    return {name: value.astype(np.float32) for name, value in values.items()}


def second_formula(values, images):
    """Features [N, 2048] of images [N, 224, 224, 3] in [0, 255]."""
    def conv(x, name, norm, strides=1):
        kernel = values[f'{name}.weight'].transpose(2, 3, 1, 0)
        pad = len(kernel) // 2
        x = tf.nn.conv2d(x, kernel, strides, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        weight, bias, mean, variance = (values[f'{norm}.{key}'] for key in (
            'weight', 'bias', 'running_mean', 'running_var'))
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias

    x = (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    x = tf.nn.relu(conv(tf.constant(x, tf.float32), 'conv1', 'bn1', 2))
    x = tf.nn.max_pool2d(x, 3, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])
    for name in dict.fromkeys(name.rpartition('.conv1')[0] for name in values if '.conv1.' in name):
        strides = 2 if name.endswith('.0') and not name.startswith('layer1') else 1
        y = tf.nn.relu(conv(x, f'{name}.conv1', f'{name}.bn1'))
        y = tf.nn.relu(conv(y, f'{name}.conv2', f'{name}.bn2', strides))
        y = conv(y, f'{name}.conv3', f'{name}.bn3')
        if f'{name}.downsample.0.weight' in values:
            x = conv(x, f'{name}.downsample.0', f'{name}.downsample.1', strides)
        x = tf.nn.relu(x + y)
    return tf.reduce_mean(x, [1, 2]).numpy()


class ResNet50Test(tf.test.TestCase):
    def test_by_a_second_formula(self):
        rnd = np.random.RandomState(0)
        values = state_dict(rnd)
        count = sum(value.size for name, value in values.items() if 'running' not in name)
        self.assertEqual(count, 23_508_032)
        images = rnd.randint(0, 256, [2, 224, 224, 3]).astype(np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            self.assertIsNone(resnet50.find(folder))
            with self.assertRaisesRegex(UserError, 'resnet50-0676ba61.pth.*put one of them into'):
                neighbours.space_function('resnet50', folder)
            with open(os.path.join(folder, resnet50.FILES[0]), 'wb') as file:
                torch_writer.write_state_dict(values, file)
            with unittest.mock.patch.object(neighbours, 'space_function'):
                self.assertIn('resnet50', neighbours.default_spaces(folder))
            function = neighbours.space_function('resnet50', folder)
            with open(os.path.join(folder, resnet50.FILES[0]), 'wb') as file:
                torch_writer.write_state_dict({'conv1.weight': values['conv1.weight']}, file)
            self.assertNotIn('resnet50', neighbours.default_spaces(folder))
        expected = second_formula(values, images.astype(np.float64))
        found = function(images)
        self.assertEqual(found.shape, (2, 2048))
        self.assertGreater(np.abs(expected[0] - expected[1]).max(), 1e-3 * np.abs(expected).max())
        self.assertAllClose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
        # Of any size and number of channels.
        self.assertEqual(function(images[:, ::7, ::7, :1]).shape, (2, 2048))
