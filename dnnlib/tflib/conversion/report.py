"""What a file of networks holds, in lines for people."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dnnlib.tflib import legacy, torch_pickle
from dnnlib.tflib.conversion import tensors
from dnnlib.util import UserError

__all__ = ['describe']

_GENERATIONS = {2: 'ProGAN', 3: 'StyleGAN', 4: 'StyleGAN2', 5: 'StyleGAN2-ADA'}
MAX_LINES = 200


def describe(path: str, head: bytes) -> Iterator[str]:
    """Lines about a pickle of networks, a safetensors, Keras weights or PyTorch file.

    Args:
        path: Local file.
        head: Its first bytes, which say what it is.
    """
    if head.startswith(b'\x89HDF\r\n\x1a\n'):
        document = tensors.read_config(path)
        from dnnlib.tflib.conversion import config, keras_weights
        yield 'Keras weights of the network'
        yield from _networks(config.decode(document, keras_weights.Zeros(document)))
    elif torch_pickle.is_torch_file(head):
        content = torch_pickle.load_torch(path)
        yield from _torch(content)
        if isinstance(content, dict) and {'blocks.0.0.conv1.weight', 'generator.gen_z.weight_orig'} & {
                str(name).removeprefix('module.') for name in content}:
            yield from _biggan(path)
    elif head[8:9] == b'{':
        yield 'safetensors file'
        yield from _networks(tensors.read(path))
    else:
        try:
            content = legacy.load_pkl(path)
        except UserError as error:
            # A plain pickle with tensors says only by its names which kind it is.
            if 'PyTorch' not in str(error):
                raise
            yield from _torch(torch_pickle.load_torch(path))
            return
        yield 'pickle of TensorFlow networks'
        yield from _networks(content)


def _networks(content: Any) -> Iterator[str]:
    states = legacy.network_states(content)
    if not states:
        yield f'no networks, a {type(content).__name__}'
    for state in states:
        yield from _network(state, '')


def _network(state: legacy.NetworkState, indent: str) -> Iterator[str]:
    values = state.all_variables().values()
    count = sum(int(np.size(value)) for value in values)
    yield (f'{indent}{_safe(state.name)}: {_safe(state.build_func_name)}, state version {state.version} '
           f'({_generation(state)}), {len(values)} variables, {count:,} numbers, '
           f'{sum(np.asarray(value).nbytes for value in values) / 1e6:.1f} MB')
    if not indent:
        for key, value in state.static_kwargs.items():
            yield f'    {_safe(key)} = {value!r:.100}'
    for component in state.components.values():
        yield from _network(component, indent + '    ')


def _generation(state: legacy.NetworkState) -> str:
    return 'BigGAN' if 'biggan' in state.build_func_name else _GENERATIONS.get(state.version, 'unknown')


def _biggan(path: str) -> Iterator[str]:
    from dnnlib.tflib.conversion import biggan_import
    try:
        yield from biggan_import.describe(path)
    except UserError as error:
        yield f'cannot be converted: {str(error).removeprefix(f"{path}: ")}'


def _torch(content: Any) -> Iterator[str]:
    yield 'PyTorch file'
    lines = list(_torch_lines(content, '', 0))
    yield from lines[:MAX_LINES]
    if len(lines) > MAX_LINES:
        yield f'... and {len(lines) - MAX_LINES} more'


def _torch_lines(value: Any, name: str, depth: int) -> Iterator[str]:
    indent, label = '    ' * depth, f'{_safe(name)}: ' if name else ''
    if isinstance(value, torch_pickle.Module):
        arrays = torch_pickle.state_dict(value)
        yield (f'{indent}{label}{_safe(value.class_name)}, {len(arrays)} tensors, '
               f'{sum(array.size for array in arrays.values()):,} numbers, '
               f'{sum(array.nbytes for array in arrays.values()) / 1e6:.1f} MB')
        for key, item in value.init_kwargs.items():
            yield f'{indent}    {_safe(key)} = {item!r:.100}'
    elif isinstance(value, np.ndarray):
        yield f'{indent}{label}{value.dtype} {value.shape}'
    elif isinstance(value, dict | list | tuple) and depth < 3 and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        yield f'{indent}{label}{type(value).__name__} of {len(value)}'
        for key, item in pairs:
            yield from _torch_lines(item, str(key), depth + 1)
    else:
        yield f'{indent}{label}{value!r:.100}'


def _safe(text: Any) -> str:
    """Text out of a file, without what would move the cursor of a terminal."""
    return ''.join(c if c.isprintable() else '?' for c in str(text)[:100])
