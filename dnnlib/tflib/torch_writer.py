"""State dicts written as PyTorch reads them, without PyTorch: the zip container of `torch.save`."""

import struct
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from dnnlib.util import UserError

__all__ = ['write_state_dict']

_STORAGES = {'float32': 'FloatStorage', 'float64': 'DoubleStorage', 'float16': 'HalfStorage',
             'int64': 'LongStorage', 'int32': 'IntStorage', 'uint8': 'ByteStorage'}
_ORDERED_DICT = b'ccollections\nOrderedDict\n)R'
_ROOT = 'archive'


def write_state_dict(arrays: Mapping[str, np.ndarray], file: BinaryIO) -> None:
    """Writes {name: array} so that `torch.load`, also with weights_only, returns an OrderedDict of tensors.

    Args:
        arrays: Arrays in any layout of memory.
        file: An open binary file that can seek.

    Errors: UserError for a type that has no counterpart.
    """
    odd = [f'{name} ({value.dtype})' for name, value in arrays.items() if value.dtype.name not in _STORAGES]
    if odd:
        raise UserError(f'PyTorch has no tensors of these types: {", ".join(odd[:5])}')
    items = b''.join(_text(name) + _tensor(value, str(i)) for i, (name, value) in enumerate(arrays.items()))
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        def add(name: str, data: bytes) -> None:
            # One time for all entries: the same arrays give the same bytes.
            archive.writestr(zipfile.ZipInfo(f'{_ROOT}/{name}'), data)
        add('data.pkl', b'\x80\x02' + _ORDERED_DICT + b'(' + items + b'u.')
        add('byteorder', b'little')
        for i, value in enumerate(arrays.values()):
            add(f'data/{i}', np.ascontiguousarray(value, value.dtype.newbyteorder('<')).tobytes())
        add('version', b'3\n')


# Instructions of pickles, protocol 2.

def _text(value: str) -> bytes:
    data = value.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def _number(value: int) -> bytes:
    if value < 1 << 31:
        return b'J' + struct.pack('<i', value)
    return b'\x8a\x08' + struct.pack('<q', value)


def _tuple(*items: bytes) -> bytes:
    return b'(' + b''.join(items) + b't'


def _tensor(value: np.ndarray, key: str) -> bytes:
    """A contiguous tensor whose numbers are the entry data/<key>."""
    strides, step = [], 1
    for size in reversed(value.shape):
        strides.insert(0, step)
        step *= size
    storage = _tuple(_text('storage'), f'ctorch\n{_STORAGES[value.dtype.name]}\n'.encode(), _text(key),
                     _text('cpu'), _number(value.size)) + b'Q'
    arguments = _tuple(storage, _number(0), _tuple(*map(_number, value.shape)),
                       _tuple(*map(_number, strides)), b'\x89', _ORDERED_DICT)
    return b'ctorch._utils\n_rebuild_tensor_v2\n' + arguments + b'R'
