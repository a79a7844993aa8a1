"""Files and folders of BigGAN's weights, read as {name: array}; nothing in them is executed.

Read are state dicts of BigGAN-PyTorch (.pth), the folders of TF-Hub modules deepmind/biggan-* and
biggan-deep-*, and the files biggan-deep-*-pytorch_model.bin of Hugging Face.
"""

import json
import os
import re
from typing import Any, NamedTuple

import numpy as np

from dnnlib.tflib import torch_pickle
from dnnlib.util import UserError

__all__ = ['KINDS', 'Weights', 'read']

KINDS = {
    'torch-G': 'G of BigGAN-PyTorch', 'torch-D': 'D of BigGAN-PyTorch', 'hub': 'TF-Hub module BigGAN',
    'hub-deep': 'TF-Hub module BigGAN-deep', 'hf-deep': 'BigGAN-deep of Hugging Face',
}
STATS_ROWS = 51         # Truncations 0, 0.02, ..., 1.
MAX_VARIABLES = 8 << 30     # Bytes.
_HF_NAMES = ('pytorch_model.bin',)


class Weights(NamedTuple):
    """The weights of one network."""

    path: str
    kind: str                       # Key of KINDS.
    values: dict[str, np.ndarray]   # Suffixes of averages and prefixes of modules are gone.
    counters: dict[str, float]      # Name of the statistics → how many passes were summed, where it says so.
    config: dict[str, Any]          # Of config.json.
    notes: list[str]


def read(path: str) -> list[Weights]:
    """The networks at a path: one of a file or of a module, up to three of a folder of .pth files.

    Errors: UserError, naming the path, for anything else; OSError.
    """
    try:
        if os.path.isdir(path):
            return _read_folder(path)
        return [_read_torch(path)]
    except UserError as error:
        raise UserError(f'{path}: {str(error).removeprefix(f"{path}: ")}') from None


def _read_folder(path: str) -> list[Weights]:
    names = sorted(os.listdir(path))
    if os.path.isdir(os.path.join(path, 'variables')):
        return [_read_hub(path)]
    found = [name for name in names if re.fullmatch(r'(G|D|G_ema)\.pth', name)]
    found = found or [name for name in names if name in _HF_NAMES or name.endswith('-pytorch_model.bin')]
    if not found:
        raise UserError('expected a TF-Hub module (saved_model.pb and the folder variables), G.pth, D.pth '
                        'and G_ema.pth, or pytorch_model.bin; found ' + (', '.join(names[:5]) or 'nothing')
                        + ' … ' * (len(names) > 5))
    return [_read_torch(os.path.join(path, name)) for name in found]


# PyTorch.

def _read_torch(path: str) -> Weights:
    with open(path, 'rb') as file:
        head = file.read(256)
    if b'dnnlib.tflib' in head:
        raise UserError('this is a network pickle, which needs no conversion; expected weights of '
                        'BigGAN-PyTorch, TF-Hub or Hugging Face')
    if head[8:9] == b'{':
        from dnnlib.tflib.conversion import tensors
        arrays = tensors.read_arrays(path)
    elif head[:2] == b'\x1f\x8b':
        raise UserError('this is a gzip archive; unpack it (tar xzf) and give the folder')
    else:
        arrays = torch_pickle.state_dict(torch_pickle.load_torch(path))
    if 'generator.gen_z.weight_orig' in arrays:
        return Weights(path, 'hf-deep', arrays, {}, _read_config(path), [])
    if 'blocks.0.0.conv4.weight' in arrays:
        raise UserError('this is BigGAN-deep of BigGAN-PyTorch, whose authors never trained it; expected its '
                        'BigGAN, or BigGAN-deep of TF-Hub or Hugging Face')
    if 'blocks.0.0.bn1.gain.weight' in arrays:
        counters = {name: float(value.ravel()[0]) for name, value in arrays.items()
                    if name.endswith('.accumulation_counter') and value.size == 1}
        counters = {_plain(name.removesuffix('accumulation_counter') + 'stored_mean'): count
                    for name, count in counters.items()}
        arrays = {_plain(name): value for name, value in arrays.items()
                  if not name.endswith('.accumulation_counter')}
        return Weights(path, 'torch-G', arrays, counters, {}, [])
    if 'blocks.0.0.conv1.weight' in arrays and 'embed.weight' in arrays:
        return Weights(path, 'torch-D', arrays, {}, {}, [])
    raise UserError(f'expected the state dict of BigGAN-PyTorch or of BigGAN-deep of Hugging Face, found '
                    f'tensors of other names: {list(arrays)[:3]!r:.160}')


