"""What the tests of BigGAN share: its golden data, and networks that are filled with it."""

import json
import os
import pathlib
import unittest

import numpy as np
import tensorflow as tf

from tests import testutil
from training.context import Context
from training.networks_biggan import D_biggan, G_biggan
from training.networks_biggan_deep import G_biggan_deep

FOLDER = pathlib.Path(os.environ.get('STYLEGAN_GOLDEN_BIGGAN', testutil.GOLDEN.parent / 'golden_biggan'))

needs_golden = unittest.skipUnless(
    FOLDER.is_dir(), f'needs the golden data of BigGAN, which is not at {FOLDER}')


def load(name: str) -> dict:
    """All arrays of a golden file; what its settings say is under 'config'."""
    with np.load(FOLDER / f'{name}.npz') as file:
        arrays = {key: file[key] for key in file.files}
    arrays['config'] = json.loads(str(arrays.pop('config_json', '{}')))
    return arrays


def below(arrays: dict, prefix: str) -> dict[str, np.ndarray]:
    """The arrays named `prefix/name`, by name."""
    return {key[len(prefix) + 1:]: value for key, value in arrays.items() if key.startswith(prefix + '/')}


def one_hot(classes: np.ndarray, count: int = 10) -> np.ndarray:
    """Classes [...] as labels [..., count]."""
    return np.eye(count, dtype=np.float32)[classes]


def ch_of(arrays: dict, role: str) -> int:
    """The factor on the feature maps, which not every file names."""
    return arrays['config'].get(f'{role}_ch', 8)


def attention(config: dict, role: str) -> list[int]:
    """The resolutions with attention."""
    return [int(res) for res in config[f'{role}_attn'].split('_') if res != '0']


def generator_args(arrays: dict) -> dict:
    """Arguments of G_biggan."""
    config = arrays['config']
    return dict(resolution=config['resolution'], label_size=config['n_classes'], ch=ch_of(arrays, 'G'),
                latent_size=config['dim_z'], hierarchical=config['hier'],
                shared_dim=config['shared_dim'] if config['G_shared'] else 0,
                attention=attention(config, 'G'), bn_epsilon=config['BN_eps'], final_bn_epsilon=1e-5,
                sn_epsilon=config['SN_eps'], init='normal', bn_unbiased=not config.get('mybn', False))


def discriminator_args(arrays: dict) -> dict:
    """Arguments of D_biggan."""
    config = arrays['config']
    return dict(resolution=config['resolution'], label_size=config['n_classes'], ch=ch_of(arrays, 'D'),
                attention=attention(config, 'D'), sn_epsilon=config['SN_eps'], init='normal')


def convert(role: str, values: dict[str, np.ndarray], config: dict) -> dict[str, np.ndarray]:
    """Arrays by their public names as those of our networks; what has no place in them is left out.

    Args:
        role: 'G' or 'D'.
        values: Parameters, buffers or gradients by name.
    """
    converted = {}
    for name, value in values.items():
        *path, last = name.split('.')
        path = [part for part in path if part != 'bn']      # Between a normalization and its statistics.
        last = {'u0': 'u', 'stored_mean': 'moving_mean', 'stored_var': 'moving_variance'}.get(last, last)
        if last in ('sv0', 'accumulation_counter'):
            continue
        converted['/'.join([*_path(role, path, config), last])] = _array(role, path, last, value, config)
    return converted


def _path(role: str, path: list[str], config: dict) -> list[str]:
    names = {'shared': 'Embedding', 'embed': 'Embedding', 'linear': 'Linear', 'conv1': 'Conv0',
             'conv2': 'Conv1', 'conv_sc': 'Shortcut', 'bn1': 'BN0', 'bn2': 'BN1'}
    if path[0] == 'output_layer':
        return ['Output', {'0': 'BN', '2': 'Conv'}[path[1]]]
    if path[0] != 'blocks':
        return [names[path[0]]]
    inside = [names.get(part, part) for part in path[3:]]
    if path[2] == '0':
        return [f'Block{path[1]}', *inside]
    resolution = 8 << int(path[1]) if role == 'G' else config['resolution'] >> int(path[1]) + 1
    return [f'Attention_{resolution}x{resolution}', *inside]


