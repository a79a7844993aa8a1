"""Our networks of BigGAN under the names of BigGAN-PyTorch, or of Hugging Face for BigGAN-deep."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save as save_safetensors

from dnnlib.tflib import torch_writer
from dnnlib.tflib.conversion import biggan
from dnnlib.tflib.legacy import NetworkState
from dnnlib.util import UserError, atomic_write

__all__ = ['ENDINGS', 'lost_arguments', 'to_state_dict', 'write']

ENDINGS = ('.pth', '.bin', '.safetensors')


def to_state_dict(state: NetworkState) -> dict[str, np.ndarray]:
    """The variables of G_biggan, D_biggan or G_biggan_deep under their public names.

    Errors: UserError for another network, or one that has no counterpart there.
    """
    kinds = {'G_biggan': 'torch-G', 'D_biggan': 'torch-D', 'G_biggan_deep': 'hf-deep'}
    kind = kinds.get(state.build_func_name)
    if kind is None:
        raise UserError(f'expected a network G_biggan, D_biggan or G_biggan_deep, found {state.name} '
                        f'({state.build_func_name})')
    kwargs = _complete(state)
    if kind == 'hf-deep' and not (kwargs.get('store_v') and kwargs.get('num_statistics')):
        raise UserError('BigGAN-deep of Hugging Face has tables of statistics and both vectors of the '
                        f'spectral normalization; network {state.name} was made without (num_statistics, '
                        'store_v)')
    form = biggan.make_form(state.build_func_name, kwargs, kind)
    result = {}
    for ours, value in state.variables:
        name = form.name(ours)
        result[name] = np.asarray(form.save(ours, np.asarray(value)), np.float32)
        if name.endswith('.u0'):
            result[f'{name[:-3]}.sv0'] = np.ones([1], np.float32)     # A log there, but expected.
    return result


def _complete(state: NetworkState) -> dict[str, Any]:
    """The arguments of a network with the defaults that decide about names and layouts."""
    from training import networks_biggan, networks_biggan_deep
    deep = state.build_func_name == 'G_biggan_deep'
    kwargs: dict[str, Any] = {'resolution': 128, 'shared_dim': 128, **state.static_kwargs}
    table = (networks_biggan_deep if deep else networks_biggan).ARCHITECTURES
    row = table.get(kwargs['resolution'])
    discriminator = state.build_func_name == 'D_biggan'
    defaults: Mapping[str, Any] = {} if row is None else \
        {'multipliers': row.G, 'attention': row.attention} if deep else \
        {'multipliers': row.D, 'attention': row.D_attention, 'num_down': row.D_down} if discriminator else \
        {'multipliers': row.G, 'attention': row.G_attention}
    for key in ('multipliers', 'attention', 'num_down'):
        if kwargs.get(key) is None:
            kwargs[key] = defaults.get(key, () if key == 'attention' else None)
    return kwargs


def lost_arguments(state: NetworkState) -> dict[str, float]:
    """Arguments that state dicts do not hold, where they are others than reading one takes for granted."""
    own, kwargs = 1e-4, state.static_kwargs     # The default of our networks.
    bn, sn = (own, own) if state.build_func_name == 'G_biggan_deep' else (1e-5, 1e-6)
    found = {'sn_epsilon': (kwargs.get('sn_epsilon', own), sn)}
    if state.build_func_name != 'D_biggan':
        epsilon, final = kwargs.get('bn_epsilon', own), kwargs.get('final_bn_epsilon')
        found['bn_epsilon'] = epsilon, bn
        found['final_bn_epsilon'] = epsilon if final is None else final, bn
    return {key: value for key, (value, usual) in found.items() if value != usual}


def write(state: NetworkState, path: str) -> None:
    """Writes a network as a state dict: '.safetensors', or '.pth' or '.bin', which torch.load reads."""
    arrays = to_state_dict(state)
    with atomic_write(path) as file:
        if os.path.splitext(path)[1] == '.safetensors':
            file.write(save_safetensors({name: np.ascontiguousarray(value) for name, value in arrays.items()},
                                        {'format': 'pt'}))
        else:
            torch_writer.write_state_dict(arrays, file)