def _plain(name: str) -> str:
    """The statistics of the alternative batch normalization lie one level deeper."""
    return re.sub(r'\.bn\.(stored_(mean|var))$', r'.\1', name)


def _read_config(path: str) -> dict[str, Any]:
    """config.json beside a file, or NAME-config.json; {} without one."""
    folder, name = os.path.split(path)
    for other in (re.sub(r'pytorch_model\.bin$', 'config.json', name), 'config.json'):
        file = os.path.join(folder, other)
        if other != name and os.path.isfile(file):
            try:
                with open(file, encoding='utf-8') as stream:
                    found = json.load(stream)
                if not isinstance(found, dict):
                    raise ValueError('expected an object')
                return found
            except (ValueError, RecursionError) as error:
                raise UserError(f'{file} is damaged ({" ".join(str(error).split()):.80}); remove it or copy '
                                'it again') from None
    return {}


# TF-Hub.

def _read_hub(path: str) -> Weights:
    """The variables of a module; of those with a moving average, the average."""
    arrays = _read_checkpoint(os.path.join(path, 'variables', 'variables'))
    roots = {name.partition('Generator/')[0] for name in arrays if 'Generator/' in name}
    if len(roots) != 1:
        raise UserError('expected the variables of a BigGAN module (Generator/...), found '
                        f'{sorted(arrays)[:3]!r:.160}')
    root = roots.pop()
    plain, averages = {}, {}
    for name, value in arrays.items():
        if not name.startswith(root):
            continue
        match = re.fullmatch(r'(.*)/ema_[\w.]+', name[len(root):])
        (averages if match else plain)[match[1] if match else name[len(root):]] = value
    notes = []
    lone = [name for name in plain if averages and name not in averages
            and name.rpartition('/')[2] in ('w', 'b', 'gamma', 'beta', 'offset', 'scale')]
    if lone:
        notes.append(f'{len(lone)} weights have no moving average, such as {lone[0]}; they are taken as they '
                     'are')
    values = {**plain, **averages}
    if 'Generator/GenZ/G_linear/w' in values:
        values.update(_read_tables(path))
        return Weights(path, 'hub-deep', values, {}, {}, notes)
    counters = {f'{name.rpartition("/")[0]}/accumulated_mean': float(np.ravel(value)[0])
                for name, value in values.items()
                if name.endswith('/accumulation_counter') and value.size == 1}
    return Weights(path, 'hub', values, counters, {}, notes)


def _read_checkpoint(prefix: str) -> dict[str, np.ndarray]:
    import tensorflow as tf
    if not os.path.exists(f'{prefix}.index'):
        raise UserError(f'there is no {prefix}.index; copy the module again, unpacked (tar xzf)')
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
        if sum(4 * int(np.prod(shape, dtype=np.float64)) for shape in shapes.values()) > MAX_VARIABLES:
            raise UserError(f'its variables are larger than {MAX_VARIABLES >> 30} GiB')
        values = {name: reader.get_tensor(name) for name in shapes}
    except (tf.errors.OpError, RuntimeError, ValueError, OverflowError, LookupError) as error:
        raise UserError(f'its variables cannot be read ({" ".join(str(error).split()):.120}); copy the '
                        'module again') from None
    return {name: value for name, value in values.items() if getattr(value, 'dtype', None) in
            (np.float16, np.float32, np.float64, np.int32, np.int64)}


def _read_tables(path: str) -> dict[str, np.ndarray]:
    """{'stack_1': [51, C], ...}: the statistics of BigGAN-deep, which are constants of its graph."""
    from metrics import weights
    file = os.path.join(path, 'saved_model.pb')
    if not os.path.exists(file):
        raise UserError(f'there is no {file}, which has the statistics of the batch normalization')
    tables = {}
    for name, value in weights.read(file).items():
        match = re.fullmatch(r'(?:.*/)?(stack(?:_\d+)?)', name)
        if match and value.ndim == 2 and value.shape[1] == STATS_ROWS:     # Read in the layout of PyTorch.
            tables.setdefault(match[1], value.T)
    return tables