def _array(role: str, path: list[str], last: str, value: np.ndarray, config: dict) -> np.ndarray:
    if role == 'G' and path[0] == 'linear':         # (C, H, W) → (H, W, C).
        order = np.arange(value.size // (value.shape[1] if last == 'weight' else 1))
        order = order.reshape(-1, 4, 4).transpose(1, 2, 0).ravel()
        return value[order].T if last == 'weight' else value.ravel()[order]
    if last == 'u':
        return value.ravel()
    if last != 'weight' or path[0] in ('shared', 'embed'):
        return value
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if path[-1] in ('gain', 'bias') and not config['G_shared']:
        return value                                # A table.
    if path[-1] in ('gain', 'bias'):                # Rows [class, z] → [z, class].
        return np.roll(value.T, -config['shared_dim'], axis=0)
    return value.T


def fill(network, role: str, values: dict[str, np.ndarray], config: dict):
    """Gives a network the values of a state dict, all of them; returns it."""
    testutil.set_variables(network, convert(role, values, config))
    return network


def networks(arrays: dict, dtype: str = 'float32', **kwargs) -> tuple:
    """(G, D) in the start state of a golden file, as layers; D is None where there is none.

    kwargs are given to both.
    """
    config = arrays['config']
    G = fill(G_biggan(**generator_args(arrays), dtype=dtype, **kwargs), 'G', below(arrays, 'G'), config)
    start = below(arrays, 'D')
    if not start:
        return G, None
    return G, fill(D_biggan(**discriminator_args(arrays), dtype=dtype, **kwargs), 'D', start, config)


def inputs(arrays: dict, dtype: str = 'float32') -> dict[str, tf.Tensor]:
    """z, y, x and y_real of a golden file as the networks take them."""
    count = arrays['config'].get('n_classes', 10)
    found = {'z': arrays['in/z'], 'y': one_hot(arrays['in/y'], count)}
    if 'in/x' in arrays:
        found |= {'x': testutil.nhwc(arrays['in/x']), 'y_real': one_hot(arrays['in/y_real'], count)}
    return {name: tf.constant(value, dtype) for name, value in found.items()}


class CollectingContext(Context):
    """A context that only remembers updates; later reads of the pass see them."""

    def __init__(self):
        super().__init__(keep_features=True)
        self.values: dict[int, tf.Tensor] = {}

    def value(self, variable):
        return self.values.get(id(variable), super().value(variable))

    def update(self, variable, value):
        self.values[id(variable)] = value

    def after(self, network) -> dict[str, np.ndarray]:
        """{name: value} of the variables of a network that were given a new one."""
        return {name: self.values[id(variable)].numpy()
                for name, variable in network.named_variables().items() if id(variable) in self.values}


def deep_generator(arrays: dict, dtype: str = 'float32'):
    """The deep generator of hf_deep_r64, as a layer."""
    config, values = arrays['config'], {}
    names = {'weight_orig': 'weight', 'weight_u': 'u', 'weight_v': 'v', 'running_means': 'moving_mean',
             'running_vars': 'moving_variance', 'scale': 'gain', 'offset': 'bias', 'o_conv': 'o'}
    position, resolution = config['attention_layer_position'], config['output_dim'] // 2
    for name, value in below(arrays, 'P').items():
        path = name.removeprefix('generator.').split('.')
        if path[0] == 'embeddings':
            values['Embedding/weight'] = value.T
            continue
        if path[0] == 'layers':
            index = int(path[1])
            scope = (f'Attention_{resolution}x{resolution}' if index == position
                     else f'Block{index - (index > position)}')
            path = [scope, *[part.replace('bn_', 'BN').replace('conv_', 'Conv') if part != 'snconv1x1_o_conv'
                             else part for part in path[2:]]]
        else:
            top = {'gen_z': ['Linear'], 'bn': ['Output', 'BN'], 'conv_to_rgb': ['Output', 'Conv']}[path[0]]
            path = [*top, *path[1:]]
            if path[:2] == ['Output', 'BN']:
                path[2] = path[2].replace('weight', 'gain')
        path = [names.get(part.removeprefix('snconv1x1_'), part.removeprefix('snconv1x1_')) for part in path]
        if path[-1] == 'weight':
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        if path[-1] == 'v' and value.size % 9 == 0 and path[-2] in ('Conv', 'Conv1', 'Conv2'):
            value = value.reshape(-1, 3, 3).transpose(1, 2, 0).ravel()      # Of a 3×3 kernel.
        values['/'.join(path)] = value.reshape(()) if path[-1] == 'gamma' else value
    G = G_biggan_deep(resolution=config['output_dim'], label_size=config['num_classes'],
                      ch=config['channel_width'], latent_size=config['z_dim'],
                      shared_dim=config['class_embed_dim'], attention=[resolution],
                      output_fmaps=config['channel_width'], num_statistics=config['n_stats'], store_v=True,
                      bn_epsilon=config['eps'], init='normal', dtype=dtype)
    testutil.set_variables(G, values)
    return G
