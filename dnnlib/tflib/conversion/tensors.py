"""Pickles of networks as a safetensors file and a JSON document, and back."""

import json
import os
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from dnnlib.tflib.conversion import config
from dnnlib.util import UserError, atomic_write

__all__ = ['config_path', 'read', 'read_arrays', 'read_config', 'write', 'write_config']

MAX_CONFIG_BYTES = 64 << 20
MAX_BYTES = 8 << 30
_DTYPES = ('float16', 'float32', 'float64', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32',
           'uint64', 'bool')


def config_path(path: str) -> str:
    """Where the JSON document of a file stands: beside it, 'x.safetensors' → 'x.json'."""
    for ending in ('.weights.h5', '.safetensors'):
        if path.endswith(ending):
            return path.removesuffix(ending) + '.json'
    return os.path.splitext(path)[0] + '.json'


def write(obj: Any, path: str) -> None:
    """Writes what `legacy.load_pkl` returned as `path` and the JSON document beside it.

    The document stands in the header of the safetensors file too: the file alone is enough to go back.
    """
    document, tensors = config.encode(obj)
    odd = [f'{name} ({array.dtype})' for name, array in tensors.items() if array.dtype.name not in _DTYPES]
    if odd:
        raise UserError(f'safetensors has no arrays of these types: {", ".join(odd[:5])}')
    text = json.dumps(document, indent=1, allow_nan=False)
    data = save_safetensors(tensors, {'format': 'np', 'config': json.dumps(document, allow_nan=False)})
    with atomic_write(path) as file:
        file.write(data)
    write_config(text, path)


def write_config(text: str, path: str) -> None:
    """Writes the JSON document that belongs to `path`."""
    with atomic_write(config_path(path), 'w') as file:
        file.write(text + '\n')


def read(path: str) -> Any:
    """What `write` was given. The JSON document beside the file counts; without it that in its header.

    Errors: UserError, naming the file, for everything else than a sound pair; OSError as `open` raises it.
    """
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise UserError(f'expected a safetensors file of at most {MAX_BYTES >> 30} GiB')
        with open(path, 'rb') as file:
            data = file.read()
        text = _header_config(data)
        tensors = _load(data)
        if os.path.exists(config_path(path)):
            document = read_config(path)
        elif text is not None:
            document = parse_config(text)
        else:
            raise UserError(f'its JSON document {config_path(path)} is missing; convert.py writes both')
        return config.decode(document, tensors)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None


def read_arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of any safetensors file, under the names that they have there."""
    if os.path.getsize(path) > MAX_BYTES:
        raise UserError(f'expected a safetensors file of at most {MAX_BYTES >> 30} GiB')
    with open(path, 'rb') as file:
        return _load(file.read())


def _load(data: bytes) -> dict[str, np.ndarray]:
    try:
        # Copies: arrays that are writable, and do not keep the whole file in memory.
        return {name: np.array(array) for name, array in load_safetensors(data).items()}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'expected a sound safetensors file ({" ".join(str(error).split()):.100}); '
                        'download or copy it again') from None


def _header_config(data: bytes) -> str | None:
    """The text under 'config' in the header: 8 bytes of size, then JSON."""
    size = int.from_bytes(data[:8], 'little')
    if len(data) < 8 or size > min(len(data) - 8, MAX_CONFIG_BYTES):
        raise UserError('expected a safetensors file, found something else')
    header = parse_config(data[8:8 + size])
    metadata = header.get('__metadata__') if isinstance(header, dict) else None
    text = metadata.get('config') if isinstance(metadata, dict) else None
    return text if isinstance(text, str) else None


def read_config(path: str) -> Any:
    """The JSON document that belongs to a file."""
    name = config_path(path)
    if os.path.getsize(name) > MAX_CONFIG_BYTES:
        raise UserError(f'{name}: expected a JSON document of at most {MAX_CONFIG_BYTES >> 20} MiB')
    with open(name, 'rb') as file:
        return parse_config(file.read(), name)


def parse_config(text: str | bytes, name: str = 'its header') -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{name} is no JSON document ({str(error).splitlines()[0]:.80})') from None
